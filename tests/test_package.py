import subprocess
import sys

import keras
import numpy as np

import mrcnn_tf
from tests.tiny import make_model


def test_public_names():
    for name in mrcnn_tf.__all__:
        assert getattr(mrcnn_tf, name) is not None


def test_keras_loads_a_model_in_a_fresh_process(tmp_path):
    """A notebook imports the class, which registers it, and uses Keras' own loader."""
    keras.utils.set_random_seed(0)
    model = make_model(score_threshold=0.0)
    model.save(tmp_path / "m.keras")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.save(tmp_path / "i.npy", image)
    code = (
        "import keras, numpy as np; from mrcnn_tf import MaskRCNN; m = keras.models.load_model('m.keras');"
        "np.save('boxes.npy', m.detect(np.load('i.npy')).boxes)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(np.load(tmp_path / "boxes.npy"), model.detect(image).boxes)
