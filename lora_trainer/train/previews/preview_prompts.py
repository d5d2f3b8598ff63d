"""Preview prompts as requests, in sd-scripts' words: `prompt --n negative --w 512 --h 768 --d 1 --l 7.5 --s 20 --ss euler_a`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.choices.samplers import CHOICES, known_sampler
from lora_trainer.config.prompt_files import KEYS, PromptRow, rows_of_file, rows_of_lines
from lora_trainer.data.sources.text_decoding import decoded
from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say

NUMBERS = {"w": "512", "h": "512", "d": "1", "l": "7.5", "s": "20"}
"""Options that take a number, with an example."""
KNOWN = (*NUMBERS, "n", "ss")
OTHERS = ("g", "cn", "ctr", "rcfg", "fs")
"""Options of sd-scripts for models of other kinds: read, without effect."""
_OPTION = re.compile(r"\s+--(?=(?:[A-Za-z]{1,3}|rcfg)(?:\s|$))", re.IGNORECASE)
LARGEST = 1 << 20
"""Bytes of the largest prompt file that is read."""
SEEDS = 2**64


@attrs.frozen
class SampleRequest:
    """One picture to draw: sides in pixels (multiples of 8), `cfg` guidance, `steps` of the sampler.

    `max_token_length` tokens of the texts are read: 75, 150 or 225; 0 reads all of them.
    """

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    seed: int = 1
    cfg: float = 7.5
    steps: int = 20
    sampler: str = "ddim"
    clip_skip: int = 1
    max_token_length: int = 75


@attrs.frozen
class Prompts:
    """What is to be drawn: (place in the list, request), and what is to be said about rows that are left out or odd."""

    requests: tuple[tuple[int, SampleRequest], ...] = ()
    notes: tuple[Message, ...] = ()


def read_prompts(lines: Sequence[str], file: str, defaults: SampleRequest) -> Prompts:
    """The prompts of a list and of a prompt file ("": none), read now. A row that cannot be read is left out and named, never raised."""
    rows, notes = list(rows_of_lines("\n".join(lines))), []
    try:
        rows += _file_rows(file.strip(), len(rows))
    except TrainerError as error:
        notes += [say("{message} {fix}", message=problem.message, fix=problem.fix) for problem in error.problems]
    requests = []
    for row in rows:
        try:
            values = _values_of(row.content)
            requests.append((row.number, _request(values, defaults)))
        except TrainerError as error:
            found = error.problems[0]
            notes.append(say("{place} is not drawn: {message} {fix}", place=row.place, message=found.message, fix=found.fix))
            continue
        if unused := [name for name in values if name in OTHERS]:
            options = " ".join(f"--{name}" for name in unused)
            notes.append(say("{place}: {options} has no effect on models of this kind.", place=row.place, options=options))
    return Prompts(tuple(requests), tuple(notes))


def parse_prompt_line(line: str, defaults: SampleRequest) -> SampleRequest:
    """The request of one line; what the line does not say is as in `defaults`. Sides are rounded to multiples of 8.

    Raises TrainerError for an option that is not known or has no number.
    """
    return _request(_values_of(line), defaults)


def _file_rows(name: str, first: int) -> list[PromptRow]:
    if not name:
        return []
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > LARGEST:
            raise TrainerError("{file} is too large for a prompt file.", file=name, path="sample.prompt_file", fix="Choose another file.")
        text = decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TrainerError(
            "the prompt file {file} cannot be read ({reason}).",
            file=name,
            reason=getattr(error, "strerror", None) or str(error),
            path="sample.prompt_file",
            fix="Check its path.",
        ) from error
    return rows_of_file(text, name, first)


def _values_of(content: str | Mapping[str, Any]) -> dict[str, str]:
    """Option -> its text, "prompt" among them. Raises TrainerError for what is no option."""
    if isinstance(content, str):
        head, *parts = _OPTION.split(" " + content.strip())
        given = {"prompt": head.strip()}
        for part in parts:
            name, _, value = part.partition(" ")
            given[name.lower()] = value.strip()
    elif isinstance(content, Mapping):
        given = {KEYS.get(str(key), str(key)): str(value) for key, value in content.items() if key != "enum"}
    else:
        raise TrainerError(
            "{value} is no prompt.", value=str(content), path="sample.prompt_file", fix="Write a text, or a table with prompt."
        )
    for name in given:
        if name not in (*KNOWN, *OTHERS, "prompt"):
            raise TrainerError(
                "the prompt option --{name} is not known.",
                path="sample.prompts",
                name=name,
                fix="Known are --n --w --h --d --l --s and --ss.",
            )
    return given


def _request(given: Mapping[str, str], defaults: SampleRequest) -> SampleRequest:
    numbers = {name: _number(name, given[name]) for name in NUMBERS if name in given}
    sampler = known_sampler(given.get("ss") or defaults.sampler)
    if sampler is None:
        raise TrainerError(
            "the sampler {name} is not known.", path="sample.prompts", name=given["ss"], known=", ".join(CHOICES), fix="Known are {known}."
        )
    seed = int(numbers.get("d", defaults.seed))
    return attrs.evolve(
        defaults,
        prompt=given.get("prompt", ""),
        negative=given.get("n", defaults.negative),
        width=multiple_of_8(numbers.get("w", defaults.width)),
        height=multiple_of_8(numbers.get("h", defaults.height)),
        seed=secrets.randbelow(2**32) if seed < 0 else seed % SEEDS,
        cfg=float(numbers.get("l", defaults.cfg)),
        steps=max(1, min(1000, int(numbers.get("s", defaults.steps)))),
        sampler=sampler,
    )


def _number(name: str, text: str) -> float | int:
    """A number that an option needs; whole ones keep all their digits. Raises TrainerError."""
    try:
        value = float(text)
        if value - value != 0:
            raise ValueError(text)
        return int(text) if text.strip().lstrip("+-").isdecimal() else value
    except ValueError as error:
        raise TrainerError(
            "the prompt option --{name} needs a number, not {value}.",
            path="sample.prompts",
            name=name,
            value=text,
            example=NUMBERS[name],
            fix="Write for example --{name} {example}.",
        ) from error


def multiple_of_8(side: float) -> int:
    """Pixels rounded to a multiple of 8 from 64 to 4096."""
    return max(64, min(4096, round(side / 8) * 8))
