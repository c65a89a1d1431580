"""One batch: images that the model cannot take do not harm the others, and what concerns all is not hidden."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("apache_beam")

import tensorflow as tf

from mrcnn_tf.batch.inputs import Item
from mrcnn_tf.batch.predict import predict


def model_that_fails(error):
    """A model that finds one instance with the image's length as its class, and fails on `huge` ones."""
    calls = []

    def compact(image_bytes, score_threshold, iou_threshold):
        data = image_bytes.numpy().tolist()
        calls.append((data, score_threshold.numpy().tolist(), iou_threshold.numpy().tolist()))
        if b"huge" in data:
            raise error(None, None, "out of memory\nwith a long report")
        rows = len(data)
        outputs = {
            "status": [b"ok"] * rows,
            "num_detections": [1] * rows,
            "image_size": [[8, 9]] * rows,
            "detection_boxes": np.tile(np.float32([1, 2, 5, 6]), (rows, 1, 1)),
            "detection_scores": [[0.5]] * rows,
            "detection_classes": [[len(image)] for image in data],
            "detection_category_ids": [[len(image)] for image in data],
            "detection_class_names": [[b"thing"]] * rows,
            "detection_masks_bytes": [[b"\xff" * 4]] * rows,
        }
        return {key: tf.constant(value) for key, value in outputs.items()}

    return SimpleNamespace(signatures={"compact": compact}), calls


def items(*data):
    return [Item(f"/{i}", i, str(i), part, "" if part else "not there") for i, part in enumerate(data)]


@pytest.mark.parametrize("error", [tf.errors.ResourceExhaustedError, tf.errors.InvalidArgumentError])
def test_an_image_that_the_model_fails_on(error):
    model, calls = model_that_fails(error)
    one, bad, none, two = predict(items(b"a", b"huge", b"", b"bb"), model)
    assert bad == "the model fails: out of memory" and none == "not there"
    assert (one.class_ids, two.class_ids) == ([1], [2]) and one.image_size == (8, 9)
    assert [data for data, *_ in calls] == [[b"a", b"huge", b"bb"], [b"a"], [b"huge"], [b"bb"]]


def test_other_errors_end_the_run():
    model, _ = model_that_fails(tf.errors.InternalError)
    with pytest.raises(tf.errors.InternalError):
        predict(items(b"huge"), model)


@pytest.mark.parametrize(("score", "sent"), [(None, -1.0), (0.0, 0.0), (0.5, 0.49999997), (1.0, 0.99999994)])
def test_score(score, sent):
    """The signature leaves out what is up to the threshold, this keeps what is at it."""
    model, calls = model_that_fails(ValueError)
    predict(items(b"a", b"bb"), model, score)
    assert calls == [([b"a", b"bb"], [np.float32(sent)] * 2, [-1.0] * 2)]


def test_nothing_to_predict():
    model, calls = model_that_fails(ValueError)
    assert predict(items(b"", b""), model) == ["not there"] * 2 and not calls
