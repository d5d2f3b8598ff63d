"""Files with captions of many pictures: sd-scripts' metadata (JSON), and rows as JSON lines or CSV, as Hugging Face data sets have them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import attrs

from lora_trainer.data.sources.folders import is_picture, visible_files
from lora_trainer.data.sources.text_decoding import decode_text
from lora_trainer.errors import DatasetError
from lora_trainer.files import read_regular
from lora_trainer.parsing import parse_json
from lora_trainer.path_kinds import is_network_path

MAX_BYTES = 100_000_000
"""Some hundred thousand pictures."""

NAME_KEYS = ("image_path", "file_name", "image", "img", "path", "file", "filename")
"""Keys under which a row names its picture."""
CAPTION_KEYS = ("caption", "text", "prompt", "description")
ROW_SUFFIXES = (".jsonl", ".csv", ".tsv")
"""Files of rows, each with the name of its picture in it."""


@attrs.frozen
class MetadataEntry:
    """One picture of a metadata file: its path (None if it does not exist), caption (one line per choice) and bucket size."""

    name: str
    path: Path | None
    caption: str = ""
    train_resolution: tuple[int, int] | None = None


def read_metadata(file: Path, folder: Path | None, separator: str, field: str) -> tuple[MetadataEntry, ...]:
    """The entries in the file's order. Names are absolute paths, or paths or stems inside `folder`.

    Raises DatasetError if the file cannot be read or is not a metadata file.
    """
    mapping = _read_entries(file, field)
    finder = _PictureFinder(folder if folder is not None else file.parent)
    return tuple(
        MetadataEntry(name, finder.find(name), _caption(values, separator), _train_resolution(values.get("train_resolution")))
        for name, values in mapping.items()
    )


def _read_entries(file: Path, field: str) -> dict[str, Mapping[str, Any]]:
    """Name of a picture -> its values."""
    try:
        text = decode_text(read_regular(file, MAX_BYTES))
    except OSError as error:
        raise DatasetError(
            "{file} cannot be read ({why}).", path=field, file=str(file), why=error.strerror or str(error), fix="Check the path."
        ) from error
    try:
        content = _parse(text, file.suffix.lower())
    except (ValueError, csv.Error) as error:
        raise DatasetError(
            "{file} is not valid JSON ({why}).", path=field, file=str(file), why=str(error), fix="Correct it, or make it anew."
        ) from error
    if isinstance(content, list):
        return _entries_of_rows(content, file, field)
    if isinstance(content, dict):
        content = {name: {"caption": values} if isinstance(values, str) else values for name, values in content.items()}
    if not isinstance(content, dict) or not all(isinstance(values, Mapping) for values in content.values()):
        raise DatasetError(
            "{file} is not a metadata file.",
            path=field,
            file=str(file),
            fix='It has to look like {{"picture": {{"caption": "...", "tags": "..."}}}}.',
        )
    return content


def _parse(text: str, suffix: str) -> Any:
    """The content: rows of JSON lines or a table as a list, else whatever the JSON is. Raises ValueError."""
    if suffix == ".jsonl":
        return [parse_json(line) for line in text.splitlines() if line.strip()]
    if suffix in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ","))
    return parse_json(text)


def _entries_of_rows(rows: list[Any], file: Path, field: str) -> dict[str, Mapping[str, Any]]:
    """Rows by the picture that each names. Raises DatasetError with the row that names none."""
    entries: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        values = row if isinstance(row, dict) else {}
        name = next((values[key] for key in NAME_KEYS if isinstance(values.get(key), str) and values[key].strip()), "")
        if not name:
            raise DatasetError(
                "row {number} of {file} names no picture.",
                path=field,
                number=number,
                file=str(file),
                known=", ".join(NAME_KEYS),
                fix="Each row needs the picture's name under one of these keys: {known}.",
            )
        entries[name] = values
    return entries


def _caption(values: Mapping[str, Any], separator: str) -> str:
    """The caption's lines, each followed by the tags; a list of tags is joined."""
    joint = f"{separator} "
    caption = next((_lines(values[key], "\n") for key in CAPTION_KEYS if _lines(values.get(key), "\n")), "")
    tags = joint.join(_lines(values.get("tags"), joint).splitlines())
    if not tags:
        return caption
    return "\n".join(f"{line}{joint}{tags}" for line in caption.splitlines()) if caption else tags


def _lines(value: Any, joint: str) -> str:
    """The non-empty lines of a text, stripped; the texts of a list joined."""
    if isinstance(value, list):
        return joint.join(text.strip() for text in value if isinstance(text, str) and text.strip())
    return "\n".join(line.strip() for line in value.splitlines() if line.strip()) if isinstance(value, str) else ""


def _train_resolution(value: Any) -> tuple[int, int] | None:
    """A valid bucket size (width, height), else None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(side) is int for side in value):
        return None
    return (value[0], value[1]) if min(value) >= 64 and not value[0] % 8 and not value[1] % 8 else None


class _PictureFinder:
    """Finds the pictures that entries name; lists each folder once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._folders: dict[Path, tuple[frozenset[str], dict[str, str]]] = {}

    def find(self, name: str) -> Path | None:
        """The picture's path: as named, else by its file name in the folder (for a set that was moved)."""
        return next((path for candidate in self._candidates(name) if (path := self._find_in(candidate.parent, candidate.name))), None)

    def _candidates(self, name: str) -> Iterator[Path]:
        path = Path(name)
        if path.is_absolute() and self._may_look_at(path):
            yield path
        if self.folder is not None:
            if not path.is_absolute() and not is_network_path(name):
                yield self.folder / name
            yield self.folder / PureWindowsPath(name).name

    def _may_look_at(self, path: Path) -> bool:
        """Not on another computer, unless the pictures' own folder lies there: looking at a path on Windows logs in at that computer."""
        return not is_network_path(str(path)) or (self.folder is not None and path.is_relative_to(self.folder))

    def _find_in(self, folder: Path, name: str) -> Path | None:
        if not name:
            return None
        if folder not in self._folders:
            try:
                names = [file_name for file_name in visible_files(folder) if is_picture(file_name)]
            except OSError:
                names = []
            self._folders[folder] = frozenset(names), {Path(file_name).stem: file_name for file_name in reversed(names)}
        names_here, stems = self._folders[folder]
        if name in names_here:
            return folder / name
        return folder / stems[name] if name in stems else None
