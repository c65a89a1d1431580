"""The chosen pictures and what is drawn on them."""

from __future__ import annotations

import base64
import re

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluation.coco import match_coco
from mrcnn_tf.evaluation.errors import error_budget
from mrcnn_tf.inspection.pictures import choose, images_of, make_pictures
from tests.inspection.planted import SIDE, entry, planted, write

NAMES = {3: "cat", 4: "dog"}


def looked_at(truth, results, *, kind="segm", score_threshold=0.3):
    read, matchings = match_coco(truth, results)
    kinds = error_budget(read, matchings[kind])["kinds"]
    return images_of(read, results, matchings[kind], kinds, score_threshold=score_threshold), read


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_what_was_found_missed_and_wrong(kind):
    truth, results = planted()
    images, _ = looked_at(truth, results, kind=kind)
    assert {i: image.found for i, image in images.items()} == {10: 2, 20: 2, 30: 1, 40: 1}
    assert [list(image.wrong.values()) for image in images.values()] == [
        [],
        ["duplicate"],
        [],
        ["classification"],
    ]
    assert {
        i: {truth["annotations"][k]["image_id"] for k in image.missed} for i, image in images.items()
    } == {
        **{10: set(), 20: set()},
        **{30: {30}, 40: {40}},
    }
    # F1 of 2 right with 1 wrong, 1 with 1 missed, 1 with 1 missed and 1 wrong.
    assert [image.right for image in images.values()] == pytest.approx([1, 4 / 5, 2 / 3, 2 / 4])


def test_what_only_a_low_score_found_is_missed():
    truth, results = planted(images=1)
    results[0]["score"] = 0.2
    images, _ = looked_at(truth, results)
    assert (images[10].found, len(images[10].missed), images[10].detections) == (1, 1, [1])


def test_crowd_regions_are_neither(tmp_path):
    truth, results = planted(images=1)
    truth["annotations"][0]["iscrowd"] = 1
    images, read = looked_at(truth, results)
    assert (images[10].found, images[10].missed, images[10].wrong, images[10].crowd) == (1, set(), {}, {0})
    groups = choose(images, results, {10: 1}, NAMES, count=1)
    assert [g["of"] for g in groups] == [0, 1, 0]
    files = write(tmp_path, truth, results)
    assert make_pictures(groups, images, files["images"], read, results, NAMES) == []
    assert re.findall('class="([^"]+)"', groups[1]["items"][0]["truth"]) == [
        "box crowd",
        "crowd",
        "box found",
        "found",
    ]


def test_of_equally_bad_images_the_one_with_more_mistakes_is_worse():
    truth, results = planted(images=2)
    truth["annotations"].append(
        truth["annotations"][2] | {"id": 9, "bbox": [40, 2, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9]]}
    )
    images, _ = looked_at(truth, [])
    groups = choose(images, [], {}, NAMES, count=2)
    assert [(i["image_id"], i["reason"]) for i in groups[0]["items"]] == [
        (20, "0 of 3 found"),
        (10, "0 of 2 found"),
    ]


def test_order_of_the_groups_and_their_bound():
    truth, results = planted()
    images, _ = looked_at(truth, results)
    groups = choose(images, results, {10: 1, 30: 4, 40: 2}, NAMES, count=2)
    assert [[i["image_id"] for i in g["items"]] for g in groups] == [[40, 30], [30, 40], [40, 20]]
    assert [g["of"] for g in groups] == [3, 3, 2]
    assert groups[0]["items"][0]["reason"] == "1 of 2 found, 1 of another class"
    assert [i["reason"] for i in groups[1]["items"]] == ["4 overlapping pairs", "2 overlapping pairs"]
    assert choose(images, results, {}, NAMES, count=0)[0]["items"] == []


def drawn(tmp_path, truth, results):
    images, read = looked_at(truth, results)
    groups = choose(images, results, {}, NAMES, count=8)
    files = write(tmp_path, truth, results)
    problems = make_pictures(groups, images, files["images"], read, results, NAMES)
    return groups, problems


def filled(path, side):
    """The mask that an SVG path of straight lines encloses."""
    mask = np.zeros((side, side), np.uint8)
    for part in re.findall(r"M([^Mz]+)z", path):
        points = np.array([[float(v) for v in p.split()] for p in part.split("L")])
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask


