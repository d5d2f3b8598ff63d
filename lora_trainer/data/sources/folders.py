"""Detects a folder's layout: pictures, a parent of folders, or one `NUMBER_NAME` folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
from PIL import Image

from lora_trainer.data.pictures import heif
from lora_trainer.data.records import natural_key, nfc
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PLUGIN_SUFFIXES = frozenset({".avif", ".jxl"})
"""Readable if a Pillow plugin is installed, else listed as unreadable."""
OTHER_MEDIA = frozenset(
    {".psd", ".svg", ".pdf", ".ico", ".tga", ".exr", ".hdr", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng"}
    | {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".zip", ".rar", ".7z"}
)
CAPTION_SUFFIXES = (".txt", ".caption")
MASK_SUFFIX = "-masklabel"
"""NAME-masklabel.png is the mask of NAME.png, never a picture of its own."""
MANY_REPEATS = 500


@attrs.frozen
class Subset:
    """One folder of pictures. `prefix`: start of each picture's key, before its name."""

    folder: Path
    prefix: str
    repeats: int
    class_tokens: str


@attrs.frozen
class FolderLayout:
    """The folders whose pictures are used, a sentence about them, and warnings about what is ignored."""

    subsets: tuple[Subset, ...]
    summary: Message
    warnings: tuple[Message, ...]


