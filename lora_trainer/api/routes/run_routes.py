"""Runs and grids: starting, controlling, reading, renaming and deleting them."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from contextlib import ExitStack
from json import dumps
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import (
    Conflict,
    NotFound,
    RequestError,
    body_value,
    encode_json,
    json_response,
    query_number,
    read_body,
    request_language,
)
from lora_trainer.api.runs import start_run
from lora_trainer.api.runs.resume import check_change, plan_resume
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import read_config
from lora_trainer.config.migrations import migrate
from lora_trainer.control import CHANGE, COMMANDS
from lora_trainer.errors import HostBusy
from lora_trainer.files import file_sha256
from lora_trainer.jobs.claims import Claim
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.run_files import is_number
from lora_trainer.jobs.status import translate_message, translate_problem
from lora_trainer.parsing import parse_toml

MAX_EVENTS = 20_000
MAX_FILE_BYTES = 64 << 20
"""Largest file of a run that is sent: pictures and reports are, saved states are not."""
PICTURES = ("image/png", "image/jpeg", "image/webp")


async def list_runs(api: ApiContext, request: Request) -> list[dict[str, Any]]:
    """GET /runs[?all=1]: newest first; with `all` the grids too."""
    kinds = ("train", "grid") if request.query_params.get("all") else ("train",)
    language = request_language(request)
    return await api.workers.in_thread(lambda: api.manager.history(api.host.paths().runs_dir, kinds=kinds, language=language))


async def start(api: ApiContext, request: Request) -> dict[str, str]:
    """POST /runs {"config": {...}} or {"toml": "..."}"""
    body = await read_body(request)
    return await api.workers.in_thread(_start_run, api, config_mapping(body))


def config_mapping(body: dict[str, Any]) -> dict[str, Any]:
    """The config of a request as nested plain values. Raises RequestError when it is neither an object nor valid TOML."""
    if "toml" not in body:
        return dict(body_value(body, "config", dict))
    try:
        return migrate(parse_toml(body_value(body, "toml", str)))[0]
    except ValueError as error:
        raise RequestError("the TOML cannot be read ({reason}).", reason=str(error), path="toml", fix="Correct that line.") from error


def _start_run(api: ApiContext, mapping: dict[str, Any]) -> dict[str, str]:
    api.manager.require_idle()
    config = build(mapping)
    api.check_paths(mapping)
    own_process = start_run.uses_own_process(config)
    if not own_process:
        start_run.require_host_free(api.host)
    config = start_run.resolve_paths(
        start_run.with_file_paths(config, api.host) if own_process else config, api.host, runs_dir=api.host.paths().runs_dir
    )
    start_run.raise_problems(start_run.find_problems(config, api.host))
    folder = start_run.create_run_folder(config)
    with start_run.remove_unless_started(folder):
        if own_process:
            api.manager.start_subprocess(start_run.training_process(folder, api.host, token=config.model.hub_token))
        else:
            api.manager.start(folder, start_run.training_work(config, api.host, folder))
    return {"run": folder.id}


async def read_run(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID"""
    return await api.workers.in_thread(_read_run, api, request.path_params["run"], request_language(request))


def _read_run(api: ApiContext, run: str, language: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    latest = api.manager.latest
    summary = folder.summary(running=api.manager.is_running(folder), language=language)
    if latest is not None and latest.folder.path == folder.path:
        summary |= latest.snapshot(language)
    else:
        summary |= _last_status(folder, summary, language)
    about = folder.info()
    return summary | {
        "manifest": folder.manifest(),
        "plan": folder.plan(),
        "chosen": about.get("chosen"),
        "folder": str(folder.path),
        "report": folder.report_file.is_file(),
    }


def _last_status(folder: RunFolder, summary: dict[str, Any], language: str) -> dict[str, Any]:
    """The status fields of a run of another process, from its last events."""
    from lora_trainer.jobs.logs.events_log import last_events

    tail = last_events(folder.events_file)
    stepped: dict[str, Any] = next((line for line in reversed(tail) if line["event"] == "stepped"), {})
    failures = [translate_problem(problem, language) for problem in (tail[-1].get("problems", []) if tail else [])]
    problems = [*failures, *summary["problems"]]
    return {
        **{key: stepped.get(key) for key in ("loss", "loss_average", "lr", "vram_mb")},
        "speed": (folder.manifest().get("step_seconds") if summary["outcome"] else None) or stepped.get("seconds"),
        "seconds_left": None if summary["outcome"] is None else 0,
        "problems": problems,
        "error": " ".join(f"{problem['message']} {problem['fix']}".strip() for problem in problems),
        "n": tail[-1].get("n", 0) if tail else 0,
    }


async def read_events(api: ApiContext, request: Request) -> Response:
    """GET /runs/ID/events?after=N[&limit=M] -> {"events": [...], "next": N}"""
    after, limit = query_number(request, "after", 0), query_number(request, "limit", MAX_EVENTS)
    run, language = request.path_params["run"], request_language(request)
    text = await api.workers.in_thread(_read_events, api, run, after, min(limit, MAX_EVENTS) or 1, language)
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})


