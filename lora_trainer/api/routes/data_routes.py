"""Pictures, thumbnails and captions."""

from __future__ import annotations

import hashlib
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import NotFound, body_value, query_number, read_body, request_language
from lora_trainer.api.routes.run_routes import config_mapping
from lora_trainer.errors import TrainerError

MIN_SIZE, MAX_SIZE = 32, 1024


async def list_pictures(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /pictures {"config"}"""
    config = config_mapping(await read_body(request))
    return await api.workers.in_thread(_list_pictures, api, config, request_language(request))


def _list_pictures(api: ApiContext, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    from lora_trainer.api import pictures

    api.check_paths(mapping)
    return pictures.list_pictures(api.scans, pictures.build_lenient(mapping), language)


async def list_captions(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /captions {"config", "epoch"?}"""
    body = await read_body(request)
    epoch = body_value(body, "epoch", int, 1)
    return await api.workers.in_thread(_list_captions, api, config_mapping(body), epoch, request_language(request))


def _list_captions(api: ApiContext, mapping: dict[str, Any], epoch: int, language: str) -> dict[str, Any]:
    from lora_trainer.api import caption_list, pictures

    api.check_paths(mapping)
    return caption_list.caption_list(api.scans, pictures.build_lenient(mapping), max(1, epoch), language)


async def write_caption(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /caption {"path": the picture's, "text", "instead_of"?} -> {"old", "file", "written"}

    With `instead_of` nothing is written where another caption stands by now.
    """
    body = await read_body(request)
    path, text = body_value(body, "path", str), body_value(body, "text", str)
    instead_of = body_value(body, "instead_of", str) if "instead_of" in body else None
    return await api.workers.in_thread(_write_caption, api, path, text, instead_of)


def _write_caption(api: ApiContext, path: str, text: str, instead_of: str | None) -> dict[str, Any]:
    from lora_trainer.api import pictures
    from lora_trainer.data.captions import read_caption
    from lora_trainer.data.captions import write_caption as write

    file = pictures.caption_path(api.allowed_path(path))
    api.require_no_link_out(file)
    new = not file.exists()
    if instead_of is not None:
        current = "" if new else read_caption(file)
        if current.strip() != instead_of.strip():
            return {"old": current, "file": str(file), "written": False}
    old = write(file, text.strip())
    if new:
        api.created_captions.add(file)
    if not text.strip() and file in api.created_captions:  # undone: there was none before
        file.unlink(missing_ok=True)
        api.created_captions.discard(file)
    api.status.note_edit()
    return {"old": old, "file": str(file), "written": True}


async def read_thumbnail(api: ApiContext, request: Request) -> Response:
    """GET /thumbnail?path=&size=256 -> a JPEG with no side longer than `size`"""
    size = min(MAX_SIZE, max(MIN_SIZE, query_number(request, "size", 256)))
    path = request.query_params.get("path", "")
    tag, content = await api.workers.in_thread(_read_thumbnail, api, path, size, request.headers.get("if-none-match", ""))
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    return Response(content, 200 if content else 304, headers, "image/jpeg")


def _read_thumbnail(api: ApiContext, text: str, size: int, etag: str) -> tuple[str, bytes]:
    from lora_trainer.data.pictures.images import thumbnail as draw
    from lora_trainer.files import write_atomically

    path = api.allowed_path(text)
    state = _file_state(path)
    name = hashlib.blake2b(f"{path.resolve()}|{state}|{size}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    tag = f'"{name}"'
    if etag == tag:
        return tag, b""
    cached = api.host.paths().cache_dir / "thumbnails" / name[:2] / f"{name}.jpg"
    if cached.is_file():
        return tag, cached.read_bytes()
    content = draw(path, size)
    with suppress(TrainerError):  # a cache that is full or not writable costs time only
        write_atomically(cached, content)
    return tag, content


def _no_picture(path: Path) -> NotFound:
    return NotFound("there is no picture {path}.", path=str(path)[:1000], fix="Read the folder again.")


def _file_state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError as error:
        raise _no_picture(path) from error
    if not stat.S_ISREG(state.st_mode):
        raise _no_picture(path)
    return f"{state.st_mtime_ns}|{state.st_size}"


ROUTES = (
    ("POST", "/pictures", list_pictures),
    ("POST", "/captions", list_captions),
    ("POST", "/caption", write_caption),
    ("GET", "/thumbnail", read_thumbnail),
)
