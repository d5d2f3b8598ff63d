"""Scanned dataset folders, cached until something in them changes."""

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
from lora_trainer.config import effective
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data.pictures.decode_check import check_and_mark_copies
from lora_trainer.data.pictures.masks import assign_masks, uses_masks
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.assemble import AssembledDataset, assemble, prepare_records
from lora_trainer.data.sources.blueprint import DatasetBlueprint, Source, resolve_dataset
from lora_trainer.data.sources.scan import Scan, scan_source
from lora_trainer.errors import DatasetError, Problem
from lora_trainer.messages import Message
from lora_trainer.prep.caption_tokens import ClipTokens

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import TrainingDataset

DECODE_SECONDS = 1.5
"""Time that one response spends on decoding pictures; the rest is decoded in the background, and the page asks again."""
MAX_SCANS = 16


@attrs.frozen
class ScannedDataset:
    """The dataset of a config, as read from disk.

    `full_sizes` holds each picture's (width, height) without its frame, by key; `problems` those of folders that could not be read.
    """

    blueprint: DatasetBlueprint
    assembled: AssembledDataset
    full_sizes: dict[str, tuple[int, int]]
    problems: tuple[Problem, ...]


class ScanCache:
    """Scans, datasets and masks, cached until a file changes."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.tokens = ClipTokens()
        self._lock = threading.Lock()
        self._scans: dict[tuple[Any, ...], Scan] = {}
        self._dataset: tuple[Any, TrainingDataset | None] = (None, None)
        self._masked: tuple[Any, tuple[list[ImageRecord], list[Message]]] = (None, ([], []))
        self._decoding: dict[tuple[Any, ...], Future[Any]] = {}

    def scan(self, config: TrainConfig) -> ScannedDataset:
        """Scans every folder that the config names. Raises DatasetError when no training folder can be read."""
        blueprint = resolve_dataset(config.data, config.validate.data_dir)
        errors: dict[Source, DatasetError] = {}
        full_sizes: dict[str, tuple[int, int]] = {}

        def scan_or_skip(source: Source) -> Scan:
            try:
                scan = self._scan_source(source)
            except DatasetError as error:
                errors[source] = error
                return Scan((), error.problems[0].message)
            full_sizes.update({record.key: (record.width, record.height) for record in scan.records})
            return scan

        assembled = assemble(blueprint, scan_or_skip)
        trained = [rules.source for rules in blueprint.subsets if not rules.is_reg and not rules.validation]
        if not trained:
            raise DatasetError(
                "there is no folder to train on, only regularisation pictures.",
                path=blueprint.subsets[0].location,
                fix="Add a folder without is_reg.",
            )
        if all(source in errors for source in trained):
            raise errors[trained[0]]
        return ScannedDataset(blueprint, assembled, full_sizes, tuple(problem for error in errors.values() for problem in error.problems))

    def training_dataset(self, config: TrainConfig) -> TrainingDataset:
        """The dataset as a run with this config loads it. Raises DatasetError."""
        from lora_trainer.train.inputs.dataset import load_dataset

        key = (config.data, config.validate, config.loss.prior_loss_weight, config.seed, self._fingerprints(config))
        with self._lock:
            if key == self._dataset[0] and self._dataset[1] is not None:
                return self._dataset[1]
        dataset = load_dataset(config)
        with self._lock:
            self._dataset = (key, dataset)
        return dataset

    def _fingerprints(self, config: TrainConfig) -> list[str]:
        """Fingerprints of every folder and metadata file that the config names."""
        subsets = resolve_dataset(config.data, config.validate.data_dir).subsets
        folders = {text for rules in subsets for text in (rules.source.folder, rules.data.mask_dir) if text.strip()}
        files = {text for rules in subsets if (text := rules.source.metadata_file).strip()}
        return [*(folder_fingerprint(Path(text)) for text in sorted(folders)), *(_file_state(Path(text)) for text in sorted(files))]

    def _scan_source(self, source: Source) -> Scan:
        fingerprints = [folder_fingerprint(Path(source.folder)) if source.folder.strip() else "", _file_state(Path(source.metadata_file))]
        key = (source, *fingerprints)
        with self._lock:
            if key in self._scans:
                return self._scans[key]
        scan = scan_source(source)
        with self._lock:
            while len(self._scans) >= MAX_SCANS:
                self._scans.pop(next(iter(self._scans)))
            self._scans[key] = scan
        return scan

    def check_decodes(self, records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], int]:
        """The records, decoded for at most DECODE_SECONDS, and how many were; the rest is decoded in the background."""
        deadline = time.monotonic() + DECODE_SECONDS
        checked = []
        for record in check_and_mark_copies(records):
            checked.append(record)
            if time.monotonic() > deadline:
                break
        if len(checked) < len(records):
            key = (records[0].path, len(records))
            with self._lock:
                pending = self._decoding.get(key)
                if pending is None or pending.done():
                    self._decoding = {key: self.workers.in_background(lambda: [None for _ in check_and_mark_copies(records)])}
        return [*checked, *records[len(checked) :]], len(checked)

    def attach_masks(self, records: list[ImageRecord], blueprint: DatasetBlueprint) -> tuple[list[ImageRecord], list[Message]]:
        """The records with their masks, and messages about them. Raises DatasetError when masks are requested and none exists."""
        masked = [rules.data for rules in blueprint.subsets if uses_masks(rules.data)]
        key = (records, masked, [folder_fingerprint(Path(data.mask_dir)) for data in masked if data.mask_dir.strip()])
        with self._lock:
            if key == self._masked[0]:
                return self._masked[1]
        result = assign_masks(records, lambda record: blueprint.subsets[record.subset].data)
        with self._lock:
            self._masked = (key, result)
        return result


def bucket_records(records: Sequence[ImageRecord], blueprint: DatasetBlueprint, config: TrainConfig) -> list[ImageRecord]:
    """The records split for validation, assigned to buckets and balanced as a run with this config does it."""
    prior = config.loss.prior_loss_weight
    return prepare_records(
        records, blueprint, seed=effective.validation_seed(config), fraction=config.validate.fraction, prior_weight=prior
    )


def folder_fingerprint(root: Path, depth: int = 2) -> str:
    """A hash that changes when a file in the folder or its subfolders (to `depth`) is added, removed or written."""
    digest = hashlib.blake2b(digest_size=16)
    _add_entries(digest, root, depth)
    return digest.hexdigest()


def _file_state(file: Path) -> str:
    try:
        state = file.stat()
    except OSError:
        return ""
    return f"{state.st_mtime_ns}|{state.st_size}"


def _add_entries(digest: Any, folder: Path, depth: int) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    state, is_folder = entry.stat(), entry.is_dir()
                except OSError:  # a link to itself, or to nothing
                    state, is_folder = entry.stat(follow_symlinks=False), False
                digest.update(f"{entry.name}\0{state.st_mtime_ns}\0{state.st_size}\n".encode("utf-8", "surrogatepass"))
                if depth > 1 and is_folder:
                    _add_entries(digest, Path(entry.path), depth - 1)
    except OSError:  # the scan reports what is wrong with it
        digest.update(b"unreadable")
