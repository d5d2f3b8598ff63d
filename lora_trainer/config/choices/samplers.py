"""Names of samplers: ours, those that sd-scripts also takes, and what a WebUI calls them (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class SamplerName:
    """`label` for people; `webui`: samplers there that come to the same picture, the best first; `also`: other spellings."""

    name: str
    label: str
    webui: tuple[str, ...]
    also: tuple[str, ...] = ()


NAMES = (
    SamplerName("ddim", "DDIM", ("DDIM",)),
    SamplerName("ddpm", "DDPM", ("DDPM", "Euler a")),
    SamplerName("pndm", "PLMS (pndm)", ("PLMS", "LMS", "DDIM")),
    SamplerName("lms", "LMS", ("LMS", "Euler"), ("k_lms",)),
    SamplerName("heun", "Heun", ("Heun", "Euler"), ("k_heun",)),
    SamplerName("euler", "Euler", ("Euler",), ("k_euler",)),
    SamplerName("euler_a", "Euler a", ("Euler a",), ("k_euler_a",)),
    SamplerName("dpmsolver", "DPM-Solver 2M", ("DPM++ 2M", "DPM++ 2M Karras", "Euler")),
    SamplerName("dpmsolver++", "DPM++ 2M", ("DPM++ 2M", "DPM++ 2M Karras", "Euler")),
    SamplerName("dpmsingle", "DPM++ 2S", ("DPM++ 2M", "DPM++ 2M Karras", "Euler")),
    SamplerName("dpm_2", "DPM2", ("DPM2", "DPM2 Karras", "Heun", "Euler"), ("k_dpm_2",)),
    SamplerName("dpm_2_a", "DPM2 a", ("DPM2 a", "DPM2 a Karras", "Euler a"), ("k_dpm_2_a",)),
)
"""A WebUI has neither the older DPM-Solver nor 2S without added noise: DPM++ 2M comes to the same picture with enough steps."""

CHOICES: Mapping[str, str] = {sampler.name: sampler.label for sampler in NAMES}
ALSO: Mapping[str, str] = {other: sampler.name for sampler in NAMES for other in sampler.also}
_BY_NAME = {sampler.name: sampler for sampler in NAMES}


def known_sampler(text: str) -> str | None:
    """Our name for what somebody wrote ("K_Euler_A", "DPM++ 2M"), or None."""
    low = text.strip().lower()
    if low in _BY_NAME:
        return low
    if low in ALSO:
        return ALSO[low]
    written = [(sampler.label, sampler.name) for sampler in NAMES] + [(sampler.webui[0], sampler.name) for sampler in NAMES]
    return next((name for words, name in written if words.lower() == low), None)


def webui_names(name: str) -> tuple[str, ...]:
    """What a WebUI may call our sampler, the best first; a name that is not ours stands for itself."""
    found = _BY_NAME.get(name)
    return found.webui if found else (name,)
