"""The names under which browsers may reach the server: a page whose own name was pointed at this computer (DNS rebinding) has another."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import attrs

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@attrs.frozen
class WebNames:
    """`declared`: names that the user gave by `flag`, also those of a reverse proxy. `suffixes`: domains of the host's own tunnels.

    `any_address`: every IP address is accepted. No site can point one at another computer, as it can its own name.
    """

    flag: str = "--allow-host"
    declared: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    any_address: bool = False

    def accepts(self, host: str) -> bool:
        """Whether a Host header names this server; its port is not looked at, since tunnels change it."""
        name = name_of(host)
        if name in LOOPBACK or name in self.declared or (self.suffixes and name.endswith(self.suffixes)):
            return True
        return self.any_address and _is_address(name)


def declared_names(names: Iterable[str]) -> frozenset[str]:
    """The names of a flag: "my.example", "My.Example:8443" and "https://my.example/webui" are the same name."""
    return frozenset(name for text in names if (name := name_of(text.rpartition("://")[2].partition("/")[0])))


def name_of(host: str) -> str:
    """The name in a Host header, in lower case without port and brackets; "" where there is none."""
    text = host.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        return name if bracket and (not port or (port[0] == ":" and port[1:].isdecimal())) else ""
    name, colon, port = text.partition(":")
    return name if not colon or port.isdecimal() else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
