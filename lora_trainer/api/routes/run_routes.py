"""Runs: started, steered, looked at, renamed, deleted."""

from __future__ import annotations

import mimetypes
from json import dumps
from pathlib import Path
from typing import Any

import tomlkit
from fastapi import Request
from fastapi.responses import Response
from tomlkit.exceptions import TOMLKitError

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import Conflict, Missing, Refused, body_of, body_value, dump, json_response, language_of, query_number
from lora_trainer.api.runs import start_run
from lora_trainer.api.runs.resume import check_change, refuse_running, resuming
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import read_config
from lora_trainer.config.migrations import migrated
from lora_trainer.control import CHANGE, COMMANDS
from lora_trainer.errors import HostBusy
from lora_trainer.files import file_sha256
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.status import word_message, word_problem

EVENTS_AT_ONCE = 20_000
PICTURES = ("image/png", "image/jpeg", "image/webp")


async def history(api: ApiContext, request: Request) -> list[dict[str, Any]]:
    """GET /runs[?all=1]: newest first; with `all` the grids too."""
    kinds = ("train", "grid") if request.query_params.get("all") else ("train",)
    return await api.workers.in_thread(lambda: api.manager.history(api.host.paths().runs_dir, kinds=kinds))


async def start(api: ApiContext, request: Request) -> dict[str, str]:
    """POST /runs {"config": {...}} or {"toml": "..."}"""
    body = await body_of(request)
    return await api.workers.in_thread(_start, api, config_of(body))


def config_of(body: dict[str, Any]) -> dict[str, Any]:
    """The nested plain values of a request's config. Raises Refused when it is neither an object nor valid TOML."""
    if "toml" not in body:
        return dict(body_value(body, "config", dict))
    try:
        return migrated(tomlkit.parse(body_value(body, "toml", str)).unwrap())[0]
    except TOMLKitError as error:
        raise Refused("the TOML cannot be read ({reason}).", reason=str(error), path="toml", fix="Correct that line.") from error


def _start(api: ApiContext, mapping: dict[str, Any]) -> dict[str, str]:
    api.manager.require_idle()
    config = build(mapping)
    api.check_places(mapping)
    apart = start_run.apart(config)
    if not apart:
        start_run.require_free(api.host)
    config = start_run.placed(start_run.on_files(config, api.host) if apart else config, api.host, runs_dir=api.host.paths().runs_dir)
    start_run.refuse(start_run.problems_before(config, api.host))
    folder = start_run.new_folder(config)
    with start_run.beginning(folder):
        if apart:
            api.manager.start_apart(start_run.process_of(folder, api.host, token=config.model.hub_token))
        else:
            api.manager.start(folder, start_run.training(config, api.host, folder))
    return {"run": folder.id}


