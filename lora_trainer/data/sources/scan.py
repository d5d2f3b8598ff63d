"""From a folder or metadata file to records: a verdict for each file, its caption, and warnings.

Only headers are read: 2,000 pictures take about a second. Whether a picture decodes completely is checked by pictures/decode_check.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import attrs

from lora_trainer.data.captions import caption_lines, first_line, read_caption
from lora_trainer.data.pictures import heif
from lora_trainer.data.pictures.image_header import read_header
from lora_trainer.data.records import ImageRecord, Verdict, natural_key, nfc
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.folders import (
    CAPTION_SUFFIXES,
    Subset,
    detect_layout,
    file_index,
    is_picture,
    other_media,
    single_folder_layout,
    visible_files,
)
from lora_trainer.data.sources.metadata_json import ROW_SUFFIXES, MetadataEntry, read_metadata
from lora_trainer.data.sources.scan_notices import ScanNotices, first_names, require_usable
from lora_trainer.errors import DatasetError
from lora_trainer.files import TooLarge
from lora_trainer.gc_pause import gc_paused
from lora_trainer.messages import Message, say

FACE_NAME = re.compile(r"(.+?)(?:_\d+){4}")
"""Name of a picture with the position of a face at its end, NAME_x_y_width_height: its caption file may be NAME's."""
TEXT_SUFFIXES = frozenset(
    {*CAPTION_SUFFIXES, *ROW_SUFFIXES, ".json", ".text", ".tag", ".tags", ".cap", ".captions", ".md", ".yaml", ".yml", ".xml"}
)
"""Suffixes of files in which other programs write captions."""
SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jfif"), "MPO": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff")}
"""Suffixes of Pillow's formats whose suffix is not their name alone."""


@attrs.frozen
class Scan:
    """Records in natural order of their keys, one sentence about the kind of folder, and warnings."""

    records: tuple[ImageRecord, ...]
    summary: Message
    warnings: tuple[Message, ...] = ()

    @property
    def used(self) -> tuple[ImageRecord, ...]:
        """The records that can be trained on."""
        return tuple(record for record in self.records if record.usable)


def scan_source(source: Source) -> Scan:
    """Reads all pictures and captions of a source. Raises DatasetError if none of the pictures can be trained on."""
    return _scan_metadata(source) if source.metadata_file else _scan_folder(source)


# --- folders ---


def _scan_folder(source: Source) -> Scan:
    root = Path(source.folder)
    read_layout = detect_layout if source.reads_subfolders else single_folder_layout
    layout = read_layout(root, source.num_repeats, source.field)
    left_out, notices = {nfc(key) for key in source.leave_out}, ScanNotices()
    records: list[ImageRecord] = []
    for subset in layout.subsets:
        records.extend(_subset_records(subset, source, left_out, notices))
    if len(layout.subsets) > 1 or not all(record.key.isascii() for record in records):  # else they are in the order of their names already
        records.sort(key=lambda record: natural_key(record.key))
    require_usable(root, records, source.field)
    return Scan(tuple(records), layout.summary, (*layout.warnings, *notices.warnings(records, source)))


def _subset_records(subset: Subset, source: Source, left_out: Collection[str], notices: ScanNotices) -> Iterator[ImageRecord]:
    names = visible_files(subset.folder)
    captions = _CaptionFiles(*file_index(names), source.caption_extensions or CAPTION_SUFFIXES, source.every_line)
    without_caption: list[str] = []
    class_tokens = source.class_tokens.strip() or subset.class_tokens or source.fallback_class_tokens.strip()
    prefix = f"{source.prefix}{subset.prefix}"
    for name in names:
        key = nfc(prefix + name)
        if key in left_out:
            yield _left_out_record(subset.folder / name, key, subset.repeats, class_tokens)
        elif is_picture(name):
            path = subset.folder / name
            width, height, notes, reason = _measure(path, name, key, notices)
            caption_path, caption = captions.read(path, name, key, notices)
            if caption_path is None:
                without_caption.append(name)
            yield ImageRecord(path, key, width, height, subset.repeats, class_tokens, caption_path, caption, notes, reason is None, reason)
        elif other_media(name):
            reason = _other_media_reason(Path(name).suffix)
            yield _unusable_record(subset.folder / name, key, subset.repeats, class_tokens, "not-a-picture", reason)
    _notice_other_captions(subset.folder, names, without_caption, notices)


def _other_media_reason(suffix: str) -> Message:
    if suffix.lower() in heif.HEIF_SUFFIXES:
        return heif.unreadable_reason(suffix)
    return say("Files of the kind {suffix} cannot be read: save it as PNG or JPEG.", suffix=suffix)


