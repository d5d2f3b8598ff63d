"""The wizard's rules: each looks at the config as advised so far and yields changes with reasons (no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.choices.optimizers import optimizer_named
from lora_trainer.messages import say
from lora_trainer.train.planning.network_plan import planned_network
from lora_trainer.wizard import repeats, vram
from lora_trainer.wizard.facts import GB, whole
from lora_trainer.wizard.family_rules import buckets, eight_bit, encoded_captions, noise
from lora_trainer.wizard.rule_context import RuleContext

PLENTY, HELD_SHARE, MOST_HELD = 40, 0.1, 20
MIN_LR_RATIO, WARMUP_PERCENT, MOST_WARMUP = 0.1, 5, 100
CONV_RANK, LOHA_RANK = 8, 8
WITHOUT_RANK = ("full", "oft")
"""Kinds whose rank is none, or the size of a block."""
FULL_RATE = 0.1
MARKS, FEW_MARKS, MANY_MARKS = 10, 6, 14
LARGE_SIDE, LARGE_CARD_GB = 768, 12


# --- pictures ------------------------------------------------------------------------------------------------------------------------


def clip_skip(now: RuleContext) -> Iterator[Change]:
    """As the WebUI reads the model; what a family does not read stays as it was."""
    if now.clip_skip is not None and now.family == "sd1":
        because = say("The WebUI reads the loaded model with clip skip {clip_skip}.", clip_skip=now.clip_skip)
        yield Change("model.clip_skip", now.clip_skip, because)


def resolution(now: RuleContext) -> Iterator[Change]:
    """The model's own size; larger where memory and pictures allow. A size that is no square was chosen by somebody: it stays."""
    width, height = effective.resolution(now.config)
    native = now.model.native_size if now.model else 512
    size, because = native, say("The model was made for {native} x {native} pixels.", native=native)
    gpu, side, known = not now.machine.on_cpu, now.pictures.smallest_side, {"gb": now.machine.gigabytes, "native": native}
    if gpu and native == 512 and now.machine.total_mb / GB + vram.SLACK_GB >= LARGE_CARD_GB and side >= LARGE_SIDE:
        size = LARGE_SIDE
        template = "{gb} GB of VRAM and pictures of at least {side} pixels a side: {size} keeps more of their detail than {native}."
        because = say(template, side=side, size=size, **known)
    elif gpu and native > 512 and not vram.rung(now.machine, now.family).large_batch:
        size, because = vram.ladder(now.family).small, say("{gb} GB of VRAM are too little for the model's own {native} pixels.", **known)
    if width == height and now.config.data.bucket_reso_steps <= size:
        yield Change("data.resolution", size, because)


def held_back(now: RuleContext) -> Iterator[Change]:
    """A tenth of many pictures for validation, unless it is arranged for."""
    count = now.pictures.images
    if count < PLENTY or now.pictures.held or now.config.validate.fraction:
        return
    fraction = min(HELD_SHARE, round(MOST_HELD / count, 4))
    template = "{count} pictures are plenty: the loss of {held} that are held back tells which epoch is best."
    yield Change("validate.fraction", fraction, say(template, count=count, held=math.floor(count * fraction + 0.5)))


# --- memory --------------------------------------------------------------------------------------------------------------------------


def network(now: RuleContext) -> Iterator[Change]:
    """LoRA; for a style on Stable Diffusion 1 and 2 its convolutions too, which draw strokes and textures."""
    textured = now.subject.convolutions and (now.model is None or now.model.family != "sdxl")
    wanted = "locon" if textured else "lora"
    asked = apply_changes(now.config, [Change("network.type", wanted, say(""))])
    values = {"subject": now.subject.label, "layers": sum(count for _, count in planned_network(asked, now.model).layers)}
    template = "A LoRA on {layers} layers holds all that is needed for {subject}, and every host reads it."
    if textured:
        template = "Strokes and textures of {subject} are drawn by convolutions: they learn too, {layers} layers in all."
    yield Change("network.type", wanted, say(template, **values))
    if textured and (now.config.network.type == "locon" or not now.is_typed("network.type")):
        small = say("Rank {rank} suffices for convolutions, and keeps the file small.", rank=CONV_RANK)
        yield Change("network.conv_dim", CONV_RANK, small)
        yield Change("network.conv_alpha", CONV_RANK / 2, say("Half of rank {rank}, as for the other layers.", rank=CONV_RANK))


