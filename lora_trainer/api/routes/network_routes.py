"""Tools around a trained file: the same as `network ...` of the command line. What may take long is followed by its id."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import Missing, Refused, body_number, body_of, body_value, json_response, language_of, problem_json
from lora_trainer.api.threads import ToolWork
from lora_trainer.config.importing import import_words
from lora_trainer.errors import TrainerError

MOST_FILES = 400
KEPT = 20
Tell = Callable[[int, int], None]


async def files(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /network/files -> {"files": [{"name", "path", "mb"}], "folder"}: the host's LoRA files, newest first"""
    return await api.workers.in_thread(_files, api)


def _files(api: ApiContext) -> dict[str, Any]:
    folder = api.host.paths().lora_dir
    found = sorted(_safetensors(folder), key=lambda pair: -pair[1].st_mtime)[:MOST_FILES]
    return {
        "folder": str(folder),
        "files": [
            {"name": path.relative_to(folder).as_posix(), "path": str(path), "mb": round(stat.st_size / 1e6, 1)} for path, stat in found
        ],
    }


def _safetensors(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in folder.rglob("*.safetensors") if folder.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            yield path, path.stat()


async def look(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /network/info {"file", "model"?} -> {"info": ..., "verify": ...}, as the verbs' JSON"""
    body, language = await body_of(request), language_of(request)
    return await api.workers.in_thread(_look, api, body, language)


def _look(api: ApiContext, body: dict[str, Any], language: str) -> dict[str, Any]:
    from lora_trainer.network_tools.info import info
    from lora_trainer.network_tools.verify import verify

    path = api.allowed(body_value(body, "file", str), "file")
    model = body_value(body, "model", str, "")
    checked = verify(path, model=api.allowed(model, "model") if model else None)
    return {"info": info(path), "verify": checked.to_json(language)}


async def again(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /network/settings {"file"} or {"metadata": {...}} -> {"config", "imported"}: the settings that the header tells"""
    body, language = await body_of(request), language_of(request)
    return await api.workers.in_thread(_again, api, body, language)


def _again(api: ApiContext, body: dict[str, Any], language: str) -> dict[str, Any]:
    from lora_trainer.config.build import to_mapping
    from lora_trainer.models.files.tensor_file import contents

    if "metadata" in body:
        words = {str(key): str(value) for key, value in body_value(body, "metadata", dict).items()}
    else:
        words = dict(contents(api.allowed(body_value(body, "file", str), "file")).words)
    found = import_words(words)
    return {"config": to_mapping(found.config, changed_only=True), "imported": found.to_json(language)}


async def start(api: ApiContext, request: Request) -> Response:
    """POST /network/TOOL {"file" | "files", "out", ...} -> 202 {"work": ID}; GET /network/works/ID tells the rest"""
    tool, body = request.path_params["tool"], await body_of(request)
    if tool not in TOOLS:
        raise Missing("there is no tool called {name}.", name=tool, path="tool", fix="Known are {known}.", known=", ".join(TOOLS))
    return json_response(await api.workers.in_thread(_start, api, tool, body), 202)


def _start(api: ApiContext, tool: str, body: dict[str, Any]) -> dict[str, str]:
    from lora_trainer.network_tools.saving import check_target

    inputs = [api.allowed(text, "file") for text in _inputs(body)]
    out = _out(api, body_value(body, "out", str), inputs)
    check_target(out, inputs, overwrite=body_value(body, "overwrite", bool, False))
    work = ToolWork()
    made = TOOLS[tool](api, body, inputs, out, work.tell)  # raises for what is wrong with the request itself

    def run() -> dict[str, Any]:
        found = made()
        api.host.refresh_networks()
        return {"out": str(out), **found}

    name = secrets.token_hex(6)
    api.network_works[name] = work
    for old in list(api.network_works)[:-KEPT]:
        del api.network_works[old]
    work.future = api.workers.later(run)
    return {"work": name}


def _inputs(body: dict[str, Any]) -> list[str]:
    if "files" in body:
        return [str(text) for text in body_value(body, "files", list)]
    others = [str(body[key]) for key in ("model", "tuned") if body.get(key)]
    return [body_value(body, "file", str), *others]


def _out(api: ApiContext, text: str, inputs: list[Path]) -> Path:
    """A bare name goes beside the first input."""
    if not any(sign in text for sign in "/\\"):
        text = str(inputs[0].parent / text)
    path = api.allowed(text, "out")
    return path if path.suffix else path.with_name(f"{path.name}.safetensors")


async def follow(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /network/works/ID -> {"state": "working" | "done" | "failed", "done", "total", "result" | "problems"}"""
    work = api.network_works.get(request.path_params["work"])
    if work is None or work.future is None:
        raise Missing("there is no such work.", path="work", fix="Start it again.")
    shown: dict[str, Any] = {"state": "working", "done": work.done, "total": work.total}
    if not work.future.done():
        return shown
    error = work.future.exception()
    if error is None:
        return shown | {"state": "done", "result": work.future.result()}
    if not isinstance(error, TrainerError):
        raise error
    return shown | {"state": "failed", "problems": [problem_json(problem, language_of(request)) for problem in error.problems]}


Made = Callable[[], dict[str, Any]]


def _resize(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, tell: Tell) -> Made:
    from lora_trainer.network_tools.resize import Resizing, resize

    rank, energy = body_number(body, "rank", 0, 0, 4096), body_number(body, "energy", 1.0, 0.0, 1.0)
    wanted_now = Resizing(
        int(rank) or 1 << 16, energy, int(body_number(body, "conv_rank", 0, 0, 4096)), {}, body_value(body, "cut", bool, False)
    )

    def made() -> dict[str, Any]:
        told = resize(inputs[0], out, wanted_now)
        whole = sum(line.whole**2 for line in told)
        ranks = [line.after for line in told if line.after]
        return {"energy": 1.0 - sum(line.lost**2 for line in told) / whole if whole else 1.0, "rank": max(ranks, default=0)}

    return made


def _merge(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, tell: Tell) -> Made:
    from lora_trainer.network_tools.merge import Weighted, merge_into_checkpoint, merge_networks

    weights = body_value(body, "weights", list, [1.0] * len(inputs))
    if len(weights) != len(inputs) or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in weights):
        raise Refused("weights holds not one number for each file.", path="weights", fix="Send as many numbers as files.")
    sources = [Weighted(path, float(weight), float(weight)) for path, weight in zip(inputs, weights, strict=True)]
    into = body_value(body, "into", str, "")
    checkpoint = api.allowed(into, "into") if into else None

    def made() -> dict[str, Any]:
        if checkpoint is not None:
            found = merge_into_checkpoint(checkpoint, sources, out, tell=tell)
        else:
            found = merge_networks(sources, out, rank=int(body_number(body, "rank", 0, 0, 4096)))
        return {"layers": found.layers, "rank": found.rank, "energy": found.energy}

    return made


def _extract(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, tell: Tell) -> Made:
    from lora_trainer.network_tools.extract import Extracting, extract

    wanted_now = Extracting(
        int(body_number(body, "rank", 32, 1, 4096)),
        int(body_number(body, "conv_rank", 0, 0, 4096)),
        body_number(body, "energy", 1.0, 0.0, 1.0),
    )
    if len(inputs) != 2:
        raise Refused("{key} is missing in the request.", key="tuned", path="tuned", fix="Send it.")

    def made() -> dict[str, Any]:
        found = extract(inputs[0], inputs[1], out, wanted_now, tell=tell)
        return {"layers": found.layers, "unchanged": found.unchanged, "energy": found.energy, "family": found.family}

    return made


def _convert(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, tell: Tell) -> Made:
    from lora_trainer.network_tools.convert import convert
    from lora_trainer.network_tools.naming import NAMINGS

    to = body_value(body, "to", str)
    if to not in NAMINGS:
        raise Refused("there are no names called {name}.", name=to, path="to", fix="Known are {known}.", known=", ".join(NAMINGS))
    return lambda: {"layers": len(convert(inputs[0], out, to).modules)}


def _edit(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, tell: Tell) -> Made:
    from lora_trainer.network_tools.edit import NAMED, Editing, edit

    named = {str(key): str(value) for key, value in body_value(body, "named", dict, {}).items() if key in NAMED}
    words = {str(key): str(value) for key, value in body_value(body, "words", dict, {}).items()}
    preview = body_value(body, "preview", str, "")
    picture = api.allowed(preview, "preview") if preview else None
    editing = Editing(words, [str(key) for key in body_value(body, "removed", list, [])], named, picture)
    return lambda: {"words": len(edit(inputs[0], out, editing))}


TOOLS: dict[str, Callable[[ApiContext, dict[str, Any], list[Path], Path, Tell], Made]] = {
    "resize": _resize,
    "merge": _merge,
    "extract": _extract,
    "convert": _convert,
    "edit": _edit,
}
ROUTES = (
    ("GET", "/network/files", files),
    ("POST", "/network/info", look),
    ("POST", "/network/settings", again),
    ("GET", "/network/works/{work}", follow),
    ("POST", "/network/{tool}", start),
)
