"""A preview's prompt line in sd-scripts' words: `prompt --n negative --w 512 --h 768 --d 1 --l 7.5 --s 20`."""

from __future__ import annotations

import re

import attrs

from lora_trainer.errors import TrainerError

OPTIONS = {"n": str, "w": int, "h": int, "d": int, "l": float, "s": int, "ss": str}
SAMPLERS = ("ddim", "euler", "euler_a")


@attrs.frozen
class SampleRequest:
    """One picture to draw: sides in pixels (multiples of 8), `cfg` guidance, `steps` of the sampler, tokens that are read."""

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


def parse_prompt_line(line: str, defaults: SampleRequest) -> SampleRequest:
    """The request of one line; what the line does not say is as in `defaults`. Sides are rounded to multiples of 8.

    Raises TrainerError for an option that is not known or has no number.
    """
    head, *parts = re.split(r"\s+--(?=[A-Za-z]{1,3}\b)", " " + line.strip())
    found: dict[str, object] = {}
    for part in parts:
        name, _, value = part.partition(" ")
        if name not in OPTIONS:
            raise TrainerError(
                "the prompt option --{name} is not known.",
                path="sample.prompts",
                name=name,
                fix="Known are --n --w --h --d --l --s and --ss.",
            )
        try:
            found[name] = OPTIONS[name](value.strip())
        except ValueError as error:
            raise TrainerError(
                "the prompt option --{name} needs a number, not {value}.",
                path="sample.prompts",
                name=name,
                value=value,
                fix="Write for example --w 512.",
            ) from error
    request = attrs.evolve(
        defaults,
        prompt=head.strip(),
        negative=str(found.get("n", defaults.negative)),
        width=_multiple_of_8(found.get("w", defaults.width)),
        height=_multiple_of_8(found.get("h", defaults.height)),
        seed=int(str(found.get("d", defaults.seed))),
        cfg=float(str(found.get("l", defaults.cfg))),
        steps=max(1, min(1000, int(str(found.get("s", defaults.steps))))),
        sampler=str(found.get("ss", defaults.sampler)),
    )
    if request.sampler not in SAMPLERS:
        raise TrainerError(
            "the sampler {name} is not known.", path="sample.prompts", name=request.sampler, fix="Known are ddim, euler and euler_a."
        )
    return request


def _multiple_of_8(side: object) -> int:
    return max(64, min(4096, round(float(str(side)) / 8) * 8))
