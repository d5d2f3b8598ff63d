"""Names of results: valid as a file name on every system and in `<lora:NAME:1>`."""

from __future__ import annotations

import re
import unicodedata

from lora_trainer.messages import Message, say

MAX_BYTES = 150
"""Longest name in UTF-8 bytes, so that `NAME-step00000123.safetensors` fits every file system."""

RESERVED = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"})
_FORBIDDEN = '<>:"/\\|?*'


def name_problem(name: str) -> Message | None:
    """Why `name` is not valid as the name of a result, or None if it is."""
    if not name.strip():
        return say("A name may not be empty.")
    if name in (".", "..") or any(character in name for character in "/\\"):
        return say("{name} is a path, not a name: a name holds no / and no \\.", name=name)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return say("{name} holds a control character.", name=repr(name))
    if forbidden := [character for character in name if character in _FORBIDDEN]:
        return say("{name} holds {sign}, which no file name may hold on Windows.", name=name, sign=forbidden[0])
    if name != name.strip() or name.endswith("."):
        return say("{name} begins or ends with a space or ends with a dot, which Windows drops.", name=repr(name))
    if name.partition(".")[0].strip().lower() in RESERVED:
        return say("{name} is a name that Windows reserves for devices.", name=name)
    if name.lower().endswith(".safetensors"):
        return say("{name} includes the file extension, which is added automatically.", name=name)
    if len(name.encode("utf-8")) > MAX_BYTES:
        return say("The name is {length} bytes long; at most {longest} are possible.", length=len(name.encode("utf-8")), longest=MAX_BYTES)
    return None


def slug(text: str) -> str:
    """A name made from `text` that `name_problem` accepts; letters of every script are kept."""
    name = unicodedata.normalize("NFC", text)
    name = re.sub(r"\.safetensors$", "", name.strip(), flags=re.IGNORECASE)
    name = "".join(
        "_" if character in _FORBIDDEN + ",;" or character.isspace() or unicodedata.category(character) in ("Cc", "Cs") else character
        for character in name
    )
    name = re.sub(r"_+", "_", name).strip("._ ")
    name = name.encode("utf-8")[: MAX_BYTES - 2].decode("utf-8", "ignore").strip("._ ")
    if name.partition(".")[0].lower() in RESERVED:
        name = f"{name}_" if "." not in name else name.replace(".", "_", 1)
        name = name if name.lower() not in RESERVED else f"{name}_"
    return name if name_problem(name) is None else "lora"
