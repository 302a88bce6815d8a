"""What a user sees of training: lines on the terminal, and summaries for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nvg_jax import granularity, hardware, visualize
from nvg_jax.errors import UserError
from nvg_jax.training.summaries import SummaryWriter

log = logging.getLogger(__name__)
Metrics = dict[str, Any]


class Report:
    """Gathers the metrics of steps on the devices, and writes their summary now and then.

    A metric is a scalar, one value a stage (`*_by_stage`), or `token_counts [stages, V]`, of no
    stages where there are no tokens. Those
    named `loss` and `loss/<term>` stand in the lines on the terminal.
    `step_flops`: floating-point operations of a step, from which the devices' utilisation follows.

    Where summaries cannot be written, as on a full disk, it warns once and goes on without them,
    until they can.
    """

    step_flops = 0.0

    def __init__(self, name: str, directory: str, num_steps: int, batch_size: int, start: int):
        self._name = name
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._directory = directory
        self._is_writer = jax.process_index() == 0
        self._writer: SummaryWriter | None = None
        self._failing: set[str] = set()
        self._write("summaries", lambda writer: None)
        self._steps: list[Metrics] = []
        self._skipped = 0
        self._last = (start, time.monotonic())

    def add(self, metrics: Metrics, skipped: int) -> None:
        """Keeps a step's metrics without waiting for them; `skipped`: images passed over."""
        self._steps.append(metrics)
        self._skipped += skipped

    def write(self, step: int, learning_rate: float) -> None:
        """Summarises the steps since the last call and forgets them."""
        summary = _summarise(jax.device_get(self._steps))
        self._steps = []
        now, (last_step, last_time) = time.monotonic(), self._last
        seconds_per_step = (now - last_time) / (step - last_step)
        self._last = (step, now)
        summary["learning_rate"] = learning_rate
        summary["images_per_second"] = self._batch_size / seconds_per_step
        summary["teraflops_per_second"] = self.step_flops / seconds_per_step / 1e12
        if peak := hardware.peak_flops():
            summary["utilisation"] = self.step_flops / seconds_per_step / peak
        summary["skipped_images"] = self._skipped
        if not self._is_writer:
            return
        seconds_left = seconds_per_step * (self._num_steps - step)
        log.info(_line(self._name, step, self._num_steps, summary, seconds_left))
        for line in _stage_lines(summary):
            log.info(line)
        self._write("summaries", lambda writer: writer.write_scalars(step, dict(_flatten(summary))))

    def restart_clock(self, step: int) -> None:
        """Leaves what happened since the last summary out of the next one's speed."""
        self._last = (step, time.monotonic())

    def write_pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Writes pictures to TensorBoard and as PNG files."""

        def write(writer: SummaryWriter) -> None:
            for name, picture in pictures.items():
                visualize.save_png(f"{self._directory}/pictures/{name}_{step:08d}.png", picture)
            writer.write_images(step, pictures)

        self._write("pictures", write)

    def close(self) -> None:
        if self._writer:
            self._write("summaries", lambda writer: writer.close())

    def _write(self, what: str, write: Callable[[SummaryWriter], None]) -> None:
        """Calls `write` with the summaries' writer, on the process that writes them.

        what: is written; that it cannot be is said once for each. Pictures are large: where they
        find no room there may still be some for numbers.
        """
        if not self._is_writer:
            return
        try:
            self._writer = self._writer or SummaryWriter(self._directory)
            write(self._writer)
            self._failing.discard(what)
        except (OSError, UserError, *_errors_of_buckets()) as error:
            # Nobody reads on after a record that is half written: the next one begins a file.
            if self._writer:
                with contextlib.suppress(OSError, *_errors_of_buckets()):
                    self._writer.close()
                self._writer = None
            if what not in self._failing:
                reason = str(error.__cause__ or error).splitlines()[0].split("; ")[-1]
                log.warning(
                    "no %s can be written to %s (%s): training goes on without them",
                    what,
                    self._directory,
                    reason,
                )
            self._failing.add(what)


def _errors_of_buckets() -> tuple[type[Exception], ...]:
    """What writing there raises beside OSError: by TensorFlow, and only where it was imported."""
    tensorflow = sys.modules.get("tensorflow")
    return (tensorflow.errors.OpError,) if tensorflow else ()


def _summarise(steps: list[Metrics]) -> Metrics:
    summary = {
        name: np.mean([metrics[name] for metrics in steps], axis=0)
        for name in steps[0]
        if name != "token_counts"
    }
    counts = np.sum([metrics["token_counts"] for metrics in steps], axis=0)
    if not len(counts):
        return summary
    usage, overall = granularity.codebook_usage(counts)
    return {**summary, "codebook_usage": overall, "codebook_usage_by_stage": usage}


def _flatten(summary: Metrics):
    for name, value in summary.items():
        if np.ndim(value) == 0:
            yield name, float(value)
        else:
            group = name.removesuffix("_by_stage")
            yield from ((f"{group}_by_stage/{k}", float(v)) for k, v in enumerate(value))


def _line(name: str, step: int, num_steps: int, summary: Metrics, seconds_left: float) -> str:
    left = time.strftime("%H:%M:%S", time.gmtime(seconds_left))
    if seconds_left >= 86_400:
        left = f"{seconds_left // 86_400:.0f}d {left}"
    terms = "  ".join(
        f"{term.removeprefix('loss/')} {value:.4f}"
        for term, value in sorted(summary.items())
        if term == "loss" or term.startswith("loss/")
    )
    codebook = f"codebook {summary['codebook_usage']:.0%}  " if "codebook_usage" in summary else ""
    utilisation = f" ({summary['utilisation']:.0%} of peak)" if "utilisation" in summary else ""
    skipped = f"  skipped {summary['skipped_images']}" if summary["skipped_images"] else ""
    return (
        f"{name} {step}/{num_steps}  {terms}  {codebook}"
        f"{summary['images_per_second']:.0f} images/s{utilisation}{skipped}  {left} left"
    )


def _stage_lines(summary: Metrics) -> list[str]:
    lines = []
    for name, value in summary.items():
        if name.endswith("_by_stage"):
            form = "{:6.0%}" if "usage" in name else "{:6.3f}"
            columns = " ".join(form.format(v) for v in value)
            title = name.removesuffix("_by_stage").replace("_", " ")
            lines.append(f"    {title:>15} by stage {columns}")
    return lines
