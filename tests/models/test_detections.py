"""The result object: forms of its masks, COCO entries, selection, bad input."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluation.coco import evaluate_coco
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.visualize.draw import color


@pytest.fixture
def found():
    """A square, a smaller one over its lower right corner, and a box across the border with half a mask."""
    half = np.zeros((4, 4))
    half[:, :2] = 1
    return Detections(
        image_size=(20, 30),
        boxes=[[2, 2, 10, 10], [6, 6, 12, 12], [14, 26, 22, 34]],
        scores=[0.9, 0.95, 0.3],
        class_ids=[1, 2, 1],
        category_ids=[7, 90, 7],
        class_names=["cell", "dog", "cell"],
        masks=np.stack([np.ones((4, 4)), np.ones((4, 4)), half]),
    )


def dense_reference():
    dense = np.zeros((3, 20, 30), bool)
    dense[0, 2:10, 2:10] = dense[1, 6:12, 6:12] = dense[2, 14:20, 26:30] = True
    return dense


def test_types_and_length(found):
    assert len(found) == 3
    assert found.boxes.dtype == found.scores.dtype == found.masks.dtype == np.float32
    assert found.class_ids.dtype == np.int32
    assert found.category_ids.dtype == np.int64


def test_every_form_of_the_masks_is_the_same_mask(found):
    dense = dense_reference()
    np.testing.assert_array_equal(found.dense_masks(), dense)
    for rle, mask in zip(found.rles(), dense, strict=True):
        assert rle["size"] == [20, 30]
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    for polygons, mask in zip(found.polygons(), dense, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.frPyObjects(polygons, 20, 30))[..., 0], mask)
    labels = found.label_map()
    want = np.zeros((20, 30), np.int32)
    for i in (2, 0, 1):  # the higher score has the pixels that two masks claim
        want[dense[i]] = i + 1
    np.testing.assert_array_equal(labels, want)
    assert labels.dtype == np.int32
    assert labels[8, 8] == 2


def test_threshold_and_other_sizes(found):
    ramp = Detections((8, 8), [[0, 0, 8, 8]], [1], [1], [1], ["x"], np.tile(np.arange(8) / 8, (1, 8, 1)))
    assert [ramp.dense_masks(t).sum() for t in (0.125, 0.5, 0.875)] == [56, 32, 8]
    twice = np.zeros((40, 60), bool)
    crop, y0, x0 = found.crops(size=(40, 60))[0]
    twice[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    # But for the corners, where two sides of the mask are interpolated against zero.
    wrong = np.argwhere(twice != dense_reference()[0].repeat(2, 0).repeat(2, 1))
    assert wrong.tolist() == [[4, 4], [4, 19], [19, 4], [19, 19]]


def test_to_coco_is_json_with_the_sets_own_ids(found):
    entries = json.loads(json.dumps(found.to_coco(image_id=123)))
    assert [e["category_id"] for e in entries] == [7, 90, 7]
    assert entries[1] == {
        "image_id": 123,
        "category_id": 90,
        "bbox": [6.0, 6.0, 6.0, 6.0],
        "score": pytest.approx(0.95),
        "segmentation": found.rles()[1],
    }
    truth = {
        "images": [{"id": 123, "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "cell"}, {"id": 90, "name": "dog"}],
        "annotations": [
            {
                "id": i,
                "image_id": 123,
                "iscrowd": 0,
                **{k: e[k] for k in ("category_id", "bbox", "segmentation")},
            }
            for i, e in enumerate(entries)
        ],
    }
    metrics = evaluate_coco(truth, entries)
    assert metrics["bbox/AP"] == metrics["segm/AP"] == pytest.approx(1.0)


@pytest.fixture
def exact(found):
    """The same instances with exact masks; the third has none of its pixels set."""
    third = np.zeros((20, 30), bool)
    rles = [coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in (*dense_reference()[:2], third)]
    return Detections(
        found.image_size,
        found.boxes,
        found.scores,
        found.class_ids,
        found.category_ids,
        found.class_names,
        segmentations=rles,
    )


def test_every_form_of_exact_masks(found, exact):
    dense = dense_reference()
    dense[2] = False
    for order in "FC":
        for (crop, y0, x0), mask in zip(exact.crops(order=order), dense, strict=True):
            assert crop.dtype == bool and crop.flags[f"{order}_CONTIGUOUS"]
            np.testing.assert_array_equal(mask[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]], crop)
            assert crop.sum() == mask.sum()
    for threshold in (0.01, 0.5, 1.0):  # exact, whatever the threshold
        np.testing.assert_array_equal(exact.dense_masks(threshold), dense)
    assert exact.rles()[:2] == found.rles()[:2]  # bytes became str
    assert exact.polygons() == [*found.polygons()[:2], []]
    labels = found.label_map()
    np.testing.assert_array_equal(exact.label_map(), np.where(labels == 3, 0, labels))
    assert exact.to_coco(9)[:2] == json.loads(json.dumps(found.to_coco(9)))[:2]
    assert exact.to_coco(9)[2]["segmentation"]["counts"] == coco_mask.encode(
        np.zeros((20, 30), np.uint8, "F")
    )["counts"].decode("ascii")


def test_exact_masks_are_selected_with_their_boxes(exact):
    turned = exact.select([1, 0])
    assert turned.segmentations == [exact.segmentations[1], exact.segmentations[0]]
    assert exact.filter(0.92).segmentations == [exact.segmentations[1]]
    assert exact.select([]).segmentations == [] and exact.select([]).dense_masks().shape == (0, 20, 30)


@pytest.mark.parametrize("size", [(40, 60), (10, 15), (33, 31), (20, 30), (1, 1)])
def test_exact_masks_at_other_sizes(exact, size):
    """Each pixel of the picture is that of the image under its centre."""
    rows = ((np.arange(size[0]) + 0.5) * 20 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 30 / size[1]).astype(int)
    for (crop, y0, x0), mask in zip(exact.crops(size=size), exact.dense_masks(), strict=True):
        got = np.zeros(size, bool)
        got[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
        np.testing.assert_array_equal(got, mask[np.ix_(rows, columns)])


def test_exact_masks_are_drawn(exact):
    image = np.zeros((20, 30, 3), np.uint8)
    picture = exact.plot(image, boxes=False, labels=False)
    centre = picture[
        int(4.5 * 640 / 30), int(4.5 * 640 / 30)
    ]  # of a pixel of the first mask, far from its outline
    np.testing.assert_allclose(centre, 0.4 * np.array(color(0)), atol=1)
    assert not picture[-100:, -100:].any()


def test_bad_exact_masks(exact):
    fields = {
        k: getattr(exact, k)
        for k in ("image_size", "boxes", "scores", "class_ids", "category_ids", "class_names")
    }
    rles = exact.segmentations
    for wrong, message in (
        (rles[:2], "2 segmentations for 3 boxes"),
        (
            [*rles[:2], {**rles[2], "size": [30, 20]}],
            r"segmentations\[2\] has size \[30, 20\], the image \[20, 30\]",
        ),
        ([{"size": [20, 30], "counts": [600]}, *rles[1:]], r"segmentations\[0\] is no compressed COCO RLE"),
        ([[1, 2, 3, 4, 5, 6], *rles[1:]], r"segmentations\[0\] is no compressed COCO RLE"),
    ):
        with pytest.raises(ValueError, match=message):
            Detections(**fields, segmentations=wrong)
    with pytest.raises(ValueError, match="masks or segmentations, not both"):
        Detections(**fields, masks=np.ones((3, 4, 4)), segmentations=rles)
    with pytest.raises(ValueError, match="must add up to 600 pixels"):
        Detections(**fields, segmentations=[{"size": [20, 30], "counts": "05"}] * 3).crops()


def test_select_and_filter(found):
    high = found.filter(0.5)
    assert high.class_names == ["cell", "dog"]
    np.testing.assert_array_equal(high.boxes, found.boxes[:2])
    turned = found.select([2, 0])
    assert turned.category_ids.tolist() == [7, 7]
    np.testing.assert_array_equal(turned.masks, found.masks[[2, 0]])
    assert len(found.select([])) == len(found.filter(2)) == 0
    assert found.select([]).dense_masks().shape == (0, 20, 30)
    assert found.select([]).to_coco(1) == []
    assert not found.select([]).label_map().any()


def test_detections_without_masks():
    boxes = Detections((20, 30), [[2, 2, 10, 10]], [0.5], [1], [7], ["cell"])
    assert "segmentation" not in boxes.to_coco(1)[0]
    assert len(boxes.filter(0.4)) == 1
    with pytest.raises(ValueError, match="no masks"):
        boxes.rles()


def test_plot_writes_a_picture(found, tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    picture = found.plot(image, tmp_path / "new" / "a.png")
    assert max(picture.shape) == 640  # small images are enlarged
    saved = cv2.cvtColor(cv2.imread(str(tmp_path / "new" / "a.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(saved, picture)
    assert picture.any()


def test_bad_input(found):
    with pytest.raises(ValueError, match="2 scores for 1 boxes"):
        Detections((20, 30), [[2, 2, 10, 10]], [0.5, 0.6], [1], [7], ["cell"])
    with pytest.raises(ValueError, match=r"masks must be \[N, m, m\]"):
        Detections((20, 30), [[2, 2, 10, 10]], [0.5], [1], [7], ["cell"], np.ones((1, 28, 28, 1)))
    for threshold in (0.0, 1.5):
        with pytest.raises(ValueError, match="threshold must be in"):
            found.rles(threshold)
    with pytest.raises(ValueError, match=r"of an image of \[20, 30\], not of \[30, 20\]"):
        found.plot(np.zeros((30, 20, 3), np.uint8))


def test_results_and_metrics_need_no_tensorflow():
    """Reading, measuring and drawing results must stay quick to import."""
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "import mrcnn_tf.models.detections, mrcnn_tf.evaluation.coco, mrcnn_tf.evaluation.recall\n"
        "import mrcnn_tf.visualize, mrcnn_tf.geometry.masks, mrcnn_tf.tiling\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
