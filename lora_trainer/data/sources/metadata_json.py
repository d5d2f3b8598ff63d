"""sd-scripts' metadata file: one JSON (or JSON lines) with captions and tags of many pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import attrs

from lora_trainer.data.sources.folders import is_picture, visible_files
from lora_trainer.data.sources.text_decoding import decoded
from lora_trainer.errors import DatasetError


@attrs.frozen
class Entry:
    """One picture of a metadata file: its file (None where there is none), its caption with a line for each choice, its group."""

    name: str
    path: Path | None
    caption: str = ""
    train_resolution: tuple[int, int] | None = None


def read_metadata(file: Path, folder: Path | None, separator: str, field: str) -> tuple[Entry, ...]:
    """The entries in the file's order. Their names are full paths, or paths and stems inside `folder`.

    Raises DatasetError where the file cannot be read, or is not such a file.
    """
    found = _mapping(file, field)
    places = _Places(folder)
    return tuple(
        Entry(name, places.find(name), _caption(values, separator), _size(values.get("train_resolution"))) for name, values in found.items()
    )


def _mapping(file: Path, field: str) -> dict[str, Mapping[str, Any]]:
    try:
        text = decoded(file.read_bytes())
        if file.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            found = {str(line.get("image_path", "")): line for line in lines}
        else:
            found = json.loads(text)
    except OSError as error:
        raise DatasetError(
            "{file} cannot be read ({why}).", path=field, file=str(file), why=error.strerror or str(error), fix="Check the path."
        ) from error
    except (ValueError, AttributeError) as error:
        raise DatasetError(
            "{file} is not valid JSON ({why}).", path=field, file=str(file), why=str(error), fix="Correct it, or make it anew."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(values, Mapping) for values in found.values()):
        raise DatasetError(
            "{file} is not a metadata file.",
            path=field,
            file=str(file),
            fix='It has to look like {{"picture": {{"caption": "...", "tags": "..."}}}}.',
        )
    return found


def _caption(values: Mapping[str, Any], separator: str) -> str:
    """The caption's lines, each with the tags behind it."""
    caption, tags = (values.get(name) if isinstance(values.get(name), str) else "" for name in ("caption", "tags"))
    lines = [line.strip() for line in (caption or "").splitlines() if line.strip()]
    tags = f"{separator} ".join(line.strip() for line in (tags or "").splitlines() if line.strip())
    if not tags:
        return "\n".join(lines)
    return "\n".join(f"{line}{separator} {tags}" for line in lines) if lines else tags


def _size(value: Any) -> tuple[int, int] | None:
    """Width and height that a picture can be brought to."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(side) is int for side in value):
        return None
    return (value[0], value[1]) if min(value) >= 64 and not value[0] % 8 and not value[1] % 8 else None


class _Places:
    """Looks for the pictures that names mean; each folder is read once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[frozenset[str], dict[str, str]]] = {}

    def find(self, name: str) -> Path | None:
        """The picture's file: as named, else the one of its name in the folder (a set that was moved)."""
        return next((found for place in self._candidates(name) if (found := self._in(place.parent, place.name))), None)

    def _candidates(self, name: str) -> Iterator[Path]:
        whole = Path(name)
        if whole.is_absolute():
            yield whole
        if self.folder is not None:
            if not whole.is_absolute():
                yield self.folder / name
            yield self.folder / PureWindowsPath(name).name

    def _in(self, folder: Path, name: str) -> Path | None:
        if not name:
            return None
        if folder not in self._known:
            try:
                names = [found for found in visible_files(folder) if is_picture(found)]
            except OSError:
                names = []
            self._known[folder] = frozenset(names), {Path(found).stem: found for found in reversed(names)}
        names_here, stems = self._known[folder]
        if name in names_here:
            return folder / name
        return folder / stems[name] if name in stems else None
