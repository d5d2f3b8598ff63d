"""A learning rate for the form: a short run that is thrown away, started and followed like every run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import Api
from lora_trainer.api.responses import answer, body_of, number_within
from lora_trainer.api.routes.run_routes import config_of
from lora_trainer.api.runs import start_run
from lora_trainer.config import effective
from lora_trainer.config.build import build
from lora_trainer.config.files import read_config, write_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.events import Event
from lora_trainer.jobs.folder import RunFolder, remove_ended, runs_in

if TYPE_CHECKING:
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.job import Work

KIND = "rate"
STEPS, FEWEST, MOST = 100, 5, 1000


async def start(api: Api, request: Request) -> Response:
    """POST /rate {"config", "steps"?} -> 202 {"run": ID}: trains so many steps with Prodigy and throws them away"""
    body = await body_of(request)
    steps = number_within(body, "steps", STEPS, FEWEST, MOST, int)
    return answer(await api.workers.in_thread(_start, api, config_of(body), steps), 202)


def _start(api: Api, mapping: dict[str, Any], steps: int) -> dict[str, str]:
    api.manager.require_idle()
    api.check_places(mapping)
    config = build(mapping)
    here = attrs.evolve(config.memory, own_process=False, device="")
    config = attrs.evolve(config, memory=here, save=attrs.evolve(config.save, overwrite=True))
    start_run.require_free(api.host)
    config = start_run.placed(config, api.host, runs_dir=api.host.paths().runs_dir)
    start_run.refuse(start_run.problems_before(config, api.host))
    folder = new_search(config)
    with start_run.beginning(folder):
        api.manager.start(folder, searching(config, api.host, folder, steps))
    return {"run": folder.id}


def new_search(config: TrainConfig) -> RunFolder:
    """Its own folder among the runs', which no list shows; those of earlier searches are gone."""
    runs = Path(config.save.runs_dir)
    remove_ended(earlier for earlier in runs_in(runs) if earlier.about()["kind"] == KIND)
    folder = RunFolder.create(runs, f"{effective.output_name(config)}-rate", kind=KIND)
    write_config(config, folder.config_file)
    return folder


def searching(config: TrainConfig, host: Host, folder: RunFolder, steps: int) -> Work:
    """The search's work for a Job."""

    def work(control: Control) -> Generator[Event, None, None]:
        from lora_trainer.wizard.lr_finder import search

        yield from search(config, host, control, folder.path, steps)

    return work


async def found(api: Api, request: Request) -> dict[str, Any]:
    """GET /runs/ID/rate -> {"unet_lr", "text_encoder_lr", "curve", "sure"}: what the search has found so far; 0 where it has not stepped"""
    return await api.workers.in_thread(_found, api, request.path_params["run"])


def _found(api: Api, run: str) -> dict[str, Any]:
    from lora_trainer.wizard.lr_finder import at_rest

    folder = api.run_folder(run)
    curve = [(event["step"], event["lr"]) for event in folder.events() if event["event"] == "stepped"]
    return at_rest(curve).to_json(read_config(folder.config_file))


ROUTES = (("POST", "/rate", start), ("GET", "/runs/{run}/rate", found))
