"""Adds every route to an app, each with the checks around it: login, cross-origin requests, errors as JSON."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.middleware import Middleware
from starlette.routing import Match, Route

from lora_trainer.api.context import ApiContext
from lora_trainer.api.origins import require_own_page
from lora_trainer.api.responses import (
    NOT_LOGGED_IN,
    NotFound,
    RequestError,
    check_text,
    file_error,
    json_response,
    problems_response,
    request_language,
    server_fault,
)
from lora_trainer.api.routes import data_routes, file_routes, network_routes, plan_routes, run_routes, status_routes
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.jobs.manager import MANAGER, JobManager

PREFIX = "/lora-trainer/v1"
LOG = logging.getLogger(__name__)
Handler = Callable[[ApiContext, Request], Awaitable[Any]]
Guard = Callable[[Request], bool]
OWN_PAGE_ONLY = ((b"cross-origin-resource-policy", b"same-origin"), (b"x-content-type-options", b"nosniff"))
"""Headers that keep a browser from showing a response in a page of another site, also where it says nothing of the page (plain HTTP)."""
FAULTS = (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, NameError, RuntimeError)
FAULTS += (TypeError, ValueError)
"""What a request cannot bring about: bodies, addresses and files are checked where they are read, which raises a TrainerError."""


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
    others = [middleware for middleware in app.user_middleware if middleware.cls is not OutermostMiddleware]
    app.user_middleware = [Middleware(OutermostMiddleware, routes=own_routes), *others]
    app.middleware_stack = None  # a host's app has started already: its middleware is put together again at the next request


def _guarded_endpoint(api: ApiContext, handler: Handler, guard: Guard) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        language = request_language(request)
        if not guard(request):
            response = json_response({"problems": [NOT_LOGGED_IN.to_json(language)]}, 401)
            response.headers.update(api.host.challenge())
            return response
        try:
            require_own_page(request, api.host.web_names())
            _check_address(request)
            content = await handler(api, request)
        except TrainerError as error:
            return problems_response(error, language)
        except OSError as error:
            LOG.warning("%s %s", request.method, request.url.path, exc_info=error)
            return problems_response(file_error(error), language)
        except FAULTS as error:
            LOG.error("%s %s", request.method, request.url.path, exc_info=error)
            return problems_response(server_fault(error), language)
        return content if isinstance(content, Response) else json_response(content)

    return endpoint


def _check_address(request: Request) -> None:
    """Raises NotFound for an address with text that names no file, RequestError for such a value in its query."""
    for texts, kind in ((request.path_params, NotFound), (request.query_params, RequestError)):
        for key, text in texts.items():
            try:
                check_text(str(text))
            except ValueError as error:
                raise kind("there is no such address ({reason}).", reason=str(error), path=key, fix="Check the address.") from error


class OutermostMiddleware:
    """Outside all other middleware: for our addresses a host's CORS rules do not hold, and what is refused has the shape of our errors."""

    def __init__(self, app: Any, routes: list[Route]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or f"{PREFIX}/" not in scope["path"]:
            await self.app(scope, receive, send)
            return

        async def send_without_cors(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
                names = {pair[0].lower() for pair in headers}
                message = {**message, "headers": [*headers, *(pair for pair in OWN_PAGE_ONLY if pair[0] not in names)]}
            await send(message)

        response = self._response(scope)
        await (self.app if response is None else response)(scope, receive, send_without_cors)

    def _response(self, scope: Any) -> Response | None:
        """The response to a preflight, an unknown address or method; None where one of our routes responds."""
        inside = {**scope, "path": scope["path"][scope["path"].index(f"{PREFIX}/") :], "root_path": ""}
        matching = [route for route in self.routes if route.matches(inside)[0] is not Match.NONE]
        methods = sorted(set().union(*(route.methods or () for route in matching)))
        if scope["method"] in methods:
            return None
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join(methods)})
        language = request_language(Request(scope))
        if not matching:
            error = NotFound("there is no address {path}.", path=scope["path"][:200], fix="Check the address.")
            return problems_response(error, language)
        error = RequestError(
            "{method} is not possible here.", method=scope["method"][:20], fix="Known are {known}.", known=", ".join(methods)
        )
        response = problems_response(error, language)
        response.status_code = 405
        return response
