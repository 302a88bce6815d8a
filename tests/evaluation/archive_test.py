"""Files of samples: what is read, and what is refused in one line."""

import io
import zipfile

import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.evaluation import archive

IMAGES = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)


@pytest.mark.parametrize("class_ids", [None, np.arange(3), np.array([7, 7, 0], np.uint8)])
def test_samples_are_read(tmp_path, class_ids):
    labels = {} if class_ids is None else {"arr_1": class_ids}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "samples.npz", arr_0=IMAGES, **labels)
        samples = archive.load_samples(tmp_path / "samples.npz", 4)
        np.testing.assert_array_equal(samples.images, IMAGES)
        assert (samples.class_ids is None) == (class_ids is None)
        if labels:
            np.testing.assert_array_equal(samples.class_ids, class_ids)


@pytest.mark.parametrize(
    ("class_ids", "message"),
    [
        (np.arange(3.0), r"is float64 \[3\]: it has to be the images' classes, whole numbers"),
        (np.ones(3, bool), r"is bool \[3\]: it has to be the images' classes"),
        (np.array(["a", "b", "c"]), r"is <U1 \[3\]: it has to be the images' classes"),
        (np.eye(3, dtype=int), r"is int64 \[3, 3\]: it has to be the images' classes"),
        (np.array(3), r"is int64 \[\]: it has to be the images' classes"),
        (np.arange(2), r"is int64 \[2\]: it has to be a class for each of the 3 images"),
        (np.arange(4), r"is int64 \[4\]: it has to be a class for each of the 3 images"),
        (np.array([0, -1, 3]), "has class -1: classes count from 0"),
    ],
)
def test_wrong_classes(tmp_path, class_ids, message):
    np.savez(tmp_path / "samples.npz", arr_0=IMAGES, arr_1=class_ids)
    with pytest.raises(UserError, match=f"^arr_1 of {tmp_path}/samples.npz {message}"):
        archive.load_samples(tmp_path / "samples.npz", 4)


def _zip(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name.replace("_npy", ".npy"), content)
    return file.getvalue()


def _npz(write=np.savez, **arrays):
    file = io.BytesIO()
    write(file, **arrays)
    return file.getvalue()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_SQUEEZED = _npz(np.savez_compressed, arr_0=IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .npz file, as np.savez writes them, or damaged$"),
        (b"some text", "is no .npz file, as np.savez writes them, or damaged$"),
        (_npz(arr_0=IMAGES)[:300], "is no .npz file, as np.savez writes them, or damaged$"),
        (_npy(IMAGES), "is no .npz file"),
        (_zip(arr_1_npy=b"some text"), "is no .npz file of arrays, or damaged: arr_1 is no array"),
        (_zip(arr_0=b"some text"), "is no .npz file of arrays, or damaged"),
        (_zip(arr_0_npy=b""), "is no .npz file of arrays, or damaged"),
        (_zip(arr_0_npy=_npy(IMAGES)[:140]), "is no .npz file of arrays, or damaged"),
        (_SQUEEZED[:60] + b"!" * 9 + _SQUEEZED[69:], "is no .npz file of arrays, or damaged"),
        (_npz(arr_0=np.array([{}], object)), "is no .npz file of arrays, or damaged"),
        (_npz(other=IMAGES), "holds no samples: it has no array arr_0"),
    ],
    ids=range(11),  # A zip holds the time of its making, which would be in the test's name.
)
def test_files_that_hold_no_samples(tmp_path, content, message):
    path = tmp_path / "samples.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        archive.load_samples(path, 4)
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match=f"^cannot read {tmp_path}: Is a directory"):
        archive.load_samples(tmp_path, 4)
