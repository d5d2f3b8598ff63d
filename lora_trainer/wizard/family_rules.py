"""The wizard's rules that depend on the model family (no torch)."""

from __future__ import annotations

from collections.abc import Iterator

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes
from lora_trainer.config.schema import LossConfig
from lora_trainer.config.schema.loss import SNR_WEIGHTS
from lora_trainer.messages import say
from lora_trainer.models.prediction_kinds import FLOW
from lora_trainer.wizard import vram
from lora_trainer.wizard.facts import rounded
from lora_trainer.wizard.rule_context import RuleContext

WIDE_SIDE, USUAL_LONGEST, LONGEST = 1024, 1024, 2048
BUCKET_STEPS = {"sdxl": 32}
SDXL_FLOW_SHIFT = 2.5
BUCKET_STEP = 64
"""Pixels per cell at the U-Net's coarsest level: sides that are not multiples are padded inside the U-Net."""


def buckets(context: RuleContext) -> Iterator[Change]:
    """Buckets wide enough for a large training size, in steps that the U-Net can downsample evenly."""
    data, (width, height) = context.config.data, effective.resolution(context.config)
    if not data.enable_bucket or context.model is None:
        return
    if min(width, height) >= WIDE_SIDE and data.max_bucket_reso <= USUAL_LONGEST:
        template = "With sides of at most {now} pixels only a square has the area of {width} x {height}: others would be trained smaller."
        yield Change("data.max_bucket_reso", LONGEST, say(template, now=data.max_bucket_reso, width=width, height=height))
    step = BUCKET_STEPS.get(context.family, BUCKET_STEP)
    if data.bucket_reso_steps % step and step <= min(width, height):
        because = say("The U-Net halves a picture until a cell stands for {step} pixels: sides are multiples of that.", step=step)
        yield Change("data.bucket_reso_steps", step, because)


def encoded_captions(context: RuleContext) -> Iterator[Change]:
    """Caches captions where frozen text encoders take much GPU memory."""
    if (
        context.family != "sdxl"
        or context.machine.on_cpu
        or effective.trains_text_encoder(context.config)
        or effective.caches_captions(context.config)
    ):
        return
    if context.machine.lent:
        return
    freed = context.model.text_parameters * 2 / 2**30 if context.model else 0.0
    template = "Captions are encoded before each epoch: the text encoders' {gb} GB are free in its steps."
    yield Change("data.cache_text_encoder_outputs", True, say(template, gb=rounded(freed)))


def eight_bit(context: RuleContext) -> Iterator[Change]:
    """An fp8 U-Net where the model fits only with it."""
    memory = context.config.memory
    if context.family != "sdxl" or context.machine.on_cpu or not context.machine.free_mb or effective.uses_of_unet_weights(context.config):
        return
    full = apply_changes(context.config, [Change("memory.fp8_base_unet", False, say(""))])
    eight = apply_changes(context.config, [Change("memory.fp8_base_unet", True, say(""))])
    full_mb, eight_mb = (vram.needed_mb(config, context.model, context.machine) for config in (full, eight))
    helps = eight_mb < full_mb and full_mb > context.machine.free_mb
    free = rounded(context.machine.free_mb / 1024)
    template = (
        "{needed} GB would be needed and {free} GB are free (estimate): with the U-Net in 8 bits {less} GB are. Not tried on a GPU yet."
    )
    if not helps:
        template = "{needed} GB of {free} GB are needed (estimate): 8 bits would only cost precision."
    if helps or memory.fp8_base_unet:
        values = {"needed": rounded(full_mb / 1024), "free": free, "less": rounded(eight_mb / 1024)}
        yield Change("memory.fp8_base_unet", helps, say(template, **values))


def noise(context: RuleContext) -> Iterator[Change]:
    """No noise offset for models with zero terminal SNR; nothing that is made for other objectives for those of rectified flow."""
    if context.model is not None and context.model.prediction == FLOW:
        yield from _flow(context.config.loss, context.family)
    if context.model is not None and context.model.zero_terminal_snr and context.config.loss.noise_offset:
        template = "The model is trained down to pure noise (zero terminal SNR): it knows dark and bright without an offset of {offset}."
        yield Change("loss.noise_offset", 0.0, say(template, offset=context.config.loss.noise_offset))


def _flow(loss: LossConfig, family: str) -> Iterator[Change]:
    for name in ("noise_offset", "multires_noise_iterations"):
        if value := getattr(loss, name):
            because = say("Rectified flow starts from plain noise and knows dark and bright by itself, without {value}.", value=value)
            yield Change(f"loss.{name}", type(value)(0), because)
    for name in SNR_WEIGHTS:
        if value := getattr(loss, name):
            because = say("{value} is made for models that predict the noise or v; this one is rectified flow.", value=value)
            yield Change(f"loss.{name}", type(value)(0), because)
    if family == "sdxl" and loss.discrete_flow_shift == 1.0:
        because = say("SDXL models of rectified flow are trained with a shift of 2 to 3.5: large pictures need more noise.")
        yield Change("loss.discrete_flow_shift", SDXL_FLOW_SHIFT, because)
