"""Files are really saved by PyTorch; what they name is not there, or would do harm, when read."""

import argparse
import collections
import enum
import functools
import operator
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.interop.torch_file import StoredTensor, stored_tensors
from tests import released_model

torch = pytest.importorskip("torch", reason="writes PyTorch's files")

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "d16.ckpt")


@pytest.fixture
def gone(monkeypatch):
    """Classes of a package that is there while a file is saved, and not when it is read."""
    package = types.ModuleType("gone")

    class Node:
        class Inner(str):
            pass

        def __init__(self, **content):
            self.content, self.parent = content, self  # As configs have it.

        def __getstate__(self):
            return self.__dict__

        def __setstate__(self, state):
            raise AssertionError

    class Slots:
        __slots__ = ("value",)

    class Keywords:
        def __new__(cls, *, value):
            return super().__new__(cls)

        def __getnewargs_ex__(self):
            return (), {"value": 1}

    class Color(enum.Enum):
        RED = 1

    Pair = collections.namedtuple("Pair", "first second")
    kinds = {kind.__name__: kind for kind in (Node, Slots, Keywords, Color, Pair)}
    for base in (list, dict, set):
        kinds[base.__name__.title()] = type(base.__name__.title(), (base,), {})
    for name, kind in kinds.items():
        kind.__module__, kind.__qualname__ = "gone", name
        setattr(package, name, kind)
    Keywords.__new__.__module__, Keywords.__new__.__qualname__ = "gone", "Keywords.__new__"
    Node.Inner.__module__, Node.Inner.__qualname__ = "gone", "Node.Inner"
    monkeypatch.setitem(sys.modules, "gone", package)
    return package


def _various(gone) -> list:
    """What checkpoints keep beside tensors."""
    slots = gone.Slots()
    slots.value = 3
    node = gone.Node(a=1)
    return [
        *(np.float64(0.5), np.int64(3), np.bool_(True), np.arange(6).reshape(2, 3), np.dtype("f4")),
        *(np.array(["a"], object), np.random.default_rng(0), np.random.RandomState(0)),
        *(functools.partial(max, 1, key=abs), collections.deque([1], 3), {1, 2}, frozenset([1])),
        *(collections.defaultdict(list, a=[1]), collections.Counter("aab"), 2**80, 1j, b"a"),
        *(argparse.Namespace(a=1), pathlib.Path("a/b"), pathlib.PureWindowsPath("c"), range(3)),
        *(len, operator.attrgetter("a"), operator.itemgetter(1), slice(1), Ellipsis, "é"),
        *(torch.float16, torch.device("cpu"), torch.Size([1]), torch.nn.Linear(2, 2), int),
        *(node, gone.Node.Inner("a"), slots, gone.Keywords(value=1), gone.Color.RED),
        *(gone.Pair(1, 2), gone.List([1, node]), gone.Dict(a=node), gone.Set([1]), gone.Node),
        *({gone.Color.RED: 1, (1, gone.Color.RED): 2}, torch.quantize_per_tensor(
            torch.ones(2), 0.1, 0, torch.qint8
        )),
        *(torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.uint16), torch.FloatStorage(3)),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # Of PyTorch, about what we save.
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_stands_beside_the_tensors_is_no_hindrance(gone, path, zipped, protocol):
    others = _various(gone)
    for hyper_parameters in (*others, others):
        contents = {"state_dict": {"a": torch.arange(3)}, "hyper_parameters": hyper_parameters}
        torch.save(contents, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        sys.modules.pop("gone", None)
        (tensor,) = stored_tensors(path, "state_dict").values()
        np.testing.assert_array_equal(tensor, [0, 1, 2])
        sys.modules["gone"] = gone


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_pytorch_reads(path, zipped):
    base = torch.randn(4, 5)
    with_attribute = base[1:3, ::2].clone()
    with_attribute.note = parameter_note = "kept"
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.note = parameter_note
    state_dict = {
        **{str(kind): base.to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64)},
        **{str(kind): (9 * base).to(kind) for kind in (torch.int8, torch.int64, torch.bool)},
        **{"transposed": base.t(), "slice": base[1:, 2], "expanded": base[0, 0].expand(2, 3)},
        **{"scalar": torch.tensor(7), "empty": base[:, :0], "requires": base.clone()},
        **{"parameter": torch.nn.Parameter(base), "attribute": with_attribute, "both": parameter},
        "shared": base,
    }
    state_dict["requires"].requires_grad_()
    others = {"name": "x", "number": 3.0, "none": None}
    state_dict = collections.OrderedDict(state_dict | others)
    state_dict._metadata = {"": {"version": 1}}
    torch.save(state_dict, path, _use_new_zipfile_serialization=zipped)
    tensors = stored_tensors(path)
    assert set(tensors) == set(state_dict) - set(others)
    for name, tensor in tensors.items():
        expected = state_dict[name].detach().float().numpy()
        assert isinstance(tensor, StoredTensor) and tensor.shape == expected.shape
        assert np.asarray(tensor).dtype == np.float32
        np.testing.assert_array_equal(tensor, expected)


