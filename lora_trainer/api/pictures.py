"""A folder of pictures as the tab shows it: each file's verdict and crop, counts, groups; captions as the model will read them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.api.tokens import Tokens
from lora_trainer.api.work import Workers
from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import buckets, captions
from lora_trainer.data.closer import look_closer
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.scan import Scan, scan, split_validation
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.train.setup import Pictures

TO_LOOK_AT = {"broken", "not-a-picture", "too-small", "small", "copy"}
CROPPED = 0.9
"""A picture of which less than this is kept counts as cropped."""
PATIENCE = 1.5
"""Seconds that one answer spends on decoding; the rest is done beside, and the page asks again."""
TOKEN_LIMIT = 75
FOLDERS_KEPT = 8
NEEDED = ("train_data_dir", "trigger_word", "class_tokens", "leave_out")


class Folders:
    """Scans, kept as long as nothing in the folder changes."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.tokens = Tokens()
        self._lock = threading.Lock()
        self._scans: dict[tuple[Any, ...], Scan] = {}
        self._trained: tuple[Any, Pictures | None] = (None, None)
        self._looking: dict[tuple[Any, ...], Future[Any]] = {}

    def read(self, config: TrainConfig) -> tuple[Scan, Scan | None]:
        """The scan of the pictures, and of the validation folder where there is one. Raises DatasetError."""
        data = config.data
        words, extension = data.class_tokens, data.caption_extension
        found = self._scan("data.train_data_dir", data.train_data_dir, data.num_repeats, words, extension, data.leave_out)
        held = config.validate.data_dir.strip()
        return found, self._scan("validate.data_dir", held, 1, words, extension, ()) if held else None

    def trained(self, config: TrainConfig) -> Pictures:
        """The pictures as a run with this config reads them. Raises DatasetError."""
        from lora_trainer.train.setup import read_pictures

        places = [fingerprint(Path(text)) if text.strip() else "" for text in (config.data.train_data_dir, config.validate.data_dir)]
        key = (config.data, config.validate, config.seed, *places)
        with self._lock:
            if key == self._trained[0] and self._trained[1] is not None:
                return self._trained[1]
        found = read_pictures(config)
        with self._lock:
            self._trained = (key, found)
        return found

    def _scan(self, field: str, root: str, repeats: int, words: str, extension: str, leave_out: tuple[str, ...]) -> Scan:
        key = (field, root, repeats, words, extension, leave_out, fingerprint(Path(root)) if root.strip() else "")
        with self._lock:
            if key in self._scans:
                return self._scans[key]
        found = scan(Path(root), num_repeats=repeats, class_tokens=words, caption_extension=extension, leave_out=leave_out, field=field)
        with self._lock:
            while len(self._scans) >= FOLDERS_KEPT:
                self._scans.pop(next(iter(self._scans)))
            self._scans[key] = found
        return found

    def looked(self, records: Sequence[ImageRecord], config: TrainConfig) -> tuple[list[ImageRecord], int]:
        """The records, decoded as far as the patience reaches, and how many were; the rest is decoded beside."""
        until = time.monotonic() + PATIENCE
        found = []
        for record in look_closer(records):
            found.append(record)
            if time.monotonic() > until:
                break
        if len(found) < len(records):
            key = (config.data.train_data_dir, len(records))
            with self._lock:
                waiting = self._looking.get(key)
                if waiting is None or waiting.done():
                    self._looking = {key: self.workers.later(lambda: [None for _ in look_closer(records)])}
        return [*found, *records[len(found) :]], len(found)


def fingerprint(root: Path, depth: int = 2) -> str:
    """Changes with every file that is added, removed or written in the folder and the folders in it."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, root, depth)
    return digest.hexdigest()


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


def lenient(mapping: Mapping[str, Any]) -> TrainConfig:
    """The config without the values that are wrong: pictures are shown although a rate is mistyped."""
    plain: Any = {key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
    try:
        return build(plain)
    except ConfigError as error:
        for problem in error.problems:
            section, _, name = problem.path.rpartition(".")
            place = plain.get(section, {}) if section else plain
            if isinstance(place, dict):
                place.pop(name, None)
        try:
            return build(plain)
        except ConfigError:  # options that are right alone but not together
            return build({"data": {key: value for key, value in plain.get("data", {}).items() if key in NEEDED}})


def pictures(folders: Folders, config: TrainConfig, language: str) -> dict[str, Any]:
    """What POST /pictures answers. Raises DatasetError where the folder cannot be read."""
    found, held = folders.read(config)
    looked, count = folders.looked(found.records, config)
    records = split_validation(looked, config.validate.fraction, config.seed) if held is None else tuple(looked)
    placed = buckets.place(records, config.data)
    used = [record for record in placed if record.usable and not record.validation]
    captioned = sum(record.has_caption for record in used)
    held_back = len(held.used) if held is not None else sum(record.validation for record in placed if record.usable)
    return {
        "understood": found.understood.text(language),
        "pictures": [_picture(record, language) for record in placed],
        "counts": {
            "all": len(placed),
            "used": len(used),
            "needs_look": sum(bool(TO_LOOK_AT & set(record.notes)) for record in placed),
            "cropped": sum(record.kept < CROPPED for record in used),
            "left_out": sum("left-out" in record.notes for record in placed),
            "captions": captioned,
            "without": len(used) - captioned,
        },
        "looking": {"done": count, "total": len(looked)},
        "buckets": [
            {"width": width, "height": height, "count": number}
            for (width, height), number in sorted(buckets.bucket_counts(placed), key=lambda entry: -entry[1])
        ],
        "validation": {"count": held_back, "source": "folder" if held is not None else "held" if held_back else "none"},
        "warnings": [message.text(language) for message in (*found.warnings, *(held.warnings if held is not None else ()))],
        "trigger": _trigger(folders.tokens, config.data.trigger_word, language),
        "class_tokens": _class_tokens(used),
    }


def _picture(record: ImageRecord, language: str) -> dict[str, Any]:
    return {
        "key": record.key,
        "path": str(record.path),
        "name": record.path.name,
        "width": record.width,
        "height": record.height,
        "bucket": list(record.bucket) if record.bucket else None,
        "crop": _shares(record),
        "kept": round(record.kept, 4),
        "notes": list(record.notes),
        "usable": record.usable,
        "reason": record.reason.text(language) if record.reason else "",
        "validation": record.validation,
        "caption": captions.first_line(record.caption),
        "has_caption": record.has_caption,
        "repeats": record.repeats,
    }


def _shares(record: ImageRecord) -> list[float]:
    """[left, top, right, bottom] of what is kept, as shares of the picture's sides."""
    if record.resized is None or record.crop is None:
        return [0.0, 0.0, 1.0, 1.0]
    (width, height), (left, top, wide, high) = record.resized, record.crop
    return [round(share, 5) for share in (left / width, top / height, (left + wide) / width, (top + high) / height)]


