"""Folders of pictures as they were read last, kept as long as nothing in them changes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.api.threads import Workers
from lora_trainer.api.tokens import Tokens
from lora_trainer.config import effective
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data.pictures.decode_check import look_closer
from lora_trainer.data.pictures.masks import masks_wanted, with_masks
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.assemble import AssembledDataset, assemble, into_buckets
from lora_trainer.data.sources.blueprint import DatasetBlueprint, Source, resolve_dataset
from lora_trainer.data.sources.scan import Scan, scan_source
from lora_trainer.errors import DatasetError, Problem
from lora_trainer.messages import Message

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import TrainingDataset

PATIENCE = 1.5
"""Seconds that one answer spends on decoding; the rest is done beside, and the page asks again."""
FOLDERS_KEPT = 16


@attrs.frozen
class ScannedDataset:
    """What the config describes, as read from disk. `whole` holds each picture's size without its frame; `problems` those of folders
    without which the others can still be shown."""

    description: DatasetBlueprint
    found: AssembledDataset
    whole: dict[str, tuple[int, int]]
    problems: tuple[Problem, ...]


class ScanCache:
    """Scans, kept as long as nothing in the folder changes."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.tokens = Tokens()
        self._lock = threading.Lock()
        self._scans: dict[tuple[Any, ...], Scan] = {}
        self._trained: tuple[Any, TrainingDataset | None] = (None, None)
        self._masked: tuple[Any, tuple[list[ImageRecord], list[Message]]] = (None, ([], []))
        self._looking: dict[tuple[Any, ...], Future[Any]] = {}

    def read(self, config: TrainConfig) -> ScannedDataset:
        """Every folder that the config names. Raises DatasetError where none of those that are trained on can be read."""
        description = resolve_dataset(config.data, config.validate.data_dir)
        refused: dict[Source, DatasetError] = {}
        whole: dict[str, tuple[int, int]] = {}

        def read(source: Source) -> Scan:
            try:
                found = self._scan(source)
            except DatasetError as error:
                refused[source] = error
                return Scan((), error.problems[0].message)
            whole.update({record.key: (record.width, record.height) for record in found.records})
            return found

        found = assemble(description, read)
        trained = [rules.source for rules in description.subsets if not rules.is_reg and not rules.validation]
        if all(source in refused for source in trained):
            raise refused[trained[0]]
        return ScannedDataset(description, found, whole, tuple(problem for error in refused.values() for problem in error.problems))

    def trained(self, config: TrainConfig) -> TrainingDataset:
        """The pictures as a run with this config reads them. Raises DatasetError."""
        from lora_trainer.train.inputs.dataset import load_dataset

        key = (config.data, config.validate, config.loss.prior_loss_weight, config.seed, self._places(config))
        with self._lock:
            if key == self._trained[0] and self._trained[1] is not None:
                return self._trained[1]
        found = load_dataset(config)
        with self._lock:
            self._trained = (key, found)
        return found

    def _places(self, config: TrainConfig) -> list[str]:
        """Changes with every file of every folder that the config names."""
        subsets = resolve_dataset(config.data, config.validate.data_dir).subsets
        folders = {text for rules in subsets for text in (rules.source.folder, rules.data.mask_dir) if text.strip()}
        files = {text for rules in subsets if (text := rules.source.metadata_file).strip()}
        return [*(fingerprint(Path(text)) for text in sorted(folders)), *(_state(Path(text)) for text in sorted(files))]

    def _scan(self, source: Source) -> Scan:
        places = [fingerprint(Path(source.folder)) if source.folder.strip() else "", _state(Path(source.metadata_file))]
        key = (source, *places)
        with self._lock:
            if key in self._scans:
                return self._scans[key]
        found = scan_source(source)
        with self._lock:
            while len(self._scans) >= FOLDERS_KEPT:
                self._scans.pop(next(iter(self._scans)))
            self._scans[key] = found
        return found

    def looked(self, records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], int]:
        """The records, decoded as far as the patience reaches, and how many were; the rest is decoded beside."""
        until = time.monotonic() + PATIENCE
        found = []
        for record in look_closer(records):
            found.append(record)
            if time.monotonic() > until:
                break
        if len(found) < len(records):
            key = (records[0].path, len(records))
            with self._lock:
                waiting = self._looking.get(key)
                if waiting is None or waiting.done():
                    self._looking = {key: self.workers.later(lambda: [None for _ in look_closer(records)])}
        return [*found, *records[len(found) :]], len(found)

    def masked(self, records: list[ImageRecord], description: DatasetBlueprint) -> tuple[list[ImageRecord], list[Message]]:
        """The records with their masks, and what is to be said of them. Raises DatasetError where masks are asked for and none is there."""
        wanted = [rules.data for rules in description.subsets if masks_wanted(rules.data)]
        key = (records, wanted, [fingerprint(Path(data.mask_dir)) for data in wanted if data.mask_dir.strip()])
        with self._lock:
            if key == self._masked[0]:
                return self._masked[1]
        found = with_masks(records, lambda record: description.subsets[record.subset].data)
        with self._lock:
            self._masked = (key, found)
        return found


def placed_as_trained(records: Sequence[ImageRecord], description: DatasetBlueprint, config: TrainConfig) -> list[ImageRecord]:
    """The records held back, placed and balanced as a run with this config has them."""
    prior = config.loss.prior_loss_weight
    return into_buckets(records, description, seed=effective.validation_seed(config), fraction=config.validate.fraction, prior_weight=prior)


def fingerprint(root: Path, depth: int = 2) -> str:
    """Changes with every file that is added, removed or written in the folder and the folders in it."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, root, depth)
    return digest.hexdigest()


def _state(file: Path) -> str:
    try:
        state = file.stat()
    except OSError:
        return ""
    return f"{state.st_mtime_ns}|{state.st_size}"


def _add(digest: Any, folder: Path, depth: int) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                state = entry.stat()
                digest.update(f"{entry.name}\0{state.st_mtime_ns}\0{state.st_size}\n".encode("utf-8", "surrogatepass"))
                if depth > 1 and entry.is_dir():
                    _add(digest, Path(entry.path), depth - 1)
    except OSError:  # scan says what is wrong with it
        digest.update(b"unreadable")
