"""Scans a folder with the options that tests vary."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.scan import Scan, scan_source


def scan(
    root: Path,
    *,
    num_repeats: int = 1,
    class_tokens: str = "",
    caption_extension: str = "",
    leave_out: Collection[str] = (),
    field: str = "data.train_data_dir",
) -> Scan:
    extension = f".{caption_extension.lstrip('.').lower()}" if caption_extension.strip(". ") else ""
    return scan_source(
        Source(
            field,
            str(root),
            num_repeats=num_repeats,
            class_tokens=class_tokens,
            caption_extensions=(extension,) if extension else (),
            leave_out=tuple(leave_out),
        )
    )
