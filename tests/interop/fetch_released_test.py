"""The authors' models are fetched from a hub here, as small stand-ins, and named by the config."""

import json
import pathlib

import jax
import numpy as np
import pytest

from configs import nvg_d16
from nvg_jax import pretrained
from nvg_jax.errors import UserError
from nvg_jax.interop import fetch_released
from nvg_jax.jobs.job import check
from nvg_jax.jobs.model import given_weights, load_model
from tests import hub_server, released_model


@pytest.fixture(scope="module")
def values(golden_tokenizer, golden_generator):
    return released_model.config_values(golden_tokenizer, golden_generator)


@pytest.fixture(scope="module")
def checkpoints(golden_generator, golden_generator_tokenizer):
    tokenizer = released_model.tokenizer_dict(golden_generator_tokenizer)
    generator = released_model.generator_dict(golden_generator, golden_generator_tokenizer)
    tensors = {"ae": tokenizer, "d16": generator}
    return {name: released_model.checkpoint(x) for name, x in tensors.items()}


@pytest.fixture
def fetch(run_program, values, tmp_path):
    """What calls of the program do, each a token and arguments, in one new process."""

    def fetch(address: str, *calls: tuple[str, list[str]]):
        directory = f"--directory={tmp_path}/weights"
        calls = [(token, [*arguments, directory]) for token, arguments in calls]
        printed = run_program(
            "fetch_small",
            input=json.dumps({"values": values, "calls": calls}),
            devices=1,
            **hub_server.environment(address, str(tmp_path / "cache")),
        )
        return json.loads(printed.splitlines()[-1])

    return fetch


def repository(files: dict[str, hub_server.File]) -> hub_server.Repositories:
    return {fetch_released.REPOSITORY: {"main": {f"ckpt/{x}.ckpt": y for x, y in files.items()}}}


def test_fetched_models_are_named_by_the_config(
    fetch, checkpoints, values, golden_generator, golden_generator_tokenizer, tmp_path
):
    directory = tmp_path / "weights"
    (directory / "nvg_d16.partial" / "tokenizer").mkdir(parents=True)  # Of a fetch that was killed.
    (tmp_path / "mine.ckpt").write_bytes(checkpoints["d16"])
    calls = [
        (hub_server.TOKEN, ["nvg_d16", "nvg_tokenizer"]),
        ("", ["nvg_d16"]),
        ("", ["nvg_d20", f"--file=nvg_d20={tmp_path}/mine.ckpt"]),
    ]
    with hub_server.serve(
        repository({name: hub_server.File(x) for name, x in checkpoints.items()}),
        gated=fetch_released.REPOSITORY,
    ) as address:
        first, again, given = fetch(address, *calls)
    assert (first[0], again, given[0]) == (
        0,
        [0, [f"nvg_d16 is already in {directory}/nvg_d16"], []],
        0,
    )
    assert first[1][0] == (
        "downloading hf://yikaiwang/NVG/ckpt/ae.ckpt (S-Lab License 1.0, non-commercial)"
    )
    assert {path.name for path in directory.iterdir()} == {"nvg_d16", "nvg_d20", "nvg_tokenizer"}

    config = nvg_d16.get_config()
    config.update_from_flattened_dict(values)
    config.frozen.directory = str(directory)
    for config.pretrained in ("nvg_d16", "nvg_d20"):
        check(config)
        model = load_model(config, str(tmp_path / "run"))
        assert model.sources["generator"] == f"{directory}/{config.pretrained}/generator"
        jax.tree.map(
            np.testing.assert_array_equal, model.generator_variables, golden_generator.variables
        )
        expected = golden_generator_tokenizer.variables["params"]
        jax.tree.map(np.testing.assert_array_equal, model.tokenizer_variables["params"], expected)

    # The tokenizer alone: a generator is trained on it, or is that of the workdir.
    config.pretrained = "nvg_tokenizer"
    assert given_weights(config, "tokenizer") == f"{directory}/nvg_tokenizer/tokenizer"
    assert given_weights(config, "generator") == ""

    config.pretrained = "nvg_d24"
    with pytest.raises(
        UserError, match=f"{directory}/nvg_d24 is not there: run `python -m .*fetch nv"
    ):
        check(config)


def test_why_a_model_is_not_fetched_is_one_line(fetch, checkpoints, tmp_path):
    files = {
        "ae": hub_server.File(checkpoints["ae"], sha256="0" * 64),
        "d16": hub_server.File(checkpoints["d16"], cut=True),
        "d24": hub_server.File(checkpoints["ae"]),
    }
    cases = {
        ("", "nvg_d16"): "hf://yikaiwang/NVG/ckpt/d16.ckpt is gated: agree to the terms at {hub}"
        "/yikaiwang/NVG, then log in with `hf auth login`, or set HF_TOKEN",
        ("hf_of-another", "nvg_d16"): "ckpt/d16.ckpt is gated: agree to the terms at ",
        (hub_server.WRONG, "nvg_d16"): "{hub} refuses your token: make one that may read gated ",
        (hub_server.TOKEN, "nvg_d20"): "yikaiwang/NVG has no file ckpt/d20.ckpt: correct the name",
        (hub_server.TOKEN, "nvg_d16"): "ckpt/d16.ckpt cannot be downloaded (peer closed",
        (hub_server.TOKEN, "nvg_tokenizer"): "ckpt/ae.ckpt came damaged: its SHA-256 begins with ",
        (hub_server.TOKEN, "nvg_d24"): "no tensor nvgformer.scale_factors",
    }
    with hub_server.serve(repository(files), gated=fetch_released.REPOSITORY) as address:
        results = fetch(address, *((token, [name]) for token, name in cases))
    for (code, _, said), words in zip(results, cases.values(), strict=True):
        line = next(line for line in said if "B/s]" not in line)
        assert code == 1 and said[-1] == line, said
        assert line.startswith("error: ") and words.format(hub=address) in line, line
    assert not list((tmp_path / "weights").glob("*/seal"))
    left = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/ckpt/*")}
    assert left == {"d24.ckpt"}  # What was damaged is downloaded anew.


def test_a_generator_that_is_not_there_is_looked_for_where_it_was_put(tmp_path):
    with pytest.raises(
        UserError, match=f"{tmp_path}/nvg_d16 is not .*nvg_d16 --directory={tmp_path}` f"
    ):
        pretrained.folder("nvg_d16", str(tmp_path))
    assert pathlib.Path(pretrained.weights("digits", "tokenizer")).is_file()
