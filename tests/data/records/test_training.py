"""A training on shards gives the weights of the training on files."""

import numpy as np

from mrcnn_tf.data.records.convert import convert
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.schema import Config
from mrcnn_tf.training.train import train
from tests.tiny import CONFIG


def test_the_same_training_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    annotations, images = generate_shapes(tmp_path / "shapes", num_images=6, size=64)
    manifest = convert(annotations, images, tmp_path / "records", shards=2, workers=1)
    files = {"annotations": str(annotations), "images": str(images)}
    runs = []
    for name, source in (("files", files), ("records", {"annotations": str(manifest)})):
        data = {**CONFIG["data"], "generated": None, "train": source}
        steps = {**CONFIG["train"], "steps": 2}
        config = {**CONFIG, "name": name, "data": data, "train": steps, "evaluation": {"every": 0}}
        runs.append(train(Config.model_validate(config)))
    for wanted, found in zip(*(run.model.get_weights() for run in runs), strict=True):
        np.testing.assert_array_equal(found, wanted)
