import subprocess
import sys

import pytest

from nvg_jax.data import prepare
from nvg_jax.errors import UserError


def test_command_says_where_it_wrote(digits):
    where = digits.data_dir / "digits" / "1.0.0"
    assert digits.command.stdout.splitlines()[-1] == f"digits is prepared in {where}"
    assert list(where.glob("*.array_record-*"))


def test_second_time_says_so_and_writes_nothing(digits, capsys):
    files = {path: path.stat().st_mtime_ns for path in digits.data_dir.rglob("*")}
    assert prepare.main(["digits", f"--data_dir={digits.data_dir}"]) == 0
    where = digits.data_dir / "digits" / "1.0.0"
    assert capsys.readouterr().out == f"digits is already prepared in {where}\n"
    assert files == {path: path.stat().st_mtime_ns for path in digits.data_dir.rglob("*")}


def test_data_dir_defaults_to_the_one_of_tfds(digits):
    """TFDS reads TFDS_DATA_DIR when it is imported, hence another process."""
    command = subprocess.run(
        [sys.executable, "-m", "nvg_jax.data.prepare", "digits"],
        capture_output=True,
        text=True,
        check=False,
        env={"TFDS_DATA_DIR": str(digits.data_dir), "PYTHONPATH": ":".join(sys.path)},
    )
    assert command.stdout.startswith("digits is already prepared in"), command.stderr


def test_archives_to_place_by_hand_are_named_in_one_line(tmp_path, capsys):
    assert prepare.main(["imagenet2012", f"--data_dir={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot prepare imagenet2012: ")
    assert "ILSVRC2012_img_train.tar" in line
    assert str(tmp_path / "downloads" / "manual") in line


def test_unknown_dataset(capsys):
    assert prepare.main(["no_such_dataset"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: unknown dataset 'no_such_dataset': TFDS has none of that name"


def test_dataset_in_another_file_format(tfrecord_dir):
    with pytest.raises(UserError, match="already prepared in .* but as tfrecord"):
        prepare.prepare("tiny_pixels", str(tfrecord_dir))
