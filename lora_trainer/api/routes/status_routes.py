"""The status snapshot, the options, the translations, and a report for bug reports."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import ApiContext
from lora_trainer.api.options import default_config, option_sections
from lora_trainer.api.responses import request_language
from lora_trainer.api.status_cache import FIRST_ANSWER_SECONDS
from lora_trainer.messages import LANGUAGES, translations


async def read_status(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /status[?seen=VERSION][&client=ID]"""
    pending = api.status.refresh()
    if pending is not None and not api.status.has_answer:
        end = time.monotonic() + FIRST_ANSWER_SECONDS
        while not pending.done() and time.monotonic() < end:
            await asyncio.sleep(0.01)
    query = request.query_params
    return api.status.snapshot(request_language(request), query.get("client", ""), query.get("seen", ""))


async def list_options(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /options"""
    language = request_language(request)
    return await api.workers.in_thread(_list_options, api, language)


def _list_options(api: ApiContext, language: str) -> dict[str, Any]:
    return {
        "sections": option_sections(language),
        "defaults": default_config(api.status.model or api.host.model_info()),
        "checkpoints": [{"title": known.title, "path": str(known.path), "loaded": known.loaded} for known in api.host.checkpoints()],
        "vaes": [{"title": path.name, "path": str(path)} for path in api.host.vaes()],
    }


async def read_translations(api: ApiContext, request: Request) -> dict[str, str]:
    """GET /words?lang=zh_CN"""
    language = request_language(request)
    return dict(translations(language)) if language in LANGUAGES else {}


async def read_report(api: ApiContext, request: Request) -> Response:
    """GET /report[?run=ID]: versions, config and last events as text, for a bug report."""
    text = await api.workers.in_thread(_read_report, api, request.query_params.get("run", ""))
    return Response(text, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})


def _read_report(api: ApiContext, run: str) -> str:
    import json

    from lora_trainer.jobs.logs.events_log import last_events
    from lora_trainer.jobs.sinks import version_lines

    latest = api.manager.latest
    lines = [f"host         {api.host.name} {api.host.version}", *version_lines()]
    lines += [f"model        {api.status.model}", f"memory       {api.status.memory}"]
    folder = api.run_folder(run) if run else latest.folder if latest else None
    if folder is not None:
        lines += ["", f"run          {folder.id}"]
        for path in (folder.config_file, folder.report_file):
            if path.is_file():
                lines += ["", f"--- {path.name}", path.read_text(encoding="utf-8").rstrip()]
        lines += ["", "--- last events", *(json.dumps(event, ensure_ascii=False) for event in last_events(folder.events_file)[-100:])]
    return "\n".join(lines) + "\n"


ROUTES = (
    ("GET", "/status", read_status),
    ("GET", "/options", list_options),
    ("GET", "/words", read_translations),
    ("GET", "/report", read_report),
)
