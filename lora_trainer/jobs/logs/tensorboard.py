"""Losses, rates and previews for TensorBoard, written without the tensorboard package: records of small protocol buffers.

So nothing has to be installed, and no package of the host changes. Format: tensorflow/core/lib/io/record_writer.h,
event.proto and summary.proto (TensorFlow 1.0 and later).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from lora_trainer.events import Resumed, Sampled, Stepped, Validated
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.events_log import EventRecord, finite_or_none
from lora_trainer.jobs.status import FROM_STATE

VERSION = "brain.Event:2"
TAGS = {
    "loss": "loss/current",
    "loss_average": "loss/average",
    "lr": "lr/current",
    "grad_norm": "norm/gradient",
    "seconds": "speed/seconds_per_step",
    "vram_mb": "memory/mb",
    "skipped": "guard/skipped_steps",
    "loss_scale": "guard/loss_scale",
}
"""Fields of Stepped -> TensorBoard tags, sd-scripts' if it has one."""
PART_NAMES = {"text_encoder": "textencoder"}
MAX_IMAGE_BYTES = 8 << 20


class TensorBoard:
    """A sink that writes to FOLDER/PREFIX+TIME/NAME, as sd-scripts does. TIME is when the run was created."""

    def __init__(self, folder: RunFolder, logs: Path, prefix: str = "", name: str = "") -> None:
        info = folder.info()
        started = time.strftime("%Y%m%d%H%M%S", time.localtime(info["created"] or None))
        self.folder = logs / f"{prefix}{started}" / (name or info["name"])
        self._file: BinaryIO | None = None

    def __call__(self, record: EventRecord) -> None:
        event, now = record.event, record.time
        if isinstance(event, Stepped):
            self._write(now, event.step, summary=b"".join(_scalar(tag, value) for tag, value in scalars(event)))
        elif isinstance(event, Validated):
            self._write(now, event.step, summary=_scalar("loss/validation", event.loss))
        elif isinstance(event, Sampled):
            png = Path(event.path).read_bytes()
            if len(png) <= MAX_IMAGE_BYTES:
                self._write(now, event.step, summary=_image(f"samples/{event.index:02d}", png))
        elif isinstance(event, Resumed) and event.reason == FROM_STATE:
            self._write(now, event.step + 1, session=1)  # SessionLog.START: TensorBoard discards earlier values from this step on

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, now: float, step: int, *, summary: bytes = b"", session: int = 0) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.0"
            self._file = path.open("ab")
            self._file.write(frame_record(_double(1, now) + _bytes(3, VERSION.encode())))
        body = _double(1, now) + (_varint_field(2, step) if step else b"")
        body += _bytes(5, summary) if summary else b""
        body += _bytes(7, _varint_field(1, session)) if session else b""
        self._file.write(frame_record(body))
        self._file.flush()


def scalars(event: Stepped) -> Iterator[tuple[str, float]]:
    """(tag, value) of a step; values that are not finite are left out, and so are guard values of 0."""
    rates: Mapping[str, float] = event.rates
    for field, tag in TAGS.items():
        value = finite_or_none(float(getattr(event, field)))
        if value is not None and (value or not tag.startswith("guard/")) and not (field == "lr" and rates):
            yield tag, value
    for name, rate in rates.items():
        yield f"lr/{PART_NAMES.get(name, name)}", rate


def frame_record(body: bytes) -> bytes:
    """A record: length, its checksum, the body, its checksum."""
    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", mask_crc(crc32c(length))) + body + struct.pack("<I", mask_crc(crc32c(body)))


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum (RFC 3720, appendix B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def mask_crc(crc: int) -> int:
    """The masked checksum, for data that itself contains checksums (TensorFlow's crc32c.h)."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _scalar(tag: str, value: float) -> bytes:
    return _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value))


def _image(tag: str, png: bytes) -> bytes:
    """An image summary; width and height are read from the PNG's first chunk."""
    width, height = struct.unpack(">II", png[16:24])
    image = _varint_field(1, height) + _varint_field(2, width) + _varint_field(3, 3) + _bytes(4, png)
    return _bytes(1, _bytes(1, tag.encode()) + _bytes(4, image))


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
