"""The table of what has been compiled."""

import json

import pytest

from benchmarks import compile_table
from nvg_jax.errors import UserError

STEP = {
    "task": "generator",
    "topology": "v5e:4x4",
    "batch_size": 64,
    "memory": 3 * 2**30,
    "limit": 16 * 2**30,
    "needed_flops": 100e12,
    "executed_flops": 120e12,
    "seconds": {"compute": 0.6, "memory": 0.8, "collectives": 0.01},
}
PARTS = {"content": {"seconds": 0.1}, "structure": {"seconds": 0.35}, "decoder": {"seconds": 0.05}}
SAMPLING = {
    "task": "sample",
    "device": "TPU v5 lite",
    "limit": 16 * 2**30,
    "runs": [
        {"batch_size": 1, "memory": 2**30, "fits": True, "parts": PARTS},
        {"batch_size": 64, "memory": 17 * 2**30, "fits": False, "parts": {}},
    ],
}


def _written(directory, *reports):
    directory.mkdir()
    (directory / "compile.json").write_text(json.dumps(reports))
    return str(directory)


def test_steps_and_samplings_have_a_table_each(tmp_path, capsys):
    unknown = STEP | {"task": "tokenizer", "limit": None, "seconds": None}
    compile_table.tables(
        [_written(tmp_path / "d16", SAMPLING, STEP), _written(tmp_path / "here", unknown)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2:4] == [
        "| d16 | generator | v5e:4x4 | 64 | 3 GiB of 16 GiB | 800 ms | 80 | 62% |",
        "| here | tokenizer | v5e:4x4 | 64 | 3 GiB |  |  |  |",
    ]
    assert lines[6:] == ["| d16 | TPU v5 lite | 1 | 1 GiB of 16 GiB | 500 ms | 2 | 70% |"]


def test_a_run_that_compiled_nothing_is_named_and_no_run_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"nothing/compile\.json is not there: run --job=compile"):
        compile_table.tables([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="name runs of --job=compile: --workdirs="):
        compile_table.tables([])
