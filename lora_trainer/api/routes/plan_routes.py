"""check and wizard."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import Request

from lora_trainer.api import dataset_reports
from lora_trainer.api.context import Api
from lora_trainer.api.responses import body_of, language_of, problem_json, wanted, worded
from lora_trainer.api.routes.run_routes import config_of
from lora_trainer.api.runs import courses, plans
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import config_text
from lora_trainer.config.schema import TrainConfig


async def check(api: Api, request: Request) -> dict[str, Any]:
    """POST /check {"config"} or {"toml"} -> the check shape"""
    return await api.workers.in_thread(_check, api, config_of(await body_of(request)), language_of(request))


def _check(api: Api, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    api.check_places(mapping)
    found = plans.check(build(mapping), api.host, runs_dir=api.host.paths().runs_dir, read=api.folders.trained)
    found["problems"] = [problem_json(problem, language) for problem in found["problems"]]
    found["model"], found["warnings"] = worded(found["model"], language), worded(found["warnings"], language)
    return found


async def batches(api: Api, request: Request) -> dict[str, Any]:
    """POST /batches {"config"} -> {"seed", "total_steps", "batches", "png"}: the first ones as they will be trained; PNG in base64"""
    return await api.workers.in_thread(_batches, api, config_of(await body_of(request)), language_of(request))


def _batches(api: Api, mapping: dict[str, Any], language: str) -> dict[str, Any]:
    api.check_places(mapping)
    config = build(mapping)
    sheet, told = dataset_reports.drawn(config, api.folders.trained(config), language)
    return {**told, "png": base64.b64encode(sheet).decode("ascii")}


async def schedule(api: Api, request: Request) -> dict[str, Any]:
    """GET /runs/ID/schedule -> {"total_steps", "epochs", "schedule"}: the run's rates as they are planned now"""
    return await api.workers.in_thread(lambda: courses.course(api.run_folder(request.path_params["run"])))


async def wizard(api: Api, request: Request) -> dict[str, Any]:
    """POST /wizard {"config", "subject", "vram"?, "typed"?} -> {"changes": [...], "plan": {...}}"""
    body = await body_of(request)
    subject = wanted(body, "subject", str)
    vram = wanted(body, "vram", float, 0.0)
    typed = [str(path) for path in wanted(body, "typed", list, [])]
    return await api.workers.in_thread(_wizard, api, config_of(body), subject, vram, typed, language_of(request))


def _wizard(api: Api, mapping: dict[str, Any], subject: str, vram: float, typed: list[str], language: str) -> dict[str, Any]:
    api.check_places(mapping)
    from lora_trainer.wizard.advise import suggest

    config = build(mapping)
    found = suggest(config, subject=subject, vram_gb=vram or None, host=api.host, typed=typed)
    return {
        "changes": [plans.change_json(change, config, found.typed, language) for change in found.changes],
        "plan": found.plan.to_json(),
        "notes": [note.text(language) for note in found.notes],
    }


async def convert(api: Api, request: Request) -> dict[str, Any]:
    """POST /config {"config"}, or {"toml"}: a config of ours or of another trainer -> {"config", "toml", "imported"}

    What differs from the defaults, checked; `imported` says of another trainer's keys what became of each (null for our own).
    """
    from lora_trainer.config.importing import import_text

    body = await body_of(request)
    if "toml" not in body:
        return _converted(build(config_of(body)))
    found = import_text(wanted(body, "toml", str))  # files that it names are not opened: the text may come from anywhere
    return {**_converted(found.config), "imported": found.to_json(language_of(request)) if found.kind != "own" or found.notes else None}


def _converted(config: TrainConfig) -> dict[str, Any]:
    return {"config": to_mapping(config, changed_only=True), "toml": config_text(config, changed_only=True), "imported": None}


ROUTES = (
    ("POST", "/check", check),
    ("POST", "/batches", batches),
    ("POST", "/wizard", wizard),
    ("POST", "/config", convert),
    ("GET", "/runs/{run}/schedule", schedule),
)
