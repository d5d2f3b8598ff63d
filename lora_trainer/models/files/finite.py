"""Whether all values of a safetensors file are finite (no torch)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lora_trainer.errors import ModelError
from lora_trainer.file_hashes import Stamp, stamp_of
from lora_trainer.models.files.tensor_file import data_start, read_header

EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
    "F8_E5M2": ("u1", 0x1F << 2),
    "F8_E4M3": ("u1", 0x7F),
}
"""How the values of a dtype are read, and the bits that are all set in NaN and infinity (in F8_E4M3, which has no infinity, in NaN)."""
AT_ONCE = 1 << 22
"""Values that are looked at together."""


def require_finite(path: Path) -> None:
    """Raises ModelError that names the file and the first tensor with a value that is not finite, or if the file cannot be read."""
    try:
        name = _first_not_finite(path, stamp_of(path))
    except OSError as error:
        raise ModelError(
            "{path} cannot be read ({reason}).", path=str(path), reason=error.strerror, fix="Check the file's permissions."
        ) from error
    if name:
        raise ModelError(
            "{path} holds values that are not finite, the first in {name}.",
            path=str(path),
            name=name,
            fix="The training that made it went wrong before it was saved: take an earlier epoch.",
        )


@lru_cache(maxsize=64)
def _first_not_finite(path: Path, _stamp: Stamp) -> str:
    """The name of the first tensor with a value that is not finite; empty if there is none."""
    header = read_header(path)
    header.pop("__metadata__", None)
    if not header:
        return ""
    start, content = data_start(path), np.memmap(path, np.uint8, "r")
    return next((name for name, entry in header.items() if not _is_finite(content[start:], entry)), "")


def _is_finite(data: Any, entry: dict[str, Any]) -> bool:
    if entry["dtype"] not in EXPONENTS:
        return True
    kind, exponent = EXPONENTS[entry["dtype"]]
    begin, end = entry["data_offsets"]
    values = data[begin:end].view(kind)
    parts = (values[first : first + AT_ONCE] for first in range(0, len(values), AT_ONCE))
    mask = values.dtype.type(exponent)
    return not any(bool(((part & mask) == mask).any()) for part in parts)
