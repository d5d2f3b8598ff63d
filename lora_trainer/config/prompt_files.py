"""Preview prompts from text: prompt lines, and sd-scripts' .txt, .toml and .json prompt files (no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_json, parse_toml

SUFFIXES = (".txt", ".toml", ".json")
LINE_OPTIONS = {
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
"""sd-scripts' keys in TOML and JSON -> the matching option of a prompt line."""
_SUBSET = re.compile(r"^[ \t]*\[\[[ \t]*prompt[ \t]*\.[ \t]*subset[ \t]*\]\]", re.MULTILINE)


@attrs.frozen
class PromptRow:
    """One picture to draw: `index` from 0 in its list, `source` for messages, `content` a prompt line or a table of values."""

    index: int
    source: Message
    content: str | Mapping[str, Any]

    def to_line(self) -> str:
        """As a prompt line; keys without a prompt-line option are left out. Raises TrainerError for a value of another type."""
        if isinstance(self.content, str):
            return self.content
        texts = row_texts(self.content)
        words = {LINE_OPTIONS[key]: " ".join(text.split()) for key, text in texts.items() if key in LINE_OPTIONS}
        return " ".join([words.pop("prompt", ""), *(f"--{name} {value}" for name, value in words.items())]).strip()


def row_texts(content: Any) -> dict[str, str]:
    """Key -> text of a row that is an object; null means that the key is not given.

    Raises TrainerError for a row that is neither text nor an object, and for a value that is neither text nor a number.
    """
    if not isinstance(content, Mapping):
        raise TrainerError(
            "{value} is no prompt.", value=str(content), path="sample.prompt_file", fix="Write a text, or a table with prompt."
        )
    texts = {str(key): value for key, value in content.items() if value is not None and key != "enum"}
    for key, value in texts.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise TrainerError(
                "{key} must be a text or a number, not {value}.",
                key=key,
                value=json.dumps(value, ensure_ascii=False, default=str)[:80],
                path="sample.prompt_file",
                fix="Write one value, or leave {key} out.",
            )
    return {key: str(value) for key, value in texts.items()}


def rows_from_lines(text: str, file: str = "", first: int = 0) -> Iterator[PromptRow]:
    """A row for each line that is not empty and does not begin with #; `file` is the prompt file, "" the config's own prompts."""
    number = first
    for line_number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.strip().startswith("#"):
            source = say("{file}, line {line}", file=file, line=line_number) if file else say("prompt {number}", number=number + 1)
            yield PromptRow(number, source, line.strip())
            number += 1


def rows_from_file(text: str, name: str, first: int = 0) -> list[PromptRow]:
    """The rows of a prompt file's text; the suffix of `name` gives the format. Raises TrainerError if it cannot be parsed."""
    suffix = name[name.rfind(".") :].lower()
    if suffix == ".json":
        contents = _json_rows(text, name)
    elif suffix == ".toml":
        contents = _toml_rows(text, name)
    else:
        return list(rows_from_lines(text, name, first))
    lines = [line for line, _ in contents]
    return [PromptRow(first + index, _place(name, lines, index), content) for index, (_, content) in enumerate(contents)]


def _place(name: str, lines: list[int], index: int) -> Message:
    """File and line of a row; where several rows share the line, also which row it is."""
    if lines.count(lines[index]) == 1:
        return say("{file}, line {line}", file=name, line=lines[index])
    return say("{file}, line {line}, row {row}", file=name, line=lines[index], row=index + 1)


def _json_rows(text: str, name: str) -> list[tuple[int, Any]]:
    """(line number, content) of each entry of a JSON list of prompt lines or objects."""
    decoder, rows, position = json.JSONDecoder(), [], len(text) - len(text.lstrip())
    try:
        entries = parse_json(text)
        if not isinstance(entries, list):
            raise _unreadable(name, 1, "not a list")
        position += 1
        for _ in entries:
            position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
            row, end = decoder.raw_decode(text, position)
            rows.append((_line_number(text, position), row))
            position = end
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, getattr(error, "lineno", 1), getattr(error, "msg", str(error))) from error
    return rows


def _toml_rows(text: str, name: str) -> list[tuple[int, Any]]:
    """(line number, content) of each [[prompt.subset]] table, with the defaults of [prompt]."""
    try:
        content = parse_toml(text)
    except ValueError as error:
        raise _unreadable(name, getattr(error, "line", 1), str(error)) from error
    shared = content.get("prompt")
    if not isinstance(shared, Mapping):
        raise _unreadable(name, 1, "no [prompt]")
    subsets = shared.get("subset")
    table_lines = [_line_number(text, match.start()) for match in _SUBSET.finditer(text)]
    common = {key: value for key, value in shared.items() if key != "subset"}
    if not isinstance(subsets, list):
        return [(1, common)] if "prompt" in common else []
    line_numbers = table_lines if len(table_lines) == len(subsets) else [1] * len(subsets)
    return [
        (line, {**common, **subset} if isinstance(subset, Mapping) else subset) for line, subset in zip(line_numbers, subsets, strict=True)
    ]


def _line_number(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _unreadable(name: str, line: int, why: str) -> TrainerError:
    return TrainerError(
        "{file}, line {line}: the prompts cannot be read ({why}).",
        file=name,
        line=line,
        why=why,
        path="sample.prompt_file",
        fix="TOML needs [[prompt.subset]] tables, JSON a list; or write a .txt with a prompt on each line.",
    )