def _class_tokens(used: Sequence[ImageRecord]) -> str:
    """The class words that all pictures share, by the folder's name or the config."""
    found = {record.class_tokens for record in used}
    return found.pop() if len(found) == 1 else ""


def _trigger(tokens: Tokens, trigger: str, language: str) -> dict[str, Any]:
    warning = tokens.warning(trigger) if trigger.strip() else None
    return {"tokens": tokens.count(trigger) if trigger.strip() else 0, "warning": warning.text(language) if warning else ""}


def caption_list(folders: Folders, config: TrainConfig, epoch: int, language: str) -> dict[str, Any]:
    """What POST /captions answers: each used picture's caption as it is read in that epoch. Raises DatasetError."""
    found, held = folders.read(config)
    rules = rules_of(config)
    records = split_validation(found.records, config.validate.fraction, config.seed) if held is None else found.records
    used = [record for record in records if record.usable]
    tags: Counter[str] = Counter()
    for record in used:
        tags.update({part.strip() for part in captions.first_line(record.caption).split(rules.separator) if part.strip()})
    listed = [{"text": text, "count": count, "kind": "plain"} for text, count in sorted(tags.items(), key=lambda tag: (-tag[1], tag[0]))]
    if trigger := rules.trigger_word.strip():
        listed = [tag for tag in listed if str(tag["text"]).casefold() != trigger.casefold()]
        listed.insert(0, {"text": trigger, "count": len(used), "kind": "trigger"})
    return {
        "line": _line(used, rules).text(language),
        "tags": listed,
        "pictures": [_caption(folders.tokens, record, rules, config, epoch) for record in used],
    }


def rules_of(config: TrainConfig) -> captions.CaptionRules:
    """The rules that a run with this config puts captions together by."""
    data = config.data
    return captions.CaptionRules(
        trigger_word=data.trigger_word,
        class_tokens=data.class_tokens,
        keep_tokens=data.keep_tokens,
        shuffle=data.shuffle_caption,
        dropout_rate=data.caption_dropout_rate,
    )


def _line(used: Sequence[ImageRecord], rules: captions.CaptionRules) -> Message:
    captioned = sum(record.has_caption for record in used)
    without = next((record for record in used if not record.has_caption), None)
    values = {"count": captioned, "all": len(used)}
    if without is None:
        return say("{count} of {all} have captions", **values)
    words = captions.caption_of(without, rules)
    if not words:
        return say("{count} of {all} have captions · {rest} have none, and there is no trigger word", **values, rest=len(used) - captioned)
    return say("{count} of {all} have captions · {rest} will use: {words}", **values, rest=len(used) - captioned, words=words)


def _caption(tokens: Tokens, record: ImageRecord, rules: captions.CaptionRules, config: TrainConfig, epoch: int) -> dict[str, Any]:
    drawn = rules.shuffle or rules.dropout_rate > 0
    parts = captions.parts(record, rules, seed=config.seed if drawn else None, epoch=epoch)
    read = captions.drawn_caption(record, rules, seed=config.seed, epoch=epoch, repeat=0)
    return {
        "key": record.key,
        "name": record.path.name,
        "path": str(record.path),
        "parts": [{"text": text, "kind": kind} for text, kind in parts],
        "dropped": not read,
        "tokens": tokens.count(read),
        "limit": TOKEN_LIMIT,
        "has_caption": record.has_caption,
        "raw": captions.first_line(record.caption),
        "caption_file": str(record.caption_path or record.path.with_suffix(".txt")),
        "validation": record.validation,
    }


def caption_file(picture: Path) -> Path:
    """The caption file of a picture: the .txt or .caption beside it, else the .txt that is to be. Raises TrainerError for another file."""
    from lora_trainer.data.folders import CAPTION_SUFFIXES, is_picture

    if not is_picture(picture.name) or not picture.is_file():
        raise TrainerError("{path} is not a picture.", path=str(picture), fix="Choose a picture of the list.")
    beside = [picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    return next((path for path in beside if path.is_file()), beside[0])
