"""Checking and planning a config: check, wizard, first batches, schedule, importing a config, learning rate search."""

from __future__ import annotations

import base64
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api import dataset_reports
from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import body_number, body_value, json_response, localize, problem_json, read_body, request_language
from lora_trainer.api.routes.run_routes import config_mapping
from lora_trainer.api.runs import plans, start_run
from lora_trainer.config import effective
from lora_trainer.config.build import build, comma_notes, to_mapping
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.files import config_text, read_config, write_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.events import Event
from lora_trainer.jobs.folder import RunFolder, list_runs, remove_ended
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.job import Work


async def check_config(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /check {"config"} or {"toml"} -> the check shape"""
    return await api.workers.in_thread(_check_config, api, config_mapping(await read_body(request)), request_language(request))


def _check_config(api: ApiContext, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    api.check_paths(mapping)
    plan = plans.check_config(build(mapping), api.host, runs_dir=api.host.paths().runs_dir, load=api.scans.training_dataset)
    plan["warnings"] += [{"path": path, "message": note, "fix": say("")} for path, note in comma_notes(mapping)]
    plan["problems"] = [problem_json(problem, language) for problem in plan["problems"]]
    plan["model"], plan["warnings"] = localize(plan["model"], language), localize(plan["warnings"], language)
    return plan


async def preview_batches(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /batches {"config"} -> {"seed", "total_steps", "batches", "png"}: the first batches as they will be trained; PNG in base64"""
    return await api.workers.in_thread(_preview_batches, api, config_mapping(await read_body(request)), request_language(request))


def _preview_batches(api: ApiContext, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    api.check_paths(mapping)
    config = build(mapping)
    sheet, content = dataset_reports.draw_first_batches(config, api.scans.training_dataset(config), language)
    return {**content, "png": base64.b64encode(sheet).decode("ascii")}


async def read_schedule(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/schedule -> {"total_steps", "epochs", "schedule"}: the run's learning rates as planned now"""
    return await api.workers.in_thread(lambda: plans.planned_schedule(api.run_folder(request.path_params["run"])))


async def suggest_settings(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /wizard {"config", "subject", "vram"?, "typed"?} -> {"changes": [...], "plan": {...}}"""
    body = await read_body(request)
    subject = body_value(body, "subject", str)
    vram = body_value(body, "vram", float, 0.0)
    typed = [path for path in body_value(body, "typed", list, []) if isinstance(path, str) and path in options()]
    return await api.workers.in_thread(_suggest_settings, api, config_mapping(body), subject, vram, typed, request_language(request))


def _suggest_settings(
    api: ApiContext, mapping: dict[str, Any], subject: str, vram: float, typed: list[str], language: str
) -> dict[str, Any]:
    api.check_paths(mapping)
    from lora_trainer.wizard.advise import suggest

    config = build(mapping)
    measured = plans.measured_on(api.host, api.host.paths().runs_dir)
    advice = suggest(config, subject=subject, vram_gb=vram or None, host=api.host, typed=typed, measured=measured)
    return {
        "changes": [plans.change_json(change, config, advice.typed, language) for change in advice.changes],
        "plan": advice.plan_json(),
        "notes": [note.text(language) for note in advice.notes],
    }


async def convert_config(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /config {"config"}, or {"toml"}: a config of ours or of another trainer -> {"config", "toml", "imported"}

    The config is checked and holds what differs from the defaults; `imported` says what became of each key of another trainer
    (null for our own configs).
    """
    from lora_trainer.config.importing import import_text

    body = await read_body(request)
    if "toml" not in body:
        return _config_json(build(config_mapping(body)))
    imported = import_text(body_value(body, "toml", str))  # files that it names are not opened: the text may come from anywhere
    return {
        **_config_json(imported.config),
        "imported": imported.to_json(request_language(request)) if imported.kind != "own" or imported.notes else None,
    }


def _config_json(config: TrainConfig) -> dict[str, Any]:
    return {"config": to_mapping(config, changed_only=True), "toml": config_text(config, changed_only=True), "imported": None}


LR_SEARCH = "rate"
SEARCH_STEPS, MIN_STEPS, MAX_STEPS = 100, 5, 1000


async def start_lr_search(api: ApiContext, request: Request) -> Response:
    """POST /rate {"config", "steps"?} -> 202 {"run": ID}: trains that many steps with Prodigy and discards them"""
    body = await read_body(request)
    steps = body_number(body, "steps", SEARCH_STEPS, MIN_STEPS, MAX_STEPS, int)
    return json_response(await api.workers.in_thread(_start_lr_search, api, config_mapping(body), steps), 202)


def _start_lr_search(api: ApiContext, mapping: dict[str, Any], steps: int) -> dict[str, str]:
    api.manager.require_idle()
    api.check_paths(mapping)
    config = build(mapping)
    memory = attrs.evolve(config.memory, own_process=False, device="")
    config = attrs.evolve(config, memory=memory, save=attrs.evolve(config.save, overwrite=True))
    start_run.require_host_free(api.host)
    config = start_run.resolve_paths(config, api.host, runs_dir=api.host.paths().runs_dir)
    start_run.raise_problems(start_run.find_problems(config, api.host))
    folder = _search_folder(config)
    with start_run.remove_unless_started(folder):
        api.manager.start(folder, _search_work(config, api.host, folder, steps))
    return {"run": folder.id}


def _search_folder(config: TrainConfig) -> RunFolder:
    """A new run folder of kind "rate", which no list shows; removes those of earlier searches."""
    runs = Path(config.save.runs_dir)
    remove_ended(earlier for earlier in list_runs(runs) if earlier.info()["kind"] == LR_SEARCH)
    folder = RunFolder.create(runs, f"{effective.output_name(config)}-rate", kind=LR_SEARCH)
    write_config(config, folder.config_file)
    return folder


def _search_work(config: TrainConfig, host: Host, folder: RunFolder, steps: int) -> Work:
    """The search as the work of a Job."""

    def work(control: Control) -> Generator[Event, None, None]:
        from lora_trainer.wizard.lr_finder import run_search

        yield from run_search(config, host, control, folder.path, steps)

    return work


async def read_lr_search(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/rate -> {"unet_lr", "text_encoder_lr", "curve", "sure"}: the search's result so far; 0 before its first step"""
    return await api.workers.in_thread(_read_lr_search, api, request.path_params["run"])


def _read_lr_search(api: ApiContext, run: str) -> dict[str, Any]:
    from lora_trainer.wizard.lr_finder import find_plateau

    folder = api.run_folder(run)
    curve = [(event["step"], event["lr"]) for event in folder.events() if event["event"] == "stepped" and event.get("lr")]
    return find_plateau(curve).to_json(read_config(folder.config_file))


ROUTES = (
    ("POST", "/check", check_config),
    ("POST", "/batches", preview_batches),
    ("POST", "/wizard", suggest_settings),
    ("POST", "/config", convert_config),
    ("GET", "/runs/{run}/schedule", read_schedule),
    ("POST", "/rate", start_lr_search),
    ("GET", "/runs/{run}/rate", read_lr_search),
)
