"""Which WebUI reads which kind of network, as data (no torch).

tests/host/test_network_hosts.py derives each row with the hosts' own loaders.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_trainer.messages import Message, say

HOSTS: Mapping[str, str] = {"a1111": "AUTOMATIC1111", "forge": "Forge", "reforge": "reForge"}
"""Host -> its label."""
ALL, PARTLY, NO = "all", "partly", "no"

_OUTPUT_AXIS = say("It computes the magnitude over outputs in another way than DoRA defines it: pictures differ from those in training.")
_LAST_NORM = say("AUTOMATIC1111 reads all norm layers but the U-Net's last one.")
_FORGE_OFT = say("Forge has no reader for OFT: the file would change nothing.")
_REFORGE_OFT = say("reForge reads OFT without its limit and its rescaling, and at other strengths than 1 it turns too far or too little.")

SUPPORT: Mapping[str, Mapping[str, tuple[str, Message | None]]] = {
    "lora": {},
    "locon": {},
    "loha": {},
    "lokr": {},
    "full": {},
    "norm": {"a1111": (PARTLY, _LAST_NORM)},
    "dora": {},
    "dora_out": {"a1111": (PARTLY, _OUTPUT_AXIS), "forge": (PARTLY, _OUTPUT_AXIS), "reforge": (PARTLY, _OUTPUT_AXIS)},
    "oft": {"forge": (NO, _FORGE_OFT), "reforge": (PARTLY, _REFORGE_OFT)},
}
"""Kind of a file -> host -> (how much of it the host reads, reason not all of it); a host that is missing reads all of it."""
UNTESTED = (PARTLY, say("This program does not train it, and it was not tested."))


def host_support(kind: str, host: str) -> tuple[str, Message | None]:
    """("all" | "partly" | "no", reason) of a kind of file in a host."""
    return SUPPORT[kind].get(host, (ALL, None)) if kind in SUPPORT else UNTESTED


def file_kind(network_type: str, dora_axis: str = "in") -> str:
    """The kind of file that a `network.type` saves."""
    if network_type == "dora" and dora_axis == "out":
        return "dora_out"
    return {"dylora": "lora", "rslora": "lora"}.get(network_type, network_type)


def support_warning(network_type: str, host: str, dora_axis: str = "in") -> Message | None:
    """The warning before a network of this type is trained in this host; None where the host reads all of it."""
    if host not in HOSTS:
        return None
    support, reason = host_support(file_kind(network_type, dora_axis), host)
    if support == ALL or reason is None:
        return None
    if support == NO:
        return say("{host} does not read this type of network: {why}", host=HOSTS[host], why=reason)
    return say("{host} reads this type of network only in part: {why}", host=HOSTS[host], why=reason)
