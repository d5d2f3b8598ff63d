"""What a folder is taken for: pictures themselves, a parent of folders, or one `N_name class` folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from PIL import Image

from lora_trainer.data.records import natural_key, stable
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PLUGIN_SUFFIXES = frozenset({".avif", ".jxl"})
"""Pictures where a Pillow plugin is installed, else named as unreadable."""
OTHER_MEDIA = frozenset(
    {".heic", ".heif", ".psd", ".svg", ".pdf", ".ico", ".tga", ".exr", ".hdr", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng"}
    | {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".zip", ".rar", ".7z"}
)
CAPTION_SUFFIXES = (".txt", ".caption")
MASK = "-masklabel"
"""NAME-masklabel.png is the mask of NAME.png, never a picture of its own."""
MANY_REPEATS = 500


@attrs.frozen
class Subset:
    """One folder whose pictures are used. `prefix` stands before each picture's name in its key."""

    folder: Path
    prefix: str
    repeats: int
    words: str


@attrs.frozen
class Layout:
    """The folders whose pictures are used, in one sentence, and what was left aside."""

    subsets: tuple[Subset, ...]
    understood: Message
    warnings: tuple[Message, ...]


def understand(root: Path, num_repeats: int, field: str) -> Layout:
    """What the folder was taken for. Raises DatasetError for what is no folder of pictures, or far more than one."""
    root = _checked(root, field)
    own = _pictures(root, field)
    folders = [folder for folder in _folders(root, field) if _pictures(folder, field)]
    numbered = [folder for folder in folders if numbered_name(folder.name)]
    if numbered:
        return _parent(folders, numbered, own)
    if own:
        return _single(root, own, folders, num_repeats)
    if folders:
        return _plain_parent(folders, num_repeats)
    deeper = [
        f"{folder.name}/{inner.name}" if _pictures(inner, field) else ""
        for folder in _folders(root, field)[:50]
        for inner in _folders(folder, field)[:50]
    ]
    parents = sorted({name.partition("/")[0] for name in deeper if name}, key=natural_key)
    if parents:
        raise DatasetError(
            "{folder} holds no pictures, but folders inside it do: {names}.",
            path=field,
            folder=str(root),
            names=", ".join(parents[:5]),
            fix="Choose one of these.",
        )
    raise DatasetError("{folder} holds no pictures.", path=field, folder=str(root), fix="Choose the folder that holds the pictures.")


def alone(root: Path, num_repeats: int, field: str) -> Layout:
    """One folder whose pictures lie directly in it; its name says nothing. Raises DatasetError where it holds none."""
    root = _checked(root, field)
    own = _pictures(root, field)
    if not own:
        raise DatasetError(
            "{folder} holds no pictures directly.", path=field, folder=str(root), fix="Give the folder that the pictures themselves lie in."
        )
    return Layout((Subset(root, "", num_repeats, ""),), say("A folder of pictures ({count}).", count=len(own)), ())


def numbered_name(name: str) -> tuple[int, str] | None:
    """(repeats, words) of a folder called `N_words`, split at the first underscore as in sd-scripts; None for another name."""
    found = re.fullmatch(r"\s*(\d{1,6})_(.*)", name, re.DOTALL)
    return (int(found[1]), stable(found[2].strip())) if found and int(found[1]) > 0 else None


def is_picture(name: str) -> bool:
    """Whether the file's ending is one of a picture that Pillow reads here."""
    suffix = _suffix(name)
    return suffix in PICTURE_SUFFIXES or (suffix in PLUGIN_SUFFIXES and suffix in Image.registered_extensions())


def other_media(name: str) -> bool:
    """Whether a user may take the file for a picture although it cannot be read."""
    suffix = _suffix(name)
    return not is_picture(name) and suffix in OTHER_MEDIA | PLUGIN_SUFFIXES


def _suffix(name: str) -> str:
    """As Path(name).suffix in small letters, without the making of a path."""
    begin, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and begin and end else ""


