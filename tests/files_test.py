"""Files that are whole or not there, and places that can be written."""

import os

import numpy as np
import pytest

from nvg_jax import files
from nvg_jax.errors import UserError
from tests.small_disk import small_disk


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and os.listdir(path.parent) == ["file"]
    files.write_text(path, "after")
    assert path.read_text() == "after" and os.listdir(path.parent) == ["file"]


def test_a_full_disk_is_a_line_and_leaves_what_was_there(tmp_path):
    with small_disk(tmp_path, "1m") as disk:
        path = disk.path / "arrays.npz"
        files.write_text(path, "before")
        disk.fill(leave=40_000)
        with pytest.raises(UserError, match="arrays.npz cannot be written .No space left on dev"):
            with files.replacing(path) as file:
                np.savez(file, np.zeros(1_000_000, np.uint8))
        assert path.read_text() == "before"
        with (
            pytest.raises(UserError, match="No space"),
            files.new_folder(disk.path / "a") as folder,
        ):
            files.write_text(folder / "file", "x" * 100_000)
        assert sorted(os.listdir(disk.path)) == ["arrays.npz", "filler"]
        disk.free()
        disk.fill()
        with pytest.raises(UserError, match="No space left on device"):
            files.usable_workdir(disk.path / "run")
        disk.make_writable(False)
        with pytest.raises(UserError, match="Read-only file system"):
            files.usable_workdir(disk.path / "run")


def test_a_new_folder_is_nobodys(tmp_path):
    names = []
    for _ in range(3):
        with files.new_folder(tmp_path / "samples") as folder:
            names.append(folder.name)
    assert names == ["samples", "samples-2", "samples-3"]


def test_looking_at_a_workdir_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.usable_workdir("~/a/b") == f"{tmp_path}/a/b"
    assert not os.listdir(tmp_path)
    with pytest.raises(UserError, match="is no directory"):
        files.usable_workdir("/tmp/\udcff")
