"""`mrcnn clean`."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn_tf.data.results import Known
    from mrcnn_tf.postprocess.suppress import Groups

SUMMARY = "take overlapping boxes and redundant masks out of a results file, whoever made it"
EXAMPLES = """Without settings: of two results of an image whose masks (boxes, if there are no masks) have an IoU
above 0.5, the better one stays, whatever their classes.
examples:
  mrcnn clean predictions.json --out clean.json
  mrcnn clean predictions.json --out clean.json --groups class --score-threshold 0.05
  mrcnn clean predictions.json --out clean.json --annotations val.json \\
      --score-threshold 0.3 person=0.6 --groups car,truck,bus cat,dog --min-size 1%
  mrcnn clean predictions.json --out clean.json --merge vote
  mrcnn clean predictions.json --out clean.json --label-maps labels"""

# What the counts of `clean_file` mean, in the order of the steps.
STEPS = {
    "no area": "box or mask without area",
    "score": "score too low",
    "size": "too small or too large",
    "merged": "merged into another",
    "overlap": "overlapping a better one",
    "limit": "above the maximum of detections",
    "hidden": "no pixel of their own left",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "results", metavar="RESULTS", help="a JSON of COCO's results format, entries in any order"
    )
    parser.add_argument("--out", required=True, metavar="JSON", help="the file to write; may be the same")
    parser.add_argument(
        "--annotations", metavar="JSON", help="check ids and sizes by it; classes have names then"
    )
    first = parser.add_argument_group("what to leave out at first")
    first.add_argument(
        "--score-threshold",
        nargs="+",
        default=["0"],
        metavar="S",
        help="keep what has a score above it: a number, and CLASS=NUMBER for others by class (default: 0)",
    )
    first.add_argument(
        "--min-size", metavar="N", help="root of the box's area: pixels, or 5%% of that of the image's"
    )
    first.add_argument("--max-size", metavar="N", help="the same, in the same unit")
    merge = parser.add_argument_group("redundant masks: one of each group")
    merge.add_argument(
        "--merge", choices=("best", "union", "intersection", "vote"), help="default: no merging"
    )
    merge.add_argument(
        "--merge-iou", type=float, default=0.5, metavar="T", help="above it, masks belong together"
    )
    merge.add_argument(
        "--rule",
        choices=("connected", "greedy"),
        default="connected",
        help="who is in a group: all that are linked (default), or those that overlap its best",
    )
    nms = parser.add_argument_group("overlapping results: non-maximum suppression")
    nms.add_argument("--nms", choices=("hard", "linear", "gaussian", "none"), default="hard")
    nms.add_argument(
        "--iou", type=float, default=0.5, metavar="T", help="above it, the better one stays (default: 0.5)"
    )
    nms.add_argument(
        "--measure", choices=("box", "mask"), help="whose IoU (default: masks where there are any)"
    )
    nms.add_argument("--sigma", type=float, default=0.5, metavar="S", help="of gaussian (default: 0.5)")
    nms.add_argument("--max-detections", type=int, metavar="N", help="of an image, the best")
    parser.add_argument(
        "--groups",
        nargs="+",
        default=["all"],
        metavar="G",
        help="what is compared when merging and suppressing: all (default); class: results of one class; "
        "or classes that belong together, such as car,truck cat,dog",
    )
    parser.add_argument(
        "--no-overlap", action="store_true", help="give every pixel to one instance, the best there"
    )
    parser.add_argument("--label-maps", metavar="DIR", help="write label maps of that, IMAGE_ID.png")


def run(options: argparse.Namespace) -> int:
    """`mrcnn clean`."""
    from mrcnn_tf.postprocess.clean import clean_file
    from mrcnn_tf.postprocess.results_file import read_known

    known = read_known(options.annotations) if options.annotations else None
    counts = clean_file(
        options.results,
        options.out,
        known=known,
        label_maps=options.label_maps,
        score_threshold=score_threshold(options.score_threshold, known),
        merge=options.merge,
        merge_iou_threshold=options.merge_iou,
        rule=options.rule,
        nms=None if options.nms == "none" else options.nms,
        iou_threshold=options.iou,
        measure=options.measure,
        groups=class_groups(options.groups, known),
        sigma=options.sigma,
        max_detections=options.max_detections,
        no_overlap=options.no_overlap,
        **sizes(options.min_size, options.max_size),
    )
    print(f"{options.results}: {counts['in']} entries of {counts['images']} images")
    for step, meaning in STEPS.items():
        if counts[step]:
            print(f"  {-counts[step]:>9}  {meaning}")
    print(f"{options.out}: {counts['out']} entries")
    if counts["clipped"]:
        print(f"{counts['clipped']} boxes reached outside their image and were clipped to it")
    return 0


def class_id(text: str, known: Known | None, option: str) -> int:
    """The id of a class by its name, or, also without annotations, by the id itself."""
    if known is not None:
        ids = [i for i, name in known.categories.items() if text in (name, str(i))]
        if len(ids) == 1:
            return ids[0]
        names = ", ".join(list(known.categories.values())[:10])
        raise ValueError(
            f"{option}: {known.path} has {len(ids) or 'no'} classes {text!r}; it has {names}, ..."
        )
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option}: {text!r} is no class id; for names give --annotations") from None


def class_groups(texts: list[str], known: Known | None) -> Groups:
    """`["all"]`, `["class"]`, or `["car,truck", "cat,dog"]` as lists of class ids."""
    if texts in (["all"], ["class"]):
        return "all" if texts == ["all"] else "class"
    return [[class_id(name.strip(), known, "--groups") for name in text.split(",")] for text in texts]


def score_threshold(texts: list[str], known: Known | None) -> float | dict[int, float]:
    """`["0.3", "person=0.6"]` as a number for each class."""
    default: float | None = None
    named: dict[int, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"--score-threshold: {text!r} is neither a number nor CLASS=NUMBER") from None
        if math.isnan(value):
            raise ValueError(f"--score-threshold: {text!r} is neither a number nor CLASS=NUMBER")
        if equals:
            named[class_id(name, known, "--score-threshold")] = value
        elif default is not None:
            raise ValueError(
                f"--score-threshold: {default:g} and {value:g} are both for all classes; give one"
            )
        else:
            default = value
    whole = default or 0.0
    return defaultdict(lambda: whole, named) if named else whole


def sizes(smallest: str | None, largest: str | None) -> dict[str, Any]:
    """`"20"` as pixels, `"5%"` as a share."""
    texts = {"min_size": smallest, "max_size": largest}
    given = {key: text for key, text in texts.items() if text is not None}
    shares = {text.endswith("%") for text in given.values()}
    if len(shares) > 1:
        raise ValueError(
            f"--min-size {smallest} and --max-size {largest}: give both in pixels or both as a share, N%"
        )
    try:
        values = {
            key: float(text.removesuffix("%")) / (100 if True in shares else 1) for key, text in given.items()
        }
    except ValueError:
        raise ValueError(
            f"--min-size and --max-size take pixels or N%, not {' and '.join(given.values())}"
        ) from None
    if not all(value >= 0 for value in values.values()):
        raise ValueError(
            f"--min-size and --max-size must not be negative, as {' and '.join(given.values())} are"
        )
    return {**values, "size_unit": "share" if True in shares else "pixels"}