def rank(now: RuleContext) -> Iterator[Change]:
    """What the subject asks for, and the memory allows; less where a product of two pairs makes a rank of its own."""
    kind = NETWORK_TYPES[now.config.network.type].kind
    if kind in WITHOUT_RANK:
        return
    subject = min(now.subject.rank, LOHA_RANK) if kind == "loha" else now.subject.rank
    wanted = min(subject, now.limits.rank)
    values = {"rank": wanted, "subject": now.subject.label, "gb": now.machine.gigabytes}
    asked = apply_changes(now.config, [Change("network.dim", wanted, say(""))])
    template = "Rank {rank} holds {subject} in a file of about {mb} MB; a higher one learns the pictures by heart sooner."
    if wanted < subject:
        template = "{gb} GB of VRAM leave room for rank {rank}."
    elif kind == "loha":
        template = "Two pairs of rank {rank} hold as much as one of rank {product}, in a file of about {mb} MB."
        values["product"] = wanted * wanted
    yield Change("network.dim", wanted, say(template, mb=whole(planned_network(asked, now.model).file_bytes / 2**20), **values))


def alpha(now: RuleContext) -> Iterator[Change]:
    """Half the rank."""
    if NETWORK_TYPES[now.config.network.type].kind in WITHOUT_RANK:
        return
    dim = now.config.network.dim
    yield Change("network.alpha", dim / 2, say("Half of rank {rank}: the learning rates suggested here belong to that.", rank=dim))


