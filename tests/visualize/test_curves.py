"""Curves: what is read from a history, and files that hold a picture of it."""

import cv2
import numpy as np
import pytest

from mrcnn_tf.visualize import plot_history, plot_losses, plot_metrics
from mrcnn_tf.visualize.curves import read_history

CSV = "step,loss,mask_loss,learning_rate\n10,3.0,0.7,0.01\n20,2.5,,0.02\n30,2.0,0.5,nan\n"


def test_every_form_of_a_history_is_read(tmp_path):
    (tmp_path / "history.csv").write_text(CSV)
    from_file = read_history(tmp_path / "history.csv")
    np.testing.assert_array_equal(from_file["step"], [10, 20, 30])
    np.testing.assert_array_equal(from_file["mask_loss"], [0.7, np.nan, 0.5])
    from_dict = read_history({"loss": [3, 2], "epoch": [1, 2]})
    np.testing.assert_array_equal(from_dict["step"], [1, 2])
    from_rows = read_history([{"loss": 3, "per_class": {}}, {"loss": 2, "bbox/AP": 0.5}])
    np.testing.assert_array_equal(from_rows["step"], [0, 1])
    np.testing.assert_array_equal(from_rows["bbox/AP"], [np.nan, 0.5])
    assert read_history([])["step"].size == 0
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_history(tmp_path / "none.csv")


def test_losses(tmp_path):
    (tmp_path / "history.csv").write_text(CSV)
    plot_losses(tmp_path / "plots" / "a.png", tmp_path / "history.csv")
    with_rate = cv2.imread(str(tmp_path / "plots" / "a.png"))
    plot_losses(tmp_path / "b.png", {"loss": [3.0, 2.0, -1.0]})  # a linear scale, no learning rate
    without = cv2.imread(str(tmp_path / "b.png"))
    assert with_rate.shape[0] > without.shape[0] > 300
    assert (with_rate != 255).any()


def test_metrics(tmp_path):
    rows = [{"step": s, "bbox/AP": s / 100, "segm/AP": s / 200, "segm/APl": -1.0} for s in (10, 20, 30)]
    plot_metrics(tmp_path / "two.png", rows)
    plot_metrics(tmp_path / "three.png", [row | {"proposals/recall@100": 0.5} for row in rows])
    two, three = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("two", "three"))
    assert three.shape[1] > two.shape[1] * 1.3


def test_nothing_to_plot_writes_nothing(tmp_path):
    plot_losses(tmp_path / "a.png", {"step": [1, 2], "speed": [3, 4]})
    plot_metrics(tmp_path / "b.png", [{"step": 1, "bbox/AP": -1.0}])
    assert list(tmp_path.iterdir()) == []


def test_plot_history_fills_the_run_folder(tmp_path):
    plot_history(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "history.csv").write_text(CSV)
    plot_history(tmp_path, [{"step": 30, "bbox/AP": 0.25}])
    assert {p.name for p in tmp_path.iterdir()} == {"history.csv", "losses.png", "ap.png"}
