"""The names under which browsers may reach the server: a page whose own name was pointed at this computer (DNS rebinding) has another."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import attrs

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORTS = (":80", ":443")
"""Ports that a browser leaves out of an address."""


@attrs.frozen
class WebNames:
    """`declared`: names that the user gave by `flag`, also those of a reverse proxy. `suffixes`: domains of tunnels.

    `origins`: the declared names with the ports that were given with them. `any_address`: every IP address is accepted; no site can point
    one at another computer, as it can its own name. `any_name`: every name is accepted, where a login stands before the routes: a browser
    keeps it for the name under which it was given, so that no page under another name has it.
    """

    flag: str = "--allow-host"
    declared: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    any_address: bool = False
    any_name: bool = False

    def accepts(self, host: str) -> bool:
        """Whether a Host header names this server; its port is not looked at, since tunnels change it."""
        name = name_of(host)
        if name in LOOPBACK or name in self.declared or self.is_tunnel(name):
            return True
        return bool(name) and (self.any_name or (self.any_address and _is_address(name)))

    def is_tunnel(self, name: str) -> bool:
        """Whether a name lies in the domain of a tunnel."""
        return bool(self.suffixes) and name.endswith(self.suffixes)


def declared_names(names: Iterable[str]) -> frozenset[str]:
    """The names of a flag: "my.example", "My.Example:8443" and "https://my.example/webui" are the same name."""
    return frozenset(name for text in names if (name := name_of(_location(text))))


def declared_origins(names: Iterable[str]) -> frozenset[str]:
    """The names of a flag with their ports: "my.example", "my.example:8443"."""
    return frozenset(without_usual_port(_location(text)) for text in names if name_of(_location(text)))


def own_names() -> frozenset[str]:
    """What this computer and others of its network call it: its name, and that name in the domain of multicast DNS."""
    full = name_of(socket.gethostname())
    name = full.partition(".")[0]
    return frozenset({full, name, f"{name}.local"}) if name else frozenset()


def name_of(host: str) -> str:
    """The name in a Host header, in lower case without port and brackets; "" where there is none."""
    text = host.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        return name if bracket and (not port or (port[0] == ":" and port[1:].isdecimal())) else ""
    name, colon, port = text.partition(":")
    return name if not colon or port.isdecimal() else ""


def without_usual_port(location: str) -> str:
    """A name and port in lower case, as a browser writes them."""
    text = location.strip().lower()
    return next((text.removesuffix(port) for port in PORTS if text.endswith(port)), text)


def _location(text: str) -> str:
    return text.rpartition("://")[2].partition("/")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
