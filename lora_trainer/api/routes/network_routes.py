"""Tools for trained files, as `network ...` on the command line. Long ones run as jobs that the page polls by id."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import (
    NotFound,
    RequestError,
    body_number,
    body_value,
    json_response,
    problem_json,
    read_body,
    request_language,
)
from lora_trainer.api.threads import ToolJob
from lora_trainer.config.importing import import_metadata
from lora_trainer.errors import TrainerError
from lora_trainer.jobs.run_files import is_number

MAX_FILES = 400
MAX_JOBS = 20
MAX_INPUTS = 50
OnProgress = Callable[[int, int], None]


async def list_networks(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /network/files -> {"files": [{"name", "path", "mb"}], "folder"}: the host's LoRA files, newest first"""
    return await api.workers.in_thread(_list_networks, api)


def _list_networks(api: ApiContext) -> dict[str, Any]:
    folder = api.host.paths().lora_dir
    newest = sorted(_network_files(folder), key=lambda pair: -pair[1].st_mtime)[:MAX_FILES]
    return {
        "folder": str(folder),
        "files": [
            {"name": path.relative_to(folder).as_posix(), "path": str(path), "mb": round(stat.st_size / 1e6, 1)} for path, stat in newest
        ],
    }


def _network_files(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in folder.rglob("*.safetensors") if folder.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            yield path, path.stat()


async def inspect_network(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /network/info {"file", "model"?} -> {"info": ..., "verify": ...}, as the verbs' JSON"""
    body, language = await read_body(request), request_language(request)
    return await api.workers.in_thread(_inspect_network, api, body, language)


def _inspect_network(api: ApiContext, body: dict[str, Any], language: str) -> dict[str, Any]:
    from lora_trainer.network_tools.info import info
    from lora_trainer.network_tools.verify import verify

    path = api.allowed_path(body_value(body, "file", str), "file")
    model = body_value(body, "model", str, "")
    report = verify(path, model=api.allowed_path(model, "model") if model else None)
    return {"info": info(path), "verify": report.to_json(language)}


async def read_settings(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /network/settings {"file"} or {"metadata": {...}} -> {"config", "imported"}: the settings in the file's metadata"""
    body, language = await read_body(request), request_language(request)
    return await api.workers.in_thread(_read_settings, api, body, language)


def _read_settings(api: ApiContext, body: dict[str, Any], language: str) -> dict[str, Any]:
    from lora_trainer.config.build import to_mapping
    from lora_trainer.models.files.tensor_file import contents

    if "metadata" in body:
        metadata = {str(key): str(value) for key, value in body_value(body, "metadata", dict).items()}
    else:
        metadata = dict(contents(api.allowed_path(body_value(body, "file", str), "file")).metadata)
    imported = import_metadata(metadata)
    return {"config": to_mapping(imported.config, changed_only=True), "imported": imported.to_json(language)}


async def start_tool(api: ApiContext, request: Request) -> Response:
    """POST /network/TOOL {"file" | "files", "out", ...} -> 202 {"work": ID}, to be polled by GET /network/works/ID"""
    tool, body = request.path_params["tool"], await read_body(request)
    if tool not in TOOLS:
        raise NotFound("there is no tool called {name}.", name=tool, path="tool", fix="Known are {known}.", known=", ".join(TOOLS))
    return json_response(await api.workers.in_thread(_start_tool, api, tool, body), 202)


def _start_tool(api: ApiContext, tool: str, body: dict[str, Any]) -> dict[str, str]:
    from lora_trainer.network_tools.saving import check_target

    inputs = [api.allowed_path(text, "file") for text in _input_paths(body)]
    out = _output_path(api, body_value(body, "out", str), inputs)
    check_target(out, inputs, overwrite=body_value(body, "overwrite", bool, False))
    job = ToolJob()
    run_tool = TOOLS[tool](api, body, inputs, out, job.report)  # raises for an invalid request

    def run() -> dict[str, Any]:
        result = run_tool()
        api.host.refresh_networks()
        return {"out": str(out), **result}

    job_id = secrets.token_hex(6)
    api.tool_jobs[job_id] = job
    for old in list(api.tool_jobs)[:-MAX_JOBS]:
        del api.tool_jobs[old]
    job.future = api.workers.in_background(run)
    return {"work": job_id}


def _input_paths(body: dict[str, Any]) -> list[str]:
    if "files" in body:
        files = [str(text) for text in body_value(body, "files", list)]
        if not 0 < len(files) <= MAX_INPUTS:
            raise RequestError(
                "files holds {count} files.", count=len(files), path="files", fix="Send at least one, at most {most}.", most=MAX_INPUTS
            )
        return files
    others = [str(body[key]) for key in ("model", "tuned") if body.get(key)]
    return [body_value(body, "file", str), *others]


def _output_path(api: ApiContext, text: str, inputs: list[Path]) -> Path:
    """The output path; a bare name means a file next to the first input."""
    if not any(separator in text for separator in "/\\"):
        text = str(inputs[0].parent / text)
    path = api.allowed_path(text, "out")
    if path.name in ("", ".."):
        raise RequestError("{place} is a folder.", place=text, path="out", fix="Give the name of a file.")
    return path if path.suffix else path.with_name(f"{path.name}.safetensors")


async def read_tool_job(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /network/works/ID -> {"state": "working" | "done" | "failed", "done", "total", "result" | "problems"}"""
    job = api.tool_jobs.get(request.path_params["work"])
    if job is None or job.future is None:
        raise NotFound("there is no such job.", path="work", fix="Start it again.")
    content: dict[str, Any] = {"state": "working", "done": job.done, "total": job.total}
    if not job.future.done():
        return content
    error = job.future.exception()
    if error is None:
        return content | {"state": "done", "result": job.future.result()}
    if not isinstance(error, TrainerError):  # a file that is damaged in a way that no tool expects
        reason = f"{type(error).__name__}: {error}"[:500]
        error = TrainerError("the tool has failed ({reason}).", reason=reason, fix="Check the file, or please report this.")
    return content | {"state": "failed", "problems": [problem_json(problem, request_language(request)) for problem in error.problems]}


RunTool = Callable[[], dict[str, Any]]


def _resize(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, on_progress: OnProgress) -> RunTool:
    from lora_trainer.network_tools.resize import ResizeOptions, resize

    rank, energy = body_number(body, "rank", 0, 0, 4096), body_number(body, "energy", 1.0, 0.0, 1.0)
    settings = ResizeOptions(
        int(rank) or 1 << 16, energy, int(body_number(body, "conv_rank", 0, 0, 4096)), {}, body_value(body, "cut", bool, False)
    )

    def run() -> dict[str, Any]:
        layers = resize(inputs[0], out, settings)
        total = sum(line.norm**2 for line in layers)
        ranks = [line.after for line in layers if line.after]
        return {"energy": 1.0 - sum(line.residual_norm**2 for line in layers) / total if total else 1.0, "rank": max(ranks, default=0)}

    return run


def _merge(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, on_progress: OnProgress) -> RunTool:
    from lora_trainer.network_tools.merge import WeightedNetwork, merge_into_checkpoint, merge_networks

    weights = body_value(body, "weights", list, [1.0] * len(inputs))
    if len(weights) != len(inputs) or not all(map(is_number, weights)):
        raise RequestError("weights does not hold one number for each file.", path="weights", fix="Send as many numbers as files.")
    sources = [WeightedNetwork(path, float(weight), float(weight)) for path, weight in zip(inputs, weights, strict=True)]
    into = body_value(body, "into", str, "")
    checkpoint = api.allowed_path(into, "into") if into else None

    def run() -> dict[str, Any]:
        if checkpoint is not None:
            merged = merge_into_checkpoint(checkpoint, sources, out, on_progress=on_progress)
        else:
            merged = merge_networks(sources, out, rank=int(body_number(body, "rank", 0, 0, 4096)))
        return {"layers": merged.layers, "rank": merged.rank, "energy": merged.energy}

    return run


def _extract(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, on_progress: OnProgress) -> RunTool:
    from lora_trainer.network_tools.extract import ExtractOptions, extract

    settings = ExtractOptions(
        int(body_number(body, "rank", 32, 1, 4096)),
        int(body_number(body, "conv_rank", 0, 0, 4096)),
        body_number(body, "energy", 1.0, 0.0, 1.0),
        skip_rounding=body_value(body, "skip_rounding", bool, False),
    )
    if len(inputs) != 2:
        raise RequestError("{key} is missing in the request.", key="tuned", path="tuned", fix="Send it.")

    def run() -> dict[str, Any]:
        extracted = extract(inputs[0], inputs[1], out, settings, on_progress=on_progress)
        return {
            "layers": extracted.layers,
            "unchanged": extracted.unchanged,
            "rounding": extracted.rounding,
            "energy": extracted.energy,
            "family": extracted.family,
        }

    return run


def _convert(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, on_progress: OnProgress) -> RunTool:
    from lora_trainer.adapters.files.naming import NAMINGS
    from lora_trainer.network_tools.convert import convert

    naming = body_value(body, "to", str)
    if naming not in NAMINGS:
        raise RequestError(
            "there is no naming scheme called {name}.", name=naming, path="to", fix="Known are {known}.", known=", ".join(NAMINGS)
        )
    return lambda: {"layers": len(convert(inputs[0], out, naming).modules)}


def _edit(api: ApiContext, body: dict[str, Any], inputs: list[Path], out: Path, on_progress: OnProgress) -> RunTool:
    from lora_trainer.network_tools.edit import METADATA_KEYS, EditOptions, edit

    named = {str(key): str(value) for key, value in body_value(body, "named", dict, {}).items() if key in METADATA_KEYS}
    metadata = {str(key): str(value) for key, value in body_value(body, "words", dict, {}).items()}
    preview = body_value(body, "preview", str, "")
    picture = api.allowed_path(preview, "preview") if preview else None
    editing = EditOptions(metadata, [str(key) for key in body_value(body, "removed", list, [])], named, picture)
    return lambda: {"words": len(edit(inputs[0], out, editing))}


TOOLS: dict[str, Callable[[ApiContext, dict[str, Any], list[Path], Path, OnProgress], RunTool]] = {
    "resize": _resize,
    "merge": _merge,
    "extract": _extract,
    "convert": _convert,
    "edit": _edit,
}
ROUTES = (
    ("GET", "/network/files", list_networks),
    ("POST", "/network/info", inspect_network),
    ("POST", "/network/settings", read_settings),
    ("GET", "/network/works/{work}", read_tool_job),
    ("POST", "/network/{tool}", start_tool),
)
