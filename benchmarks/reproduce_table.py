"""A Markdown table of what evaluations of released models have measured, under the paper's numbers.

    python -m benchmarks.reproduce_table --workdirs=runs/released_d16,runs/released_d24

takes workdirs with an `evaluation.json`, and measures nothing. See docs/reproduce.md.
"""

import json
import pathlib
from typing import Any

from absl import flags
from etils import epath

from benchmarks import markdown
from nvg_jax import cli
from nvg_jax.errors import UserError

_METRICS = {"fid": ".2f", "inception_score": ".1f", "precision": ".2f", "recall": ".2f"}
_HEAD = ("model", "", "FID", "IS", "precision", "recall", "samples", "reference")
# Of 50,000 samples each, against the ADM evaluation suite's reference batch.
PAPER = {
    "nvg_d16": {"fid": 3.03, "inception_score": 279.2, "precision": 0.82, "recall": 0.54},
    "nvg_d20": {"fid": 2.44, "inception_score": 310.4, "precision": 0.80, "recall": 0.60},
    "nvg_d24": {"fid": 2.06, "inception_score": 317.0, "precision": 0.79, "recall": 0.61},
}


def table(workdirs: list[str]) -> str:
    """Two rows for each workdir: the paper's numbers, and those measured.

    Raises UserError for a workdir without numbers of a released model's samples.
    """
    if not workdirs:
        raise UserError("name runs of --job=evaluate: --workdirs=runs/released_d16")
    rows = []
    for workdir in workdirs:
        path = epath.Path(workdir) / "evaluation.json"
        if not path.exists():
            raise UserError(f"{path} is not there: run --job=evaluate with this --workdir first")
        found = json.loads(path.read_text())
        about = found["measured"].get("fid", {})
        model = pathlib.Path(about.get("generator", "")).parent.name
        if model not in PAPER:
            raise UserError(
                f"{path} has no FID of new samples of a released model: run --job=evaluate with "
                f"--config.pretrained={' or '.join(PAPER)}"
            )
        rows.append((model, "paper", *numbers(PAPER[model]), "50,000", "adm_imagenet256"))
        samples, reference = f"{about['num_samples']:,}", about["reference"]
        rows.append((model, "measured", *numbers(found), samples, reference))
    return markdown.table(_HEAD, rows)


def numbers(found: dict[str, Any]) -> list[str]:
    """FID, IS, precision and recall as the table shows them; '' for what was not measured."""
    return [format(found[name], form) if name in found else "" for name, form in _METRICS.items()]


if __name__ == "__main__":
    flags.DEFINE_list("workdirs", [], "Of runs of --job=evaluate.")
    cli.run(lambda: print(table(flags.FLAGS.workdirs)))
