"""Adds every route to an app, each with the checks around it: login, cross-origin requests, errors as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.routing import Route

from lora_trainer.api.context import ApiContext
from lora_trainer.api.responses import NOT_LOGGED_IN, json_response, problems_response, reject_cross_origin, request_language
from lora_trainer.api.routes import data_routes, file_routes, network_routes, plan_routes, run_routes, status_routes
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.jobs.manager import MANAGER, JobManager

PREFIX = "/lora-trainer/v1"
Handler = Callable[[ApiContext, Request], Awaitable[Any]]
Guard = Callable[[Request], bool]


def mount(app: Any, host: Host, manager: JobManager = MANAGER, guard: Guard | None = None) -> None:
    """Inserts the routes before the app's own, so that a catch-all route does not hide them; replaces those of an earlier mount.

    `guard` says whether a request is authorized; None: the host's `is_authorized`.
    """
    api = ApiContext(host, manager)
    routes = app.router.routes
    routes[:] = [route for route in routes if not str(getattr(route, "path", "")).startswith(PREFIX + "/")]
    own_routes = [
        Route(PREFIX + path, _guarded_endpoint(api, handler, guard or host.is_authorized), methods=[method], include_in_schema=False)
        for module in (status_routes, run_routes, plan_routes, data_routes, file_routes, network_routes)
        for method, path, handler in module.ROUTES
    ]
    routes[0:0] = own_routes


def _guarded_endpoint(api: ApiContext, handler: Handler, guard: Guard) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        language = request_language(request)
        if not guard(request):
            response = json_response({"problems": [NOT_LOGGED_IN.to_json(language)]}, 401)
            response.headers.update(api.host.challenge())
            return response
        try:
            reject_cross_origin(request)
            content = await handler(api, request)
        except TrainerError as error:
            return problems_response(error, language)
        return content if isinstance(content, Response) else json_response(content)

    return endpoint
