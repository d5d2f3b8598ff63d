"""sd-scripts' metadata file: JSON (or JSON lines) with captions and tags of many pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import attrs

from lora_trainer.data.sources.folders import is_picture, visible_files
from lora_trainer.data.sources.text_decoding import decode_text
from lora_trainer.errors import DatasetError


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
    finder = _PictureFinder(folder)
    return tuple(
        MetadataEntry(name, finder.find(name), _caption(values, separator), _train_resolution(values.get("train_resolution")))
        for name, values in mapping.items()
    )


def _read_entries(file: Path, field: str) -> dict[str, Mapping[str, Any]]:
    try:
        text = decode_text(file.read_bytes())
        if file.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            mapping = {str(line.get("image_path", "")): line for line in lines}
        else:
            mapping = json.loads(text)
    except OSError as error:
        raise DatasetError(
            "{file} cannot be read ({why}).", path=field, file=str(file), why=error.strerror or str(error), fix="Check the path."
        ) from error
    except (ValueError, AttributeError) as error:
        raise DatasetError(
            "{file} is not valid JSON ({why}).", path=field, file=str(file), why=str(error), fix="Correct it, or make it anew."
        ) from error
    if not isinstance(mapping, dict) or not all(isinstance(values, Mapping) for values in mapping.values()):
        raise DatasetError(
            "{file} is not a metadata file.",
            path=field,
            file=str(file),
            fix='It has to look like {{"picture": {{"caption": "...", "tags": "..."}}}}.',
        )
    return mapping


def _caption(values: Mapping[str, Any], separator: str) -> str:
    """The caption's lines, each followed by the tags."""
    caption, tags = (values.get(name) if isinstance(values.get(name), str) else "" for name in ("caption", "tags"))
    lines = [line.strip() for line in (caption or "").splitlines() if line.strip()]
    tags = f"{separator} ".join(line.strip() for line in (tags or "").splitlines() if line.strip())
    if not tags:
        return "\n".join(lines)
    return "\n".join(f"{line}{separator} {tags}" for line in lines) if lines else tags


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
        if path.is_absolute():
            yield path
        if self.folder is not None:
            if not path.is_absolute():
                yield self.folder / name
            yield self.folder / PureWindowsPath(name).name

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