def _notice_other_captions(folder: Path, names: Sequence[str], without_caption: Sequence[str], notices: ScanNotices) -> None:
    """Notices files that look like the captions of pictures that have none: C.png.txt or C.json beside C.png, metadata.jsonl."""
    if not without_caption:
        return
    own = {f"{Path(name).stem}{suffix}".casefold() for name in without_caption for suffix in CAPTION_SUFFIXES}
    texts = [name for name in names if Path(name).suffix.lower() in TEXT_SUFFIXES and name.casefold() not in own]
    by_stem = {_bare_stem(name): name for name in reversed(texts)}
    similar = [(by_stem[stem], name) for name in without_caption if (stem := Path(name).stem.casefold()) in by_stem]
    as_json = {name for name, _ in similar if _holds_json(folder / name)}
    notices.json_captions.extend(sorted(as_json))
    notices.similar_files.extend((name, picture) for name, picture in similar if name not in as_json)
    lists = [name for name in texts if not similar and Path(name).suffix.lower() in (".json", *ROW_SUFFIXES)]
    notices.caption_lists.extend(name for name in lists if _names_pictures(folder / name, folder))


def _holds_json(file: Path) -> bool:
    """Whether the text of a .json file is JSON, which would be no caption under another name."""
    try:
        return file.suffix.lower() == ".json" and read_caption(file).lstrip()[:1] in ("{", "[")
    except DatasetError:
        return False


def _names_pictures(file: Path, folder: Path) -> bool:
    """Whether the file holds captions of pictures in the folder."""
    try:
        return any(entry.path is not None for entry in read_metadata(file, folder, ",", "data.in_json"))
    except DatasetError:
        return False


def _bare_stem(name: str) -> str:
    """The folded name without the suffixes of texts and pictures at its end: "c" of C.png.txt."""
    path = Path(name.casefold())
    while path.suffix in TEXT_SUFFIXES or is_picture(path.name):
        path = path.with_suffix("")
    return path.name.strip()


@attrs.frozen
class _CaptionFiles:
    """The caption files of one folder."""

    names: Collection[str]
    by_folded_name: dict[str, str]
    extensions: tuple[str, ...]
    every_line: bool

    def read(self, path: Path, name: str, key: str, notices: ScanNotices) -> tuple[Path | None, str]:
        """The caption file of a picture and its text; (None, "") if there is none or it cannot be read."""
        stem = name.rpartition(".")[0]
        candidates = self._of_stem(stem, self.extensions)
        if not candidates and (face := FACE_NAME.fullmatch(stem)):
            candidates = self._of_stem(face[1], self.extensions)
        if not candidates:
            if self._of_stem(stem, CAPTION_SUFFIXES):
                notices.other_extension.append(key)
            return None, ""
        if len(candidates) > 1:
            notices.both_captions.append(key)
        caption_path = path.with_name(candidates[0])
        try:
            caption = read_caption(caption_path)
        except DatasetError as error:
            too_long = isinstance(error.__cause__, TooLarge)
            (notices.long_captions if too_long else notices.unreadable_captions).append(key)
            return None, ""
        if "\0" in caption:
            notices.nul_captions.append(key)
            caption = caption.replace("\0", "")
        if not first_line(caption):
            notices.empty_captions.append(key)
        elif not self.every_line and len(caption_lines(caption)) > 1:
            notices.several_lines.append(key)
        return caption_path, caption

    def _of_stem(self, stem: str, extensions: tuple[str, ...]) -> list[str]:
        """Existing caption files; letter case matters only for files that differ in nothing else."""
        candidates = [stem + extension for extension in extensions]
        existing = [name if name in self.names else self.by_folded_name.get(name.casefold(), "") for name in candidates]
        return [name for name in existing if name]


# --- metadata files ---


def _scan_metadata(source: Source) -> Scan:
    file = Path(source.metadata_file)
    folder = Path(source.folder) if source.folder.strip() else None
    entries = read_metadata(file, folder, source.separator, source.field)
    left_out, notices = {nfc(key) for key in source.leave_out}, ScanNotices()
    missing = [entry.name for entry in entries if entry.path is None]
    by_path: dict[Path, ImageRecord] = {}
    for entry in entries:
        if entry.path is not None and entry.path not in by_path:
            by_path[entry.path] = _entry_record(entry, entry.path, source, left_out, notices)
    records = sorted(by_path.values(), key=lambda record: natural_key(record.key))
    if missing and not any(record.usable for record in records):
        raise DatasetError(
            "none of the pictures that {file} names is there, the first is {name}.",
            path=source.field,
            file=str(file),
            name=missing[0],
            fix="Choose the folder that they lie in (image_dir).",
        )
    require_usable(file, records, source.field)
    warnings = [*notices.warnings(records, source), *_about_entries(file, missing, _without_entry(folder, by_path))]
    return Scan(tuple(records), say("A metadata file with {count} pictures: {file}", count=len(records), file=file.name), tuple(warnings))