def test_outlines_follow_masks(tmp_path):
    truth, results = planted(images=1)
    disc = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(disc, (26, 20), 12, 1, -1)
    code = coco_mask.encode(np.asfortranarray(disc))
    results[0] |= {"segmentation": {"size": [SIDE, SIDE], "counts": code["counts"].decode()}}
    groups, problems = drawn(tmp_path, truth, results)
    item = groups[0]["items"][0]
    assert not problems and (item["width"], item["height"]) == (640, 640)
    path = re.search(r'class="wrong" d="([^"]+)"', item["prediction"])[1]
    wanted = cv2.resize(disc, (640, 640), interpolation=cv2.INTER_NEAREST)
    mask = filled(path, 640)
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.93
    # What is wrong is drawn last, has its label, and every shape its name.
    assert item["prediction"].index('"right"') < item["prediction"].index('"wrong"')
    assert re.findall("<text[^>]*>([^<]*)<", item["prediction"]) == ["cat 0.89 localisation"]
    assert re.findall("<title>([^<]*)<", item["prediction"]) == ["dog 0.89", "cat 0.89 localisation"]
    assert re.findall("<text[^>]*>([^<]*)<", item["truth"]) == ["missed cat"]


def test_jpegs_are_small_and_of_the_image(tmp_path):
    truth, results = planted(images=1)
    files = write(tmp_path, truth, results)
    big = np.full((300, 1000, 3), (10, 200, 90), np.uint8)
    cv2.imwrite(str(files["images"] / "10.png"), big)
    truth["images"][0] |= {"height": 300, "width": 1000}
    truth["annotations"] = [{**a, "bbox": [0, 0, 500, 300]} for a in truth["annotations"]]
    results = [{k: v for k, v in e.items() if k != "segmentation"} for e in results]
    images, read = looked_at(truth, results, kind="bbox")
    groups = choose(images, results, {}, NAMES, count=1)
    assert make_pictures(groups, images, files["images"], read, results, NAMES) == []
    item = groups[0]["items"][0]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(item["jpeg"]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (192, 640, 3) and (item["width"], item["height"]) == (640, 192)
    assert np.abs(picture.astype(int) - big[0, 0]).max() < 6
    assert 'd="M0 0h320v192h-320z"' in item["truth"]


def test_unreadable_images_are_told_once(tmp_path):
    truth, results = planted()
    del truth["images"][1]["file_name"]
    truth["images"][2]["file_name"] = "none.png"
    truth["images"][3]["file_name"] = "../" * 3 + "none.png"
    images, read = looked_at(truth, results)
    groups = choose(images, results, {}, NAMES, count=8)
    problems = make_pictures(groups, images, tmp_path, read, results, NAMES)
    assert len(problems) == 3 and all(not g["items"] for g in groups)
    assert any("no such image file" in p for p in problems) and any("no file_name" in p for p in problems)


def test_layers_are_bounded(tmp_path):
    truth, results = planted(images=1)
    results += [entry(10, 3, (1 + i % 50, 1, 8, 8), 0.5) for i in range(500)]
    groups, _ = drawn(tmp_path, truth, results)
    item = groups[0]["items"][0]
    assert item["prediction"].count("<g>") == 400
    assert item["hidden"] == 102
    assert len(item["prediction"]) < 100_000
    places = [tuple(map(float, p)) for p in re.findall('<text x="(.+?)" y="(.+?)">', item["prediction"])]
    assert places and all(
        abs(a[1] - b[1]) >= 16 or abs(a[0] - b[0]) >= 9 * len("cat 0.50 background") - 1
        for i, a in enumerate(places)
        for b in places[:i]
    )


def test_the_only_class_is_not_named(tmp_path):
    truth, results = planted(images=1)
    truth["categories"] = truth["categories"][:1]
    truth["annotations"] = [{**a, "category_id": 3} for a in truth["annotations"]]
    read, matchings = match_coco(truth, results[:1])
    kinds = error_budget(read, matchings["segm"])["kinds"]
    images = images_of(read, results[:1], matchings["segm"], kinds, score_threshold=0.3)
    groups = choose(images, results, {}, {3: "cat"}, count=1)
    make_pictures(groups, images, write(tmp_path, truth, results)["images"], read, results, {3: "cat"})
    item = groups[0]["items"][0]
    assert re.findall("<title>([^<]*)<", item["truth"]) == ["found", "missed"]
    assert re.findall("<title>([^<]*)<", item["prediction"]) == ["0.89"]
