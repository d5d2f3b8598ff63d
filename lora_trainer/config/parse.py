"""One value at a time: from what stands in a file to what an option holds, or to the problem with it."""

from __future__ import annotations

import math
import types
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

import cattrs

from lora_trainer.config.checks.option_checks import check_value, problem, shown
from lora_trainer.config.param import SECRET, Declared
from lora_trainer.errors import Problem


def read_value(option: Declared, value: Any, problems: list[Problem]) -> Any:
    """The value as the option holds it. What is wrong with its type or bounds is added to `problems`; of a wrong type None is returned."""
    try:
        found = converter().structure(_prepared(option, value), option.type)
    except _Unfit:
        problems.append(_wrong_type(option, value))
        return None
    problems.extend(check_value(option, found))
    return found


class _Unfit(ValueError):
    """The value is not of the type."""


@lru_cache(maxsize=1)
def converter() -> cattrs.Converter:
    """Structures one value by its annotation and never guesses: "false" is no bool, 2.7 no int, true no number."""
    made = cattrs.Converter(detailed_validation=False)
    made.register_structure_hook_func(lambda kind: get_origin(kind) in (Union, types.UnionType), _as_union)  # type: ignore[comparison-overlap]
    made.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _as_tuple)  # type: ignore[comparison-overlap]
    made.register_structure_hook(int, _as_int)
    made.register_structure_hook(bool, _as_bool)
    made.register_structure_hook(float, _as_float)
    made.register_structure_hook(str, _as_str)
    return made


def _as_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit
    return value


def _as_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Unfit
    return value


def _as_float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Unfit
    try:
        number = float(value)
    except OverflowError as error:
        raise _Unfit from error
    if not math.isfinite(number):
        raise _Unfit
    return number


def _as_str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit
    return value


def _as_union(value: Any, kind: Any) -> Any:
    for member in get_args(kind):
        if member is type(None):
            if value is None:
                return None
            continue
        try:
            return converter().structure(value, member)
        except _Unfit:
            continue
    raise _Unfit


def _as_tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    members = get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise _Unfit
    if members[-1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise _Unfit
    return tuple(converter().structure(part, member) for part, member in zip(value, members, strict=True))


def _prepared(option: Declared, value: Any) -> Any:
    """The forms that users bring from elsewhere: "512,768", one prompt without brackets, a choice in other letters."""
    if not isinstance(value, str):
        return value
    if option.option.kind == "size":
        numbers = [part.strip() for part in value.lower().replace("x", ",").split(",")]
        if all(number.isdecimal() for number in numbers) and len(numbers) in (1, 2):
            sides = [int(number) for number in numbers]
            return sides if len(sides) == 2 else sides[0]
    if get_origin(option.type) is tuple:
        return [value] if value.strip() else []
    if option.option.choices:
        known = {choice.lower(): choice for choice in option.option.choices} | dict(option.option.also)
        return known.get(value.lower(), value)
    return value


def _wrong_type(option: Declared, value: Any) -> Problem:
    """What the option takes, in words."""
    wanted = get_args(option.type) or (option.type,)
    values: dict[str, Any] = {"value": "…" if option.option.kind == SECRET else shown(value), "default": shown(option.default)}
    if option.type is bool:
        template, fix = "must be true or false, not {value}.", "Write true or false, without quotes."
    elif option.option.kind == "size":
        template, fix = "must be a number of pixels, or width and height, not {value}.", "Write 512 or [512, 768]."
    elif option.option.kind == "steps":
        template, fix = 'must be a whole number of steps or a share such as "5%", not {value}.', 'Write for example 100 or "5%".'
    elif get_origin(option.type) is tuple:
        template, fix = "must be a list of texts, not {value}.", 'Write for example ["one", "two"].'
    elif float in wanted:
        template, fix = "must be a number, not {value}.", "Write a number without quotes."
    elif int in wanted:
        template, fix = "must be a whole number, not {value}.", "Write a whole number without quotes and without a point."
    else:
        template, fix = "must be text, not {value}.", 'Put it between quotes: "..."'
    return problem(option.path, template, fix, **values)
