"""Event files that TensorBoard shows, written without TensorFlow, whose import takes seconds."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.data_compat import migrate_value
from tensorboard.summary.writer.record_writer import RecordWriter

_numbers = itertools.count()  # Of the files of this process.


class SummaryWriter:
    """Writes numbers and pictures of steps to a new event file in a folder, or in a bucket.

    Raises what the file system does: an OSError, or of a bucket one of TensorFlow's. After that
    nothing more should be written to the file, which may end amid a record.
    """

    def __init__(self, directory: epath.PathLike):
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard finds event files by the start of their names, and reads them in name order.
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        with contextlib.ExitStack() as opened:
            file = opened.enter_context((directory / f"events.out.tfevents.{name}").open("wb"))
            self._records = RecordWriter(file)
            self._write(file_version="brain.Event:2")
            self._open = opened.pop_all()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._write_values(
            step, (Summary.Value(tag=name, simple_value=value) for name, value in scalars.items())
        )

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """images: each uint8 [H, W, 3]."""
        self._write_values(
            step, (Summary.Value(tag=name, image=_image(image)) for name, image in images.items())
        )

    def close(self) -> None:
        self._open.close()

    def _write_values(self, step: int, values: Iterable[Summary.Value]) -> None:
        # As tensors, the form of TensorFlow 2's summaries, by TensorBoard's own translation.
        self._write(step=step, summary=Summary(value=map(migrate_value, values)))

    def _write(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def _image(image: np.ndarray) -> Summary.Image:
    height, width, channels = image.shape
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue()
    )
