"""Parsing of one value: from a file's value to the option's type, or to a problem."""

from __future__ import annotations

import math
import re
import types
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

import cattrs

from lora_trainer.config.checks.option_checks import check_value, format_value, problem
from lora_trainer.config.param import SECRET, DeclaredOption
from lora_trainer.errors import Problem

MAX_DIGITS = 9
"""Digits of a side in pixels; for thousands of them int() raises ValueError."""
_NUMBER_AND_COMMA = re.compile(r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*[,;]+\s*")


def read_value(option: DeclaredOption, value: Any, problems: list[Problem]) -> Any:
    """The value in the option's type; problems with type or bounds are added to `problems`. None if the type is wrong."""
    try:
        parsed = converter().structure(_normalized(option, value), option.type)
    except _WrongType:
        problems.append(_type_problem(option, value))
        return None
    problems.extend(check_value(option, parsed))
    return parsed


class _WrongType(ValueError):
    """The value is not of the option's type."""


@lru_cache(maxsize=1)
def converter() -> cattrs.Converter:
    """Structures one value by its annotation and never guesses: "false" is not a bool, 2.7 not an int, true not a number."""
    structurer = cattrs.Converter(detailed_validation=False)
    structurer.register_structure_hook_func(lambda kind: get_origin(kind) in (Union, types.UnionType), _structure_union)  # type: ignore[comparison-overlap]
    structurer.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _structure_tuple)  # type: ignore[comparison-overlap]
    structurer.register_structure_hook(int, _structure_int)
    structurer.register_structure_hook(bool, _structure_bool)
    structurer.register_structure_hook(float, _structure_float)
    structurer.register_structure_hook(str, _structure_str)
    return structurer


def _structure_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongType
    return value


def _structure_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _WrongType
    return value


def _structure_float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _WrongType
    try:
        number = float(value)
    except OverflowError as error:
        raise _WrongType from error
    if not math.isfinite(number):
        raise _WrongType
    return number


def _structure_str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _WrongType
    return value


def _structure_union(value: Any, kind: Any) -> Any:
    for member in get_args(kind):
        if member is type(None):
            if value is None:
                return None
            continue
        try:
            return converter().structure(value, member)
        except _WrongType:
            continue
    raise _WrongType


def _structure_tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    members = get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise _WrongType
    if members[-1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise _WrongType
    return tuple(converter().structure(part, member) for part, member in zip(value, members, strict=True))


def number_with_comma(option: DeclaredOption, value: Any) -> float | None:
    """The number of a text like "5e-5,", as it is left by copying from a list, where the option takes numbers; else None."""
    members = get_args(option.type) or (option.type,)
    match = _NUMBER_AND_COMMA.fullmatch(value) if isinstance(value, str) and {int, float} & set(members) else None
    if match is None or option.option.kind == "size":
        return None
    text = match.group(1)
    return int(text) if re.fullmatch(r"[-+]?\d{1,18}", text) else float(text)


def _normalized(option: DeclaredOption, value: Any) -> Any:
    """The value with lenient forms normalised: "512,768", one prompt without brackets, a choice in another letter case."""
    if not isinstance(value, str):
        return value
    if (number := number_with_comma(option, value)) is not None:
        return number
    if option.option.kind == "size":
        numbers = [part.strip() for part in value.lower().replace("x", ",").split(",")]
        if all(number.isdecimal() and len(number) <= MAX_DIGITS for number in numbers) and len(numbers) in (1, 2):
            sides = [int(number) for number in numbers]
            return sides if len(sides) == 2 else sides[0]
    if get_origin(option.type) is tuple:
        return [value] if value.strip() else []
    if option.option.choices:
        choices = {choice.lower(): choice for choice in option.option.choices} | dict(option.option.also)
        return choices.get(value.lower(), value)
    return value


def _type_problem(option: DeclaredOption, value: Any) -> Problem:
    """The problem of a value with the wrong type, saying what the option takes."""
    members = get_args(option.type) or (option.type,)
    values: dict[str, Any] = {
        "value": "…" if option.option.kind == SECRET else format_value(value),
        "default": format_value(option.default),
    }
    if option.type is bool:
        template, fix = "must be true or false, not {value}.", "Write true or false, without quotes."
    elif option.option.kind == "size":
        template, fix = "must be a number of pixels, or width and height, not {value}.", "Write 512 or [512, 768]."
    elif option.option.kind == "steps":
        template, fix = 'must be a whole number of steps or a share such as "5%", not {value}.', 'Write for example 100 or "5%".'
    elif get_origin(option.type) is tuple:
        template, fix = "must be a list of texts, not {value}.", 'Write for example ["one", "two"].'
    elif float in members:
        template, fix = "must be a number, not {value}.", "Write a number without quotes."
    elif int in members:
        template, fix = "must be a whole number, not {value}.", "Write a whole number without quotes and without a point."
    else:
        template, fix = "must be text, not {value}.", 'Put it between quotes: "..."'
    return problem(option.path, template, fix, **values)
