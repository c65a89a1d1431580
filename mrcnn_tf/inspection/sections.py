"""The page's sections: each takes the report and gives HTML, or says why a part is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mrcnn_tf.inspection.charts import bars, columns, figure, lines, number, table

__all__ = ["errors", "findings", "overlaps", "pictures", "proposals"]

Report = Mapping[str, Any]
_TITLES = {"bbox": "boxes", "segm": "masks"}
_BADGES = {"high": "Problem", "low": "Note", "good": "Good"}
_HOW = {"set": "Set, on the trained model too", "train": "Train with", "run": "Run"}
_CLASSES = 12  # of a confusion matrix that a reader can take in
_NO_MODEL = "Proposals are inside a model: give --model M instead of --results, and --images."
_NO_PICTURES = "No pictures: give --images DIR, the folder of the images."


def findings(report: Report) -> str:
    """What is wrong, where it comes from and what to set; key figures; notes on the input."""
    parts = ['<ol class="findings">\n']
    for finding in report["findings"]:
        setting = finding.get("setting")
        parts.append(
            f'<li class="{escape(finding["severity"])}"><h3><span class="badge">{_BADGES[finding["severity"]]}:</span> '
            f"{escape(finding['title'])}</h3><p>{escape(finding['text'])}</p>"
            + (
                f"<p><strong>{_HOW[finding['how']]}:</strong> <code>{escape(setting)}</code></p>"
                if setting
                else ""
            )
            + "</li>\n"
        )
    parts.append("</ol>\n")
    if not report["findings"]:
        parts = ["<p>Nothing stands out.</p>"]
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{number(v)}</dd></div>" for k, v in _key_figures(report))
    parts.append(f'<dl class="keys">{cells}</dl>\n')
    if report["notes"]:
        notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
        parts.append(f"<h3>Notes on the input</h3><ul>{notes}</ul>\n")
    return "".join(parts)


def _key_figures(report: Report) -> list[tuple[str, Any]]:
    metrics = report["metrics"]
    figures: list[tuple[str, Any]] = []
    for kind, title in (("bbox", "Box"), ("segm", "Mask")):
        if f"{kind}/AP" in metrics:
            figures += [(f"{title} AP", metrics[f"{kind}/AP"]), (f"{title} AP50", metrics[f"{kind}/AP50"])]
    if report["boundary"]:
        figures.append(("Boundary AP", report["boundary"]["AP"]))
    if report["proposals"]:
        row = report["proposals"]["recall"][-1]
        figures.append((f"Recall of {row['at']} proposals at IoU 0.5", row["all50"]))
    if report["overlaps"] and (images := report["overlaps"]["images"]):
        pairs = next(p for p in report["overlaps"]["pairs"] if p["iou"] == 0.5)
        both = (pairs["same_class"] + pairs["other_class"]) / images
        figures.append(("Overlapping pairs an image (IoU 0.5)", f"{both:.2f}"))
    return figures


def proposals(report: Report) -> str:
    """Recall of the proposals, how close the best comes, and what the anchors could reach."""
    found = report["proposals"]
    if found is None:
        return f"<p>{_NO_MODEL}</p>" + _anchors(report["anchors"])
    sizes = ("all", "small", "medium", "large")
    head = ["proposals", "all, IoU 0.5", *(f"{s} ({found['instances'][s]})" for s in sizes)]
    rows = [[f"best {r['at']}", r["all50"], *(r[s] for s in sizes)] for r in found["recall"]]
    last = found["recall"][-1]
    caption = "Recall of the proposals: mean over the IoU thresholds 0.50 to 0.95, by instance size"
    chart = bars(
        "recall",
        caption,
        "; ".join(f"{r[0]}: {number(r[2])}" for r in rows),
        [(f"best {r['at']}", r["all"]) for r in found["recall"]]
        + [(f"{s}, best {last['at']}", last[s]) for s in sizes[1:]],
    )
    note = "Recall of the proposals (mean over IoU 0.50 to 0.95). What they miss, no later stage can find."
    parts = [figure(chart, table(caption, head, rows), note=note)]
    edges, counts = found["best_iou"]["edges"], found["best_iou"]["counts"]
    caption = "Instances by the IoU of their best proposal"
    bins = [f"{a:.2f} to {b:.2f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    numbers = table(caption, ["IoU", "instances"], list(zip(bins, counts, strict=True)))
    below = sum(c for e, c in zip(edges[1:], counts, strict=True) if e <= 0.5 + 1e-9)
    chart = columns("best-iou", caption, f"{below} of {sum(counts)} lie below 0.5", edges, counts, axis="IoU")
    note = f"Each instance's best proposal: {below} of {sum(counts)} have none with an IoU of 0.5 or more."
    parts.append(figure(chart, numbers, note=note))
    return f'<div class="charts">{"".join(parts)}</div>' + _anchors(report["anchors"])


def _anchors(anchors: Report | None) -> str:
    """The ceiling that anchors set before any training."""
    if anchors is None:
        return "<p>No anchors to judge; the notes on the input say why.</p>"
    rows = []
    for key in ("current", "suggested"):
        a = anchors[key]
        rows.append(
            [
                key,
                ", ".join("/".join(f"{s:g}" for s in level) for level in a["sizes"]),
                ", ".join(f"{r:g}" for r in a["aspect_ratios"]),
                *(a[k] for k in ("recall50", "recall70", "mean_best_iou")),
            ]
        )
    caption = "Share of instances that some anchor overlaps by IoU 0.5 and 0.7, before any training"
    head = ["anchors", "sizes by level", "aspect ratios", "IoU 0.5", "IoU 0.7", "mean best IoU"]
    return f"<h3>The ceiling of the anchors</h3><p>{escape(anchors['text'])}</p>{table(caption, head, rows)}"


def overlaps(report: Report) -> str:
    """Pairs of detections that overlap, and what the NMS threshold does to them."""
    found, sweep = report["overlaps"], report["sweep"]
    if not found:
        return "<p>There are no detections to compare.</p>"
    pairs = found["pairs"] if found["measure"] == "box" else found["boxes"]
    columns_of = [("boxes", pairs)]
    if found["measure"] == "mask":
        columns_of.append(("masks", found["pairs"]))
    head = [
        "IoU above",
        *(f"{of}, {which}" for of, _ in columns_of for which in ("same class", "other class")),
    ]
    rows = [
        [
            f"{row['iou']:g}",
            *(rows[i][key] for _, rows in columns_of for key in ("same_class", "other_class")),
        ]
        for i, row in enumerate(pairs)
    ]
    caption = (
        f"Pairs among the {found['detections']:,} detections from score {found['score_threshold']:g} on, "
        f"of {found['images']:,} images"
    )
    told = (
        f"<div>{table(caption, head, rows)}<p>NMS within each class takes out pairs of the same class; pairs of two "
        "classes pass it, and go with NMS over all classes or groups of classes.</p></div>"
    )
    return f'<div class="charts">{told}{_sweep(sweep)}</div>'


def _sweep(sweep: Report | None) -> str:
    """AP and duplicates against the NMS threshold."""
    if not sweep or sweep["suggested"] is None:
        return "<p>The NMS threshold cannot be judged: there is nothing to find, or nothing was found.</p>"
    marks = [(sweep["suggested"], f"suggested {sweep['suggested']:g}")]
    now = "cannot be told from the results"
    if sweep["current"] is not None:
        now = f"{sweep['current']:g}"
        if sweep["current"] != sweep["suggested"]:
            marks.append((sweep["current"], f"now {now}"))
    advice = (
        f"NMS threshold now: {now}. Suggested: {sweep['suggested']:g}; of those with all but the best AP, the one with "
        "the fewest duplicates. The network was not run anew."
    )
    of = "mask" if "mask_AP" in sweep["rows"][0] else "box"
    keys = {
        "mask_AP" if of == "mask" else "AP": f"AP of {_TITLES['segm' if of == 'mask' else 'bbox']}",
        "duplicates_per_image": "Duplicates an image",
    }
    charts = []
    for key, title in keys.items():
        text = f"{title} against the NMS threshold"
        points = [(r["threshold"], float(r[key])) for r in sweep["rows"]]
        told = "; ".join(f"{x:g}: {number(y)}" for x, y in points)
        chart = lines(f"sweep-{key}", text, told, points, axis="NMS threshold (IoU)", marks=marks)
        numbers: list[Sequence[Any]] = [[f"{x:g}", y] for x, y in points]
        if "as_is" in sweep:
            numbers.append(["as it is", float(sweep["as_is"][key])])
        charts.append(figure(chart, table(text, ["threshold", title], numbers), note=f"{text}. {advice}"))
        advice = ""
    return "".join(charts)


def errors(report: Report) -> str:
    """What costs AP, what is confused with what, calibration, and AP by size and by crowding."""
    charts = []
    for kind, title in _TITLES.items():
        budget = report["errors"].get(kind)
        if not budget:
            continue
        gains = budget["main"] | budget["special"]
        largest = max(budget["main"], key=lambda k: budget["main"][k])
        caption = (
            f"AP50 of {title} that would be won without each kind of error (now {number(budget['AP50'])})"
        )
        told = "; ".join(f"{label}: {number(value)}" for label, value in budget["main"].items())
        rows = [[label.replace("_", " "), v, budget["counts"].get(label)] for label, v in gains.items()]
        charts.append(
            figure(
                bars(f"errors-{kind}", caption, told, list(budget["main"].items()), mark=largest),
                table(caption, ["error", "AP50 won", "count"], rows),
                note=f"{caption}, as TIDE defines them. The largest: {largest}.",
            )
        )
    charts.append(_calibration(report["calibration"]))
    parts = [f'<div class="charts">{"".join(charts)}</div>']
    if "segm" not in report["errors"]:
        parts.append("<p>No masks were measured: results or annotations have none.</p>")
    tables = [
        _slices(report["by_size"], "size", "AP by size: the square root of the area, in pixels"),
        _slices(
            report["by_crowding"],
            "crowding",
            "AP by crowding: instances in the image, IoU of the box with the nearest other",
        ),
    ]
    if report["boundary"]:
        rows = [[k, report["metrics"].get(f"segm/{k}"), v] for k, v in report["boundary"].items()]
        tables.append(
            f"<div>{table('Mask AP and boundary AP', ['metric', 'mask', 'boundary'], rows)}<p>"
            "Boundary AP looks at a band along the outline only: far below mask AP, masks are in the right place, but "
            "coarse.</p></div>"
        )
    parts.append(f'<div class="side">{"".join(tables)}</div>')
    return "".join([*parts, _confusion(report["confusion"])])


def _calibration(found: Report | None) -> str:
    if not found or not sum(found["counts"]):
        return "<p>No calibration: there are no detections, or the notes on the input say why.</p>"
    rows = list(zip(found["mean_score"], found["precision"], found["counts"], strict=True))
    points = [(score, right) for score, right, count in rows if count]
    caption = "Share of right detections against their score"
    told = f"expected calibration error {found['expected_error']:.3f}"
    chart = lines("calibration", caption, told, points, axis="mean score", y_range=(0.0, 1.0), diagonal=True)
    edges = found["edges"]
    bins = [f"{a:.1f} to {b:.1f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    numbers = table(
        caption,
        ["score", "mean score", "right", "detections"],
        [[b, *row] for b, row in zip(bins, rows, strict=True)],
    )
    note = f"{caption}; {told}. Below the dotted line: more confident than right."
    return figure(chart, numbers, note=note)


def _slices(rows: Sequence[Report] | None, head: str, title: str) -> str:
    if not rows:
        return ""
    keys = [k for k in rows[0] if "/" in k]
    names = [f"{'box' if k.startswith('bbox') else 'mask'} {k.partition('/')[2]}" for k in keys]
    body = [[row["label"], row["instances"], *(row.get(k) for k in keys)] for row in rows]
    return table(title, [head, "instances", *names], body)


def _confusion(found: Report | None) -> str:
    """The matrix of the classes that are confused most, and the most frequent confusions as a list."""
    if not found or not found["classes"]:
        return ""
    names, matrix = found["classes"], found["matrix"]
    last = len(names)
    wrong = [(matrix[r][c], r, c) for r in range(last) for c in range(last) if r != c and matrix[r][c]]
    wrong.sort(key=lambda item: (-item[0], *item[1:]))
    # The classes of the most frequent confusions, then the most frequent ones.
    often = sorted(range(last), key=lambda k: -sum(matrix[k]) - sum(row[k] for row in matrix))
    ranked = dict.fromkeys([k for _, *pair in wrong for k in pair] + often)
    shown = sorted(list(ranked)[:_CLASSES])
    body = []
    for r in [*shown, last]:
        total = max(sum(matrix[r]), 1)
        cells = []
        for c in [*shown, last]:
            shade = f"h{min(4, -(-5 * matrix[r][c] // total))}{' right' if r == c else ''}"
            cells.append("<td>–</td>" if r == c == last else f'<td class="{shade}">{matrix[r][c]}</td>')
        label = escape("background" if r == last else names[r])
        body.append(f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>\n')
    caption = f"Confusion from score {found['score_threshold']:g} on: truth in rows, prediction in columns"
    if last > len(shown):
        caption += f"; the {len(shown)} of {last} classes that are confused most"
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in [*(names[k] for k in shown), "missed"])
    grid = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table class="heat">'
        f'<caption><span>{caption}</span></caption><thead><tr><th scope="col">truth</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    pairs = [[names[r], names[c], n] for n, r, c in wrong[:_CLASSES]]
    often_wrong = table("Most frequent confusions", ["truth", "taken for", "times"], pairs) if pairs else ""
    return f'<div class="side">{grid}{often_wrong or "<p>No class is taken for another.</p>"}</div>'


def pictures(report: Report) -> str:
    """Groups of pictures, each with its switch."""
    found = report["pictures"]
    if not found:
        return f"<p>{_NO_PICTURES}</p>"
    shown = sum(len(group["items"]) for group in found["groups"])
    parts = [
        f"<p>{shown} pictures of {found['images']} images, with the detections from score "
        f"{found['score_threshold']:g} on, compared by the IoU of {_TITLES[found['iou_type']]} at 0.5.</p>",
        _key(),
        _switch("all", "All pictures:", ' id="all-pictures" class="all" hidden'),
    ]
    for g, group in enumerate(found["groups"]):
        parts.append(f"<h3>{escape(group['title'])}</h3><p>{escape(group['text'])} ")
        parts.append(f"{len(group['items'])} of {group['of']} such images are shown.</p>\n")
        items = [_item(item, f"p{g}-{i}") for i, item in enumerate(group["items"])]
        parts.append(f'<div class="pictures">{"".join(items)}</div>\n')
    return "".join(parts)


def _key() -> str:
    kinds = (
        ("found", "truth: found"),
        ("missed", "truth: missed"),
        ("crowd", "truth: neither to be found nor wrong to find"),
        ("right", "prediction: right, or not counted"),
        ("wrong", "prediction: wrong, with the kind of error and the score"),
    )
    items = "".join(
        f'<li><svg viewBox="0 0 40 20" aria-hidden="true"><path class="{kind}" d="M4 3h32v14h-32z"/></svg>{text}</li>'
        for kind, text in kinds
    )
    return f'<ul class="key">{items}</ul>'


def _switch(name: str, legend: str, attributes: str = "") -> str:
    choices = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{checked}>{value}</label>'
        for value, checked in (("truth", ""), ("prediction", ""), ("both", " checked"))
    )
    return f"<fieldset{attributes}><legend>{legend}</legend>{choices}</fieldset>\n"


def _item(item: Report, key: str) -> str:
    name, reason = escape(item["file_name"]), escape(item["reason"])
    size = f'width="{item["width"]}" height="{item["height"]}"'
    hidden = f" {item['hidden']} more shapes are not drawn." if item["hidden"] else ""
    return (
        f'<figure class="picture"><h4>{name}</h4>{_switch(key, "Show:")}'
        f'<svg role="img" aria-label="{name}: {reason}" viewBox="0 0 {item["width"]} {item["height"]}">'
        f'<image href="data:image/jpeg;base64,{item["jpeg"]}" {size} preserveAspectRatio="none"/>'
        f'<g class="truth">{item["truth"]}</g><g class="prediction">{item["prediction"]}</g></svg>'
        f"<figcaption>{reason}.{hidden}</figcaption></figure>\n"
    )
