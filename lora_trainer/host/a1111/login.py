"""The host's login for our routes: neither Gradio's nor --api-auth's check covers an extension's own routes."""

from __future__ import annotations

import base64
from secrets import compare_digest
from typing import Any

from lora_trainer.host.web_names import WebNames, declared_names, declared_origins, own_names

ALLOW_HOST = "--lora-trainer-allow-host"
TUNNELS = (
    *(".gradio.live", ".gradio.app", ".ngrok.io", ".ngrok.app", ".ngrok.dev", ".ngrok-free.app", ".ngrok-free.dev"),
    *(".trycloudflare.com", ".loca.lt", ".lhr.life", ".remote.moe"),
    *(".proxy.runpod.net", "-colab.googleusercontent.com", ".paperspacegradient.com"),
)
"""Domains of --share, --ngrok and other tunnels, and of rented computers: their owners alone say where a name in them leads to, and none
leads to the computer of a visitor."""


def web_names() -> WebNames:
    """The names under which browsers may reach the host, by its flags."""
    from modules import shared

    options = shared.cmd_opts
    tunnel = getattr(options, "ngrok_options", None) or {}
    allowed = [str(name) for name in getattr(options, "lora_trainer_allow_host", None) or ()]
    names = [getattr(options, "server_name", None), *(tunnel.get(key) for key in ("domain", "hostname") if isinstance(tunnel, dict))]
    return WebNames(
        flag=ALLOW_HOST,
        declared=declared_names([*(str(name) for name in names if name), *allowed, *own_names()]),
        origins=declared_origins(allowed),
        suffixes=TUNNELS,
        any_address=True,
        any_name=any(required_logins()),
    )


def required_logins() -> tuple[bool, bool]:
    """(whether the page requires a login, whether the host's API requires one)."""
    from modules import shared

    options = shared.cmd_opts
    page = bool(getattr(options, "gradio_auth", None) or getattr(options, "gradio_auth_path", None))
    return page, bool(getattr(options, "api_auth", None))


def is_authorized(request: Any, app: Any) -> bool:
    """Whether the request carries either login; True when the host requires none."""
    page, api = required_logins()
    if not page and not api:
        return True
    return (page and _has_page_login(request, app)) or (api and _has_api_login(request))


def _has_page_login(request: Any, app: Any) -> bool:
    """Gradio keeps {token: user} in its app; from 4.20 on the cookie's name ends with an id."""
    tokens = getattr(app, "tokens", None) or {}
    cookie_id = getattr(app, "cookie_id", None)
    suffix = f"-{cookie_id}" if cookie_id else ""
    cookies = (request.cookies.get(f"access-token{kind}{suffix}") for kind in ("", "-unsecure"))
    return any(token is not None and tokens.get(token) is not None for token in cookies)


def _has_api_login(request: Any) -> bool:
    from modules import shared

    scheme, _, code = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(code, validate=True).decode("utf-8").partition(":")
    except ValueError:  # not base64, or not text
        return False
    accounts = dict(account.split(":", 1) for account in shared.cmd_opts.api_auth.split(",") if ":" in account)
    return user in accounts and compare_digest(password.encode(), accounts[user].encode())
