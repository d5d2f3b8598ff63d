"""What is kept of encoded pictures and captions between runs: where, how much, and away with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from lora_trainer.data.cache import array_store

MB = 2**20


@attrs.frozen
class Cleared:
    """Bytes freed, and files that a run has open (which only Windows keeps anyone from deleting)."""

    freed: int
    left: int


def latents_folder(cache_dir: Path) -> Path:
    """Where a host keeps encoded pictures, in its cache folder."""
    return cache_dir / array_store.LATENTS


def texts_folder(cache_dir: Path) -> Path:
    """Where it keeps encoded captions."""
    return cache_dir / array_store.TEXTS


def overview(cache_dir: Path) -> dict[str, Any]:
    """{"folder", "count", "mb", "buckets": [{"width", "height", "count", "mb"}], "captions": {"folder", "count", "mb"}}.

    Mirrored pictures count for themselves.
    """
    folder = latents_folder(cache_dir)
    buckets = [
        {"width": shape[-1] * 8, "height": shape[-2] * 8, "count": count, "mb": round(size / MB, 2)}
        for shape, count, size in array_store.shelves(folder)
    ]
    total = array_store.size_of(folder)
    found = {"folder": str(folder), "count": sum(bucket["count"] for bucket in buckets), "mb": round(total / MB, 2), "buckets": buckets}
    texts = texts_folder(cache_dir)
    captions = sum(count for _, count, _ in array_store.shelves(texts))
    return found | {"captions": {"folder": str(texts), "count": captions, "mb": round(array_store.size_of(texts) / MB, 2)}}


def clear(cache_dir: Path) -> Cleared:
    """Deletes all encoded pictures and captions. Raises OSError where that is not allowed."""
    pictures, captions = array_store.clear(latents_folder(cache_dir)), array_store.clear(texts_folder(cache_dir))
    return Cleared(pictures[0] + captions[0], pictures[1] + captions[1])