def batch_size(now: RuleContext) -> Iterator[Change]:
    """The least of what memory, number of pictures and largest group allow."""
    pictures, limits = now.course.pictures, now.limits
    by_count = max(1, pictures // 5) if pictures <= 50 else math.ceil(pictures * 0.1)
    largest = max(group.pictures for group in now.groups)
    batch = min(limits.batch, by_count, largest)
    while batch > 1 and not vram.fits(now.needed_mb(not now.machine.on_cpu, batch), now.machine):
        batch -= 1
    width, height = effective.resolution(now.config)
    values = {"batch": batch, "count": pictures, "gb": now.machine.gigabytes, "width": width, "height": height}
    template = "{gb} GB of VRAM leave room for {batch} pictures of {width} x {height} in a step."
    if batch == by_count:
        template = "A step of {batch} suits {count} pictures: a larger one would leave too few steps to learn in."
    elif batch == largest:
        template = "The largest group of one size holds {batch} pictures."
    elif now.machine.on_cpu:
        template = "Without a GPU more than {batch} pictures in a step save no time, and training is slow ({gb} GB of RAM)."
    yield Change("data.batch_size", batch, say(template, **values))


def checkpointing(now: RuleContext) -> Iterator[Change]:
    """Recomputing where the ladder or the estimate asks for it."""
    without, with_it = now.needed_mb(False), now.needed_mb(True)
    needed = now.limits.checkpointing or not vram.fits(without, now.machine)
    template = "With {gb} GB each step recomputes: about {saved} MB less (estimate), a fifth slower, the same result."
    if not needed:
        template = "A step needs about {needed} of {free} GB (estimate): recomputing would only cost time."
    free, saved = whole(now.machine.free_mb / GB), round(without - with_it)
    because = say(template, gb=now.machine.gigabytes, free=free, saved=saved, needed=whole(without / GB))
    yield Change("memory.gradient_checkpointing", needed, because)


def accumulation(now: RuleContext) -> Iterator[Change]:
    """Two pictures make a step where one at a time fits."""
    batch, count = now.config.data.batch_size, now.course.pictures
    together = 2 if batch == 1 and count >= 2 else 1
    template = "Pictures one at a time are unsteady: {together} make a step, without more memory."
    if together == 1:
        template = "A step of {batch} is steady enough: none need be collected." if batch > 1 else "There is only {count} picture."
    yield Change("steps.gradient_accumulation_steps", together, say(template, count=count, together=together, batch=batch))


# --- learning ------------------------------------------------------------------------------------------------------------------------


def unet_rate(now: RuleContext) -> Iterator[Change]:
    """The optimizer's usual rate, more for larger steps (by their square root, at most double), less for a style."""
    together, less, known = now.course.together, now.subject.rate, optimizer_named(now.config.optimizer.type)
    if known.finds:
        yield Change("optimizer.unet_lr", 1.0, say("{name} finds the size of its steps by itself: 1 leaves it to that.", name=known.name))
        return
    whole_weights = NETWORK_TYPES[now.config.network.type].kind == "full"
    usual, factor = known.family.hint * (FULL_RATE if whole_weights else 1.0), min(2.0, math.sqrt(together))
    rate = _two_digits(usual * factor * less)
    template = "{usual} is usual with alpha = rank / 2; times {factor} for {together} pictures in a step."
    if whole_weights:
        template = "{usual} is usual where whole weights learn; times {factor} for {together} pictures in a step."
    elif less != 1:
        template = "{usual} is usual with alpha = rank / 2; times {factor} for {together} pictures in a step, times {less} for {subject}."
    values = {"usual": _plain(usual), "factor": whole(factor, 2), "together": together, "less": less, "subject": now.subject.label}
    yield Change("optimizer.unet_lr", rate, say(template, **values))


def text_encoder_rate(now: RuleContext) -> Iterator[Change]:
    """Half of the U-Net's; 0 where the memory is too small for both, and for SDXL."""
    if now.family == "sdxl" and effective.trains_unet(now.config):
        template = "SDXL: the U-Net alone learns subjects and styles, and without its 2 text encoders a step needs less memory."
        yield Change("optimizer.text_encoder_lr", 0.0, say(template))
        return
    if not now.limits.text_encoder and effective.trains_unet(now.config):
        because = say("{gb} GB of VRAM: only the U-Net is trained, which is where most is learned.", gb=now.machine.gigabytes)
        yield Change("optimizer.text_encoder_lr", 0.0, because)
        return
    known = optimizer_named(now.config.optimizer.type)
    if known.finds:
        because = say("{name} finds one size of steps for all parts: the same 1 as the U-Net's.", name=known.name)
        yield Change("optimizer.text_encoder_lr", 1.0, because)
        return
    unet = effective.unet_lr(now.config) or known.family.hint
    because = say("Half of the U-Net's {rate}: at a higher one the text encoder unlearns other words.", rate=_plain(unet))
    yield Change("optimizer.text_encoder_lr", _two_digits(unet / 2), because)


def exposures(now: RuleContext) -> Iterator[Change]:
    """Repeats and epochs. Where the folders' names say the repeats, or the user typed one of the two, the other follows."""
    config, folder = now.config, now.pictures.folder_repeats
    own_steps = "steps.max_train_steps" in now.typed and config.steps.max_train_steps
    own_repeats = "data.num_repeats" in now.typed or own_steps
    own_epochs = "steps.max_train_epochs" in now.typed and config.steps.max_train_epochs
    found = repeats.choose(
        now.subject,
        now.course,
        repeats=config.data.num_repeats if own_repeats and not own_epochs else None,
        epochs=config.steps.max_train_epochs if own_epochs and not own_repeats else None,
        folder=folder,
    )
    per_picture = whole(now.course.folder_repeats) if folder else found.repeats
    template = "{repeats} repeats (said by the folder's name) x {epochs} epochs" if folder else "{repeats} repeats x {epochs} epochs"
    values: dict[str, Any] = {
        "product": say(template, repeats=per_picture, epochs=found.epochs),
        "seen": whole(found.seen),
        "count": now.course.pictures,
        "steps": now.course.steps(found.repeats, found.epochs),
        "subject": now.subject.label,
        "few": repeats.FEWEST_STEPS,
        "many": now.course.most,
    }
    because = {
        "": "{product} show each of {count} pictures {seen} times, which is right for {subject}: {steps} steps.",
        "few": "{product} show each of {count} pictures {seen} times: in fewer than {few} steps too little is learned.",
        "many": "{product} show each of {count} pictures {seen} times: more than {many} steps gain little.",
    }[found.bound]
    if found.repeats is not None:
        yield Change("data.num_repeats", found.repeats, say(because, **values))
    yield Change("steps.max_train_epochs", found.epochs, say(because, **values))


# --- the course of the run -----------------------------------------------------------------------------------------------------------


def schedule(now: RuleContext) -> Iterator[Change]:
    """Warm-up, then a cosine that ends at a tenth; constant where the optimizer makes its own course."""
    total, percent, known = now.total_steps, round(MIN_LR_RATIO * 100), optimizer_named(now.config.optimizer.type)
    if known.free or known.package == "dadaptation":
        yield Change("schedule.type", "constant", say("{name} makes its own course of the rate.", name=known.name))
        yield Change("schedule.warmup_steps", 0, say("{name} makes its own course of the rate.", name=known.name))
        return
    yield Change("schedule.type", "cosine", say("Large steps first, small ones towards the end of {steps} steps.", steps=total))
    template = "The last steps still learn at {percent} % of the rate: measured, the subject comes out surer than with an end at 0."
    yield Change("schedule.min_lr_ratio", MIN_LR_RATIO, say(template, percent=percent))
    warmup: int | str = f"{WARMUP_PERCENT}%" if total * WARMUP_PERCENT <= MOST_WARMUP * 100 else MOST_WARMUP
    wanted = min(MOST_WARMUP, int(WARMUP_PERCENT / 100 * total + 0.5))
    if effective.warmup_steps(now.config, total) != wanted:
        template = "The rate rises over the first {warmup} of {steps} steps, while the optimizer learns how strong gradients are."
        yield Change("schedule.warmup_steps", warmup, say(template, warmup=wanted, steps=total))


def intervals(now: RuleContext) -> Iterator[Change]:
    """About ten saves, previews and validations, where it would be far fewer or more: by epochs, whose numbers the grid reads."""
    total, epochs = now.total_steps, math.ceil(now.total_steps / now.steps_per_epoch)
    wanted = {
        "save": True,
        "sample": bool(effective.prompts(now.config)),
        "validate": bool(now.pictures.held or now.config.validate.fraction),
    }
    every = max(1, round(epochs / MARKS))
    template = "Every {every} of {length} epochs makes {marks}: enough to see where it is best."
    because = say(template, every=every, length=epochs, marks=epochs // every)
    for name in (name for name, used in wanted.items() if used):
        section = getattr(now.config, name)
        by_epochs, by_steps = effective.interval_epochs(section), effective.interval_steps(section)
        marks = (epochs // by_epochs if by_epochs else 0) + (total // by_steps if by_steps else 0)
        if FEW_MARKS <= marks <= MANY_MARKS:
            continue
        # where an epoch is long, files between their ends too; else none by steps
        between = round(total / MARKS) if name == "save" and epochs < FEW_MARKS and total >= repeats.FEWEST_STEPS else 0
        if by_epochs != every or (between and section.every_n_epochs is None):
            yield Change(f"{name}.every_n_epochs", every, because)
        if by_steps != between:
            long = "An epoch is long: every {every} of {length} steps makes {marks} files more to choose from."
            reason = say(long, every=between, length=total, marks=total // between) if between else because
            yield Change(f"{name}.every_n_steps", between, reason)


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")


def _plain(number: float) -> str:
    """0.00014, not 1.4e-04."""
    return f"{number:.8f}".rstrip("0").rstrip(".")


PICTURE_RULES = (clip_skip, resolution, buckets, held_back)
TRAINING_RULES = (
    network,
    rank,
    alpha,
    batch_size,
    checkpointing,
    accumulation,
    unet_rate,
    text_encoder_rate,
    encoded_captions,
    eight_bit,
    noise,
    exposures,
    schedule,
    intervals,
)