async def one(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID"""
    return await api.workers.in_thread(_one, api, request.path_params["run"], language_of(request))


def _one(api: ApiContext, run: str, language: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    latest = api.manager.latest
    known = folder.summary(running=api.manager.runs(folder))
    if latest is not None and latest.folder.path == folder.path:
        known |= latest.snapshot(language)
    else:
        known |= _as_it_ended(folder, known, language)
    about = folder.about()
    return known | {
        "manifest": folder.manifest(),
        "plan": folder.plan(),
        "chosen": about.get("chosen"),
        "folder": str(folder.path),
        "report": folder.report_file.is_file(),
    }


def _as_it_ended(folder: RunFolder, known: dict[str, Any], language: str) -> dict[str, Any]:
    """The status words of a run that another process ran, from its last lines."""
    from lora_trainer.jobs.events_log import last_events

    tail = last_events(folder.events_file)
    stepped: dict[str, Any] = next((line for line in reversed(tail) if line["event"] == "stepped"), {})
    problems = [word_problem(problem, language) for problem in (tail[-1].get("problems", []) if tail else [])]
    return {
        **{key: stepped.get(key) for key in ("loss", "loss_average", "lr", "vram_mb")},
        "speed": stepped.get("seconds"),
        "seconds_left": None if known["outcome"] is None else 0,
        "problems": problems,
        "error": " ".join(f"{problem['message']} {problem['fix']}".strip() for problem in problems),
        "n": tail[-1].get("n", 0) if tail else 0,
    }


async def events(api: ApiContext, request: Request) -> Response:
    """GET /runs/ID/events?after=N[&limit=M] -> {"events": [...], "next": N}"""
    after, limit = query_number(request, "after", 0), query_number(request, "limit", EVENTS_AT_ONCE)
    run, language = request.path_params["run"], language_of(request)
    text = await api.workers.in_thread(_events, api, run, after, min(limit, EVENTS_AT_ONCE) or 1, language)
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})


def _events(api: ApiContext, run: str, after: int, limit: int, language: str) -> bytes:
    found = api.run_folder(run).events(after, limit)
    for event in found:
        if event["event"] == "warned":
            event["message"] = word_message(event["message"], language)
        elif event["event"] == "failed":
            event["problems"] = [word_problem(problem, language) for problem in event["problems"]]
    return dump({"events": found, "next": after + len(found)})


async def file(api: ApiContext, request: Request) -> Response:
    """GET /runs/ID/files/PATH: a file of the run's folder and nothing else."""
    found = await api.workers.in_thread(_file, api, request.path_params["run"], request.path_params["path"])
    content, kind = found
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=60" if kind in PICTURES else "no-store"}
    return Response(content, media_type=kind, headers=headers)


def _file(api: ApiContext, run: str, name: str) -> tuple[bytes, str]:
    folder = api.run_folder(run)
    root = folder.path.resolve()
    path = (root / name).resolve()
    if "\0" in name or root not in path.parents or not path.is_file():
        raise Missing("the run {run} has no file {name}.", run=run, name=name, path="path", fix="Choose a file of the run.")
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind not in (*PICTURES, "application/json"):
        kind = "text/plain; charset=utf-8"
    return path.read_bytes(), kind


async def control(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /runs/ID/control {"command": "stop" | "stop-discard" | "pause" | "resume" | "save" | "sample"},
    or {"command": "change", "changes": {"optimizer.learning_rate": 1e-5, ...}}: from the next step on."""
    body = await body_of(request)
    word, run = body_value(body, "command", str), request.path_params["run"]
    if word == CHANGE:
        return await api.workers.in_thread(_change, api, run, body_value(body, "changes", dict), language_of(request))
    if word not in COMMANDS:
        known = ", ".join((*COMMANDS, CHANGE))
        raise Refused("there is no command {word}.", word=word, path="command", fix="Known are {known}.", known=known)
    latest = api.manager.latest
    if latest is not None and latest.running and latest.folder.id == run:  # at once: no thread, no file
        latest.command(word)
        return latest.snapshot(language_of(request))
    return await api.workers.in_thread(_control_elsewhere, api, run, word)


def _control_elsewhere(api: ApiContext, run: str, word: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    _refuse_ended(api, folder)
    folder.command(word)
    return folder.summary()


def _change(api: ApiContext, run: str, changes: dict[str, Any], language: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    _refuse_ended(api, folder)
    api.check_values(changes)
    made = check_change(folder, changes)
    latest = api.manager.latest
    if latest is not None and latest.running and latest.folder.id == run:
        latest.change(changes)
        return latest.snapshot(language) | {"changes": made}
    folder.change(changes)
    return folder.summary() | {"changes": made}


def _refuse_ended(api: ApiContext, folder: RunFolder) -> None:
    if (outcome := folder.outcome(running=api.manager.runs(folder))) is not None:
        raise Conflict("the run {run} has ended ({outcome}).", run=folder.id, outcome=outcome, path="run", fix="Start a new one.")


async def resume(api: ApiContext, request: Request) -> dict[str, str]:
    """POST /runs/ID/resume {"epochs"?: N more, "changes"?: {path: value}} -> {"run": ID}: goes on from the last state, in its folder."""
    body = await body_of(request)
    epochs, changes = body_value(body, "epochs", int, 0), body_value(body, "changes", dict, {})
    return await api.workers.in_thread(_resume, api, request.path_params["run"], epochs, changes)


def _resume(api: ApiContext, run: str, epochs: int, changes: dict[str, Any]) -> dict[str, str]:
    api.manager.require_idle()
    folder = api.run_folder(run)
    refuse_running(folder)
    api.check_values(changes)
    config, since = resuming(folder, changes, more_epochs=epochs)
    api.check_places(to_mapping(config))
    apart = start_run.apart(config)
    if not apart:
        start_run.require_free(api.host)
    start_run.refuse(start_run.problems_before(config, api.host, resumed=True))
    if apart:
        sets = [f"--set={path}={value if isinstance(value, str) else dumps(value)}" for path, value in changes.items()]
        words = ("--resume", str(folder.path), f"--more-epochs={epochs}", *sets)
        api.manager.start_apart(start_run.process_of(folder, api.host, words))
    else:
        api.manager.start(folder, start_run.training(config, api.host, folder, since=since))
    return {"run": folder.id}


async def config(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/config -> {"config": {...}, "toml": "...", "notes": [...]}: notes of what was brought to today's form"""
    return await api.workers.in_thread(_config, api, request.path_params["run"], language_of(request))


def _config(api: ApiContext, run: str, language: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    notes = [note] if (note := folder.note()) is not None else []
    config = read_config(folder.config_file, tell=notes.append)
    toml = folder.config_file.read_text(encoding="utf-8")
    return {"config": to_mapping(config), "toml": toml, "notes": [note.text(language) for note in notes]}


async def use(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /runs/ID/use {"epoch": 6, "weight": 0.8}: the file's preferred weight, as the WebUI's LoRA card reads it."""
    body = await body_of(request)
    epoch, weight = body_value(body, "epoch", int), body_value(body, "weight", float)
    return await api.workers.in_thread(_use, api, request.path_params["run"], epoch, weight)


def _use(api: ApiContext, run: str, epoch: int, weight: float) -> dict[str, Any]:
    from lora_trainer.grid.record import use

    folder = api.run_folder(run)
    if not any(file["epoch"] == epoch and Path(file["path"]).is_file() for file in folder.manifest().get("files", [])):
        raise Missing("epoch {epoch} of {run} has no file any more.", epoch=epoch, run=run, path="epoch", fix="Choose another epoch.")
    kept = use(folder.path, epoch, weight)
    api.host.refresh_networks()
    return kept


async def rename(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /runs/ID/name {"name"}: the name in lists; id, folder and files stay."""
    name = body_value(await body_of(request), "name", str).strip()
    if not name or len(name) > 200 or not name.isprintable():
        raise Refused("this cannot be a name.", path="name", fix="Write a short name.")
    await api.workers.in_thread(lambda: api.run_folder(request.path_params["run"]).describe(name=name))
    return {"id": request.path_params["run"], "name": name}


async def delete(api: ApiContext, request: Request) -> dict[str, Any]:
    """DELETE /runs/ID[?weights=1]: its folder and its grids; with `weights` also its LoRA files that nobody changed."""
    weights = request.query_params.get("weights") == "1"
    return await api.workers.in_thread(_delete, api, request.path_params["run"], weights)


def _delete(api: ApiContext, run: str, weights: bool) -> dict[str, Any]:
    from lora_trainer.jobs.folder import runs_in

    folder = api.run_folder(run)
    grids = [grid for grid in runs_in(folder.path.parent) if grid.about()["of"] == run]
    for one_folder in (folder, *grids):
        if one_folder.outcome(running=api.manager.runs(one_folder)) is None:
            raise Conflict("the run {run} is still going on.", run=one_folder.id, path="run", fix="Stop it first.")
    freed = sum(one_folder.bytes() for one_folder in (folder, *grids))
    removed = _own_weights(folder) if weights else []
    for path in removed:
        freed += path.stat().st_size
        for beside in (path, path.with_suffix(".json"), path.with_suffix(".preview.png")):
            beside.unlink(missing_ok=True)
    latest = api.manager.latest
    for one_folder in (folder, *grids):
        one_folder.remove()
        api.forget(one_folder)
        if latest is not None and latest.folder.path == one_folder.path:
            api.manager.latest = None
    if removed:
        api.host.refresh_networks()
    return {"deleted": run, "files": [str(path) for path in removed], "mb": round(freed / 1e6, 1)}


def _own_weights(folder: RunFolder) -> list[Path]:
    """Files of the manifest that are still what the run wrote."""
    files = [(Path(file["path"]), file["sha256"]) for file in folder.manifest().get("files", [])]
    return [path for path, sha256 in files if path.is_file() and file_sha256(path) == sha256]


async def grid(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/grid: grid.json as far as it is drawn; of a grid's own id too."""
    return await api.workers.in_thread(_grid, api, request.path_params["run"])


def _grid(api: ApiContext, run: str) -> dict[str, Any]:
    folder = api.run_folder(run)
    of = folder.about()["of"]
    return (api.run_folder(of) if of else folder).grid_json()


async def start_grid(api: ApiContext, request: Request) -> Response:
    """POST /grid {"run", "prompt", "weights", "epochs"?, "seed"?} -> 202 {"run": ID of the grid's run, "of": ID}"""
    body = await body_of(request)
    run, prompt = body_value(body, "run", str), body_value(body, "prompt", str)
    weights = [_number(weight, "weights") for weight in body_value(body, "weights", list)]
    epochs = [int(_number(epoch, "epochs")) for epoch in body_value(body, "epochs", list, [])]
    seed = int(_number(body["seed"], "seed")) if body.get("seed") is not None else None
    return json_response(await api.workers.in_thread(_start_grid, api, run, prompt, weights, epochs, seed), 202)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused("{key} holds something that is not a number.", key=key, path=key, fix="Send numbers such as 0.8.")
    return float(value)


def _start_grid(api: ApiContext, run: str, prompt: str, weights: list[float], epochs: list[int], seed: int | None) -> dict[str, Any]:
    from lora_trainer.api.runs.start_grid import check_grid, new_grid

    api.manager.require_idle()
    folder = api.run_folder(run)
    check_grid(folder, prompt, weights, epochs)
    own, work = new_grid(folder, api.host, prompt=prompt, weights=weights, epochs=epochs, out=folder.grid, seed=seed)
    try:
        api.manager.start(own, work)
    except HostBusy:
        own.remove()
        raise
    return {"run": own.id, "of": folder.id}


ROUTES = (
    ("GET", "/runs", history),
    ("POST", "/runs", start),
    ("GET", "/runs/{run}", one),
    ("DELETE", "/runs/{run}", delete),
    ("GET", "/runs/{run}/events", events),
    ("GET", "/runs/{run}/files/{path:path}", file),
    ("POST", "/runs/{run}/control", control),
    ("POST", "/runs/{run}/resume", resume),
    ("GET", "/runs/{run}/config", config),
    ("POST", "/runs/{run}/use", use),
    ("POST", "/runs/{run}/name", rename),
    ("GET", "/runs/{run}/grid", grid),
    ("POST", "/grid", start_grid),
)
