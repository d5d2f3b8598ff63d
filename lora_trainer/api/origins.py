"""Which site's page a request comes from: the own page, or another one that uses this computer's browser."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from lora_trainer.api.responses import Forbidden
from lora_trainer.host.web_names import WebNames, name_of, without_usual_port

OWN_SITE = ("same-origin", "none")
"""Sec-Fetch-Site of the own page and of an address that was typed; a page on another port of this computer is "same-site"."""


def require_own_page(request: Request, names: WebNames) -> None:
    """Raises Forbidden unless the server was reached under a name of its own, by its own page, or by no browser at all.

    Proxies' headers (X-Forwarded-Host) are not read: any page can send them.
    """
    hosts = request.headers.getlist("host")
    host = hosts[0] if len(hosts) == 1 else ""
    if not names.accepts(host):
        raise Forbidden(
            "this server is not known by the name {name}.",
            name=host[:200],
            fix="Open it by its address, or start it with {flag} {name}.",
            flag=names.flag,
        )
    site = request.headers.get("sec-fetch-site")
    if site is not None and site.lower() not in OWN_SITE:
        raise Forbidden(
            "this request comes from another site ({origin}).", origin=f"Sec-Fetch-Site: {site[:40]}", fix="Use the page of this server."
        )
    origin = request.headers.get("origin")
    if origin is not None and not _is_own_origin(origin, host, names, told_by_browser=site is not None):
        raise Forbidden(
            "this request comes from another site ({origin}).",
            origin=origin[:200],
            fix="Use the page of this server. If a reverse proxy shows it at that address, start it with {flag} {name}.",
            flag=names.flag,
            name=origin[:200],
        )


def _is_own_origin(origin: str, host: str, names: WebNames, *, told_by_browser: bool) -> bool:
    """Whether an Origin header is that of the server: the Host header's name and port, or the address of a declared reverse proxy.

    `told_by_browser`: the browser itself says that it is the same origin. Then a declared name counts with any port, and so does one in
    the domain of a tunnel, which rewrites the Host header.
    """
    try:
        location = without_usual_port(urlsplit(origin).netloc)
    except ValueError:  # brackets around no address
        return False
    if location == without_usual_port(host) or location in names.origins:
        return True
    name = name_of(location)
    return told_by_browser and (name in names.declared or names.is_tunnel(name))
