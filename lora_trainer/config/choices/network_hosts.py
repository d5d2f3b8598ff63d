"""Which WebUI reads which kind of network, as data (no torch).

tests/host/test_network_hosts.py derives each row with the hosts' own loaders.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_trainer.messages import Message, say

HOSTS: Mapping[str, str] = {"a1111": "AUTOMATIC1111", "forge": "Forge", "reforge": "reForge"}
"""A host's name -> what people call it."""
ALL, PARTLY, NO = "all", "partly", "no"

_OUTPUT_AXIS = say("It measures the strength over outputs in another way than DoRA is defined: pictures differ from the training's.")
_LAST_NORM = say("AUTOMATIC1111 reads all norm layers but the U-Net's last one.")
_FORGE_OFT = say("Forge has no reader for OFT: the file would change nothing.")
_REFORGE_OFT = say("reForge reads OFT without its limit and its rescaling, and at other strengths than 1 it turns too far or too little.")

READS: Mapping[str, Mapping[str, tuple[str, Message | None]]] = {
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
"""Kind of a file -> host -> (how much of it is read, why not all of it); a host that is not named reads all of it."""
UNTRIED = (PARTLY, say("It is not made here, and was not tried."))


def reading(kind: str, host: str) -> tuple[str, Message | None]:
    """("all" | "partly" | "no", why) of a kind of file in a host."""
    return READS[kind].get(host, (ALL, None)) if kind in READS else UNTRIED


def kind_of_type(network_type: str, dora_axis: str = "in") -> str:
    """The kind of file that a `network.type` gives."""
    if network_type == "dora" and dora_axis == "out":
        return "dora_out"
    return {"dylora": "lora", "rslora": "lora"}.get(network_type, network_type)


def doubt(network_type: str, host: str, dora_axis: str = "in") -> Message | None:
    """What is to be said before a network of this type is trained in this host; None where it reads all of it."""
    if host not in HOSTS:
        return None
    loads, why = reading(kind_of_type(network_type, dora_axis), host)
    if loads == ALL or why is None:
        return None
    if loads == NO:
        return say("{host} does not read this type of network: {why}", host=HOSTS[host], why=why)
    return say("{host} reads this type of network only in part: {why}", host=HOSTS[host], why=why)
