"""Preview prompts as people write them down: lines, and the .txt, .toml and .json files of sd-scripts (no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say

ENDINGS = (".txt", ".toml", ".json")
KEYS = {
    "prompt": "prompt",
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "scale": "l",
    "sample_steps": "s",
    "sample_sampler": "ss",
    "guidance_scale": "g",
    "controlnet_image": "cn",
    "cfg_trunc_ratio": "ctr",
    "renorm_cfg": "rcfg",
    "flow_shift": "fs",
}
"""sd-scripts' names in TOML and JSON -> the option of a prompt line that says the same."""
_SUBSET = re.compile(r"^[ \t]*\[\[[ \t]*prompt[ \t]*\.[ \t]*subset[ \t]*\]\]", re.MULTILINE)


@attrs.frozen
class PromptRow:
    """One picture to draw: `number` from 0 in its list, `place` for people, a line or a table of values."""

    number: int
    place: Message
    content: str | Mapping[str, Any]

    def line(self) -> str:
        """As a prompt line; keys that no prompt line knows are left out."""
        if isinstance(self.content, str):
            return self.content
        words = {KEYS[key]: " ".join(str(value).split()) for key, value in self.content.items() if key in KEYS}
        return " ".join([words.pop("prompt", ""), *(f"--{name} {value}" for name, value in words.items())]).strip()


def rows_of_lines(text: str, place: str = "", first: int = 0) -> Iterator[PromptRow]:
    """A row for each line that is not empty and does not begin with #; `place` is the file, "" the list of the config."""
    number = first
    for count, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.strip().startswith("#"):
            where = say("{file}, line {line}", file=place, line=count) if place else say("prompt {number}", number=number + 1)
            yield PromptRow(number, where, line.strip())
            number += 1


def rows_of_file(text: str, name: str, first: int = 0) -> list[PromptRow]:
    """The rows of a prompt file's text; its ending says which form it has. Raises TrainerError for a file that cannot be read so."""
    ending = name[name.rfind(".") :].lower()
    if ending == ".json":
        found = _json_rows(text, name)
    elif ending == ".toml":
        found = _toml_rows(text, name)
    else:
        return list(rows_of_lines(text, name, first))
    return [PromptRow(first + number, say("{file}, line {line}", file=name, line=line), row) for number, (line, row) in enumerate(found)]


def _json_rows(text: str, name: str) -> list[tuple[int, Any]]:
    """A list of lines or objects, each with the line where it begins."""
    decoder, found, place = json.JSONDecoder(), [], len(text) - len(text.lstrip())
    try:
        whole = json.loads(text)
        if not isinstance(whole, list):
            raise _broken(name, 1, "not a list")
        place += 1
        for _ in whole:
            place += len(text[place:]) - len(text[place:].lstrip(" \t\r\n,"))
            row, end = decoder.raw_decode(text, place)
            found.append((_line(text, place), row))
            place = end
    except (ValueError, RecursionError) as error:
        raise _broken(name, getattr(error, "lineno", 1), getattr(error, "msg", str(error))) from error
    return found


def _toml_rows(text: str, name: str) -> list[tuple[int, Any]]:
    """[[prompt.subset]] tables, each over what [prompt] says for all."""
    try:
        content = tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError) as error:
        raise _broken(name, getattr(error, "line", 1), re.sub(r"\.? at line .*", "", str(error))) from error
    shared = content.get("prompt")
    if not isinstance(shared, Mapping):
        raise _broken(name, 1, "no [prompt]")
    subsets = shared.get("subset")
    places = [_line(text, found.start()) for found in _SUBSET.finditer(text)]
    common = {key: value for key, value in shared.items() if key != "subset"}
    if not isinstance(subsets, list):
        return [(1, common)] if "prompt" in common else []
    known = places if len(places) == len(subsets) else [1] * len(subsets)
    return [(line, {**common, **subset} if isinstance(subset, Mapping) else subset) for line, subset in zip(known, subsets, strict=True)]


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _broken(name: str, line: int, why: str) -> TrainerError:
    return TrainerError(
        "{file}, line {line}: the prompts cannot be read ({why}).",
        file=name,
        line=line,
        why=why,
        path="sample.prompt_file",
        fix="TOML needs [[prompt.subset]] tables, JSON a list; or write a .txt with a prompt on each line.",
    )
