"""Files are really saved by PyTorch and downloaded from a server here; only addresses change."""

import functools
import hashlib
import http.server
import io
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from nvg_jax import pretrained
from nvg_jax.evaluation import reference
from nvg_jax.frozen import weights
from nvg_jax.frozen.inception import NormedConv
from nvg_jax.frozen.vit import VisionTransformer
from nvg_jax.interop import fetch, fetch_released
from nvg_jax.interop.frozen_names import frozen_variables
from tests import published_networks

torch = pytest.importorskip("torch", reason="reads PyTorch checkpoints")

LPIPS_FILES = ("vgg16", "lpips_heads")


def _save(path, state_dict, **options):
    torch.save(
        {name: torch.from_numpy(value) for name, value in state_dict.items()}, path, **options
    )


@pytest.fixture(scope="module")
def small_networks():
    """LPIPS as it is, and small networks in place of the others."""
    networks = dict(weights.NETWORKS)
    for name, layer_scale in (("dino", False), ("dinov2", True)):
        module = VisionTransformer(
            patch_size=4, width=8, num_heads=1, native_grid=3, layer_scale=layer_scale, depth=2
        )
        networks[name] = networks[name]._replace(module=module, image_size=4)
    networks["inception"] = networks["inception"]._replace(module=NormedConv(8, (3, 3)))
    return networks


