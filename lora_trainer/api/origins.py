"""Which site's page a request comes from: the own page, or another one that uses this computer's browser."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from lora_trainer.api.responses import Forbidden
from lora_trainer.host.web_names import WebNames, name_of

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
        raise _from_another_site(f"Sec-Fetch-Site: {site[:40]}")
    origin = request.headers.get("origin")
    if origin is not None and not _is_own_origin(origin, host, names, via_tunnel=site is not None):
        raise _from_another_site(origin[:200])


def _is_own_origin(origin: str, host: str, names: WebNames, *, via_tunnel: bool) -> bool:
    """Whether an Origin header is that of the server: the Host header's name and port, or the name of a declared reverse proxy.

    `via_tunnel`: or a name in the domain of the host's own tunnel, where the browser itself says that it is the same origin.
    """
    try:
        location = urlsplit(origin).netloc.lower()
    except ValueError:  # brackets around no address
        return False
    if location == host.lower() or name_of(location) in names.declared:
        return True
    return via_tunnel and bool(names.suffixes) and name_of(location).endswith(names.suffixes)


def _from_another_site(origin: str) -> Forbidden:
    return Forbidden("this request comes from another site ({origin}).", origin=origin, fix="Use the page of this server.")
