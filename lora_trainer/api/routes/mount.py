"""Every route, and what is done around each: login, foreign pages, problems as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.routing import Route

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import NOT_LOGGED_IN, json_response, language_of, problems_response, refuse_foreign_pages
from lora_trainer.api.routes import data_routes, file_routes, network_routes, plan_routes, run_routes, status_routes
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.jobs.manager import MANAGER, JobManager

PREFIX = "/lora-trainer/v1"
Handler = Callable[[ApiContext, Request], Awaitable[Any]]
Guard = Callable[[Request], bool]


def mount(app: Any, host: Host, manager: JobManager = MANAGER, guard: Guard | None = None) -> None:
    """Puts the routes in front of the app's own, so that one that answers everything does not hide them.

    `guard` says whether a request comes with the login; left out: the host does.
    """
    api = ApiContext(host, manager)
    routes = app.router.routes
    routes[:] = [route for route in routes if not str(getattr(route, "path", "")).startswith(PREFIX + "/")]
    made = [
        Route(PREFIX + path, _guarded(api, handler, guard or host.authorized), methods=[method], include_in_schema=False)
        for module in (status_routes, run_routes, plan_routes, data_routes, file_routes, network_routes)
        for method, path, handler in module.ROUTES
    ]
    routes[0:0] = made


def _guarded(api: ApiContext, handler: Handler, guard: Guard) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        language = language_of(request)
        if not guard(request):
            refused = json_response({"problems": [NOT_LOGGED_IN.to_json(language)]}, 401)
            refused.headers.update(api.host.challenge())
            return refused
        try:
            refuse_foreign_pages(request)
            content = await handler(api, request)
        except TrainerError as error:
            return problems_response(error, language)
        return content if isinstance(content, Response) else json_response(content)

    return endpoint
