"""From a folder to records: what the folder was taken for, a verdict for each file, what the user should know.

Only headers are read: 2 000 pictures take about a second. Whether a picture can be decoded to its end is closer.look_closer's work.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.data.captions import first_line, read_caption
from lora_trainer.data.gc_pause import gc_paused
from lora_trainer.data.pictures.image_header import read_header
from lora_trainer.data.records import ImageRecord, Verdict, natural_key, stable
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.folders import (
    CAPTION_SUFFIXES,
    Subset,
    alone,
    file_index,
    is_picture,
    other_media,
    understand,
    visible_files,
)
from lora_trainer.data.sources.metadata_json import Entry, read_metadata
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

FACE_NAME = re.compile(r"(.+?)(?:_\d+){4}")
"""The name of a picture with the place of a face behind it, NAME_x_y_width_height: its caption file may be NAME's."""
NAMED = 3
"""File names that a warning lists."""


@attrs.frozen
class Scan:
    """Records in natural order of their keys, one line of what the folder was taken for, and warnings."""

    records: tuple[ImageRecord, ...]
    understood: Message
    warnings: tuple[Message, ...] = ()

    @property
    def used(self) -> tuple[ImageRecord, ...]:
        """The records that can be trained on."""
        return tuple(record for record in self.records if record.usable)


@attrs.define
class _Seen:
    """What is noticed on the way and told once, with names."""

    both: list[str] = attrs.field(factory=list)
    several_lines: list[str] = attrs.field(factory=list)
    empty: list[str] = attrs.field(factory=list)
    other_ending: list[str] = attrs.field(factory=list)
    wrong_suffix: list[str] = attrs.field(factory=list)
    unread: list[str] = attrs.field(factory=list)


def scan(
    root: Path,
    *,
    num_repeats: int = 1,
    class_tokens: str = "",
    caption_extension: str = "",
    leave_out: Collection[str] = (),
    field: str = "data.train_data_dir",
) -> Scan:
    """All pictures of a folder of pictures, of a parent of folders, or of one `N_name class` folder.

    `class_tokens` replaces the folders' words; `leave_out` holds keys; `field` is the option that named the folder.
    Raises DatasetError where nothing can be trained on.
    """
    ending = f".{caption_extension.lstrip('.').lower()}" if caption_extension.strip(". ") else ""
    return scan_source(
        Source(
            field,
            str(root),
            num_repeats=num_repeats,
            class_tokens=class_tokens,
            endings=(ending,) if ending else (),
            leave_out=tuple(leave_out),
        )
    )


def scan_source(source: Source) -> Scan:
    """All pictures of one source. Raises DatasetError where none of them can be trained on."""
    if source.metadata_file:
        return _scan_metadata(source)
    root = Path(source.folder)
    layout = understand(root, source.num_repeats, source.field) if source.whole else alone(root, source.num_repeats, source.field)
    left_out, seen = {stable(key) for key in source.leave_out}, _Seen()
    records: list[ImageRecord] = []
    for subset in layout.subsets:
        records.extend(_records(subset, source, left_out, seen))
    if len(layout.subsets) > 1 or not all(record.key.isascii() for record in records):  # else they are sorted as the names were
        records.sort(key=lambda record: natural_key(record.key))
    if not any(record.usable for record in records):
        _refuse(root, records, source.field)
    return Scan(tuple(records), layout.understood, (*layout.warnings, *_warnings(records, seen, source)))


def _scan_metadata(source: Source) -> Scan:
    file = Path(source.metadata_file)
    folder = Path(source.folder) if source.folder.strip() else None
    entries = read_metadata(file, folder, source.separator, source.field)
    left_out, seen = {stable(key) for key in source.leave_out}, _Seen()
    missing = [entry.name for entry in entries if entry.path is None]
    known: dict[Path, ImageRecord] = {}
    for entry in entries:
        if entry.path is not None and entry.path not in known:
            known[entry.path] = _entry(entry, entry.path, source, left_out, seen)
    records = sorted(known.values(), key=lambda record: natural_key(record.key))
    if not any(record.usable for record in records):
        if missing:
            raise DatasetError(
                "none of the pictures that {file} names is there, the first is {name}.",
                path=source.field,
                file=str(file),
                name=missing[0],
                fix="Choose the folder that they lie in (image_dir).",
            )
        _refuse(file, records, source.field)
    warnings = list(_warnings(records, seen, source))
    if missing:
        warnings.append(
            say(
                "Pictures that {file} names and that are not there ({count}): {names}",
                file=file.name,
                count=len(missing),
                names=_names(missing),
            )
        )
    if folder is not None and (without := _without_entry(folder, known)):
        warnings.append(
            say(
                "Pictures without an entry in {file}; they are not used ({count}): {names}",
                file=file.name,
                count=len(without),
                names=_names(without),
            )
        )
    return Scan(tuple(records), say("A metadata file with {count} pictures: {file}", count=len(records), file=file.name), tuple(warnings))


