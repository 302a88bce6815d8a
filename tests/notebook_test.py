"""The notebooks: valid and without outputs, and they run from top to bottom with small numbers."""

import base64
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
PICTURES = {"sequence": 1, "sample": 2, "guided": 1, "control": 1, "evaluate": 1}  # Of each cell.
IN_CONTROL = {"sample": 4, "paint": 2, "apart": 2, "edit": 2}  # Those of the other notebook.
# What that one finds installed on Colab, with Python 3.12, and keeps or replaces.
ON_COLAB = ("ipykernel==6.17.1", "ipython==7.34.0", "jax==0.7.2", "matplotlib==3.10.0")
ON_COLAB += ("numpy==2.0.2", "pillow==11.3.0", "scikit-learn==1.6.1")


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


def run(notebook, folder=NOTEBOOKS, kernel="python3") -> dict[str, list[np.ndarray]]:
    """Executes it, and gives the pictures of each cell that shows any."""
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, resources=resources, kernel_name=kernel)
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells)
    shown = {cell.id: found for cell in cells if (found := pictures(cell))}
    for found in shown.values():
        assert all(picture.std() > 10 for picture in found)
    return shown


def repository(folder: pathlib.Path) -> pathlib.Path:
    """A git repository of what a notebook needs of this one, as it is now."""
    for name in ("nvg_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(NOTEBOOKS.parent / name, folder / "origin" / name, ignore=ignored)
    for path in NOTEBOOKS.parent.glob("requirements*.txt"):
        shutil.copy(path, folder / "origin")
    git = ("git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message=all")):
        subprocess.run([*git, *words], cwd=folder / "origin", check=True)
    return folder / "origin"


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
    # As .ci/run trains and samples the digits, too: their programs are compiled once.
    parameters(notebook).source += f"""
WORKDIR = {str(workdir)!r}
TOKENIZER_EPOCHS = 1.0
GENERATOR_EPOCHS = 1.0
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_control_installs_what_it_needs_as_on_colab(tmp_path, monkeypatch):
    """A Python 3.12 with older packages, and no clone: the first cell gets all."""
    if subprocess.run(["python3.12", "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("python3.12, which Colab has, does not run here")
    python = tmp_path / "colab" / "bin" / "python"
    subprocess.run(["python3.12", "-m", "venv", tmp_path / "colab"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *ON_COLAB], check=True)
    kernel = tmp_path / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)

    notebook = read("control.ipynb")
    parameters(notebook).source += f"\nREPOSITORY = {str(repository(tmp_path))!r}\n"
    parameters(notebook).source += 'WEIGHTS, CLASS = "digits", "3"\n'
    versions = "import jax, numpy; print(sys.prefix, numpy.__version__, jax.__version__)"
    notebook.cells.append(nbformat.v4.new_code_cell(versions))
    assert {
        name: len(found) for name, found in run(notebook, tmp_path, "colab").items()
    } == IN_CONTROL
    prefix, of_numpy, of_jax = notebook.cells[-1].outputs[0].text.split()
    assert prefix == str(tmp_path / "colab") != sys.prefix
    assert of_numpy == "2.0.2" and of_jax != "0.7.2"
