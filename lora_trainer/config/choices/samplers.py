"""Names of samplers: ours, sd-scripts', and the WebUI's (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class SamplerSpec:
    """`label` for the UI; `webui_names`: the WebUI's samplers that converge to the same picture, best first; `aliases`: other names."""

    name: str
    label: str
    webui_names: tuple[str, ...]
    aliases: tuple[str, ...] = ()


SAMPLER_SPECS = (
    SamplerSpec("ddim", "DDIM", ("DDIM",)),
    SamplerSpec("ddpm", "DDPM", ("DDPM", "Euler a")),
    SamplerSpec("pndm", "PLMS (pndm)", ("PLMS", "LMS", "DDIM")),
    SamplerSpec("lms", "LMS", ("LMS", "Euler"), ("k_lms",)),
    SamplerSpec("heun", "Heun", ("Heun", "Euler"), ("k_heun",)),
    SamplerSpec("euler", "Euler", ("Euler",), ("k_euler",)),
    SamplerSpec("euler_a", "Euler a", ("Euler a",), ("k_euler_a",)),
    SamplerSpec("dpmsolver", "DPM-Solver 2M", ("DPM++ 2M", "DPM++ 2M Karras", "Euler")),
    SamplerSpec("dpmsolver++", "DPM++ 2M", ("DPM++ 2M", "DPM++ 2M Karras", "Euler")),
    SamplerSpec("dpmsingle", "DPM++ 2S", ("DPM++ 2M", "DPM++ 2M Karras", "Euler")),
    SamplerSpec("dpm_2", "DPM2", ("DPM2", "DPM2 Karras", "Heun", "Euler"), ("k_dpm_2",)),
    SamplerSpec("dpm_2_a", "DPM2 a", ("DPM2 a", "DPM2 a Karras", "Euler a"), ("k_dpm_2_a",)),
)
"""A WebUI has neither the older DPM-Solver nor 2S without added noise: DPM++ 2M converges to the same picture with enough steps."""

FLOW_SAMPLERS = ("euler", "ddim", "heun")
"""Those that draw with models of rectified flow; without added noise DDIM takes the same steps as Euler there."""

CHOICES: Mapping[str, str] = {sampler.name: sampler.label for sampler in SAMPLER_SPECS}
ALIASES: Mapping[str, str] = {other: sampler.name for sampler in SAMPLER_SPECS for other in sampler.aliases}
_BY_NAME = {sampler.name: sampler for sampler in SAMPLER_SPECS}


def find_sampler(text: str) -> str | None:
    """Our name of a sampler given in any known spelling ("K_Euler_A", "DPM++ 2M"), or None."""
    lowered = text.strip().lower()
    if lowered in _BY_NAME:
        return lowered
    if lowered in ALIASES:
        return ALIASES[lowered]
    labels = [(sampler.label, sampler.name) for sampler in SAMPLER_SPECS] + [
        (sampler.webui_names[0], sampler.name) for sampler in SAMPLER_SPECS
    ]
    return next((name for label, name in labels if label.lower() == lowered), None)


def webui_names(name: str) -> tuple[str, ...]:
    """The WebUI's names for our sampler, best first; a name that is not ours is returned as it is."""
    sampler = _BY_NAME.get(name)
    return sampler.webui_names if sampler else (name,)