def _entry(entry: Entry, path: Path, source: Source, left_out: Collection[str], seen: _Seen) -> ImageRecord:
    key = stable(f"{source.prefix}{_inside(path, source.folder)}")
    words = source.class_tokens.strip() or source.words
    if key in left_out:
        return _left_out(path, key, source.num_repeats, words)
    width, height, notes, reason = _measured(path, path.name, key, seen)
    file = Path(source.metadata_file) if entry.caption else None
    record = ImageRecord(path, key, width, height, source.num_repeats, words, file, entry.caption, notes, reason is None, reason)
    return attrs.evolve(record, train_resolution=entry.train_resolution) if entry.train_resolution else record


def _inside(path: Path, folder: str) -> str:
    """The path inside the folder, else with its own folder's name in front."""
    if folder.strip() and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return f"{path.parent.name}/{path.name}"


def _without_entry(folder: Path, known: Collection[Path]) -> list[str]:
    try:
        return [name for name in visible_files(folder) if is_picture(name) and folder / name not in known]
    except OSError:
        return []


def split_validation(records: Sequence[ImageRecord], fraction: float, seed: int) -> tuple[ImageRecord, ...]:
    """The records with that share of the usable ones held back (`validation` True): at least one, never all.

    Which ones depends on the seed and each picture's key alone: a picture added later moves few of the others.
    """
    usable = [record for record in records if record.usable]
    if fraction <= 0 or len(usable) < 2:
        return tuple(records)
    count = min(len(usable) - 1, max(1, math.floor(len(usable) * fraction + 0.5)))
    drawn = sorted(usable, key=lambda record: hashlib.sha256(f"validation|{seed}|{record.key}".encode()).digest())
    held = {record.key for record in drawn[:count]}
    return tuple(attrs.evolve(record, validation=True) if record.key in held and record.usable else record for record in records)


def _records(subset: Subset, source: Source, left_out: Collection[str], seen: _Seen) -> Iterator[ImageRecord]:
    names = visible_files(subset.folder)
    captions = _Captions(*file_index(names), source.endings or CAPTION_SUFFIXES, source.every_line)
    words = source.class_tokens.strip() or subset.words or source.words.strip()
    front = f"{source.prefix}{subset.prefix}"
    for name in names:
        key = stable(front + name)
        if key in left_out:
            yield _left_out(subset.folder / name, key, subset.repeats, words)
        elif is_picture(name):
            path = subset.folder / name
            width, height, notes, reason = _measured(path, name, key, seen)
            caption_path, caption = captions.of(path, name, key, seen)
            yield ImageRecord(path, key, width, height, subset.repeats, words, caption_path, caption, notes, reason is None, reason)
        elif other_media(name):
            reason = say("Files of the kind {suffix} cannot be read: save it as PNG or JPEG.", suffix=Path(name).suffix)
            known: dict[str, Any] = {"repeats": subset.repeats, "class_tokens": words}
            yield ImageRecord(subset.folder / name, key, 0, 0, notes=("not-a-picture",), usable=False, reason=reason, **known)


def _left_out(path: Path, key: str, repeats: int, words: str) -> ImageRecord:
    reason = say("Left out by you.")
    return ImageRecord(path, key, 0, 0, repeats=repeats, class_tokens=words, notes=("left-out",), usable=False, reason=reason)


def _measured(path: Path, name: str, key: str, seen: _Seen) -> tuple[int, int, tuple[Verdict, ...], Message | None]:
    """Width, height, notes, and why the file cannot be used."""
    header = read_header(path)
    notes = header.notes
    if header.format and not _suffix_fits(name[name.rfind(".") :].lower(), header.format):
        seen.wrong_suffix.append(key)
        notes = (*notes, "wrong-ending")
    return header.width, header.height, notes, header.reason


