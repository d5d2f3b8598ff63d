"""Questions read and answers given: JSON, the reader's language, and problems with their status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.errors import HostBusy, Problem, TrainerError
from lora_trainer.messages import Message, say

BODY_LIMIT = 8 << 20


class Refused(TrainerError):
    """A request that gets another status than 400."""

    status = 400


class Forbidden(Refused):
    """The request may not touch this."""

    status = 403


class Missing(Refused):
    """There is no such run, file or folder."""

    status = 404


class Conflict(Refused):
    """Something else goes on that forbids it now."""

    status = 409


class TooLarge(Refused):
    """More was sent than is taken."""

    status = 413


def json_response(content: Any, status: int = 200) -> Response:
    """JSON, never kept by the browser."""
    return Response(dump(content), status, {"Cache-Control": "no-store"}, "application/json")


def dump(content: Any) -> bytes:
    """Compact JSON in UTF-8; messages must have been worded before."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "surrogatepass")


def problems_response(error: TrainerError, language: str) -> Response:
    """{"problems": [{"path", "message", "fix"}]} with the status of the error's kind."""
    content: dict[str, Any] = {"problems": [problem_json(problem, language) for problem in error.problems]}
    status = error.status if isinstance(error, Refused) else 409 if isinstance(error, HostBusy) else 400
    if isinstance(error, HostBusy) and "run" in error.problems[0].message.values:
        content["run"] = error.problems[0].message.values["run"]
    return json_response(content, status)


def problem_json(problem: Problem, language: str) -> dict[str, Any]:
    """A problem in words; a name that is free instead of a taken one stands beside it as "proposal"."""
    plain: dict[str, Any] = problem.to_json(language)
    if problem.path == "save.output_name" and "free" in problem.fix.values:
        plain["proposal"] = problem.fix.values["free"]
    return plain


def language_of(request: Request) -> str:
    """`?lang=` or the header X-Language: zh* is zh_CN, everything else English."""
    wanted = request.query_params.get("lang") or request.headers.get("x-language") or "en"
    return "zh_CN" if wanted.lower().startswith("zh") else "en"


def worded(value: Any, language: str) -> Any:
    """Plain values with every Message put into words."""
    if isinstance(value, Message):
        return value.text(language)
    if isinstance(value, Mapping):
        return {key: worded(part, language) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [worded(part, language) for part in value]
    return value


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object in the request. Raises Refused (400, 413) for anything else."""
    text = b""
    async for block in request.stream():
        text += block
        if len(text) > BODY_LIMIT:
            raise TooLarge("the request is too large.", fix="Send less at once.")
    try:
        content = json.loads(text or b"{}")
    except ValueError as error:
        raise Refused("the request is not valid JSON ({reason}).", reason=str(error), fix="Send a JSON object.") from error
    if not isinstance(content, dict):
        raise Refused("the request is not a JSON object.", fix="Send a JSON object such as {example}.", example='{"config": {}}')
    return content


def body_value(body: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """A value of the body. Raises Refused that names the key when it is missing (without a default) or of another type."""
    value = body.get(key, default)
    if value is None and default is None and key not in body:
        raise Refused("{key} is missing in the request.", key=key, path=key, fix="Send it.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise Refused("{key} is not of the right type.", key=key, path=key, fix="Send a value of type {kind}.", kind=kind.__name__)
    return value


def body_number(body: Mapping[str, Any], key: str, default: float, low: float, high: float, kind: type = float) -> Any:
    """A number of the body, whole where `kind` is int. Raises Refused that names it when it lies outside, or is none."""
    found = body_value(body, key, kind, kind(default))
    if not low <= found <= high:
        raise Refused("{key} must lie between {low} and {high}.", key=key, low=low, high=high, path=key, fix="Send another number.")
    return found


def query_number(request: Request, key: str, default: int) -> int:
    """A whole number of the query. Raises Refused that names it for anything else."""
    text = request.query_params.get(key)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 12:
        raise Refused("{key} is not a whole number.", key=key, path=key, fix="Send a number such as 0.")
    return int(text)


def refuse_foreign_pages(request: Request) -> None:
    """A page of another site may not make this browser change anything here. Raises Forbidden."""
    origin = request.headers.get("origin")
    if request.method in ("GET", "HEAD") or origin is None:
        return
    hosts = (request.headers.get("host"), request.headers.get("x-forwarded-host"))
    if urlsplit(origin).netloc.lower() not in [host.lower() for host in hosts if host]:
        raise Forbidden("this request comes from another site ({origin}).", origin=origin, fix="Use the page of this server.")


NOT_LOGGED_IN = Problem("", say("You are not logged in."), say("Log in to the WebUI, then load the page again."))