def _read_events(api: ApiContext, run: str, after: int, limit: int, language: str) -> bytes:
    events = api.run_folder(run).events(after, limit)
    for event in events:
        if event["event"] == "warned":
            event["message"] = translate_message(event["message"], language)
        elif event["event"] == "failed":
            event["problems"] = [translate_problem(problem, language) for problem in event["problems"]]
    return encode_json({"events": events, "next": after + len(events)})


async def read_file(api: ApiContext, request: Request) -> Response:
    """GET /runs/ID/files/PATH: a file of the run's folder and nothing else."""
    content, kind = await api.workers.in_thread(_read_file, api, request.path_params["run"], request.path_params["path"])
    headers = {"Cache-Control": "private, max-age=60" if kind in PICTURES else "no-store"}
    return Response(content, media_type=kind, headers=headers)


def _resolved(path: Path) -> Path:
    """The path without links; an empty path for a link to itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return Path()


def _read_file(api: ApiContext, run: str, name: str) -> tuple[bytes, str]:
    folder = api.run_folder(run)
    root = folder.path.resolve()
    path = _resolved(root / name)
    try:
        size = path.stat().st_size if root in path.parents and path.is_file() else -1
    except OSError:  # the name is too long
        size = -1
    if size < 0:
        raise NotFound("the run {run} has no file {name}.", run=run, name=name[:200], path="path", fix="Choose a file of the run.")
    if size > MAX_FILE_BYTES:
        raise RequestError(
            "{name} is larger than {mb} MB.", name=name, mb=MAX_FILE_BYTES >> 20, path="path", fix="Open it in the run's folder."
        )
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind not in (*PICTURES, "application/json"):
        kind = "text/plain; charset=utf-8"
    return path.read_bytes(), kind


async def send_command(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /runs/ID/control {"command": "stop" | "stop-discard" | "pause" | "resume" | "save" | "sample"},
    or {"command": "change", "changes": {"optimizer.learning_rate": 1e-5, ...}}, which take effect at the next step."""
    body = await read_body(request)
    command, run = body_value(body, "command", str), request.path_params["run"]
    if command == CHANGE:
        return await api.workers.in_thread(_change_settings, api, run, body_value(body, "changes", dict), request_language(request))
    if command not in COMMANDS:
        known = ", ".join((*COMMANDS, CHANGE))
        raise RequestError("there is no command {word}.", word=command, path="command", fix="Known are {known}.", known=known)
    latest = api.manager.latest
    if latest is not None and latest.running and latest.folder.id == run:  # at once: no thread, no file
        latest.command(command)
        return latest.snapshot(request_language(request))
    return await api.workers.in_thread(_send_to_other_process, api, run, command)


