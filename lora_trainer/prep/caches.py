"""The caches of encoded pictures and captions on disk: folders, sizes, clearing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from lora_trainer.data.cache import array_store

MB = 2**20


@attrs.frozen
class Cleared:
    """Bytes freed, and number of files that could not be deleted because a run uses them (Windows)."""

    freed: int
    in_use: int


def latents_folder(cache_dir: Path) -> Path:
    """Folder of encoded pictures in a host's cache folder."""
    return cache_dir / array_store.LATENTS


def texts_folder(cache_dir: Path) -> Path:
    """Folder of encoded captions in a host's cache folder."""
    return cache_dir / array_store.TEXTS


def overview(cache_dir: Path) -> dict[str, Any]:
    """{"folder", "count", "mb", "buckets": [{"width", "height", "count", "mb"}], "captions": {"folder", "count", "mb"}}.

    Mirrored pictures count separately.
    """
    folder = latents_folder(cache_dir)
    buckets = [
        {"width": shape[-1] * 8, "height": shape[-2] * 8, "count": count, "mb": round(size / MB, 2)}
        for shape, count, size in array_store.shape_statistics(folder)
    ]
    total = array_store.store_size(folder)
    latents = {"folder": str(folder), "count": sum(bucket["count"] for bucket in buckets), "mb": round(total / MB, 2), "buckets": buckets}
    texts = texts_folder(cache_dir)
    captions = sum(count for _, count, _ in array_store.shape_statistics(texts))
    return latents | {"captions": {"folder": str(texts), "count": captions, "mb": round(array_store.store_size(texts) / MB, 2)}}


def clear(cache_dir: Path) -> Cleared:
    """Deletes all encoded pictures and captions. Raises OSError if that fails."""
    pictures, captions = array_store.clear(latents_folder(cache_dir)), array_store.clear(texts_folder(cache_dir))
    return Cleared(pictures[0] + captions[0], pictures[1] + captions[1])
