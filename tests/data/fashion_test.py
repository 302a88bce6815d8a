"""Fashion-MNIST's IDX files; most tests put a set of five images in its place."""

import gzip
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from nvg_jax.data import fashion, pipeline, prepare
from nvg_jax.errors import UserError

_RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": _RNG.integers(0, 256, (3, 28, 28), np.uint8),
    "train-labels-idx1-ubyte": np.array([2, 9, 0], np.uint8),
    "t10k-images-idx3-ubyte": _RNG.integers(0, 256, (2, 28, 28), np.uint8),
    "t10k-labels-idx1-ubyte": np.array([9, 4], np.uint8),
}


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _prepare(source, data_dir):
    prepare.main(["fashion_mnist", f"--source={source}", f"--data_dir={data_dir}"])


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The folder of the small set, which is taken for the real one; two files are gzipped."""
    files = {
        name: fashion.IdxFile(array.shape, hashlib.sha256(_idx(array)).hexdigest())
        for name, array in ARRAYS.items()
    }
    monkeypatch.setattr(fashion, "FILES", files)
    folder = tmp_path / "source"
    folder.mkdir()
    for name, array in ARRAYS.items():
        if "images" in name:
            (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
        else:
            (folder / name).write_bytes(_idx(array))
    return folder


def test_files_become_the_dataset_that_tfds_makes_of_its_download(source, tmp_path, capsys):
    _prepare(source, tmp_path)
    where = tmp_path / "fashion_mnist" / "3.0.1"
    assert capsys.readouterr().out.splitlines()[-1] == f"fashion_mnist is prepared in {where}"
    fields = {"dataset": "fashion_mnist", "data_dir": str(tmp_path), "num_classes": 10}
    config = ConfigDict(fields | {"image_size": 28, "resize_ratio": 1.0, "num_workers": 0})
    for split, prefix in (("train", "train"), ("test", "t10k")):
        (batch,) = pipeline.evaluation_batches(
            config, split, len(ARRAYS[f"{prefix}-labels-idx1-ubyte"])
        )
        found = {
            (image[..., 0].tobytes(), int(label))
            for image, label in zip(batch["image"], batch["label"], strict=True)
        }
        images, labels = (
            ARRAYS[f"{prefix}-{kind}-ubyte"] for kind in ("images-idx3", "labels-idx1")
        )
        assert found == {(x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)}
    tfds_own = tfds.image_classification.FashionMNIST(data_dir=tmp_path / "nothing").info
    info = pipeline.load_builder("fashion_mnist", str(tmp_path)).info
    assert info.features.to_json() == tfds_own.features.to_json()
    assert info.features["label"].names == tfds_own.features["label"].names
    assert (info.full_name, info.citation) == (tfds_own.full_name, tfds_own.citation)


def _remove(path):
    path.unlink()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def _overwrite(path):
    path.write_bytes(b"something else")


def _spoil(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _put_other(path):
    path.write_bytes((path.parent / "t10k-images-idx3-ubyte.gz").read_bytes())


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("t10k-labels-idx1-ubyte", _remove, "there is no t10k-labels-idx1-ubyte.gz, nor t10k-"),
        ("train-images-idx3-ubyte.gz", _cut, r"3-ubyte.gz cannot be read \(cut off or damaged\)"),
        ("t10k-images-idx3-ubyte.gz", _spoil, r"3-ubyte.gz cannot be read \(cut off or damaged\)"),
        ("t10k-labels-idx1-ubyte", _cut, "t10k-labels-idx1-ubyte is no IDX file of unsigned bytes"),
        ("train-labels-idx1-ubyte", _overwrite, "is no IDX file of unsigned bytes: copy it anew"),
        (
            "train-labels-idx1-ubyte",
            _spoil,
            "train-labels-idx1-ubyte is not .* its SHA-256, unpack",
        ),
        ("train-images-idx3-ubyte.gz", _put_other, r"shape is \(2, 28, 28\) and not \(3, 28, 28\)"),
    ],
)
def test_spoilt_files_are_named_in_one_line(source, tmp_path, name, spoil, message):
    spoil(source / name)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as end:
        _prepare(source, tmp_path)
    assert len(end.value.code.splitlines()) == 1
    assert not (tmp_path / "fashion_mnist").exists()


def test_a_file_that_lacks_data(tmp_path):
    (tmp_path / "file").write_bytes(_idx(np.zeros((5, 4), np.uint8))[:-3])
    with pytest.raises(
        UserError, match=r"holds 17 bytes of data where its shape, \[5, 4\], needs 20"
    ):
        fashion.read_idx(tmp_path / "file")


def test_a_set_of_the_same_shapes_is_not_taken_for_fashion(tmp_path):
    images = np.zeros((60_000, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(images))
    with pytest.raises(
        SystemExit, match="^error: .*train-images-idx3-ubyte is not Fashion-MNIST's"
    ):
        _prepare(tmp_path, tmp_path)


def test_source_is_for_fashion_alone(tmp_path):
    with pytest.raises(UserError, match="--source is for fashion_mnist only, not for digits"):
        prepare.prepare("digits", str(tmp_path), source=str(tmp_path))
