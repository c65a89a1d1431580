"""`mrcnn masks`."""

from __future__ import annotations

import argparse

SUMMARY = "size and error of each form that masks can have, and converting a file to one"
EXAMPLES = """examples:
  mrcnn masks annotations.json                                    a table
  mrcnn masks predictions.json --to polygons --tolerance 0.5 --out polygons.json
  mrcnn masks polygons.json --annotations A.json --to rle --out rle.json
forms: rle and rle-uncompressed are COCO's run-length codes; polygons COCO's polygons, exact or to a tolerance;
box-mask a small map over the box, as models give it; packed-bits the pixels, eight in a byte."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("file", metavar="JSON", help="COCO results or annotations")
    parser.add_argument(
        "--annotations", metavar="JSON", help="sizes of the images, for results that are polygons"
    )
    parser.add_argument("--first", type=int, metavar="N", help="masks to measure (default: 1000)")
    parser.add_argument(
        "--tolerance",
        type=float,
        nargs="+",
        metavar="PX",
        help="of polygons (default: 0 0.5 1 2 in the table, 0 with --to)",
    )
    parser.add_argument(
        "--mask-size",
        type=int,
        nargs="+",
        metavar="M",
        help="cells a side of small masks (default: 28 112 in the table, 28 with --to)",
    )
    parser.add_argument("--to", metavar="FORM", help="the form to convert to, instead of measuring")
    parser.add_argument("--out", metavar="JSON", help="the file to write, with --to")


def run(options: argparse.Namespace) -> None:
    """`mrcnn masks`."""
    from mrcnn_tf.postprocess.mask_files import convert_masks, format_masks, measure_masks

    if (options.to is None) != (options.out is None):
        raise ValueError("--to and --out belong together: the form, and the file to write")
    settings = {"tolerance": options.tolerance, "mask_size": options.mask_size}
    given = {key: values for key, values in settings.items() if values is not None}
    if options.to is None:
        plural = {{"tolerance": "tolerances", "mask_size": "mask_sizes"}[k]: v for k, v in given.items()}
        if options.first is not None:
            plural["first"] = options.first
        print(format_masks(measure_masks(options.file, annotations=options.annotations, **plural)))
        return
    if options.first is not None:
        raise ValueError("--first is for the table; --to converts the whole file")
    for key, form in (("tolerance", "polygons"), ("mask_size", "box-mask")):
        name = f"--{key.replace('_', '-')}"
        if key in given and (options.to != form or len(given[key]) != 1):
            raise ValueError(f"{name} with --to takes one value, and is for --to {form}")
    single = {key: values[0] for key, values in given.items()}
    told = convert_masks(options.file, options.to, options.out, annotations=options.annotations, **single)
    print(
        f"{told['masks']} masks written as {options.to} to {options.out}, {told['empty']} of them empty; "
        f"{told['without']} entries have no mask\n"
        f"IoU with what they were: {told['iou']:.4f}, at worst {told['worst_iou']:.4f}; boundaries moved by at most "
        f"{told['worst_deviation']:.1f} pixels; {told['lost']} masks lost"
    )
