"""Names of results: what may be a file name on every system and stand in `<lora:NAME:1>`."""

from __future__ import annotations

import re
import unicodedata

from lora_trainer.messages import Message, say

LONGEST = 150
"""Bytes of UTF-8 that a name may have, so that `NAME-step00000123.safetensors` fits every file system."""

RESERVED = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"})
_FORBIDDEN = '<>:"/\\|?*'


def problem_of_name(name: str) -> Message | None:
    """Why `name` cannot be the name of a result, or None where it can."""
    if not name.strip():
        return say("A name may not be empty.")
    if name in (".", "..") or any(sign in name for sign in "/\\"):
        return say("{name} is a path, not a name: a name holds no / and no \\.", name=name)
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        return say("{name} holds a control character.", name=repr(name))
    if bad := [sign for sign in name if sign in _FORBIDDEN]:
        return say("{name} holds {sign}, which no file name may hold on Windows.", name=name, sign=bad[0])
    if name != name.strip() or name.endswith("."):
        return say("{name} begins or ends with a space or ends with a dot, which Windows drops.", name=repr(name))
    if name.partition(".")[0].strip().lower() in RESERVED:
        return say("{name} is a word that Windows keeps for devices.", name=name)
    if name.lower().endswith(".safetensors"):
        return say("{name} holds the ending of a file: it is added by itself.", name=name)
    if len(name.encode("utf-8")) > LONGEST:
        return say("The name is {length} bytes long; at most {longest} are possible.", length=len(name.encode("utf-8")), longest=LONGEST)
    return None


def slug(text: str) -> str:
    """A name made from `text` that problem_of_name accepts; letters of every script stay."""
    name = unicodedata.normalize("NFC", text)
    name = re.sub(r"\.safetensors$", "", name.strip(), flags=re.IGNORECASE)
    name = "".join(
        "_" if sign in _FORBIDDEN + ",;" or sign.isspace() or unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in name
    )
    name = re.sub(r"_+", "_", name).strip("._ ")
    name = name.encode("utf-8")[: LONGEST - 2].decode("utf-8", "ignore").strip("._ ")
    if name.partition(".")[0].lower() in RESERVED:
        name = f"{name}_" if "." not in name else name.replace(".", "_", 1)
        name = name if name.lower() not in RESERVED else f"{name}_"
    return name if problem_of_name(name) is None else "lora"
