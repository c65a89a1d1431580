"""Checkpoints that survive a full disk or a killed process, and from which training goes on exactly."""

from __future__ import annotations

import errno
import itertools
import os
import re
import zipfile
from pathlib import Path

import keras

from mrcnn_tf.files import written_aside
from mrcnn_tf.training.state import MEMBER, TrainingState, read_state

NAME = re.compile(r"step_(\d+)\.keras")
# What Keras puts into a `.keras` file.
PARTS = {"metadata.json", "config.json", "model.weights.h5"}


def save_aside(model: keras.Model, path: Path, state: TrainingState | None = None) -> Path:
    """Writes `path` as a `.keras` file, optimiser state included, under another name first.

    Args:
        model: the model.
        path: of the file.
        state: what training needs besides to go on from it; it becomes one more part of the archive.

    Raises:
        OSError: if it cannot be written, with the file's name and what to do; what was at `path` is still there.
    """
    with written_aside(path) as aside:
        try:
            model.save(aside)
            if state is not None:
                with zipfile.ZipFile(aside, "a") as archive:
                    archive.writestr(MEMBER, state.to_json())
        except Exception as error:
            # h5py and zipfile report a full disk in words of their own.
            raise OSError(
                f"{path}: could not be written ({error}); free some disk space and try again, a training with "
                "--resume. What was there before is untouched"
            ) from error
    return path


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_N.keras`, the last few of them, and `best.keras`.

    Args:
        folder: created when first written to.
        keep: how many `step_N.keras` stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, rising."""
        found = (NAME.fullmatch(p.name) for p in self.folder.glob("step_*.keras"))
        return sorted(int(m.group(1)) for m in found if m)

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step_{step:07d}.keras"

    def save(self, model: keras.Model, state: TrainingState) -> Path:
        """Writes the checkpoint of the state's step, then drops the oldest."""
        path = save_aside(model, self.path(state.step), state)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()
        return path

    def newest(self) -> int | None:
        """The step of the newest checkpoint that can be read; None if the folder has none.

        A damaged file is named and passed over; its name becomes `step_N.keras.damaged`.

        Raises:
            ValueError: all are damaged.
            OSError: one cannot be opened.
        """
        for step in reversed(self.steps()):
            path = self.path(step)
            if intact(path):
                return step
            names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
            aside = next(p for p in map(path.with_name, names) if not p.exists())
            print(f"{path}: damaged, now {aside.name}; going back to the checkpoint before it", flush=True)
            os.rename(path, aside)
        damaged = sorted(p.name for p in self.folder.glob("*.damaged*"))
        if damaged:
            raise ValueError(
                f"{self.folder}: no good checkpoint is left, only {', '.join(damaged)}; put a copy of one there, "
                "or start without --resume"
            )
        return None

    def restore(self, model: keras.Model, step: int, here: TrainingState) -> TrainingState:
        """Puts the checkpoint of a step into a compiled model, optimiser state included.

        Args:
            model: built, with its optimiser.
            step: of an intact checkpoint, see `newest`.
            here: the state at the start of the run that is to go on.

        Returns:
            The checkpoint's state. What differs from this run but lets it go on is printed.

        Raises:
            ValueError: it is of another model or version; nothing was changed.
        """
        path = self.path(step)
        there = read_state(path)
        for note in there.compare(here, path):
            print(f"note       {note}")
        try:
            model.load_weights(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); it was made with {there.made_with()}"
            ) from error
        return there


def intact(path: Path) -> bool:
    """Whether all parts of a `.keras` file, a zip archive, are there and have their checksums.

    Raises:
        OSError: there is such a file, but it cannot be opened or read; names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and set(archive.namelist()) >= PARTS
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged archive that sends the reader before its beginning
            return False
        raise OSError(f"{path}: cannot be read ({error})") from error
    except Exception:
        # Depending on the bit, zipfile speaks of encryption, of other compressions, of values out of range.
        return False


def load_model(path: str | Path) -> keras.Model:
    """A model from a `.keras` file of this project, for use or fine-tuning; training is not resumed from it.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or no such model; one line that names it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: is a folder; a `.keras` file is needed here (SavedModel folders are for TensorFlow Serving)"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model file")
    if path.suffix in (".pth", ".pt", ".pkl", ".safetensors", ".npz", ".h5"):
        raise ValueError(
            f"{path}: is not a `.keras` file; `mrcnn import {path.name} --from ...` makes one of it"
        )
    # Imported for their registration: Keras finds classes by their registered names.
    import mrcnn_tf.models.mask_refining_rcnn  # noqa: F401
    from mrcnn_tf.models.mask_rcnn import MaskRCNN

    if not zipfile.is_zipfile(path) or not intact(path):
        raise ValueError(f"{path}: is not a `.keras` model file, or it is damaged")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: cannot be read as a model of mrcnn_tf ({reason})") from error
    if not isinstance(model, MaskRCNN):
        raise ValueError(f"{path}: holds a {type(model).__name__}, not a model of mrcnn_tf")
    return model
