"""The notebooks: valid and without outputs, and they run from top to bottom with small numbers."""

import base64
import importlib.util
import io
import pathlib

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
PICTURES = {"sequence": 1, "sample": 2, "guided": 1, "control": 1, "evaluate": 1}  # Of each cell.


IN_CONTROL = {"sample": 4, "paint": 2, "apart": 2, "edit": 2}  # Those of the other notebook.


def read(name) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def code_cells(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook) -> nbformat.NotebookNode:
    (cell,) = [x for x in code_cells(notebook) if "parameters" in x.metadata.get("tags", [])]
    return cell


def pictures(cell) -> list[np.ndarray]:
    encoded = [output.get("data", {}).get("image/png") for output in cell.outputs]
    files = (io.BytesIO(base64.b64decode(png)) for png in encoded if png)
    return [np.asarray(Image.open(file)) for file in files]


def run(notebook) -> dict[str, list[np.ndarray]]:
    """Executes it, and gives the pictures of each cell that shows any."""
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells)
    shown = {cell.id: found for cell in cells if (found := pictures(cell))}
    for found in shown.values():
        assert all(picture.std() > 10 for picture in found)
    return shown


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_is_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_the_defaults_are_a_whole_training():
    defaults = {}
    exec(parameters(read("nvg_colab.ipynb")).source, defaults)
    assert defaults["REPOSITORY"] == "" and defaults["CHECKPOINT"] == ""
    assert defaults["TOKENIZER_EPOCHS"] is None and defaults["NUM_SAMPLES"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = read("nvg_colab.ipynb")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # The kernel is this very Python.
    workdir = tmp_path / "digits"
    parameters(notebook).source += f"""
WORKDIR = {str(workdir)!r}
TOKENIZER_EPOCHS = 0.5
GENERATOR_EPOCHS = 0.5
NUM_SAMPLES = 10
"""
    assert {name: len(found) for name, found in run(notebook).items()} == PICTURES
    assert (workdir / "evaluation.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("gradio"), reason="Gradio, of requirements-demo.txt, is missing"
)
def test_control_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebook = read("control.ipynb")
    parameters(notebook).source += '\nWEIGHTS, CLASS = "digits", "3"\n'
    assert {name: len(found) for name, found in run(notebook).items()} == IN_CONTROL
    page = next(cell for cell in notebook.cells if cell.id == "page")
    assert any("iframe" in output.get("data", {}).get("text/html", "") for output in page.outputs)
