"""The notebook: valid and without outputs, and it runs from top to bottom with small numbers."""

import base64
import io
import pathlib

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "nvg_colab.ipynb"
PICTURES = {"sequence": 1, "sample": 2, "guided": 1, "control": 1, "evaluate": 1}  # Of each cell.


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook) -> nbformat.NotebookNode:
    (cell,) = [x for x in code_cells(notebook) if "parameters" in x.metadata.get("tags", [])]
    return cell


def pictures(cell) -> list[np.ndarray]:
    encoded = [output.get("data", {}).get("image/png") for output in cell.outputs]
    files = (io.BytesIO(base64.b64decode(png)) for png in encoded if png)
    return [np.asarray(Image.open(file)) for file in files]


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    defaults = {}
    exec(parameters(notebook).source, defaults)
    assert defaults["REPOSITORY"] == "" and defaults["CHECKPOINT"] == ""
    assert defaults["TOKENIZER_EPOCHS"] is None and defaults["NUM_SAMPLES"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # The kernel is this very Python.
    workdir = tmp_path / "digits"
    parameters(notebook).source += f"""
WORKDIR = {str(workdir)!r}
TOKENIZER_EPOCHS = 0.5
GENERATOR_EPOCHS = 0.5
NUM_SAMPLES = 10
"""
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells)
    shown = {cell.id: pictures(cell) for cell in cells}
    assert {name: len(found) for name, found in shown.items() if found} == PICTURES
    for found in shown.values():
        assert all(picture.std() > 10 for picture in found)
    assert (workdir / "evaluation.json").exists()
