"""Reading requests and building responses: JSON, the reader's language, and problems with their HTTP status."""

from __future__ import annotations

import asyncio
import errno
import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lora_trainer.errors import HostBusy, Problem, TrainerError
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_json

MAX_BODY_BYTES = 8 << 20
SMALL_BODY_BYTES = 1 << 16
"""A larger body is parsed in a thread, so that the status is answered meanwhile."""


class RequestError(TrainerError):
    """A request that is refused with the class's HTTP status."""

    status = 400


class Forbidden(RequestError):
    """The request may not access this."""

    status = 403


class NotFound(RequestError):
    """There is no such run, file or folder."""

    status = 404


class Conflict(RequestError):
    """The current state does not allow it."""

    status = 409


class PayloadTooLarge(RequestError):
    """The request's body is too large."""

    status = 413


class ServerFault(RequestError):
    """The request was right, or its fault was not found where it was read: the error is the server's."""

    status = 500


REFUSED_NAMES = frozenset(
    getattr(errno, name)
    for name in ("ENAMETOOLONG", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EACCES", "EPERM", "EINVAL", "ENXIO", "EFBIG", "EROFS", "EILSEQ")
    if hasattr(errno, name)
)
"""What the system says of a file that cannot be used; anything else (a full disk, too many open files) is not the request's fault."""


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON response that the browser does not cache."""
    return Response(encode_json(content), status, {"Cache-Control": "no-store"}, "application/json")


def encode_json(content: Any) -> bytes:
    """Compact JSON in UTF-8; messages must have been localized before."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "surrogatepass")


def problems_response(error: TrainerError, language: str) -> Response:
    """{"problems": [{"path", "message", "fix"}]} with the status of the error's class."""
    content: dict[str, Any] = {"problems": [problem_json(problem, language) for problem in error.problems]}
    status = error.status if isinstance(error, RequestError) else 409 if isinstance(error, HostBusy) else 400
    if isinstance(error, HostBusy) and "run" in error.problems[0].message.values:
        content["run"] = error.problems[0].message.values["run"]
    return json_response(content, status)


def problem_json(problem: Problem, language: str) -> dict[str, Any]:
    """A problem as JSON; where a name is taken, a free one is added as "proposal"."""
    content: dict[str, Any] = problem.to_json(language)
    if problem.path == "save.output_name" and "free" in problem.fix.values:
        content["proposal"] = problem.fix.values["free"]
    return content


def request_language(request: Request) -> str:
    """`?lang=` or the header X-Language: zh* is zh_CN, everything else English."""
    language = request.query_params.get("lang") or request.headers.get("x-language") or "en"
    return "zh_CN" if language.lower().startswith("zh") else "en"


def localize(value: Any, language: str) -> Any:
    """The value with every Message in it translated to text."""
    if isinstance(value, Message):
        return value.text(language)
    if isinstance(value, Mapping):
        return {key: localize(part, language) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [localize(part, language) for part in value]
    return value


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object in the request. Raises RequestError (400) for anything else, PayloadTooLarge (413)."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > MAX_BODY_BYTES:
            raise PayloadTooLarge("the request is larger than {mb} MB.", mb=MAX_BODY_BYTES >> 20, fix="Send less at once.")
    if len(text) <= SMALL_BODY_BYTES:
        return _parse_body(bytes(text))
    return await asyncio.get_running_loop().run_in_executor(None, _parse_body, bytes(text))


def _parse_body(text: bytes) -> dict[str, Any]:
    try:
        content = parse_json(text or b"{}")
        _check_values(content)
    except ValueError as error:
        raise RequestError("the request is not valid JSON ({reason}).", reason=str(error), fix="Send a JSON object.") from error
    if not isinstance(content, dict):
        raise RequestError("the request is not a JSON object.", fix="Send a JSON object such as {example}.", example='{"config": {}}')
    return content


def _check_values(content: Any) -> None:
    """Raises ValueError for values that JSON knows and no setting, path or caption can be."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            check_text(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number in it is not finite")
        elif isinstance(value, int) and abs(value) >= 1 << 64:
            raise ValueError("a number in it is too large")


def check_text(text: str) -> None:
    """Raises ValueError for a text that no file system and no encoder takes."""
    if "\0" in text:
        raise ValueError("a text in it holds a NUL character")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a text in it holds half of a character (a lone surrogate)")


def body_value(body: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """A value of the body. Raises RequestError when it is missing (without a default) or of another type."""
    value = body.get(key, default)
    if value is None and default is None and key not in body:
        raise RequestError("{key} is missing in the request.", key=key, path=key, fix="Send it.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = float(value)
    is_infinite = isinstance(value, float) and not math.isfinite(value)  # JSON has no such numbers, Python's reader takes them
    if not isinstance(value, kind) or is_infinite or (kind is not bool and isinstance(value, bool)):
        raise RequestError("{key} is not of the right type.", key=key, path=key, fix="Send a value of type {kind}.", kind=kind.__name__)
    return value


def body_number(body: Mapping[str, Any], key: str, default: float, low: float, high: float, kind: type = float) -> Any:
    """A number of the body, an integer where `kind` is int. Raises RequestError when it is out of range or not a number."""
    value = body_value(body, key, kind, kind(default))
    if not low <= value <= high:
        raise RequestError("{key} must lie between {low} and {high}.", key=key, low=low, high=high, path=key, fix="Send another number.")
    return value


def query_number(request: Request, key: str, default: int) -> int:
    """A non-negative integer of the query. Raises RequestError for anything else."""
    text = request.query_params.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 12:
        raise RequestError("{key} is not a whole number.", key=key, path=key, fix="Send a number such as 0.")
    return int(text)


def file_error(error: OSError) -> RequestError:
    """The error for a file that the system refuses to use: its name is too long, it may not be read. ServerFault for any other reason."""
    if error.errno not in REFUSED_NAMES or error.filename is None:
        return server_fault(error)
    reason, file = error.strerror or str(error), str(error.filename)[:200]
    return RequestError("{file} cannot be used ({reason}).", file=file, reason=reason[:200], fix="Check names and paths.")


def server_fault(error: BaseException) -> ServerFault:
    """The error for an exception that nobody expects."""
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")[:200]
    return ServerFault("the trainer has failed ({reason}).", reason=reason, fix="Please report this; the console holds the details.")


NOT_LOGGED_IN = Problem("", say("You are not logged in."), say("Log in to the WebUI, then load the page again."))
