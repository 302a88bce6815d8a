"""Weights on a hub: a server here that speaks its protocol, and real processes that ask it."""

import os
import pathlib
import subprocess
import sys

import pytest

from nvg_jax import pretrained
from nvg_jax.errors import UserError
from nvg_jax.weights import saved_architecture
from tests import hub_server
from tests.hub_server import COMMITS, TOKEN

ROOT = pathlib.Path(__file__).parents[1]
FILES = {"some.safetensors": hub_server.File(b"new" * 1000)}
FILES["cut.safetensors"] = hub_server.File(bytes(10_000), cut=True)


@pytest.fixture(scope="module")
def server():
    """A repository, people/digits, and a gated one with the same files."""
    files = dict(FILES)
    for path in pretrained.FOLDER.glob("digits/*.safetensors"):
        files[f"digits/{path.name}"] = hub_server.File(path.read_bytes())
    old = {name: hub_server.File(b"old" + file.content) for name, file in files.items()}
    revisions = {"main": files, "v1": old}
    repositories = {"people/digits": revisions, "people/gated": revisions}
    with hub_server.serve(repositories, gated="people/gated") as address:
        yield address


@pytest.fixture
def ask(server, tmp_path):
    """What a new process says of names, with the cache of this test."""

    def ask(*names: str, **environment: str) -> list[str]:
        unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "programs" / "hub_files.py"), *names],
            env=kept
            | hub_server.environment(server, str(tmp_path / "cache"), PYTHONPATH=paths)
            | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if "B/s]" not in line]
        assert not said, "the hub's client says something itself"
        return done.stdout.splitlines()

    return ask


def test_a_file_is_downloaded_at_its_revision_and_then_taken_from_the_cache(ask):
    new, old = "hf://people/digits/some.safetensors", "hf://people/digits/some.safetensors@v1"
    files = ask(new, old, f"{new}@{COMMITS['main']}")
    new_content = FILES["some.safetensors"].content
    contents = [pathlib.Path(file).read_bytes() for file in files]
    assert contents == [new_content, b"old" + new_content, new_content]
    assert ask(new, old, HF_HUB_OFFLINE="1") == files[:2]
    nowhere = "http://127.0.0.1:1"
    assert ask(new, HF_ENDPOINT=nowhere) == files[:1]


def test_why_there_is_no_file_is_one_line(ask, server):
    form = "is not of the form hf://owner/repository/path.safetensors or "
    expected = {
        "people/gated/some.safetensors": f"is gated: agree to the terms at {server}/people/gated, ",
        "people/none/some.safetensors": "there is no repository people/none for you: ",
        "people/digits/none.safetensors": "people/digits has no file none.safetensors",
        "people/digits/some.safetensors@v2": "people/digits has no revision v2: name a branch",
        "people/digits/cut.safetensors": "cannot be downloaded (peer closed",
        "people/digits/model.ckpt": form,
        "people/digits/../up.safetensors": form,
        "people/digits--x/x.safetensors": form,
        "people/some.safetensors": form,
    }
    lines = ask(*(f"hf://{name}" for name in expected))
    assert len(lines) == len(expected)
    for line, (name, words) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"error: hf://{name}") and words in line, line


def test_a_token_opens_what_is_gated(ask):
    (file,) = ask("hf://people/gated/some.safetensors", HF_TOKEN=TOKEN)
    assert pathlib.Path(file).read_bytes() == FILES["some.safetensors"].content


@pytest.mark.parametrize("token", [hub_server.WRONG, hub_server.FINE_GRAINED])
def test_a_token_that_is_refused_is_said(ask, server, token):
    (line,) = ask("hf://people/gated/some.safetensors", HF_TOKEN=token)
    assert f": {server} refuses your token: make one that may read gated repositories, and" in line


def test_what_is_not_in_the_cache_is_not_asked_for_offline(ask, tmp_path):
    name = "hf://people/digits/some.safetensors"
    (line,) = ask(name, HF_HUB_OFFLINE="1")
    assert line == (
        f"error: {name} is not in {tmp_path}/cache/hub, and HF_HUB_OFFLINE is set: unset it"
    )


@pytest.mark.slow  # The client tries again for half a minute.
def test_a_hub_that_is_out_of_reach_is_said(ask, tmp_path):
    name = "hf://people/digits/some.safetensors"
    nowhere = "http://127.0.0.1:1"
    (line,) = ask(name, HF_ENDPOINT=nowhere)
    assert line.startswith(f"error: {name} is not in {tmp_path}/cache/hub, and {nowhere} gives ")
    assert line.endswith("): check the connection")


def test_without_the_client_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs the package huggingface_hub: pip install"):
        saved_architecture("hf://people/digits/without.safetensors")


@pytest.mark.slow
def test_a_job_takes_weights_of_the_hub(server, tmp_path):
    names = ("tokenizer", "generator")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nvg_jax.main", "--config=nvg_digits", "--job=sample"),
            *(f"--workdir={tmp_path}", "--config.sampling.num_samples=4"),
            *(
                f"--config.{name}.checkpoint=hf://people/digits/digits/{name}.safetensors@main"
                for name in names
            ),
        ],
        env=os.environ | hub_server.environment(server, str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples" / "grid.png").stat().st_size
    for name in names:
        assert f"{name}.safetensors@main is {tmp_path}/cache/hub/models--people--dig" in done.stdout
