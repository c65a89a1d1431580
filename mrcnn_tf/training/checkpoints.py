"""Checkpoints that survive a full disk or a killed process, and from which training goes on exactly."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import keras

from mrcnn_tf.files import save_json, written_aside

NAME = re.compile(r"step_(\d+)\.keras")


def save_aside(model: keras.Model, path: Path) -> Path:
    """Writes `path` as a `.keras` file, optimiser state included, under another name first.

    Raises:
        OSError: if it cannot be written, with the file's name and what to do; what was at `path` is still there.
    """
    with written_aside(path) as aside:
        try:
            model.save(aside)
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

    def save(self, model: keras.Model, step: int, best: float | None) -> Path:
        """Writes the checkpoint of a step, then drops the oldest.

        `best` is the best metric so far, kept for `restore`.
        """
        path = save_aside(model, self.path(step))
        state = self.folder / "state.json"
        states = {**self._states(), str(step): {"best": best}}
        kept = self.steps()[-self.keep :]
        save_json(state, {k: states[k] for k in states if int(k) in kept})
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()
        return path

    def restore(self, model: keras.Model) -> tuple[int, float | None]:
        """Puts the newest readable checkpoint into a compiled model, optimiser state included.

        A damaged newest file is named and passed over.

        Returns:
            Its step and the best metric up to it.

        Raises:
            FileNotFoundError: there is none to resume from.
        """
        for step in reversed(self.steps()):
            path = self.path(step)
            if not intact(path):
                print(f"{path}: damaged, going back to the checkpoint before it")
                continue
            model.load_weights(path)
            return step, self._states().get(str(step), {}).get("best")
        raise FileNotFoundError(
            f"{self.folder}: no checkpoint to resume from; start without --resume, or set output to the run's folder"
        )

    def _states(self) -> dict:
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}


def intact(path: Path) -> bool:
    """Whether every part of a `.keras` file, a zip archive, has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
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