def _about_entries(file: Path, missing: list[str], without_entry: list[str]) -> Iterator[Message]:
    if missing:
        yield say(
            "Pictures that {file} names and that are not there ({count}): {names}",
            file=file.name,
            count=len(missing),
            names=first_names(missing),
        )
    if without_entry:
        yield say(
            "Pictures without an entry in {file}; they are not used ({count}): {names}",
            file=file.name,
            count=len(without_entry),
            names=first_names(without_entry),
        )


def _entry_record(entry: MetadataEntry, path: Path, source: Source, left_out: Collection[str], notices: ScanNotices) -> ImageRecord:
    key = nfc(f"{source.prefix}{_key_of_path(path, source.folder)}")
    class_tokens = source.class_tokens.strip() or source.fallback_class_tokens
    if key in left_out:
        return _left_out_record(path, key, source.num_repeats, class_tokens)
    width, height, notes, reason = _measure(path, path.name, key, notices)
    file, caption = Path(source.metadata_file) if entry.caption else None, entry.caption
    if "\0" in caption:
        notices.nul_captions.append(key)
        caption = caption.replace("\0", "")
    record = ImageRecord(path, key, width, height, source.num_repeats, class_tokens, file, caption, notes, reason is None, reason)
    return attrs.evolve(record, train_resolution=entry.train_resolution) if entry.train_resolution else record


def _key_of_path(path: Path, folder: str) -> str:
    """The path inside the folder, else the name with its parent folder's."""
    if folder.strip() and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return f"{path.parent.name}/{path.name}"


def _without_entry(folder: Path | None, by_path: Collection[Path]) -> list[str]:
    if folder is None:
        return []
    try:
        return [name for name in visible_files(folder) if is_picture(name) and folder / name not in by_path]
    except OSError:
        return []


# --- files ---


def _measure(path: Path, name: str, key: str, notices: ScanNotices) -> tuple[int, int, tuple[Verdict, ...], Message | None]:
    """Width, height, notes, and the reason why the file cannot be used (None: it can)."""
    if not _is_text(key):
        return 0, 0, ("broken",), say("Its name holds bytes that are no text: rename it.")
    header = read_header(path)
    notes = header.notes
    if header.format and name[name.rfind(".") :].lower() not in SUFFIXES.get(header.format, (f".{header.format.lower()}",)):
        notices.wrong_suffix.append(key)
        notes = (*notes, "wrong-ending")
    return header.width, header.height, notes, header.reason


def _is_text(name: str) -> bool:
    """Whether a name is text: Linux allows any bytes, which Python keeps as lone surrogates and nothing can write down."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _left_out_record(path: Path, key: str, repeats: int, class_tokens: str) -> ImageRecord:
    return _unusable_record(path, key, repeats, class_tokens, "left-out", say("Left out by you."))


def _unusable_record(path: Path, key: str, repeats: int, class_tokens: str, verdict: Verdict, reason: Message) -> ImageRecord:
    return ImageRecord(path, key, 0, 0, repeats, class_tokens, notes=(verdict,), usable=False, reason=reason)


# --- scans of untouched folders ---

FRESH = 2_000_000_000
"""Nanoseconds for which a changed file is not trusted to stay as it is: some file systems store times in steps of two seconds."""
CACHED_SCANS = 8


def cached_scan(source: Source) -> Scan:
    """As scan_source, from memory if names, sizes and times of all files are unchanged. Raises DatasetError."""
    with gc_paused():
        fingerprint = _fingerprint(source)
        return scan_source(source) if fingerprint is None else _scan_of_fingerprint(source, fingerprint)


@lru_cache(maxsize=CACHED_SCANS)
def _scan_of_fingerprint(source: Source, _fingerprint: bytes) -> Scan:
    return scan_source(source)


def _fingerprint(source: Source) -> bytes | None:
    """A hash over all files that a scan depends on; None if one changed just now or cannot be read."""
    digest, newest = hashlib.sha256(), 0
    try:
        for path, size, mtime, ctime, inode in _file_stats(source):
            newest = max(newest, mtime, ctime)
            digest.update(b"%d %d %d %d " % (size, mtime, ctime, inode))
            digest.update(os.fsencode(path) + b"\0")
    except OSError:
        return None
    return None if time.time_ns() - newest < FRESH else digest.digest()


def _file_stats(source: Source) -> Iterator[tuple[str, int, int, int, int]]:
    """(path, size, mtime, ctime, inode) of the metadata file and of every file in the folder and its subfolders."""
    if source.metadata_file:
        yield source.metadata_file, *_stats(Path(source.metadata_file).stat())
    if not source.folder.strip():
        return
    pending = [(source.folder, 0)]
    while pending:
        folder, depth = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    stat, is_folder = entry.stat(), entry.is_dir()
                except OSError:  # a link to itself, or to nothing
                    stat, is_folder = entry.stat(follow_symlinks=False), False
                yield entry.path, *_stats(stat)
                if depth == 0 and is_folder:
                    pending.append((entry.path, 1))


def _stats(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