@attrs.frozen
class _Captions:
    """The files of one folder in which captions are looked for."""

    exact: Collection[str]
    any_case: dict[str, str]
    endings: tuple[str, ...]
    every_line: bool

    def of(self, path: Path, name: str, key: str, seen: _Seen) -> tuple[Path | None, str]:
        """The caption file of a picture and what it holds."""
        stem = name.rpartition(".")[0]
        beside = self._beside(stem, self.endings)
        if not beside and (face := FACE_NAME.fullmatch(stem)):
            beside = self._beside(face[1], self.endings)
        if not beside:
            if self._beside(stem, CAPTION_SUFFIXES):
                seen.other_ending.append(key)
            return None, ""
        if len(beside) > 1:
            seen.both.append(key)
        caption_path = path.with_name(beside[0])
        try:
            caption = read_caption(caption_path)
        except DatasetError:
            seen.unread.append(key)
            return None, ""
        if not first_line(caption):
            seen.empty.append(key)
        elif not self.every_line and len([line for line in caption.splitlines() if line.strip()]) > 1:
            seen.several_lines.append(key)
        return caption_path, caption

    def _beside(self, stem: str, endings: tuple[str, ...]) -> list[str]:
        """The caption files of a picture; letter case matters only where two differ in nothing else."""
        wanted = [stem + ending for ending in endings]
        found = [name if name in self.exact else self.any_case.get(name.casefold(), "") for name in wanted]
        return [name for name in found if name]


def _suffix_fits(suffix: str, kind: str) -> bool:
    wanted = {"JPEG": (".jpg", ".jpeg", ".jfif"), "MPO": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff")}.get(kind, (f".{kind.lower()}",))
    return suffix in wanted


def _refuse(root: Path, records: Sequence[ImageRecord], field: str) -> None:
    reasons = [record for record in records if record.reason is not None]
    if not reasons:
        raise DatasetError("{folder} holds no pictures.", path=field, folder=str(root), fix="Choose the folder that holds the pictures.")
    raise DatasetError(
        "{folder} holds no picture that can be used; the first of {count}, {file}: {why}",
        path=field,
        folder=str(root),
        count=len(reasons),
        file=reasons[0].key,
        why=reasons[0].reason,
        fix="Add whole pictures of at least 32 pixels a side.",
    )


def _warnings(records: Iterable[ImageRecord], seen: _Seen, source: Source) -> Iterator[Message]:
    used = [record for record in records if record.usable]
    captioned = [record for record in used if record.has_caption]
    told = [
        (seen.both, "Pictures with a .txt and a .caption, of which the .txt is used ({count}): {names}"),
        (seen.several_lines, "Captions with several lines, of which only the first is used ({count}): {names}"),
        (seen.empty, "Empty caption files ({count}): {names}"),
        (seen.wrong_suffix, "Pictures of another kind than their ending says; they are used ({count}): {names}"),
        (seen.unread, "Caption files that cannot be read ({count}): {names}"),
    ]
    for keys, template in told:
        if keys:
            yield say(template, count=len(keys), names=_names(keys))
    if seen.other_ending:
        yield say(
            "Pictures whose captions have another ending than {ending}; they are not used ({count}): {names}",
            count=len(seen.other_ending),
            ending=source.endings[0],
            names=_names(seen.other_ending),
        )
    if captioned and len(captioned) < len(used):
        yield say("{count} of {all} pictures have a caption.", count=len(captioned), all=len(used))
    words = {record.class_tokens for record in captioned if record.class_tokens} if not source.class_tokens.strip() else set()
    if words:
        yield say(
            "There are captions: the folder's words ({words}) are not used for these pictures. A trigger word is put in front of captions.",
            words=", ".join(sorted(words)),
        )


def _names(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NAMED]) + (" ..." if len(keys) > NAMED else "")


FRESH = 2_000_000_000
"""Nanoseconds for which a changed file is not believed to stay as it is: some file systems count time in steps of two seconds."""
KEPT = 8


def rescan(source: Source) -> Scan:
    """As scan_source; at once where names, sizes and times of all files are as they were. Raises DatasetError."""
    with gc_paused():
        state = _state(source)
        return scan_source(source) if state is None else _scanned(source, state)


@lru_cache(maxsize=KEPT)
def _scanned(source: Source, _state: bytes) -> Scan:
    return scan_source(source)


def _state(source: Source) -> bytes | None:
    """A hash over all that reading depends on; None where something changed just now or cannot be seen."""
    digest, newest = hashlib.sha256(), 0
    try:
        for name, size, changed, moved, number in _files(source):
            newest = max(newest, changed, moved)
            digest.update(b"%d %d %d %d " % (size, changed, moved, number))
            digest.update(os.fsencode(name) + b"\0")
    except OSError:
        return None
    return None if time.time_ns() - newest < FRESH else digest.digest()


def _files(source: Source) -> Iterator[tuple[str, int, int, int, int]]:
    """(path, size, time of change, time of renaming, number) of the metadata file and every file in the folder and those in it."""
    for one in (source.metadata_file,) if source.metadata_file else ():
        yield one, *_facts(Path(one).stat())
    if not source.folder.strip():
        return
    waiting = [(source.folder, 0)]
    while waiting:
        folder, depth = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.path, *_facts(entry.stat())
                if depth == 0 and entry.is_dir():
                    waiting.append((entry.path, 1))


def _facts(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