def visible_files(folder: Path) -> list[str]:
    """Names of the files in natural order, hidden ones and masks of others left out."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not _hidden(entry.name) and entry.is_file()]
    masks = {name for name in names if MASK in name.casefold() and Path(name).stem.casefold().endswith(MASK)}
    if masks:
        pictures = {Path(name).stem.casefold() for name in names}
        names = [name for name in names if name not in masks or Path(name).stem.casefold().removesuffix(MASK) not in pictures]
    return sorted(names, key=natural_key)


def file_index(names: Iterable[str]) -> tuple[frozenset[str], dict[str, str]]:
    """The names, and the names by their form without letter case."""
    names = list(names)
    return frozenset(names), {name.casefold(): name for name in reversed(names)}


def _checked(root: Path, field: str) -> Path:
    text = str(root)
    if not text.strip() or text == ".":  # Path("") is "."; the working directory is never meant
        raise DatasetError("no folder of pictures is given.", path=field, fix="Choose the folder that holds the pictures.")
    try:
        found, is_folder = root.exists(), root.is_dir()
    except (OSError, ValueError):
        found = is_folder = False
    if not found:
        raise DatasetError("there is no folder {folder}.", path=field, folder=text, fix="Check the path.")
    if not is_folder:
        raise DatasetError("{folder} is a file, not a folder.", path=field, folder=text, fix="Choose the folder that holds the pictures.")
    place = root.resolve()
    if place == place.parent:
        raise DatasetError("{folder} is a whole drive.", path=field, folder=text, fix="Choose the folder that holds the pictures.")
    if (place / "webui.py").is_file() and (place / "modules").is_dir():
        raise DatasetError("{folder} is the WebUI's own folder.", path=field, folder=text, fix="Choose the folder that holds the pictures.")
    return root


def _parent(folders: Sequence[Path], numbered: Sequence[Path], own: Sequence[str]) -> Layout:
    subsets, warnings = [], []
    for folder in numbered:
        repeats, words = numbered_name(folder.name) or (1, "")
        subsets.append(Subset(folder, f"{folder.name}/", repeats, words))
    ignored = [folder.name for folder in folders if folder not in numbered]
    if ignored:
        warnings.append(
            say("Left aside, because the name has no number and underscore in front (like 10_name): {names}", names=", ".join(ignored[:5]))
        )
    if own:
        warnings.append(say("Pictures beside the numbered folders are left aside ({count}).", count=len(own)))
    listed = ", ".join(f"{subset.folder.name}" for subset in subsets[:5]) + (" ..." if len(subsets) > 5 else "")
    understood = say("Folders with their repeats in the name ({count}): {names}", count=len(subsets), names=listed)
    return Layout(tuple(subsets), understood, (*warnings, *_too_often(subsets)))


def _single(root: Path, own: Sequence[str], folders: Sequence[Path], num_repeats: int) -> Layout:
    name = root.name or root.resolve().name
    repeats, words = numbered_name(name) or (num_repeats, "")
    subset = Subset(root, "", repeats, words)
    warnings = []
    if folders:
        warnings.append(say("Folders inside the folder of pictures are left aside: {names}", names=", ".join(f.name for f in folders[:5])))
    if numbered_name(name):
        understood = say(
            'One folder of {count} pictures with {repeats} repeats and the words "{words}" in its name.',
            count=len(own),
            repeats=repeats,
            words=words,
        )
        return Layout((subset,), understood, (*warnings, *_too_often([subset])))
    return Layout((subset,), say("A folder of pictures ({count}).", count=len(own)), tuple(warnings))


def _plain_parent(folders: Sequence[Path], num_repeats: int) -> Layout:
    subsets = [Subset(folder, f"{folder.name}/", num_repeats, "") for folder in folders]
    listed = ", ".join(folder.name for folder in folders[:5]) + (" ..." if len(folders) > 5 else "")
    return Layout(tuple(subsets), say("Folders of pictures, all used alike ({count}): {names}", count=len(folders), names=listed), ())


def _too_often(subsets: Iterable[Subset]) -> list[Message]:
    return [
        say("The name of the folder {name} says {repeats} repeats.", name=subset.folder.name, repeats=subset.repeats)
        for subset in subsets
        if subset.repeats > MANY_REPEATS
    ]


def _pictures(folder: Path, field: str) -> list[str]:
    """Names of files that may be pictures; files that only look like one count, so that they are named."""
    try:
        return [name for name in visible_files(folder) if is_picture(name) or other_media(name)]
    except OSError as error:
        raise _unreadable(folder, field, error) from error


def _folders(folder: Path, field: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not _hidden(entry.name) and entry.is_dir()]
    except OSError as error:
        raise _unreadable(folder, field, error) from error
    return [folder / name for name in sorted(names, key=natural_key)]


def _unreadable(folder: Path, field: str, error: OSError) -> DatasetError:
    return DatasetError(
        "{folder} cannot be read ({why}).", path=field, folder=str(folder), why=error.strerror or str(error), fix="Change its rights."
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
