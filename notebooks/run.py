"""Runs notebooks from a clean kernel and saves them with what they show: `python notebooks/run.py [NOTEBOOK ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in its own folder as Jupyter does.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and the error.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1800,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    return notebook


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes the notebook without what differs from machine to machine: progress bars, warnings, versions."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def main() -> None:
    """Runs the notebooks that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        print(path.name, flush=True)
        save(execute(path), path)


if __name__ == "__main__":
    main()
