"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A command keeps the memory that it frees (`keep_memory`), unless told so. Here hundreds of models share a process.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "131072")

import pytest

from tests.memory import release


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """Gives the memory of a file's models and graphs back; over the whole run it would be many gigabytes."""
    yield
    release()


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MRCNN_TF_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real data at {folder}; set MRCNN_TF_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def export_tiny(tmp_path_factory) -> Callable:
    """`export_tiny(kind)`: a tiny model of this class and the folder of its exported version, made once a run."""
    made = {}

    def get(kind: type) -> tuple:
        if kind not in made:
            # Imported here, for tests that need no TensorFlow.
            import keras

            from mrcnn_tf.export.saved_model import export_saved_model
            from tests.tiny import make_model

            keras.utils.set_random_seed(0)
            model = make_model(kind, score_threshold=0.0)
            folder = tmp_path_factory.mktemp("served") / "tiny"
            made[kind] = model, export_saved_model(model, folder, full_masks=True, check=False)
        return made[kind]

    return get
