"""The model card tells of the training, and nothing of the machine."""

from __future__ import annotations

import json

from mrcnn_tf.export.card import training_of


def test_training_of(tmp_path):
    assert training_of(tmp_path) == {"metrics": None, "config": None}
    (tmp_path / "metrics.json").write_text(json.dumps({"bbox/AP": 0.5}))
    (tmp_path / "config.yaml").write_text(
        "init_from: /home/somebody/model.keras\ndata: {train: {annotations: sets/a.json, images: [/mnt/b]}}\n"
    )
    found = training_of(tmp_path)
    assert found["metrics"] == {"bbox/AP": 0.5}
    assert found["config"] == {
        "init_from": "model.keras",
        "data": {"train": {"annotations": "sets/a.json", "images": ["b"]}},
    }
