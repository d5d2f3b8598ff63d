"""Browsing folders, and uploading pictures from another computer."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import Conflict, NotFound, PayloadTooLarge, RequestError, body_value, read_body
from lora_trainer.config.file_names import name_problem
from lora_trainer.data.records import natural_key
from lora_trainer.data.sources.folders import CAPTION_SUFFIXES, is_picture, other_media
from lora_trainer.files import file_sha256, replace_file
from lora_trainer.jobs.claims import AlreadyClaimed, Claim

MAX_UPLOAD_BYTES = 512 << 20
CHUNK_BYTES = 1 << 20
UPLOADING = ".uploading"
SAMPLES = 6  # pictures of a folder that its line shows
MAX_COUNTED = 5000
"""Directory entries that are read at most to count a folder's pictures."""


async def list_folders(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /folders?path= -> {"path", "parent", "folders": [{"name", "path", "pictures"}], "pictures", "samples": [paths], "roots": [...]}

    Without a path: the roots.
    """
    return await api.workers.in_thread(_list_folders, api, request.query_params.get("path", "").strip())


def _list_folders(api: ApiContext, text: str) -> dict[str, Any]:
    roots = [{"name": str(root), "path": str(root)} for root in _root_folders(api)]
    if not text:
        return {"path": "", "parent": None, "folders": [], "roots": roots}
    path = api.allowed_path(text)
    if not path.is_dir():
        raise NotFound("there is no folder {folder}.", folder=str(path), path="path", fix="Check the path.")
    path = path.absolute()
    try:
        subfolders = sorted((entry for entry in path.iterdir() if _is_visible_folder(entry)), key=lambda entry: natural_key(entry.name))
        subfolders = [entry for entry in subfolders if not entry.is_symlink() or api.host.paths().allows(entry)]
    except OSError as error:
        raise RequestError(
            "{folder} cannot be read ({reason}).", folder=str(path), reason=error.strerror or str(error), path="path", fix="Choose another."
        ) from error
    parent = path.parent if path.parent != path and api.host.paths().allows(path.parent) else None
    return {
        "path": str(path),
        "parent": str(parent) if parent else "",
        "folders": [{"name": entry.name, "path": str(entry), "pictures": _count_pictures(entry)} for entry in subfolders],
        "pictures": _count_pictures(path),
        "samples": _sample_pictures(path),
        "roots": roots,
    }


def _sample_pictures(folder: Path) -> list[str]:
    """A few of its pictures, to be recognised by."""
    with suppress(OSError), os.scandir(folder) as entries:
        some = [
            entry
            for _, entry in zip(range(MAX_COUNTED), entries, strict=False)
            if is_picture(entry.name) and entry.is_file() and not entry.name.startswith(".")
        ]
        return [str(folder / entry.name) for entry in sorted(some, key=lambda entry: natural_key(entry.name))[:SAMPLES]]
    return []


def _root_folders(api: ApiContext) -> list[Path]:
    paths = api.host.paths()
    if paths.allowed_roots:
        return [root for root in paths.allowed_roots if root.is_dir()]
    if sys.platform == "win32":
        drives = [Path(f"{letter}:\\") for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
        return [Path.home(), paths.data_path, *(drive for drive in drives if drive.exists())]
    return list(dict.fromkeys([Path.home(), paths.data_path, Path("/")]))


def _is_visible_folder(entry: Path) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith((".", "$"))
    except OSError:
        return False


def _count_pictures(folder: Path) -> int:
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_COUNTED:
                break
            count += is_picture(entry.name) and not entry.name.startswith(".")
    return count


async def list_uploads(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /uploads/NAME -> {"path", "folder", "files": [{"name", "bytes"}], "parts": [{"name", "bytes"}]}"""
    folder = _upload_folder(api, request.path_params["name"])
    return await api.workers.in_thread(_list_uploads, folder)


def _list_uploads(folder: Path) -> dict[str, Any]:
    uploads: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        with suppress(OSError):  # renamed or deleted meanwhile
            if path.is_file() and not path.name.endswith(UPLOADING):
                uploads.append({"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size})
    parts = [{**file, "name": str(file["name"]).removesuffix(".part")} for file in uploads if str(file["name"]).endswith(".part")]
    complete = [file for file in uploads if not str(file["name"]).endswith(".part")]
    return {"path": str(folder) if complete else "", "folder": str(folder), "files": complete, "parts": parts}


async def receive_upload(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /uploads/NAME?file=FILENAME[&offset=N], the file's bytes as body -> {"path", "folder", "bytes", "duplicate"}

    `offset` continues an upload that was cut off there. When a file of that name with other content exists, the new one gets a number.
    """
    return await _receive_into(api, request, _upload_folder(api, request.path_params["name"]))


async def add_to_folder(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /folders?path=FOLDER&file=FILENAME[&offset=N]: as an upload, into a folder that exists. Nothing in it is replaced."""
    folder = api.allowed_path(request.query_params.get("path", "").strip())
    if not await api.workers.in_thread(folder.is_dir):
        raise NotFound("there is no folder {folder}.", folder=str(folder), path="path", fix="Check the path.")
    return await _receive_into(api, request, folder.absolute())


async def _receive_into(api: ApiContext, request: Request, folder: Path) -> dict[str, Any]:
    target = _upload_target(folder, request.query_params.get("file", ""))
    api.allowed_path(str(target), "file")
    offset = request.query_params.get("offset", "0")
    part = target.with_name(f"{target.name}.part")
    start = int(offset) if offset.isascii() and offset.isdecimal() and len(offset) <= 12 else -1
    claim = await api.workers.in_thread(_claim_upload, target)
    try:
        return await _receive(api, request, folder, target, part, start)
    finally:
        await api.workers.in_thread(claim.release)


async def _receive(api: ApiContext, request: Request, folder: Path, target: Path, part: Path, offset: int) -> dict[str, Any]:
    file = await api.workers.in_thread(_open_part, part, offset)
    try:
        size = await _write_chunks(api, request, file)
    except OSError as error:  # the disk is full
        raise _cannot_write(folder, error) from error
    finally:
        with suppress(OSError):  # what could not be written is told already
            await api.workers.in_thread(file.close)
    expected = request.headers.get("content-length")
    if expected is not None and expected.isdecimal() and size < int(expected):
        raise RequestError("the file was cut off on its way.", path="file", fix="Send the rest with offset, or all of it again.")
    path, duplicate = await api.workers.in_thread(_move_into_place, part, target)
    stat = path.stat()
    if not duplicate:
        api.received[path] = (stat.st_size, stat.st_mtime_ns)
        api.status.note_edit()
    return {"path": str(path), "folder": str(folder), "bytes": stat.st_size, "duplicate": duplicate}


async def take_back_uploads(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /uploads {"take_back": [paths]} -> {"removed": [paths], "kept": [paths]}

    Removes files that were uploaded since the server started, as long as they are as they were sent; everything else is kept.
    """
    texts = body_value(await read_body(request), "take_back", list, [])
    paths = [Path(text) for text in texts if isinstance(text, str)]
    removed = await api.workers.in_thread(_take_back, api, paths)
    api.status.note_edit()
    return {"removed": [str(path) for path in removed], "kept": [str(path) for path in paths if path not in removed]}


def _take_back(api: ApiContext, paths: list[Path]) -> list[Path]:
    removed = []
    for path in paths:
        received = api.received.pop(path, None)
        if received is None:
            continue
        with suppress(OSError):  # gone already, or in use
            stat = path.stat()
            if received == (stat.st_size, stat.st_mtime_ns):
                path.unlink()
                removed.append(path)
    for folder in {path.parent for path in removed}:
        with suppress(OSError):  # holds something else
            folder.rmdir()
    return removed


async def _write_chunks(api: ApiContext, request: Request, file: BinaryIO) -> int:
    size, buffer = 0, b""
    async for chunk in request.stream():
        size += len(chunk)
        buffer += chunk
        if file.tell() + len(buffer) > MAX_UPLOAD_BYTES:
            raise PayloadTooLarge("the file is larger than {mb} MB.", mb=MAX_UPLOAD_BYTES >> 20, path="file", fix="Send smaller pictures.")
        if len(buffer) >= CHUNK_BYTES:
            await api.workers.in_thread(file.write, buffer)
            buffer = b""
    if buffer:
        await api.workers.in_thread(file.write, buffer)
    return size


def _upload_folder(api: ApiContext, name: str) -> Path:
    if (wrong := name_problem(name)) is not None:
        raise RequestError("{wrong}", wrong=wrong, path="name", fix="Take another name.")
    return api.host.paths().uploads_dir / name


def _upload_target(folder: Path, name: str) -> Path:
    """The path for an uploaded file, subfolders included. Raises RequestError for invalid names and for other types of files."""
    parts = name.split("/")
    for word in parts:
        if (wrong := name_problem(word)) is not None:
            raise RequestError("{wrong}", wrong=wrong, path="file", fix="Take another name.")
    if not (is_picture(parts[-1]) or other_media(parts[-1]) or parts[-1].lower().endswith(CAPTION_SUFFIXES)):
        raise RequestError(
            "{name} is neither a picture nor a caption file.", name=parts[-1], path="file", fix="Send pictures, .txt or .caption."
        )
    return folder.joinpath(*parts)


def _claim_upload(target: Path) -> Claim:
    """Keeps others from sending the same file meanwhile: their bytes would mix. Raises Conflict."""
    digest = hashlib.blake2b(target.name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Claim.take(target.with_name(f".{digest}{UPLOADING}"))
    except AlreadyClaimed:
        raise Conflict("{name} is being sent already.", name=target.name, path="file", fix="Wait until it has arrived.") from None
    except OSError as error:
        raise _cannot_write(target.parent, error) from error


def _cannot_write(folder: Path, error: OSError) -> RequestError:
    return RequestError(
        "{folder} cannot be written ({reason}).",
        folder=str(folder),
        reason=error.strerror or str(error),
        path="file",
        fix="Free some disk space, or change the folder's rights.",
    )


def _open_part(part: Path, offset: int) -> BinaryIO:
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        received = part.stat().st_size if part.is_file() else 0
        if offset < 0 or offset > received:
            raise RequestError(
                "offset is larger than what was received ({known} bytes).", known=received, path="offset", fix="Send from there."
            )
        file = part.open("r+b" if received else "wb")
        file.truncate(offset)
        file.seek(offset)
        return file
    except OSError as error:
        raise _cannot_write(part.parent, error) from error


def _move_into_place(part: Path, target: Path) -> tuple[Path, bool]:
    """Renames the uploaded file to its target; (path, whether an identical file existed already)."""
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


ROUTES = (
    ("GET", "/folders", list_folders),
    ("POST", "/folders", add_to_folder),
    ("GET", "/uploads/{name}", list_uploads),
    ("POST", "/uploads/{name}", receive_upload),
    ("POST", "/uploads", take_back_uploads),
)
