"""Sheets and picture files."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mrcnn_tf.models.detections import Detections
from mrcnn_tf.visualize import save, sheet, validation_sheet

RED, BLUE = np.full((50, 100, 3), (255, 0, 0), np.uint8), np.full((200, 100, 3), (0, 0, 255), np.uint8)


def where(canvas, rgb):
    rows, columns = np.nonzero((canvas == rgb).all(axis=2))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def test_pictures_are_scaled_and_set_side_by_side():
    canvas = sheet([(RED, BLUE)], cell=200, captions=["what it is"])
    y1, x1, y2, x2 = where(canvas, (255, 0, 0))
    assert (y2 - y1, x2 - x1) == (100, 200)
    top, left, bottom, right = where(canvas, (0, 0, 255))
    assert (bottom - top, right - left) == (200, 100)
    assert top == y1
    assert left > x2
    assert (canvas[:y1] != 255).any()  # headers
    assert (canvas[bottom:] != 255).any()  # the caption


def test_lines():
    one = sheet([(RED,)] * 3, headers=["a"], cell=100)
    assert one.shape[1] < 150
    two = sheet([(RED,)] * 5, headers=["a"], cell=100)
    assert two.shape[1] > 200
    reds = (two == (255, 0, 0)).all(axis=2).sum()
    assert reds == 5 * 50 * 100  # none covers another, none is cut
    assert sheet([(RED,)] * 5, headers=["a"], cell=100, rows_per_line=5).shape[0] < 110


def test_validation_sheet():
    image = np.zeros((64, 96, 3), np.uint8)
    found = Detections((64, 96), [[5, 5, 40, 40]], [0.8], [1], [1], ["cat"], np.ones((1, 28, 28)))
    truth = SimpleNamespace(
        boxes=np.array([[5, 50, 40, 90]]), segmentations=[[[50, 5, 90, 5, 90, 40, 50, 40]]]
    )
    canvas = validation_sheet([(image, found, truth, ["cat"], "a.png")], cell=480)
    rows, columns = np.nonzero((canvas == 0).all(axis=2))  # the black of both pictures
    left, right = columns.min(), columns.max()
    middle = (left + right) // 2
    bright = canvas[120:180].max(axis=2) > 60
    prediction, answer = bright[:, left : middle - 10], bright[:, middle + 10 : right]
    assert (
        prediction[:, : prediction.shape[1] // 2].mean()
        > 3 * prediction[:, prediction.shape[1] // 2 :].mean()
    )
    assert answer[:, answer.shape[1] // 2 :].mean() > 3 * answer[:, : answer.shape[1] // 2].mean()


def test_save(tmp_path):
    save(tmp_path / "deep" / "a.png", RED)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "deep" / "a.png")), RED[..., ::-1])
    save(tmp_path / "a.JPG", RED)
    assert np.abs(cv2.imread(str(tmp_path / "a.JPG")).astype(int) - RED[..., ::-1]).max() < 5
    with pytest.raises(ValueError, match=r"a\.xyz: pictures cannot be written as '\.xyz'"):
        save(tmp_path / "a.xyz", RED)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one row"):
        sheet([])
    with pytest.raises(ValueError, match="2 pictures in each: prediction, truth"):
        sheet([(RED,)])
    with pytest.raises(ValueError, match="needs as many captions, not 2"):
        sheet([(RED, BLUE)], captions=["a", "b"])
