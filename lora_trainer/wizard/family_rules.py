"""The wizard's rules for what one family of models wants and another does not (no torch)."""

from __future__ import annotations

from collections.abc import Iterator

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes
from lora_trainer.messages import say
from lora_trainer.wizard import vram
from lora_trainer.wizard.facts import whole
from lora_trainer.wizard.rule_context import RuleContext

WIDE_SIDE, USUAL_LONGEST, LONGEST = 1024, 1024, 2048
BUCKET_STEPS = {"sdxl": 32}
BUCKET_STEP = 64
"""Pixels of the U-Net's coarsest cell: a picture whose sides are no multiples of them is filled up inside."""


def buckets(now: RuleContext) -> Iterator[Change]:
    """Groups that are as wide as a large training size asks for, in steps that the model's U-Net can halve."""
    data, (width, height) = now.config.data, effective.resolution(now.config)
    if not data.enable_bucket or now.model is None:
        return
    if min(width, height) >= WIDE_SIDE and data.max_bucket_reso <= USUAL_LONGEST:
        template = "With sides of at most {now} pixels only a square has the area of {width} x {height}: others would be trained smaller."
        yield Change("data.max_bucket_reso", LONGEST, say(template, now=data.max_bucket_reso, width=width, height=height))
    step = BUCKET_STEPS.get(now.family, BUCKET_STEP)
    if data.bucket_reso_steps % step and step <= min(width, height):
        because = say("The U-Net halves a picture until a cell stands for {step} pixels: sides are multiples of that.", step=step)
        yield Change("data.bucket_reso_steps", step, because)


def encoded_captions(now: RuleContext) -> Iterator[Change]:
    """Encoders that do not learn leave a GPU while the U-Net does, where that is much."""
    if now.family != "sdxl" or now.machine.on_cpu or effective.trains_text_encoder(now.config) or effective.keeps_captions(now.config):
        return
    if now.machine.lent and not now.config.memory.own_process:
        return
    freed = now.model.text_parameters * 2 / 2**30 if now.model else 0.0
    template = "Captions are encoded before each epoch: the text encoders' {gb} GB are free in its steps."
    yield Change("data.cache_text_encoder_outputs", True, say(template, gb=whole(freed)))


def eight_bit(now: RuleContext) -> Iterator[Change]:
    """The U-Net in eight bits where it does not fit otherwise, and does so."""
    memory = now.config.memory
    if now.family != "sdxl" or now.machine.on_cpu or not now.machine.free_mb:
        return
    plain = apply_changes(now.config, [Change("memory.fp8_base_unet", False, say(""))])
    small = apply_changes(now.config, [Change("memory.fp8_base_unet", True, say(""))])
    without, with_it = (vram.needed_mb(config, now.model, now.machine) for config in (plain, small))
    wanted = with_it < without and without > now.machine.free_mb
    free = whole(now.machine.free_mb / 1024)
    template = (
        "{needed} GB would be needed and {free} GB are free (estimate): with the U-Net in 8 bits {less} GB are. Not tried on a GPU yet."
    )
    if not wanted:
        template = "{needed} GB of {free} GB are needed (estimate): 8 bits would only cost precision."
    if wanted or memory.fp8_base_unet:
        values = {"needed": whole(without / 1024), "free": free, "less": whole(with_it / 1024)}
        yield Change("memory.fp8_base_unet", wanted, say(template, **values))


def noise(now: RuleContext) -> Iterator[Change]:
    """No offset noise where the model was trained down to pure noise."""
    if now.model is not None and now.model.zero_terminal_snr and now.config.loss.noise_offset:
        template = "The model is trained down to pure noise (zero terminal SNR): it knows dark and bright without an offset of {offset}."
        yield Change("loss.noise_offset", 0.0, say(template, offset=now.config.loss.noise_offset))
