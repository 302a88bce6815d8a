"""From a hub to the paper's table, as docs/reproduce.md says, with a small stand-in."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import reproduce_table
from nvg_jax.errors import UserError
from nvg_jax.evaluation import reference
from nvg_jax.interop import fetch_released
from tests import hub_server, released_model

ROOT = pathlib.Path(__file__).parents[1]
MEASURED = {"fid": 3.0, "inception_score": 280.04, "precision": 0.8}


@pytest.fixture
def workdir(tmp_path):
    """Of an evaluation that is done."""
    about = {"generator": "/home/me/nvg_d24/generator", "num_samples": 50_000}
    about |= {"reference": "adm_imagenet256"}
    content = MEASURED | {"measured": dict.fromkeys(MEASURED, about)}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    return tmp_path


def test_the_table_has_the_papers_numbers_above_those_measured(workdir):
    assert reproduce_table.table([str(workdir)]).splitlines()[2:] == [
        "| nvg_d24 | paper | 2.06 | 317.0 | 0.79 | 0.61 | 50,000 | adm_imagenet256 |",
        "| nvg_d24 | measured | 3.00 | 280.0 | 0.80 |  | 50,000 | adm_imagenet256 |",
    ]


def test_what_is_no_evaluation_of_a_released_model_is_said(workdir):
    with pytest.raises(UserError, match="absent/evaluation.json is not there: run --job=evaluate"):
        reproduce_table.table([f"{workdir}/absent"])
    with pytest.raises(UserError, match="name runs of --job=evaluate: --workdirs="):
        reproduce_table.table([])
    for about in ({}, {"fid": {"num_samples": 4}}, {"fid": {"generator": "step 6"}}):
        (workdir / "evaluation.json").write_text(json.dumps({"fid": 3.0, "measured": about}))
        with pytest.raises(UserError, match="no FID of new samples of a released model: run "):
            reproduce_table.table([str(workdir)])


@pytest.mark.parametrize("model", reproduce_table.PAPER)
def test_configs_sample_as_the_paper_does_and_the_page_expects_its_numbers(model):
    config = importlib.import_module(f"nvg_jax.configs.{model}").get_config()
    found = config.sampling.to_dict()
    wanted = {"content_guidance": (1.0, 3.5), "structure_guidance": (1.0, 2.5)}
    wanted |= {"temperature": 1.0, "top_k": 0, "top_p": (1.0, 0.5), "flow_steps": 25}
    wanted |= {"structure_stages": (), "gumbel_split": False, "classes": ()}
    assert {name: found[name] for name in wanted} == wanted
    assert config.evaluation.num_samples == 50_000 == 50 * config.data.num_classes
    row = (model, *reproduce_table.numbers(reproduce_table.PAPER[model]))
    assert f"| {' | '.join(row)} |\n" in (ROOT / "docs" / "reproduce.md").read_text()


@pytest.mark.slow
def test_three_commands_lead_from_a_hub_to_the_table(
    golden_tokenizer, golden_generator, golden_generator_tokenizer, run_program, tmp_path
):
    values = released_model.config_values(golden_tokenizer, golden_generator)
    values["data.image_size"] = size = 64
    tensors = released_model.generator_dict(golden_generator, golden_generator_tokenizer)
    tensors = released_model.of_fewer_positions(tensors, last_stage=4)
    file = hub_server.File(released_model.checkpoint(tensors))
    directory, published = tmp_path / "weights", reference.published(tmp_path / "weights")
    published.parent.mkdir(parents=True)  # As if it were downloaded before.
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.savez(published, arr_0=images, **statistics, mu_s=np.zeros(2023), sigma_s=np.eye(2023))

    arguments = ["nvg_d16", "adm_imagenet256", f"--directory={directory}"]
    repositories = {fetch_released.REPOSITORY: {"main": {"ckpt/d16.ckpt": file}}}
    with hub_server.serve(repositories, gated=fetch_released.REPOSITORY) as address:
        printed = run_program(
            "fetch_small",
            input=json.dumps({"values": values, "calls": [(hub_server.TOKEN, arguments)]}),
            devices=1,
            **hub_server.environment(address, str(tmp_path / "cache")),
        )
    ((code, said, _),) = json.loads(printed.splitlines()[-1])
    assert code == 0 and said[-1] == f"adm_imagenet256 is already in {published}"

    def run(module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    workdir = tmp_path / "released_d16"
    small = values | {"evaluation.num_samples": 5, "sampling.batch_size": 5}
    small |= {"sampling.flow_steps": 1, "evaluation.batch_size": 5, "frozen.random": True}
    run(
        "nvg_jax.main",
        *("--config=configs/nvg_d16.py", f"--workdir={workdir}", "--job=evaluate"),
        *("--config.pretrained=nvg_d16", "--config.evaluation.reference=adm_imagenet256"),
        "--config.evaluation.metrics=('fid', 'inception_score', 'precision_recall')",
        f"--config.frozen.directory={directory}",
        *(f"--config.{name}={value}" for name, value in small.items()),
    )
    table = run("benchmarks.reproduce_table", f"--workdirs={workdir}").splitlines()
    assert table[2] == "| nvg_d16 | paper | 3.03 | 279.2 | 0.82 | 0.54 | 50,000 | adm_imagenet256 |"
    model, kind, *numbers, samples, against = table[3].strip("| ").split(" | ")
    assert (model, kind, samples, against) == ("nvg_d16", "measured", "5", "adm_imagenet256")
    fid, score, precision, recall = map(float, numbers)
    assert fid > 100 and score >= 1 and 0 <= min(precision, recall) <= max(precision, recall) <= 1