def _send_to_other_process(api: ApiContext, run: str, command: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    _refuse_ended(api, folder)
    folder.command(command)
    return folder.summary()


def _change_settings(api: ApiContext, run: str, changes: dict[str, Any], language: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    _refuse_ended(api, folder)
    api.check_option_paths(changes)
    applied = check_change(folder, changes)
    latest = api.manager.latest
    if latest is not None and latest.running and latest.folder.id == run:
        latest.change(changes)
        return latest.snapshot(language) | {"changes": applied}
    folder.change(changes)
    return folder.summary() | {"changes": applied}


def _refuse_ended(api: ApiContext, folder: RunFolder) -> None:
    if (outcome := folder.outcome(running=api.manager.is_running(folder))) is not None:
        raise Conflict("the run {run} has ended ({outcome}).", run=folder.id, outcome=outcome, path="run", fix="Start a new one.")


async def resume_run(api: ApiContext, request: Request) -> dict[str, str]:
    """POST /runs/ID/resume {"epochs"?: N more, "changes"?: {path: value}} -> {"run": ID}: resumes from the last state, in its folder."""
    body = await read_body(request)
    epochs, changes = body_value(body, "epochs", int, 0), body_value(body, "changes", dict, {})
    return await api.workers.in_thread(_resume_run, api, request.path_params["run"], epochs, changes)


def _resume_run(api: ApiContext, run: str, epochs: int, changes: dict[str, Any]) -> dict[str, str]:
    api.manager.require_idle()
    folder = api.run_folder(run)
    api.check_option_paths(changes)
    claim = folder.claim()
    try:
        _resume_claimed(api, folder, claim, epochs, changes)
    except BaseException:
        folder.release(claim)
        raise
    return {"run": folder.id}


def _resume_claimed(api: ApiContext, folder: RunFolder, claim: Claim, epochs: int, changes: dict[str, Any]) -> None:
    config, resume_from = plan_resume(folder, changes, more_epochs=epochs)
    api.check_paths(to_mapping(config))
    own_process = start_run.uses_own_process(config)
    if not own_process:
        start_run.require_host_free(api.host)
    start_run.raise_problems(start_run.find_problems(config, api.host, resumed=True))
    if own_process:
        sets = [f"--set={path}={value if isinstance(value, str) else dumps(value)}" for path, value in changes.items()]
        arguments = ("--resume", str(folder.path), f"--more-epochs={epochs}", *sets)
        api.manager.start_subprocess(start_run.training_process(folder, api.host, arguments, claim=claim))
    else:
        api.manager.start(folder, start_run.training_work(config, api.host, folder, resume_from=resume_from), claim=claim)


async def read_config_of_run(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/config -> {"config": {...}, "toml": "...", "notes": [...]}: notes of what was migrated to today's version"""
    return await api.workers.in_thread(_read_config_of_run, api, request.path_params["run"], request_language(request))


def _read_config_of_run(api: ApiContext, run: str, language: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    notes = [note] if (note := folder.version_note()) is not None else []
    config = read_config(folder.config_file, notify=notes.append)
    toml = folder.config_file.read_text(encoding="utf-8")
    return {"config": to_mapping(config), "toml": toml, "notes": [note.text(language) for note in notes]}


async def choose_weight(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /runs/ID/use {"epoch": 6, "weight": 0.8}: stores the file's preferred weight where the WebUI's LoRA card reads it."""
    body = await read_body(request)
    epoch, weight = body_value(body, "epoch", int), body_value(body, "weight", float)
    return await api.workers.in_thread(_choose_weight, api, request.path_params["run"], epoch, weight)


def _choose_weight(api: ApiContext, run: str, epoch: int, weight: float) -> dict[str, Any]:
    from lora_trainer.grid.record import set_preferred_weight

    folder = api.run_folder(run)
    if not any(file["epoch"] == epoch and Path(file["path"]).is_file() for file in folder.manifest().get("files", [])):
        raise NotFound("epoch {epoch} of {run} has no file any more.", epoch=epoch, run=run, path="epoch", fix="Choose another epoch.")
    chosen = set_preferred_weight(folder.path, epoch, weight)
    api.host.refresh_networks()
    return chosen


async def rename_run(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /runs/ID/name {"name"}: the name in lists; id, folder and files keep theirs."""
    name = body_value(await read_body(request), "name", str).strip()
    if not name or len(name) > 200 or not name.isprintable():
        raise RequestError("this cannot be a name.", path="name", fix="Write a short name.")
    await api.workers.in_thread(lambda: api.run_folder(request.path_params["run"]).update_info(name=name))
    api.status.note_edit()
    return {"id": request.path_params["run"], "name": name}


async def delete_run(api: ApiContext, request: Request) -> dict[str, Any]:
    """DELETE /runs/ID[?weights=1]: its folder and its grids; with `weights` also its LoRA files that were not changed since."""
    weights = request.query_params.get("weights") == "1"
    return await api.workers.in_thread(_delete_run, api, request.path_params["run"], weights)


def _delete_run(api: ApiContext, run: str, weights: bool) -> dict[str, Any]:
    from lora_trainer.jobs.folder import list_runs

    folder = api.run_folder(run)
    grids = [grid for grid in list_runs(folder.path.parent) if grid.info()["of"] == run]
    for each in (folder, *grids):
        if each.outcome(running=api.manager.is_running(each)) is None:
            raise Conflict("the run {run} is still going on.", run=each.id, path="run", fix="Stop it first.")
    with ExitStack() as stack:  # nobody resumes one meanwhile
        for each in (folder, *grids):
            stack.enter_context(each.claimed())
        return _delete_claimed(api, (folder, *grids), _unchanged_weights(folder) if weights else [])


def _delete_claimed(api: ApiContext, folders: Sequence[RunFolder], removed: Sequence[Path]) -> dict[str, Any]:
    freed = sum(each.size_bytes() for each in folders)
    for path in removed:
        freed += path.stat().st_size
        for beside in (path, path.with_suffix(".json"), path.with_suffix(".preview.png")):
            beside.unlink(missing_ok=True)
    latest = api.manager.latest
    for each in folders:
        each.remove()
        api.forget(each)
        if latest is not None and latest.folder.path == each.path:
            api.manager.latest = None
    api.status.note_edit()
    if removed:
        api.host.refresh_networks()
    return {"deleted": folders[0].id, "files": [str(path) for path in removed], "mb": round(freed / 1e6, 1)}


def _unchanged_weights(folder: RunFolder) -> list[Path]:
    """Files of the manifest whose content is still what the run wrote."""
    files = [(Path(file["path"]), file["sha256"]) for file in folder.manifest().get("files", [])]
    return [path for path, sha256 in files if path.is_file() and file_sha256(path) == sha256]


async def read_grid(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/grid: grid.json with the cells drawn so far; ID may be the grid's own."""
    return await api.workers.in_thread(_read_grid, api, request.path_params["run"])


def _read_grid(api: ApiContext, run: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    source_run = folder.info()["of"]
    return (api.run_folder(source_run) if source_run else folder).grid_json()


async def start_grid(api: ApiContext, request: Request) -> Response:
    """POST /grid {"run", "prompt", "weights", "epochs"?, "seed"?} -> 202 {"run": ID of the grid's run, "of": ID}"""
    body = await read_body(request)
    run, prompt = body_value(body, "run", str), body_value(body, "prompt", str)
    weights = [_finite_number(weight, "weights") for weight in body_value(body, "weights", list)]
    epochs = [int(_finite_number(epoch, "epochs")) for epoch in body_value(body, "epochs", list, [])]
    seed = int(_finite_number(body["seed"], "seed")) if body.get("seed") is not None else None
    return json_response(await api.workers.in_thread(_start_grid, api, run, prompt, weights, epochs, seed), 202)


def _finite_number(value: Any, key: str) -> float:
    if not is_number(value):
        raise RequestError("{key} holds something that is not a number.", key=key, path=key, fix="Send numbers such as 0.8.")
    return float(value)


def _start_grid(api: ApiContext, run: str, prompt: str, weights: list[float], epochs: list[int], seed: int | None) -> dict[str, Any]:
    from lora_trainer.api.runs.start_grid import check_grid, new_grid

    api.manager.require_idle()
    folder = api.run_folder(run)
    check_grid(folder, prompt, weights, epochs)
    grid_folder, work = new_grid(folder, api.host, prompt=prompt, weights=weights, epochs=epochs, out=folder.grid_dir, seed=seed)
    try:
        api.manager.start(grid_folder, work)
    except HostBusy:
        grid_folder.remove()
        raise
    return {"run": grid_folder.id, "of": folder.id}


ROUTES = (
    ("GET", "/runs", list_runs),
    ("POST", "/runs", start),
    ("GET", "/runs/{run}", read_run),
    ("DELETE", "/runs/{run}", delete_run),
    ("GET", "/runs/{run}/events", read_events),
    ("GET", "/runs/{run}/files/{path:path}", read_file),
    ("POST", "/runs/{run}/control", send_command),
    ("POST", "/runs/{run}/resume", resume_run),
    ("GET", "/runs/{run}/config", read_config_of_run),
    ("POST", "/runs/{run}/use", choose_weight),
    ("POST", "/runs/{run}/name", rename_run),
    ("GET", "/runs/{run}/grid", read_grid),
    ("POST", "/grid", start_grid),
)
