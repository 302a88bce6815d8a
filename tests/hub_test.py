"""Weights on a hub: a server here that speaks its protocol, and real processes that ask it."""

import http.server
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from nvg_jax import pretrained
from nvg_jax.errors import UserError
from nvg_jax.weights import saved_architecture

ROOT = pathlib.Path(__file__).parents[1]
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
TOKEN = "hf_of-one-who-has-agreed"
FILES = {"some.safetensors": b"new" * 1000, "cut.safetensors": bytes(10_000)}


class Hub(http.server.BaseHTTPRequestHandler):
    """A repository, people/digits, and a gated one with the same files."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        path = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.*)", self.path)
        if not path:
            return self.answer(404)
        repository, revision, name = path.groups()
        commit = COMMITS.get(revision, revision)
        if repository == "people/gated" and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if repository not in ("people/digits", "people/gated"):
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if commit not in COMMITS.values():
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in FILES and not (pretrained.FOLDER / name).is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = FILES.get(name) or (pretrained.FOLDER / name).read_bytes()
        if commit == COMMITS["v1"]:
            content = b"old" + content
        if name.startswith("cut") and self.headers["Range"]:
            self.close_connection = True
            return None
        self.answer(200, {"X-Repo-Commit": commit, "ETag": f'"{hash(content)}"'}, content)

    do_GET = do_HEAD

    def answer(self, status, headers=(), content=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            if self.path.endswith("/cut.safetensors"):
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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
            | {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": paths}
            | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return ask


def test_a_file_is_downloaded_at_its_revision_and_then_taken_from_the_cache(ask):
    new, old = "hf://people/digits/some.safetensors", "hf://people/digits/some.safetensors@v1"
    files = ask(new, old, f"{new}@{COMMITS['main']}")
    contents = [pathlib.Path(file).read_bytes() for file in files]
    assert contents == [FILES["some.safetensors"], b"old" + FILES["some.safetensors"], contents[0]]
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
    assert pathlib.Path(file).read_bytes() == FILES["some.safetensors"]


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
        env=os.environ | {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples" / "grid.png").stat().st_size
    for name in names:
        assert f"{name}.safetensors@main is {tmp_path}/cache/hub/models--people--dig" in done.stdout