MEASURED = """
import resource, sys
import numpy as np
from nvg_jax.interop.torch_file import stored_tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
total = sum(
    float(np.asarray(tensor).sum())
    for name, tensor in stored_tensors(sys.argv[1], "state_dict").items()
    if name.startswith("nvgformer.")
)
print(total, peak() - before)
"""


@pytest.mark.parametrize("zipped", [True, False])
def test_only_what_is_kept_takes_memory(path, zipped):
    """120 MiB are in the file, one tensor of 4 MiB at a time is asked for."""
    mebi = 2**18
    kept = {f"nvgformer.{index}": torch.ones(4 * mebi) for index in range(3)}
    copies = {f"ema_model.{name}": tensor + 1 for name, tensor in kept.items()}
    optimizer = [torch.zeros(32 * mebi) for _ in range(3)]
    contents = {"optimizer_states": optimizer, "state_dict": copies | kept}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    assert os.path.getsize(path) > 119 * 2**20
    command = [sys.executable, "-c", MEASURED, path]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert not result.stderr
    total, mebibytes = map(float, result.stdout.split())
    assert total == 3 * 4 * mebi
    assert mebibytes < 20


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this", "cut"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_no_checkpoint_is_named(path, content, zipped):
    if content == "cut":
        tensors = {"state_dict": {"a": torch.ones(1000)}}
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        content = pathlib.Path(path).read_bytes()[:-10]
    pathlib.Path(path).write_bytes(content)
    with pytest.raises(UserError) as error:
        stored_tensors(path, "state_dict")
    assert str(error.value).startswith(f"{path} is not a checkpoint of PyTorch, or is damaged")


def test_damaged_numbers_are_found(path):
    torch.save({"a": torch.full((1000,), 3.0), "b": torch.ones(2)}, path)
    content = bytearray(pathlib.Path(path).read_bytes())
    content[content.index(np.full(9, 3.0, np.float32).tobytes()) + 50] ^= 1
    pathlib.Path(path).write_bytes(content)
    tensors = stored_tensors(path)
    np.testing.assert_array_equal(tensors["b"], [1, 1])
    with pytest.raises(UserError, match="d16.ckpt is damaged: a tensor cannot be read"):
        np.asarray(tensors["a"])


def test_a_missing_file_and_one_without_weights_are_named(path):
    with pytest.raises(UserError, match="cannot read .*d16.ckpt: No such file"):
        stored_tensors(path)
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        stored_tensors(os.path.dirname(path))
    for contents in ({"model": {}}, {"state_dict": [torch.ones(1)]}, [1], slice(1)):
        torch.save(contents, path)
        with pytest.raises(UserError, match="d16.ckpt holds no state_dict"):
            stored_tensors(path, "state_dict")
    with pytest.raises(UserError, match="d16.ckpt holds no named tensors"):
        stored_tensors(path)


def test_what_stands_in_for_released_files_is_what_pytorch_reads(path):
    numbers = np.arange(24, dtype=np.float32)
    tensors = {"a": numbers.reshape(2, 3, 4), "b": numbers[5], "c": numbers[:0].reshape(0, 2)}
    pathlib.Path(path).write_bytes(released_model.checkpoint(tensors))
    for read in (
        torch.load(path, weights_only=True)["state_dict"],
        stored_tensors(path, "state_dict"),
    ):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert tuple(read[name].shape) == tensor.shape
            np.testing.assert_array_equal(np.asarray(read[name]), tensor)
