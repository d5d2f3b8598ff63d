"""Plans, suggestions and searches: check, wizard, first batches, schedule, another trainer's config, a learning rate."""

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
from lora_trainer.api.responses import body_number, body_of, body_value, json_response, language_of, problem_json, worded
from lora_trainer.api.routes.run_routes import config_of
from lora_trainer.api.runs import plans, start_run
from lora_trainer.config import effective
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import config_text, read_config, write_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.events import Event
from lora_trainer.jobs.folder import RunFolder, remove_ended, runs_in

if TYPE_CHECKING:
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.job import Work


async def check(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /check {"config"} or {"toml"} -> the check shape"""
    return await api.workers.in_thread(_check, api, config_of(await body_of(request)), language_of(request))


def _check(api: ApiContext, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    api.check_places(mapping)
    found = plans.check(build(mapping), api.host, runs_dir=api.host.paths().runs_dir, read=api.folders.trained)
    found["problems"] = [problem_json(problem, language) for problem in found["problems"]]
    found["model"], found["warnings"] = worded(found["model"], language), worded(found["warnings"], language)
    return found


async def batches(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /batches {"config"} -> {"seed", "total_steps", "batches", "png"}: the first ones as they will be trained; PNG in base64"""
    return await api.workers.in_thread(_batches, api, config_of(await body_of(request)), language_of(request))


def _batches(api: ApiContext, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    api.check_places(mapping)
    config = build(mapping)
    sheet, told = dataset_reports.drawn(config, api.folders.trained(config), language)
    return {**told, "png": base64.b64encode(sheet).decode("ascii")}


async def schedule(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/schedule -> {"total_steps", "epochs", "schedule"}: the run's rates as they are planned now"""
    return await api.workers.in_thread(lambda: plans.course(api.run_folder(request.path_params["run"])))


async def wizard(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /wizard {"config", "subject", "vram"?, "typed"?} -> {"changes": [...], "plan": {...}}"""
    body = await body_of(request)
    subject = body_value(body, "subject", str)
    vram = body_value(body, "vram", float, 0.0)
    typed = [str(path) for path in body_value(body, "typed", list, [])]
    return await api.workers.in_thread(_wizard, api, config_of(body), subject, vram, typed, language_of(request))


def _wizard(api: ApiContext, mapping: dict[str, Any], subject: str, vram: float, typed: list[str], language: str) -> dict[str, Any]:
    api.check_places(mapping)
    from lora_trainer.wizard.advise import suggest

    config = build(mapping)
    found = suggest(config, subject=subject, vram_gb=vram or None, host=api.host, typed=typed)
    return {
        "changes": [plans.change_json(change, config, found.typed, language) for change in found.changes],
        "plan": found.plan.to_json(),
        "notes": [note.text(language) for note in found.notes],
    }


async def convert(api: ApiContext, request: Request) -> dict[str, Any]:
    """POST /config {"config"}, or {"toml"}: a config of ours or of another trainer -> {"config", "toml", "imported"}

    What differs from the defaults, checked; `imported` says of another trainer's keys what became of each (null for our own).
    """
    from lora_trainer.config.importing import import_text

    body = await body_of(request)
    if "toml" not in body:
        return _converted(build(config_of(body)))
    found = import_text(body_value(body, "toml", str))  # files that it names are not opened: the text may come from anywhere
    return {**_converted(found.config), "imported": found.to_json(language_of(request)) if found.kind != "own" or found.notes else None}


def _converted(config: TrainConfig) -> dict[str, Any]:
    return {"config": to_mapping(config, changed_only=True), "toml": config_text(config, changed_only=True), "imported": None}


RATE_SEARCH = "rate"
SEARCH_STEPS, FEWEST_STEPS, MOST_STEPS = 100, 5, 1000


async def start_rate_search(api: ApiContext, request: Request) -> Response:
    """POST /rate {"config", "steps"?} -> 202 {"run": ID}: trains so many steps with Prodigy and throws them away"""
    body = await body_of(request)
    steps = body_number(body, "steps", SEARCH_STEPS, FEWEST_STEPS, MOST_STEPS, int)
    return json_response(await api.workers.in_thread(_start_rate_search, api, config_of(body), steps), 202)


def _start_rate_search(api: ApiContext, mapping: dict[str, Any], steps: int) -> dict[str, str]:
    api.manager.require_idle()
    api.check_places(mapping)
    config = build(mapping)
    here = attrs.evolve(config.memory, own_process=False, device="")
    config = attrs.evolve(config, memory=here, save=attrs.evolve(config.save, overwrite=True))
    start_run.require_free(api.host)
    config = start_run.placed(config, api.host, runs_dir=api.host.paths().runs_dir)
    start_run.refuse(start_run.problems_before(config, api.host))
    folder = _search_folder(config)
    with start_run.beginning(folder):
        api.manager.start(folder, _search(config, api.host, folder, steps))
    return {"run": folder.id}


def _search_folder(config: TrainConfig) -> RunFolder:
    """Its own folder among the runs', which no list shows; those of earlier searches are gone."""
    runs = Path(config.save.runs_dir)
    remove_ended(earlier for earlier in runs_in(runs) if earlier.about()["kind"] == RATE_SEARCH)
    folder = RunFolder.create(runs, f"{effective.output_name(config)}-rate", kind=RATE_SEARCH)
    write_config(config, folder.config_file)
    return folder


def _search(config: TrainConfig, host: Host, folder: RunFolder, steps: int) -> Work:
    """The search's work for a Job."""

    def work(control: Control) -> Generator[Event, None, None]:
        from lora_trainer.wizard.lr_finder import search

        yield from search(config, host, control, folder.path, steps)

    return work


async def found_rate(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /runs/ID/rate -> {"unet_lr", "text_encoder_lr", "curve", "sure"}: what the search has found so far; 0 where it has not stepped"""
    return await api.workers.in_thread(_found_rate, api, request.path_params["run"])


def _found_rate(api: ApiContext, run: str) -> dict[str, Any]:
    from lora_trainer.wizard.lr_finder import at_rest

    folder = api.run_folder(run)
    curve = [(event["step"], event["lr"]) for event in folder.events() if event["event"] == "stepped"]
    return at_rest(curve).to_json(read_config(folder.config_file))


ROUTES = (
    ("POST", "/check", check),
    ("POST", "/batches", batches),
    ("POST", "/wizard", wizard),
    ("POST", "/config", convert),
    ("GET", "/runs/{run}/schedule", schedule),
    ("POST", "/rate", start_rate_search),
    ("GET", "/runs/{run}/rate", found_rate),
)
