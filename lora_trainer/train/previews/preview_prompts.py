"""Parses preview prompts in sd-scripts' syntax: `prompt --n negative --w 512 --h 768 --d 1 --l 7.5 --s 20 --ss euler_a`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.config.choices.samplers import CHOICES, find_sampler
from lora_trainer.config.prompt_files import LINE_OPTIONS, PromptRow, row_texts, rows_from_file, rows_from_lines
from lora_trainer.data.sources.text_decoding import decode_text
from lora_trainer.errors import TrainerError
from lora_trainer.files import expand_user, read_regular
from lora_trainer.messages import Message, say

NUMBER_OPTIONS = {"w": "512", "h": "512", "d": "1", "l": "7.5", "s": "20", "fs": "3"}
"""Options that take a number, each with an example."""
OPTIONS = (*NUMBER_OPTIONS, "n", "ss")
IGNORED_OPTIONS = ("g", "cn", "ctr", "rcfg")
"""sd-scripts' options for other kinds of models: accepted, without effect."""
_OPTION = re.compile(r"(?<!\s)\s+--(?=(?:[A-Za-z]{1,3}|rcfg)(?:\s|$))", re.IGNORECASE)
NETWORK_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
"""How a WebUI's prompt names a network; the trainer's own samplers take what `prompt_networks` does not find for words."""
MARK = re.compile(
    r"(?:^|\s)(--\w\S*"  # two hyphens before what is no option: --7
    r"|[\u2013\u2014]{1,2}\s?(?:[nwhdls]|ss)(?=\s)"  # dashes that an editor made of two hyphens
    r"|-(?:[whdls]|ss)(?=\s+[-+]?\d))"  # one hyphen
)
"""A word that looks like a prompt option."""
MAX_FILE_BYTES = 1 << 20
"""Size limit of prompt files."""
SEED_RANGE = 2**64
LEAST_SHIFT = 0.01


@attrs.frozen
class SampleRequest:
    """One picture to draw: sides in pixels (multiples of 8), `cfg` guidance, `steps` of the sampler.

    `max_token_length`: tokens of each text that are used: 75, 150 or 225; 0 uses all.
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
    flow_shift: float = 3.0
    """Of the timesteps of a model of rectified flow."""


@attrs.frozen
class Prompts:
    """Parsed prompts: (index in the list, request), and warnings about rows that were left out or have options without effect."""

    requests: tuple[tuple[int, SampleRequest], ...] = ()
    warnings: tuple[Message, ...] = ()


def read_prompts(lines: Sequence[str], file: str, defaults: SampleRequest) -> Prompts:
    """Parses the prompts of a list and of a prompt file ("": none). Rows with errors are left out with a warning; nothing is raised."""
    rows, warnings = list(rows_from_lines("\n".join(lines))), []
    try:
        rows += _read_file_rows(file.strip(), len(rows))
    except TrainerError as error:
        warnings += [say("{message} {fix}", message=problem.message, fix=problem.fix) for problem in error.problems]
    requests = []
    for row in rows:
        try:
            values = _parse_options(row.content)
            requests.append((row.index, _make_request(values, defaults)))
            if (note := unknown_marks_note(values.get("prompt", ""), values.get("n", ""))) is not None:
                warnings.append(say("{place}: {note}", place=row.source, note=note))
        except TrainerError as error:
            problem = error.problems[0]
            warnings.append(say("{place} is not drawn: {message} {fix}", place=row.source, message=problem.message, fix=problem.fix))
            continue
        if unused := [name for name in values if name in IGNORED_OPTIONS]:
            options = " ".join(f"--{name}" for name in unused)
            warnings.append(say("{place}: {options} has no effect on models of this kind.", place=row.source, options=options))
    return Prompts(tuple(requests), tuple(warnings))


def unknown_marks_note(*texts: str) -> Message | None:
    """Names words that look like a prompt option and are none: --7, and -w, or --w whose hyphens an editor made a dash."""
    marks = [mark for text in texts for mark in MARK.findall(text)]
    if not marks:
        return None
    template = "{marks} is no option and is read as a part of the text. Options are --n --w --h --d --l --s and --ss."
    return say(template, marks=", ".join(marks))


def parse_prompt_line(line: str, defaults: SampleRequest) -> SampleRequest:
    """The request of one line, with `defaults` for what it does not set. Sides are rounded to multiples of 8.

    Raises TrainerError for an unknown option or one without its number.
    """
    return _make_request(_parse_options(line), defaults)


def _read_file_rows(name: str, first: int) -> list[PromptRow]:
    if not name:
        return []
    path = expand_user(name)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TrainerError("{file} is too large for a prompt file.", file=name, path="sample.prompt_file", fix="Choose another file.")
        text = decode_text(read_regular(path, MAX_FILE_BYTES))
    except (OSError, ValueError) as error:
        raise TrainerError(
            "the prompt file {file} cannot be read ({reason}).",
            file=name,
            reason=getattr(error, "strerror", None) or str(error),
            path="sample.prompt_file",
            fix="Check its path.",
        ) from error
    return rows_from_file(text, name, first)


def _parse_options(content: str | Mapping[str, Any]) -> dict[str, str]:
    """Option -> its text, including "prompt". Raises TrainerError for an unknown option."""
    if isinstance(content, str):
        head, *parts = _OPTION.split(" " + content.strip())
        options = {"prompt": head.strip()}
        for part in parts:
            name, _, value = part.partition(" ")
            options[name.lower()] = value.strip()
    else:
        options = {LINE_OPTIONS.get(key, key): text for key, text in row_texts(content).items()}
    for name in options:
        if name not in (*OPTIONS, *IGNORED_OPTIONS, "prompt"):
            raise TrainerError(
                "the prompt option --{name} is not known.",
                path="sample.prompts",
                name=name,
                fix="Known are --n --w --h --d --l --s and --ss.",
            )
    return options


def _make_request(options: Mapping[str, str], defaults: SampleRequest) -> SampleRequest:
    numbers = {name: _parse_number(name, options[name]) for name in NUMBER_OPTIONS if name in options}
    sampler = find_sampler(options.get("ss") or defaults.sampler)
    if sampler is None:
        raise TrainerError(
            "the sampler {name} is not known.",
            path="sample.prompts",
            name=options["ss"],
            known=", ".join(CHOICES),
            fix="Known are {known}.",
        )
    seed = int(numbers.get("d", defaults.seed))
    return attrs.evolve(
        defaults,
        prompt=options.get("prompt", ""),
        negative=options.get("n", defaults.negative),
        width=multiple_of_8(numbers.get("w", defaults.width)),
        height=multiple_of_8(numbers.get("h", defaults.height)),
        seed=secrets.randbelow(2**32) if seed < 0 else seed % SEED_RANGE,
        cfg=float(numbers.get("l", defaults.cfg)),
        steps=max(1, min(1000, int(numbers.get("s", defaults.steps)))),
        sampler=sampler,
        flow_shift=max(LEAST_SHIFT, float(numbers.get("fs", defaults.flow_shift))),
    )


def _parse_number(name: str, text: str) -> float | int:
    """The value of a numeric option; integers keep all their digits. Raises TrainerError."""
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
            example=NUMBER_OPTIONS[name],
            fix="Write for example --{name} {example}.",
        ) from error


def multiple_of_8(side: float) -> int:
    """A side in pixels, rounded to a multiple of 8 and clamped to 64..4096."""
    return max(64, min(4096, round(side / 8) * 8))
