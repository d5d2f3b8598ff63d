"""Folders to choose from, and pictures sent from another computer."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import Missing, Refused, TooLarge
from lora_trainer.config.file_names import problem_of_name
from lora_trainer.data.records import natural_key
from lora_trainer.data.sources.folders import CAPTION_SUFFIXES, is_picture, other_media
from lora_trainer.files import file_sha256, replace_file

LARGEST_UPLOAD = 512 << 20
BLOCK = 1 << 20
COUNTED = 5000
"""Files of one folder that are looked at to count its pictures."""


async def folders(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /folders?path= -> {"path", "parent", "folders": [{"name", "path", "pictures"}], "roots": [...]}; without a path: the roots"""
    return await api.workers.in_thread(_folders, api, request.query_params.get("path", "").strip())


def _folders(api: ApiContext, text: str) -> dict[str, Any]:
    roots = [{"name": str(root), "path": str(root)} for root in _roots(api)]
    if not text:
        return {"path": "", "parent": None, "folders": [], "roots": roots}
    path = api.allowed(text)
    if not path.is_dir():
        raise Missing("there is no folder {folder}.", folder=str(path), path="path", fix="Check the path.")
    path = path.absolute()
    try:
        inner = sorted((entry for entry in path.iterdir() if _shown(entry)), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise Refused(
            "{folder} cannot be read ({reason}).", folder=str(path), reason=error.strerror or str(error), path="path", fix="Choose another."
        ) from error
    parent = path.parent if path.parent != path and api.host.paths().allows(path.parent) else None
    return {
        "path": str(path),
        "parent": str(parent) if parent else "",
        "folders": [{"name": entry.name, "path": str(entry), "pictures": _pictures_in(entry)} for entry in inner],
        "roots": roots,
    }


def _roots(api: ApiContext) -> list[Path]:
    paths = api.host.paths()
    if paths.allowed_roots:
        return [root for root in paths.allowed_roots if root.is_dir()]
    if sys.platform == "win32":
        drives = [Path(f"{letter}:\\") for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
        return [Path.home(), paths.data_path, *(drive for drive in drives if drive.exists())]
    return list(dict.fromkeys([Path.home(), paths.data_path, Path("/")]))


def _shown(entry: Path) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith((".", "$"))
    except OSError:
        return False


def _pictures_in(folder: Path) -> int:
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= COUNTED:
                break
            count += is_picture(entry.name) and not entry.name.startswith(".")
    return count


async def uploaded(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /uploads/NAME -> {"path", "folder", "files": [{"name", "bytes"}], "parts": [{"name", "bytes"}]}"""
    folder = _upload_folder(api, request.path_params["name"])
    return await api.workers.in_thread(_uploaded, folder)


def _uploaded(folder: Path) -> dict[str, Any]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    shown = [{"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size} for path in files]
    parts = [{**file, "name": str(file["name"]).removesuffix(".part")} for file in shown if str(file["name"]).endswith(".part")]
    whole = [file for file in shown if not str(file["name"]).endswith(".part")]
    return {"path": str(folder) if whole else "", "folder": str(folder), "files": whole, "parts": parts}


async def upload(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /uploads/NAME?file=FILENAME[&offset=N], the file's bytes as body -> {"path", "folder", "bytes", "duplicate"}

    With `offset` the rest of a file whose sending was cut off there. A file that is there already with other content keeps its name;
    the new one gets a number.
    """
    folder = _upload_folder(api, request.path_params["name"])
    target = _upload_target(folder, request.query_params.get("file", ""))
    offset = request.query_params.get("offset", "0")
    part = target.with_name(f"{target.name}.part")
    file = await api.workers.in_thread(_open_part, part, int(offset) if offset.isdecimal() else -1)
    try:
        size = await _receive(api, request, file)
    finally:
        await api.workers.in_thread(file.close)
    expected = request.headers.get("content-length")
    if expected is not None and expected.isdecimal() and size < int(expected):
        raise Refused("the file was cut off on its way.", path="file", fix="Send the rest with offset, or all of it again.")
    path, duplicate = await api.workers.in_thread(_put_in_place, part, target)
    return {"path": str(path), "folder": str(folder), "bytes": path.stat().st_size, "duplicate": duplicate}


async def _receive(api: ApiContext, request: Request, file: BinaryIO) -> int:
    size, waiting = 0, b""
    async for block in request.stream():
        size += len(block)
        waiting += block
        if file.tell() + len(waiting) > LARGEST_UPLOAD:
            raise TooLarge("the file is larger than {mb} MB.", mb=LARGEST_UPLOAD >> 20, path="file", fix="Send smaller pictures.")
        if len(waiting) >= BLOCK:
            await api.workers.in_thread(file.write, waiting)
            waiting = b""
    if waiting:
        await api.workers.in_thread(file.write, waiting)
    return size


def _upload_folder(api: ApiContext, name: str) -> Path:
    if (wrong := problem_of_name(name)) is not None:
        raise Refused("{wrong}", wrong=wrong, path="name", fix="Take another name.")
    return api.host.paths().uploads_dir / name


def _upload_target(folder: Path, name: str) -> Path:
    """Where a file of this name goes, folders before it included. Raises Refused for names that lead elsewhere, and for other files."""
    words = name.split("/")
    for word in words:
        if (wrong := problem_of_name(word)) is not None:
            raise Refused("{wrong}", wrong=wrong, path="file", fix="Take another name.")
    if not (is_picture(words[-1]) or other_media(words[-1]) or words[-1].lower().endswith(CAPTION_SUFFIXES)):
        raise Refused(
            "{name} is neither a picture nor a caption file.", name=words[-1], path="file", fix="Send pictures, .txt or .caption."
        )
    return folder.joinpath(*words)


def _open_part(part: Path, offset: int) -> BinaryIO:
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        known = part.stat().st_size if part.is_file() else 0
        if offset < 0 or offset > known:
            raise Refused("offset is larger than what was received ({known} bytes).", known=known, path="offset", fix="Send from there.")
        file = part.open("r+b" if known else "wb")
        file.truncate(offset)
        file.seek(offset)
        return file
    except OSError as error:
        raise Refused(
            "{folder} cannot be written ({reason}).",
            folder=str(part.parent),
            reason=error.strerror or str(error),
            path="file",
            fix="Free some disk space, or change the folder's rights.",
        ) from error


def _put_in_place(part: Path, target: Path) -> tuple[Path, bool]:
    """The received file under its name; (path, whether the same file was there already)."""
    number = 2
    path = target
    while path.exists():
        if path.stat().st_size == part.stat().st_size and file_sha256(path) == file_sha256(part):
            part.unlink()
            return path, True
        path = target.with_name(f"{target.stem} ({number}){target.suffix}")
        number += 1
    replace_file(part, path)
    return path, False


ROUTES = (("GET", "/folders", folders), ("GET", "/uploads/{name}", uploaded), ("POST", "/uploads/{name}", upload))
