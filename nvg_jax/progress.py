"""How far something is that takes long: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
Item = TypeVar("Item")

_WAITS = (10, 20, 30, 60)  # Seconds before each line; the last again and again.


class Progress:
    """A context in which `update` is told how much is done.

    what: is being done. total: how many there will be, if that is known. quiet: nothing is shown.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "image", quiet: bool = False
    ):
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._bar = tqdm(desc=what, total=total, unit=unit, delay=1, disable=quiet or None)
        self._start, self._ended = time.monotonic(), threading.Event()
        if not quiet:
            threading.Thread(target=self._show, daemon=True).start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._bar.close()

    def update(self, count: int = 1) -> None:
        self._done += count
        self._bar.update(count)

    def _show(self) -> None:
        """Also while the first is compiled, or a single one takes minutes."""
        for seconds in itertools.chain(_WAITS, itertools.repeat(_WAITS[-1])):
            if self._ended.wait(seconds):
                return
            if self._bar.disable:
                log.info(str(self))
            else:
                self._bar.refresh()

    def __str__(self) -> str:
        done = f"{self._done:,}" if self._total is None else f"{self._done:,} of {self._total:,}"
        took = time.monotonic() - self._start
        ending = "es" if self._unit.endswith("ch") else "s"
        return f"{self._what}: {done} {self._unit}{ending} after {took:.0f} s"


def track(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    unit: str = "image",
    quiet: bool = False,
) -> Iterator[Item]:
    """The items, of which each is done when the next is asked for."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(what, total, unit, quiet) as progress:
        for item in items:
            yield item
            progress.update()