@pytest.fixture(scope="module")
def served(small_networks, tmp_path_factory):
    """The files of all networks, those of LPIPS in the old format, as the published ones are."""
    folder = tmp_path_factory.mktemp("served")
    for network in small_networks.values():
        for name, tensors in published_networks.published(network).items():
            is_new = name not in LPIPS_FILES
            path = folder / weights.FILES[name].file_name
            _save(path, tensors, _use_new_zipfile_serialization=is_new)
    return folder


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(served):
    handler = functools.partial(_Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _set_file(monkeypatch, name, **changes):
    monkeypatch.setitem(weights.FILES, name, weights.FILES[name]._replace(**changes))


@pytest.fixture
def published(small_networks, served, server, monkeypatch):
    """The tables with the addresses and the SHA-256 of what is served, and small networks."""
    for name, file in list(weights.FILES.items()):
        sha256 = hashlib.sha256((served / file.file_name).read_bytes()).hexdigest()
        prefix = sha256[:8] if file.sha256_prefix else ""
        _set_file(monkeypatch, name, address=f"{server}/{file.file_name}", sha256_prefix=prefix)
    for name, network in small_networks.items():
        monkeypatch.setitem(weights.NETWORKS, name, network)


@pytest.fixture
def offline(monkeypatch):
    """Addresses at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for name, file in list(weights.FILES.items()):
        _set_file(monkeypatch, name, address=f"http://127.0.0.1:{port}/{file.file_name}")


def _error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_fetched_weights_are_loaded_as_they_were_published(
    published, small_networks, tmp_path, capsys
):
    assert fetch.main(["lpips", f"--directory={tmp_path}"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[-1] == f"lpips is now in {tmp_path}/lpips"
    assert len(output) == 3 and "(BSD-3-Clause) from http://" in output[0]

    lpips = small_networks["lpips"]
    expected = frozen_variables(published_networks.state_dict(lpips), lpips)
    loaded = weights.load("lpips", str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"downloads", "lpips"}
    assert {path.name for path in (tmp_path / "downloads").iterdir()} == {
        "vgg16-397923af.pth",
        "vgg.pth",
    }


def test_all_networks_go_to_the_default_folder_and_only_once(
    published, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("NVG_JAX_CACHE", str(tmp_path))
    assert fetch.main([]) == 0
    for name in weights.NETWORKS:
        assert jax.tree.structure(weights.load(name)) == jax.tree.structure(weights.abstract(name))
    capsys.readouterr()

    files = _files(tmp_path)
    assert fetch.main(["all"]) == 0
    expected = [f"{name} is already in {tmp_path}/{name}" for name in weights.NETWORKS]
    assert capsys.readouterr().out.splitlines() == expected
    assert _files(tmp_path) == files


def test_without_a_network_the_line_says_which_file_to_put_where(offline, tmp_path, capsys):
    assert fetch.main(["dino", f"--directory={tmp_path}"]) == 1
    line = _error_line(capsys)
    assert line.startswith("error: cannot download http://127.0.0.1:")
    assert "Connection refused" in line
    path = tmp_path / "downloads" / "dino_deitsmall16_pretrain.pth"
    assert line.endswith(
        f": put the file at {path}, or say where it is with --file dino_vits16=PATH"
    )
    assert not _files(tmp_path)


def test_files_put_there_or_given_are_used_without_a_network(
    offline, published, served, tmp_path, monkeypatch, capsys
):
    for name in LPIPS_FILES:
        _set_file(monkeypatch, name, address=f"http://127.0.0.1:9/{weights.FILES[name].file_name}")
    (tmp_path / "downloads").mkdir()
    shutil.copy(served / "vgg.pth", tmp_path / "downloads")
    shutil.copy(served / "vgg16-397923af.pth", tmp_path / "mine.pth")
    options = [f"--directory={tmp_path}", f"--file=vgg16={tmp_path}/mine.pth"]
    assert fetch.main(["lpips", *options]) == 0
    assert capsys.readouterr().out == f"lpips is now in {tmp_path}/lpips\n"


@pytest.mark.parametrize("is_there", [False, True])
def test_files_with_another_hash_are_refused(published, tmp_path, monkeypatch, capsys, is_there):
    """What was downloaded is removed."""
    path = tmp_path / "downloads" / "vgg16-397923af.pth"
    if is_there:
        path.parent.mkdir()
        path.write_bytes(b"something else")
    else:
        _set_file(monkeypatch, "vgg16", sha256_prefix="00000000")
    assert fetch.main(["lpips", f"--directory={tmp_path}"]) == 1
    message = f"error: {path} is not vgg16-397923af.pth: its SHA-256 begins with "
    assert _error_line(capsys).startswith(message)
    assert path.exists() == is_there


def test_truncated_downloads_are_named_and_removed(
    published, served, server, tmp_path, monkeypatch, capsys
):
    content = (served / "dino_deitsmall16_pretrain.pth").read_bytes()
    (served / "half.pth").write_bytes(content[: len(content) // 2])
    _set_file(monkeypatch, "dino_vits16", address=f"{server}/half.pth")
    assert fetch.main(["dino", f"--directory={tmp_path}"]) == 1
    assert "half.pth is not a checkpoint" in _error_line(capsys)
    assert not _files(tmp_path)


def test_a_connection_that_ends_early_is_named(published, tmp_path, monkeypatch, capsys):
    def send_head(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        return io.BytesIO(b"some of it")

    monkeypatch.setattr(_Handler, "send_head", send_head)
    assert fetch.main(["dino", f"--directory={tmp_path}"]) == 1
    assert "(the connection ended after 10 of 1000 bytes)" in _error_line(capsys)
    assert not _files(tmp_path)


def test_files_that_are_not_there_are_named(published, server, tmp_path, monkeypatch, capsys):
    _set_file(monkeypatch, "dino_vits16", address=f"{server}/absent.pth")
    assert fetch.main(["dino", f"--directory={tmp_path}"]) == 1
    assert "HTTP Error 404" in _error_line(capsys)
    absent = tmp_path / "absent.pth"
    assert fetch.main(["dino", f"--directory={tmp_path}", f"--file=dino_vits16={absent}"]) == 1
    assert _error_line(capsys) == f"error: cannot read {absent}: No such file or directory"


def test_files_of_another_network_are_refused(published, served, tmp_path, capsys):
    other = served / weights.FILES["dino_vits16"].file_name
    options = [f"--directory={tmp_path}", f"--file=dinov2_vitb14={other}"]
    assert fetch.main(["dinov2", *options]) == 1
    line = _error_line(capsys)
    assert line.startswith("error: the files are not those of dinov2: blocks.0.ls1.gamma is miss")
    torch.save([1, 2], tmp_path / "list.pth")
    options[1] = f"--file=dinov2_vitb14={tmp_path}/list.pth"
    assert fetch.main(["dinov2", *options]) == 1
    assert _error_line(capsys) == f"error: {tmp_path}/list.pth holds no named tensors"
    assert not (tmp_path / "dinov2").exists()


def test_the_reference_is_downloaded_once(server, served, tmp_path, monkeypatch, capsys):
    (served / "batch.npz").write_bytes(b"<html>")
    file = reference.PUBLISHED._replace(address=f"{server}/batch.npz")
    monkeypatch.setattr(reference, "PUBLISHED", file)
    arguments = ["adm_imagenet256", f"--directory={tmp_path}"]
    assert fetch.main(arguments) == 1
    assert "batch.npz gives is no .npz file" in _error_line(capsys)
    np.savez(served / "batch.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    for is_there in ("now", "already"):
        assert fetch.main(arguments) == 0
        path = tmp_path / "downloads" / "batch.npz"
        line = capsys.readouterr().out.splitlines()[-1]
        assert line == f"adm_imagenet256 is {is_there} in {path}"
    assert path.read_bytes() == (served / "batch.npz").read_bytes()


def test_interrupted_writing_is_started_over(published, tmp_path):
    (tmp_path / "dino.partial" / "weights").mkdir(parents=True)
    assert fetch.main(["dino", f"--directory={tmp_path}"]) == 0
    weights.load("dino", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"downloads", "dino"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["vgg"], "error: unknown name vgg: choose from lpips, dino, dinov2, inception"),
        (
            ["--file=vgg=a.pth"],
            "error: --file vgg=a.pth is not NAME=PATH with one of the names vgg16",
        ),
        (["--file=vgg16"], "error: --file vgg16 is not NAME=PATH with one of the names vgg16"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    assert fetch.main(arguments) == 1
    assert _error_line(capsys).startswith(message)


def test_list_shows_every_file_with_its_licence(capsys):
    assert fetch.main(["--list"]) == 0
    listing = capsys.readouterr().out
    for name in pretrained.RELEASED:
        assert fetch_released.address(name) in listing and fetch_released.LICENCE in listing
    for file in (*weights.FILES.values(), reference.PUBLISHED):
        for part in (file.description, file.address, file.sha256_prefix, file.licence):
            assert part in listing


@pytest.mark.slow
def test_command_ends_with_a_line_and_exit_code_1(tmp_path):
    blocked = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    result = subprocess.run(
        [sys.executable, "-m", "nvg_jax.interop.fetch", "dino", f"--directory={tmp_path}"],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, **blocked},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot download https://dl.fbaipub")
    assert "Traceback" not in result.stderr
