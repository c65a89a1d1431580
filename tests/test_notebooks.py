"""The notebooks run from a clean kernel, and the saved ones are whole."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import keras
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from mrcnn_tf.build import build_model
from mrcnn_tf.config import load_config
from mrcnn_tf.data.scene import SHAPE_CLASSES
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.training.checkpoints import save_aside
from notebooks.run import execute, save

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
# Untrained models of the quickstart's size take the place of trained ones, and less is done with them.
NEEDED = {
    "1_first_look.ipynb": {"quickstart"},
    "2_own_data.ipynb": {"quickstart"},
    "3_refining.ipynb": {"quickstart", "quickstart_mask_rcnn"},
    "4_exported_models.ipynb": {"saved_model"},
}
SMALLER = {
    "1_first_look.ipynb": {"PICTURES = 100": "PICTURES = 4"},
    "2_own_data.ipynb": {"PICTURES = 60": "PICTURES = 10", "STEPS = 200": "STEPS = 2"},
    "3_refining.ipynb": {"PICTURES = 100": "PICTURES = 4"},
    "4_exported_models.ipynb": {},
}


def copied(name: str, folder: Path) -> Path:
    """The notebook in a project's folder of its own, without outputs."""
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "configs", folder / "configs")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "notebooks" / name)
    return folder / "notebooks" / name


def replace(path: Path, values: dict[str, str]) -> None:
    """Other values for what the first cell of code sets."""
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for old, new in values.items():
        assert old in first.source
        first.source = first.source.replace(old, new)
    nbformat.write(notebook, path)


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """The kinds of the images that a notebook shows."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]


def test_all_are_here():
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(NEEDED)


@pytest.mark.parametrize("name", NEEDED)
def test_runs(name, tmp_path):
    path = copied(name, tmp_path)
    replace(path, SMALLER[name])
    keras.utils.set_random_seed(0)
    for config in NEEDED[name] - {"saved_model"}:
        model = build_model(load_config(ROOT / f"configs/{config}.yaml"), [*SHAPE_CLASSES], [*range(1, 7)])
        save_aside(model, tmp_path / f"runs/{config}/model.keras")
    if "saved_model" in NEEDED[name]:
        model = build_model(load_config(ROOT / "configs/quickstart.yaml"), [*SHAPE_CLASSES], [*range(1, 7)])
        export_saved_model(model, tmp_path / "saved_models/quickstart", check=False)

    done = execute(path)
    assert pictures(done) == pictures(nbformat.read(FOLDER / name, as_version=4))
    # Results go to the project's folders.
    assert [made.name for made in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", NEEDED)
def test_says_what_is_missing(name, tmp_path):
    with pytest.raises(CellExecutionError) as error:
        execute(copied(name, tmp_path))
    assert "is missing: run `python train.py` first" in str(error.value)


@pytest.mark.parametrize("name", NEEDED)
def test_saved_is_whole(name):
    path = FOLDER / name
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    # Nothing that needs a kernel to be seen, as sliders do: ipywidgets must be absent when they are saved.
    assert {kind for output in outputs for kind in output.get("data", {})} <= {
        *pictures(notebook),
        "text/plain",
    }
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert len(pictures(notebook)) >= 2
    assert path.stat().st_size < 1_000_000
    shown = "".join(output.get("text", "") for output in outputs)
    shown += "".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "WARNING" not in shown
    assert not re.search(r"(?<![\w.])/\w", shown)  # a path of the machine that it was run on


def test_save_keeps_results_alone(tmp_path):
    code = "import sys; print('kept'); print('dropped', file=sys.stderr)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    save(execute(tmp_path / "one.ipynb"), tmp_path / "one.ipynb")
    (cell,) = nbformat.read(tmp_path / "one.ipynb", as_version=4).cells
    assert [output.text for output in cell.outputs] == ["kept\n"] and cell.execution_count == 1
