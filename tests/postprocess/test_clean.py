"""Cleaning one image and a file: what goes, what stays, what is counted."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.postprocess.clean import clean_file, clean_image
from mrcnn_tf.postprocess.results_file import ImageResults, read_known
from tests.postprocess.drawn import SIZE, decode, encode, instances
from tests.postprocess.test_results_file import annotations


def code(mask):
    rle = encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def bar(start, stop, score=0.5, category=1, box=True, mask=True, **more):
    """One row of 12 pixels; `[start, stop)` of it."""
    dense = np.zeros((1, 12), bool)
    dense[:, start:stop] = True
    entry = {"image_id": 3, "category_id": category, "score": score, **more}
    if box:
        entry["bbox"] = [start, 0, stop - start, 1]
    if mask:
        entry["segmentation"] = code(dense)
    return entry


def image(*entries):
    return ImageResults(3, list(range(10, 10 + len(entries))), list(entries))


def scores(cleaned):
    return [entry["score"] for entry in cleaned.entries]


def test_without_settings_the_better_of_two_overlapping_stays():
    given = [bar(0, 6, 0.5), bar(0, 7, 0.9, category=2, extra="kept"), bar(8, 12, 0.4)]
    cleaned = clean_image(image(*given))
    assert cleaned.entries == [given[1], given[2]]
    assert cleaned.labels is None
    assert cleaned.counts == Counter({"in": 3, "overlap": 1, "out": 2})


def test_by_class_only_results_of_one_class_meet():
    given = [bar(0, 6, 0.5), bar(0, 7, 0.9, category=2), bar(0, 5, 0.4)]
    assert scores(clean_image(image(*given), groups="class")) == [0.9, 0.5]


def test_masks_are_measured_where_there_are_any():
    # The boxes are the same, the masks have nothing in common.
    given = [bar(0, 3, 0.9) | {"bbox": [0, 0, 6, 1]}, bar(3, 6, 0.8) | {"bbox": [0, 0, 6, 1]}]
    assert scores(clean_image(image(*given))) == [0.9, 0.8]
    assert scores(clean_image(image(*given), measure="box")) == [0.9]
    boxes = [{k: v for k, v in e.items() if k != "segmentation"} for e in given]
    assert scores(clean_image(image(*boxes))) == [0.9]


def test_each_reason_is_counted_once():
    given = [
        bar(0, 0, 0.9),  # no area
        bar(0, 4, 0.01),  # score
        bar(5, 6, 0.8),  # size
        bar(0, 6, 0.9),
        bar(0, 5, 0.7),  # merged
        bar(7, 12, 0.6),
        bar(8, 12, 0.5, category=2),  # overlap, of another class: not merged
        bar(3, 6, 0.3),  # hidden below the first two
    ]
    cleaned = clean_image(
        image(*given),
        score_threshold=0.1,
        min_size=1.5,
        merge="union",
        groups=[[1], [2]],
        iou_threshold=0.55,
        merge_iou_threshold=0.55,
        no_overlap=True,
    )
    # Classes do not meet, so the overlap across them goes in the last step.
    assert cleaned.counts == Counter(
        {
            "in": 8,
            "no area": 1,
            "score": 1,
            "size": 1,
            "merged": 1,
            "hidden": 2,
            "out": 2,
        }
    )
    assert [e["merged_from"] for e in cleaned.entries] == [[13, 14], [15]]
    cleaned = clean_image(image(*given[3:]), max_detections=1)
    assert cleaned.counts == Counter({"in": 5, "overlap": 2, "limit": 2, "out": 1})


def test_merged_entries_have_mask_box_and_area_of_the_group():
    given = [bar(0, 6, 0.8, area=6, note="b"), bar(2, 8, 0.9, area=6, note="a"), bar(10, 12, 0.5, area=2)]
    cleaned = clean_image(image(*given), merge="union", merge_iou_threshold=0.4)
    first, second = cleaned.entries
    assert first == bar(0, 8, 0.9, area=8, note="a", merged_from=[11, 10])
    assert second == given[2] | {"merged_from": [12]}
    assert cleaned.counts == Counter({"in": 3, "merged": 1, "out": 2})
    best = clean_image(image(*given), merge="best", merge_iou_threshold=0.4).entries[0]
    assert best == given[1] | {"merged_from": [11, 10]}


def test_soft_suppression_writes_the_decayed_score():
    given = [bar(0, 10, 0.9), bar(0, 8, 0.8)]
    cleaned = clean_image(image(*given), nms="linear")
    assert scores(cleaned) == [0.9, 0.16]
    assert given[1]["score"] == 0.8
    assert clean_image(image(*given), nms="linear", score_threshold=0.2).counts["overlap"] == 1
    assert scores(clean_image(image(*given), nms=None)) == [0.9, 0.8]


def test_boxes_come_from_masks_and_are_clipped_to_the_image():
    given = [
        bar(1, 4, box=False),
        bar(8, 12) | {"bbox": [8, -0.5, 6, 2]},
        bar(5, 7) | {"bbox": [5, 0, 2.001, 1]},
    ]
    cleaned = clean_image(image(*given))
    assert sorted(e["bbox"] for e in cleaned.entries) == [[1, 0, 3, 1], [5, 0, 2.001, 1], [8, 0, 4, 1]]
    assert cleaned.counts["clipped"] == 1
    boxes = [bar(10, 20, mask=False), bar(30, 40, mask=False)]
    assert clean_image(image(*boxes)).counts == Counter({"in": 2, "out": 2})
    assert clean_image(image(*boxes), image_size=(1, 12)).counts == Counter(
        {
            "in": 2,
            "clipped": 2,
            "no area": 1,
            "out": 1,
        }
    )


def test_entries_without_pixels_of_their_own_go():
    loose = {"bbox": [0, 0, 10.5, 1]}  # a box of its own stays with a mask that loses nothing
    given = [bar(0, 10, 0.9) | loose, bar(2, 4, 0.5), bar(8, 12, 0.7)]
    cleaned = clean_image(image(*given), no_overlap=True)
    assert cleaned.labels.tolist() == [[1] * 10 + [2] * 2]
    assert cleaned.entries == [given[0], bar(10, 12, 0.7)]
    assert cleaned.counts == Counter({"in": 3, "hidden": 1, "out": 2})


SETTINGS = st.fixed_dictionaries(
    {
        "merge": st.sampled_from([None, "best", "union", "intersection", "vote"]),
        "rule": st.sampled_from(["connected", "greedy"]),
        "nms": st.sampled_from([None, "hard", "linear", "gaussian"]),
        "groups": st.sampled_from(["class", "all"]),
        "no_overlap": st.booleans(),
        "max_detections": st.sampled_from([None, 2]),
    }
)


@given(instances(), SETTINGS, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_of_the_input_does_not_matter_and_every_entry_is_accounted_for(drawn, chosen, random):
    entries = [
        {"image_id": 1, "category_id": int(c), "score": float(s), "segmentation": code(m)}
        for s, c, m in zip(*drawn[1:], strict=True)
    ]
    order = list(range(len(entries)))
    random.shuffle(order)
    one = clean_image(ImageResults(1, list(range(len(entries))), entries), **chosen)
    other = clean_image(ImageResults(1, order, [entries[i] for i in order]), **chosen)
    for made in (one, other):
        reasons = ("no area", "score", "size", "merged", "overlap", "limit", "hidden", "out")
        assert sum(made.counts[r] for r in reasons) == made.counts["in"] == len(entries)
        assert len(made.entries) == made.counts["out"]
    assert [e | {"merged_from": 0} for e in one.entries] == [e | {"merged_from": 0} for e in other.entries]
    if chosen["no_overlap"] and entries:
        for i, entry in enumerate(one.entries):
            np.testing.assert_array_equal(decode(entry["segmentation"]), one.labels == i + 1)
    json.dumps(one.entries)


@given(instances())
@settings(max_examples=40, deadline=None)
def test_cleaning_twice_is_cleaning_once(drawn):
    entries = [
        {"image_id": 1, "category_id": int(c), "score": float(s), "segmentation": code(m)}
        for s, c, m in zip(*drawn[1:], strict=True)
    ]
    once = clean_image(ImageResults(1, list(range(len(entries))), entries)).entries
    assert clean_image(ImageResults(1, list(range(len(once))), once)).entries == once


@pytest.mark.parametrize("setting", [{"merge": "vote"}, {"no_overlap": True}, {"measure": "mask"}])
def test_what_needs_masks_says_so(setting):
    with pytest.raises(ValueError, match="need masks; these results have boxes only"):
        clean_image(image(bar(0, 3, mask=False)), **setting)


def test_masks_for_some_are_refused():
    with pytest.raises(ValueError, match="entry 11 has no 'segmentation'"):
        clean_image(image(bar(0, 3), bar(0, 3, mask=False)))


def test_a_file_is_cleaned_and_its_label_maps_written(tmp_path):
    full = np.ones(SIZE)
    entries = [
        {"image_id": i, "category_id": 2, "score": s, "segmentation": code(full)}
        for s in (0.5, 0.9)
        for i in (1, 4)
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(entries))
    known = read_known(annotations(tmp_path, images=((1, *SIZE), (4, *SIZE), (9, 2, 3), (8, None, None))))
    counts = clean_file(path, path, known=known, label_maps=tmp_path / "maps")
    assert counts == Counter({"in": 4, "overlap": 2, "out": 2, "images": 2})
    assert json.loads(path.read_text()) == [
        entries[2] | {"bbox": [0, 0, 9, 7]},
        entries[3] | {"bbox": [0, 0, 9, 7]},
    ]
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["1.png", "4.png", "9.png"]


def test_errors_name_the_file_and_leave_nothing(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([bar(0, 3, mask=False)]))
    with pytest.raises(ValueError, match=r"r\.json: image 3: .*need masks"):
        clean_file(path, tmp_path / "out.json", merge="best")
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], not 2"):
        clean_file(path, tmp_path / "out.json", iou_threshold=2)
    path.write_text(json.dumps([bar(0, 3) | {"image_id": "a/b"}]))
    with pytest.raises(ValueError, match="'a/b' cannot be the name of a label map"):
        clean_file(path, tmp_path / "out.json", label_maps=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
