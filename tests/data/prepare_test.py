import subprocess
import sys

import pytest

from nvg_jax.data import prepare
from nvg_jax.errors import UserError


def _command(*options, **environment):
    """TFDS reads TFDS_DATA_DIR when it is imported, hence another process."""
    return subprocess.run(
        [sys.executable, "-m", "nvg_jax.data.prepare", "digits", *options],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)} | environment,
    )


def test_command_says_where_it_wrote_and_writes_once(tmp_path):
    where = tmp_path / "digits" / "1.0.0"
    done = _command(f"--data_dir={tmp_path}")
    assert done.stdout.splitlines()[-1:] == [f"digits is prepared in {where}"], done.stderr
    assert list(where.glob("*.array_record-*"))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = _command(TFDS_DATA_DIR=str(tmp_path))
    assert again.stdout == f"digits is already prepared in {where}\n", again.stderr
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_archives_to_place_by_hand_are_named_in_one_line(tmp_path):
    with pytest.raises(SystemExit) as end:
        prepare.main(["imagenet2012", f"--data_dir={tmp_path}"])
    (line,) = end.value.code.splitlines()
    assert line.startswith("error: cannot prepare imagenet2012: ")
    assert "ILSVRC2012_img_train.tar" in line
    assert str(tmp_path / "downloads" / "manual") in line


def test_unknown_dataset():
    with pytest.raises(
        SystemExit, match="^error: unknown dataset 'no_such_dataset': TFDS has none"
    ):
        prepare.main(["no_such_dataset"])


def test_dataset_in_another_file_format(tfrecord_dir):
    with pytest.raises(UserError, match="already prepared in .* but as tfrecord"):
        prepare.prepare("tiny_pixels", str(tfrecord_dir))