def detect_layout(root: Path, num_repeats: int, field: str) -> FolderLayout:
    """The layout of a folder. Raises DatasetError if it has no pictures, or is a whole drive or the WebUI."""
    root = _require_folder(root, field)
    pictures = _picture_names(root, field)
    folders = [folder for folder in _subfolders(root, field) if _picture_names(folder, field)]
    numbered = [folder for folder in folders if parse_folder_name(folder.name)]
    if numbered:
        return _numbered_layout(folders, numbered, pictures)
    if pictures:
        return _root_layout(root, pictures, folders, num_repeats)
    if folders:
        return _parent_layout(root, folders, num_repeats, field)
    deeper = [
        f"{folder.name}/{inner.name}" if _picture_names(inner, field) else ""
        for folder in _subfolders(root, field)[:50]
        for inner in _subfolders(folder, field)[:50]
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


def single_folder_layout(root: Path, num_repeats: int, field: str) -> FolderLayout:
    """The layout of one folder of pictures, whatever its name and subfolders. Raises DatasetError if it has none."""
    root = _require_folder(root, field)
    pictures = _picture_names(root, field)
    if not pictures:
        raise DatasetError(
            "{folder} holds no pictures directly.", path=field, folder=str(root), fix="Give the folder that the pictures themselves lie in."
        )
    return FolderLayout((Subset(root, "", num_repeats, ""),), say("A folder of pictures ({count}).", count=len(pictures)), ())


def parse_folder_name(name: str) -> tuple[int, str] | None:
    """(repeats, class tokens) of a folder called `N_tokens`, split at the first underscore as in sd-scripts; None for other names."""
    match = re.fullmatch(r"\s*(\d{1,6})_(.*)", name, re.DOTALL)
    return (int(match[1]), nfc(match[2].strip())) if match and int(match[1]) > 0 else None


def _wrong_repeats(name: str) -> int | None:
    """The number in front of a folder's name that cannot be its repeats: sd-scripts leaves `0_tokens` out; None for other names."""
    match = re.fullmatch(r"\s*([-+]?\d{1,18})_.*", name, re.DOTALL)
    return int(match[1]) if match and not parse_folder_name(name) else None


def _about_wrong_repeats(folders: Iterable[Path]) -> Iterator[Message]:
    for folder in folders:
        if (repeats := _wrong_repeats(folder.name)) == 0:
            yield say("{name} is left aside, because it has 0 repeats: the number in front of its name.", name=folder.name)
        elif repeats is not None:
            yield say("{name} is left aside: {repeats} in front of its name is not a number of repeats.", name=folder.name, repeats=repeats)


def is_picture(name: str) -> bool:
    """Whether Pillow can read files with this suffix here."""
    suffix = _suffix(name)
    if suffix in heif.HEIF_SUFFIXES:
        return heif.can_read()
    return suffix in PICTURE_SUFFIXES or (suffix in PLUGIN_SUFFIXES and suffix in Image.registered_extensions())


def other_media(name: str) -> bool:
    """Whether the file looks like a picture to a user, but cannot be read."""
    suffix = _suffix(name)
    return not is_picture(name) and suffix in OTHER_MEDIA | PLUGIN_SUFFIXES | heif.HEIF_SUFFIXES


def _suffix(name: str) -> str:
    """As Path(name).suffix.lower(), but faster."""
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and stem and end else ""


def visible_files(folder: Path) -> list[str]:
    """File names in natural order, without hidden files and masks of other pictures."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not _is_hidden(entry.name) and _is_file(entry)]
    masks = {name for name in names if MASK_SUFFIX in name.casefold() and Path(name).stem.casefold().endswith(MASK_SUFFIX)}
    if masks:
        pictures = {Path(name).stem.casefold() for name in names}
        names = [name for name in names if name not in masks or Path(name).stem.casefold().removesuffix(MASK_SUFFIX) not in pictures]
    return sorted(names, key=natural_key)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to itself in the place of a picture or caption, so that it is listed as unreadable."""
    try:
        return entry.is_file()
    except OSError:
        return is_picture(entry.name) or _suffix(entry.name) in CAPTION_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def file_index(names: Iterable[str]) -> tuple[frozenset[str], dict[str, str]]:
    """The names as a set, and casefolded name -> name."""
    names = list(names)
    return frozenset(names), {name.casefold(): name for name in reversed(names)}


def _require_folder(root: Path, field: str) -> Path:
    text = str(root)
    if not text.strip() or text == ".":  # Path("") is "."; the working directory is never meant
        raise DatasetError("no folder of pictures is given.", path=field, fix="Choose the folder that holds the pictures.")
    try:
        exists, is_folder = root.exists(), root.is_dir()
    except (OSError, ValueError):
        exists = is_folder = False
    if not exists:
        raise DatasetError("there is no folder {folder}.", path=field, folder=text, fix="Check the path.")
    if not is_folder:
        raise DatasetError("{folder} is a file, not a folder.", path=field, folder=text, fix="Choose the folder that holds the pictures.")
    resolved = root.resolve()
    if resolved == resolved.parent:
        raise DatasetError("{folder} is a whole drive.", path=field, folder=text, fix="Choose the folder that holds the pictures.")
    if (resolved / "webui.py").is_file() and (resolved / "modules").is_dir():
        raise DatasetError("{folder} is the WebUI's own folder.", path=field, folder=text, fix="Choose the folder that holds the pictures.")
    return root


def _numbered_layout(folders: Sequence[Path], numbered: Sequence[Path], pictures: Sequence[str]) -> FolderLayout:
    subsets, warnings = [], list[Message]()
    for folder in numbered:
        repeats, class_tokens = parse_folder_name(folder.name) or (1, "")
        subsets.append(Subset(folder, f"{folder.name}/", repeats, class_tokens))
    warnings += _about_wrong_repeats(folders)
    ignored = [folder.name for folder in folders if folder not in numbered and _wrong_repeats(folder.name) is None]
    if ignored:
        warnings.append(say("Left aside, because the name is not NUMBER_NAME (for example 10_mika): {names}", names=", ".join(ignored[:5])))
    if pictures:
        warnings.append(say("Pictures beside the numbered folders are left aside ({count}).", count=len(pictures)))
    listed = ", ".join(f"{subset.folder.name}" for subset in subsets[:5]) + (" ..." if len(subsets) > 5 else "")
    summary = say("Folders with their repeats in the name ({count}): {names}", count=len(subsets), names=listed)
    return FolderLayout(tuple(subsets), summary, (*warnings, *_about_many_repeats(subsets)))


def _root_layout(root: Path, pictures: Sequence[str], folders: Sequence[Path], num_repeats: int) -> FolderLayout:
    name = root.name or root.resolve().name
    repeats, class_tokens = parse_folder_name(name) or (num_repeats, "")
    subset = Subset(root, "", repeats, class_tokens)
    warnings = []
    if folders:
        warnings.append(say("Folders inside the folder of pictures are left aside: {names}", names=", ".join(f.name for f in folders[:5])))
    if parse_folder_name(name):
        summary = say(
            'One folder of {count} pictures with {repeats} repeats and the words "{words}" in its name.',
            count=len(pictures),
            repeats=repeats,
            words=class_tokens,
        )
        return FolderLayout((subset,), summary, (*warnings, *_about_many_repeats([subset])))
    return FolderLayout((subset,), say("A folder of pictures ({count}).", count=len(pictures)), tuple(warnings))


def _parent_layout(root: Path, folders: Sequence[Path], num_repeats: int, field: str) -> FolderLayout:
    warnings, used = tuple(_about_wrong_repeats(folders)), [folder for folder in folders if _wrong_repeats(folder.name) is None]
    if not used:
        raise DatasetError(
            "no folder in {folder} is used. {reason}",
            path=field,
            folder=str(root),
            reason=warnings[0],
            fix="Rename it to NUMBER_NAME with a number of at least 1, for example 10_mika.",
        )
    subsets = [Subset(folder, f"{folder.name}/", num_repeats, "") for folder in used]
    listed = ", ".join(folder.name for folder in used[:5]) + (" ..." if len(used) > 5 else "")
    summary = say("Folders of pictures, all used alike ({count}): {names}", count=len(used), names=listed)
    return FolderLayout(tuple(subsets), summary, warnings)


def _about_many_repeats(subsets: Iterable[Subset]) -> list[Message]:
    return [
        say("The name of the folder {name} says {repeats} repeats.", name=subset.folder.name, repeats=subset.repeats)
        for subset in subsets
        if subset.repeats > MANY_REPEATS
    ]


def _picture_names(folder: Path, field: str) -> list[str]:
    """Names of pictures, and of files that look like pictures, so that they are reported."""
    try:
        return [name for name in visible_files(folder) if is_picture(name) or other_media(name)]
    except OSError as error:
        raise _unreadable(folder, field, error) from error


def _subfolders(folder: Path, field: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not _is_hidden(entry.name) and _is_folder(entry)]
    except OSError as error:
        raise _unreadable(folder, field, error) from error
    return [folder / name for name in sorted(names, key=natural_key)]


def _unreadable(folder: Path, field: str, error: OSError) -> DatasetError:
    return DatasetError(
        "{folder} cannot be read ({why}).", path=field, folder=str(folder), why=error.strerror or str(error), fix="Change its permissions."
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
