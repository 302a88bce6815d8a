"""Ctrl-C and SIGTERM: one line, and the process ends at once, whatever it is doing.

Python tells of signals between two of its instructions, and so not while a program is compiled or
waited for; and an exception may come where nobody expects one, which shows as tracebacks. A thread
that is told by the operating system ends the process instead. Everything that is written on the way
is of such a kind that it may be killed; see `files` and `checkpoint`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

_watching = False
_last_words: Callable[[], str] = str


def watch() -> None:
    """Ends this process on Ctrl-C with exit code 130, and on SIGTERM with 143.

    Unless there is another handler of SIGTERM at that time. To be called by the main thread.
    """
    global _watching
    if _watching:
        return
    _watching = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # As nohup and shells' background has it.
            signal.signal(number, _noticed)


def say_last(words: Callable[[], str]) -> None:
    """What is to be said of what remains when the process is stopped, a part of a line."""
    global _last_words
    _last_words = words


def _noticed(number: int, frame: object) -> None:
    """The thread has been told as well."""


def _wait(reading: int) -> None:
    while True:
        (number,) = os.read(reading, 1)
        if signal.getsignal(number) is _noticed:
            _end(number)


def _end(number: int) -> None:
    try:
        with contextlib.suppress(AttributeError, KeyError):  # Not imported, or not to the end.
            sys.modules["nvg_jax.files"].remove_unfinished()
        with contextlib.suppress(AttributeError, KeyError):
            for worker in sys.modules["multiprocessing.process"].active_children():
                worker.terminate()
        what = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        begin = "\n" if os.isatty(2) else ""  # A progress bar may stand there.
        os.write(2, f"{begin}stopped by {what}{_last_words()}\n".encode(errors="replace"))
    finally:
        os._exit(128 + number)
