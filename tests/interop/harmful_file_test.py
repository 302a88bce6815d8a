"""Files that would do harm if what they name were called."""

import builtins
import functools
import operator
import os
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

from nvg_jax.errors import UserError
from nvg_jax.interop.torch_file import stored_tensors

torch = pytest.importorskip("torch", reason="writes PyTorch's files")

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "d16.ckpt")


class Call:
    """What calls a function with arguments when its pickle is read as usual."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)[: 2 if state is None else 3]

    def __call__(self):
        raise NotImplementedError

    def __reduce__(self):
        return self.reduced


def _traps(mark: str) -> dict[str, Call]:
    """Each makes the file `mark`, in another way."""
    make = f"open({mark!r}, 'w').close()"
    inner = Call(getattr, Call(__import__, "os"), "system")
    return {
        "system": Call(os.system, f"touch {mark}"),
        "exec": Call(exec, make),
        "eval": Call(eval, make),
        "open": Call(open, mark, "w"),
        "path": Call(pathlib.Path.touch, pathlib.Path(mark)),
        "getattr": Call(inner, f"touch {mark}"),
        "partial": Call(functools.partial(os.system, f"touch {mark}")),
        "methodcaller": Call(operator.methodcaller("touch"), pathlib.Path(mark)),
        "map": Call(list, Call(map, exec, [make])),
        "run": Call(subprocess.run, ["touch", mark]),
        "numpy": Call(np.save, mark, np.zeros(1)),
        "torch": Call(torch.save, 1, mark),
        "pickle": Call(pickle.loads, pickle.dumps(Call(exec, make))),
        "setstate": Call(
            types.SimpleNamespace, state={"a": Call(builtins.exec, make), "__class__": 1}
        ),
    }


@pytest.mark.parametrize("place", ["beside", "key", "tensor", "storage", "whole"])
@pytest.mark.parametrize("trap", _traps(""))
def test_nothing_that_a_file_names_is_run(tmp_path, path, trap, place):
    mark = str(tmp_path / "mark.npy")
    call = _traps(mark)[trap]
    pickle.loads(pickle.dumps(call))
    os.remove(mark)  # So the trap works.
    tensor = torch.ones(2)
    rebuild = torch._utils._rebuild_tensor_v2
    contents = {
        "beside": {"state_dict": {"a": tensor}, "callbacks": [call]},
        "key": {"state_dict": {"a": tensor, call: 1}},
        "tensor": {"state_dict": {"a": tensor, "b": call}},
        "storage": {"state_dict": {"a": tensor, "b": Call(rebuild, call, 0, (1,), (1,))}},
        "whole": call,
    }[place]
    torch.save(contents, path)
    try:
        tensors = stored_tensors(path, "state_dict")
        np.testing.assert_array_equal(tensors["a"], [1, 1])
    except UserError as error:
        assert place in ("storage", "whole") and "\n" not in str(error)
    assert not pathlib.Path(mark).exists()


# Pickles that no pickler writes: `os.system` named and called by other opcodes.
OPCODES = {
    "inst": b"(S'touch MARK'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch MARK'\no.",
    "dotted": b"\x80\x04\x8c\x08builtins\x8c\x0f__import__.call\x93\x8c\x02os\x85R.",
    "newobj": b"\x80\x02cos\nsystem\nS'touch MARK'\n\x85\x81.",
    "build a class": b"\x80\x02cos\nsystem\n}S'__call__'\ncos\nsystem\nsb.",
    "build": b"\x80\x02ccollections\nOrderedDict\n)R}S'items'\ncos\nsystem\nsb.",
    "build its class": b"\x80\x02ccollections\nOrderedDict\n}S'items'\ncos\nsystem\nsb.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02cos\nsystem\nQ.",
    "buffer": b"\x80\x05\x97\x98.",
}
# Prints what Python, asked to read the files, does that can be audited, but for opening files.
AUDITED = """
import sys
from nvg_jax.errors import UserError
from nvg_jax.interop.torch_file import stored_tensors

def read(path):
    try:
        list(map(stored_tensors, [path]))
    except UserError:
        pass

first, *others = sys.argv[1:]
read(first)
def audit(event, arguments):
    if event != "open" or arguments[0] not in others:
        print(event, arguments)
sys.addaudithook(audit)
for path in others:
    read(path)
assert "torch" not in sys.modules
"""


def test_reading_does_nothing_but_opening_the_file(tmp_path):
    mark, files = tmp_path / "mark", []
    pickles = [content.replace(b"MARK", bytes(mark)) for content in OPCODES.values()]
    pickles += [pickle.dumps(call) for call in _traps(str(mark)).values()]
    for index, content in enumerate([pickle.dumps({}), *pickles]):
        files.append(str(tmp_path / f"{index}.ckpt"))
        with zipfile.ZipFile(files[-1], "w") as archive:
            archive.writestr("a/data.pkl", content)
    command = [sys.executable, "-c", AUDITED, *files]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    "arguments",
    [(0, (3,), (1,)), (1, (2,), (1,)), (0, (1,), (-1,)), (0, (2, 1), (1,)), (0.5, (), ())],
)
def test_tensors_outside_of_their_storage_are_refused(path, arguments):
    storage = torch.ones(2).storage()
    torch.save({"a": Call(torch._utils._rebuild_tensor_v2, storage, *arguments)}, path)
    with pytest.raises(UserError, match="is not a checkpoint of PyTorch, or is damaged"):
        stored_tensors(path)
