"""The header's snapshot, options and words."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.api.context import ApiContext
from lora_trainer.api.options import defaults, options
from lora_trainer.api.responses import language_of
from lora_trainer.api.status_cache import FIRST_ANSWER
from lora_trainer.messages import LANGUAGES, words


async def status(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /status[?seen=VERSION][&client=ID]"""
    question = api.live.look()
    if question is not None and not api.live.known:
        end = time.monotonic() + FIRST_ANSWER
        while not question.done() and time.monotonic() < end:
            await asyncio.sleep(0.01)
    query = request.query_params
    return api.live.snapshot(language_of(request), query.get("client", ""), query.get("seen", ""))


async def all_options(api: ApiContext, request: Request) -> dict[str, Any]:
    """GET /options"""
    language = language_of(request)
    return await api.workers.in_thread(_options, api, language)


def _options(api: ApiContext, language: str) -> dict[str, Any]:
    return {
        "sections": options(language),
        "defaults": defaults(api.live.model or api.host.model_info()),
        "checkpoints": [{"title": known.title, "path": str(known.path), "loaded": known.loaded} for known in api.host.checkpoints()],
        "vaes": [{"title": path.name, "path": str(path)} for path in api.host.vaes()],
    }


async def all_words(api: ApiContext, request: Request) -> dict[str, str]:
    """GET /words?lang=zh_CN"""
    language = language_of(request)
    return dict(words(language)) if language in LANGUAGES else {}


async def report(api: ApiContext, request: Request) -> Response:
    """GET /report[?run=ID]: versions, config and last events as text, for a bug report."""
    text = await api.workers.in_thread(_report, api, request.query_params.get("run", ""))
    return Response(text, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})


def _report(api: ApiContext, run: str) -> str:
    import json

    from lora_trainer.jobs.events_log import last_events
    from lora_trainer.jobs.sinks import versions

    latest = api.manager.latest
    lines = [f"host         {api.host.name} {api.host.version}", *versions()]
    lines += [f"model        {api.live.model}", f"memory       {api.live.memory}"]
    folder = api.run_folder(run) if run else latest.folder if latest else None
    if folder is not None:
        lines += ["", f"run          {folder.id}"]
        for path in (folder.config_file, folder.report_file):
            if path.is_file():
                lines += ["", f"--- {path.name}", path.read_text(encoding="utf-8").rstrip()]
        lines += ["", "--- last events", *(json.dumps(event, ensure_ascii=False) for event in last_events(folder.events_file)[-100:])]
    return "\n".join(lines) + "\n"


ROUTES = (("GET", "/status", status), ("GET", "/options", all_options), ("GET", "/words", all_words), ("GET", "/report", report))
