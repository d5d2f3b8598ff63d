"""The wizard's rules: each reads the config with all changes so far and yields further changes with reasons (no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES
from lora_trainer.config.choices.optimizers import optimizer_spec
from lora_trainer.messages import say
from lora_trainer.train.planning.network_plan import planned_network
from lora_trainer.wizard import repeats, vram
from lora_trainer.wizard.facts import GB, rounded
from lora_trainer.wizard.family_rules import buckets, eight_bit, encoded_captions, noise
from lora_trainer.wizard.rule_context import RuleContext

MIN_FOR_VALIDATION, MIN_FOR_TWO, MIN_FOR_SHARE = 12, 20, 40
VALIDATION_SHARE, MAX_VALIDATION = 0.1, 20
MIN_LR_RATIO, WARMUP_PERCENT, MAX_WARMUP_STEPS = 0.1, 5, 100
CONV_RANK, LOHA_RANK = 8, 8
FULL_RATE = 0.1
MARKS, FEW_MARKS, MANY_MARKS = 10, 6, 14
LARGE_SIDE, LARGE_CARD_GB = 768, 12


# --- pictures ------------------------------------------------------------------------------------------------------------------------


def clip_skip(context: RuleContext) -> Iterator[Change]:
    """The WebUI's own clip skip; families that ignore clip skip keep the config's value."""
    if context.clip_skip is not None and context.family == "sd1":
        because = say("The WebUI reads the loaded model with clip skip {clip_skip}.", clip_skip=context.clip_skip)
        yield Change("model.clip_skip", context.clip_skip, because)


def resolution(context: RuleContext) -> Iterator[Change]:
    """The model's own size; larger where memory and pictures allow. A size that is not square was chosen on purpose and stays."""
    width, height = effective.resolution(context.config)
    native = context.model.native_size if context.model else 512
    size, because = native, say("The model was made for {native} x {native} pixels.", native=native)
    gpu, side, values = not context.machine.on_cpu, context.dataset.smallest_side, {"gb": context.machine.gigabytes, "native": native}
    if gpu and native == 512 and context.machine.total_mb / GB + vram.SLACK_GB >= LARGE_CARD_GB and side >= LARGE_SIDE:
        size = LARGE_SIDE
        template = "{gb} GB of VRAM and pictures of at least {side} pixels a side: {size} keeps more of their detail than {native}."
        because = say(template, side=side, size=size, **values)
    elif gpu and native > 512 and not vram.memory_tier(context.machine, context.family).large_batch:
        size, because = (
            vram.memory_tiers(context.family).small,
            say("{gb} GB of VRAM are too little for the model's own {native} pixels.", **values),
        )
    if width == height and context.config.data.bucket_reso_steps <= size:
        yield Change("data.resolution", size, because)


def validation_split(context: RuleContext) -> Iterator[Change]:
    """One or two pictures for validation, a tenth of a large data set, unless validation is set up already."""
    count = context.dataset.images
    if count < MIN_FOR_VALIDATION or context.dataset.has_validation(context.config):
        return
    few = 1 if count < MIN_FOR_TWO else 2
    held = few if count < MIN_FOR_SHARE else min(MAX_VALIDATION, math.floor(count * VALIDATION_SHARE + 0.5))
    template = "{count} pictures are plenty: the loss of {held} that are held back tells which epoch is best."
    if count < MIN_FOR_SHARE:
        template = (
            "{held} of {count} pictures held back: their loss rises when the network learns the others by heart, "
            "while the training loss still falls."
        )
    yield Change("validate.fraction", round(held / count, 4), say(template, count=count, held=held))


# --- memory --------------------------------------------------------------------------------------------------------------------------


def network(context: RuleContext) -> Iterator[Change]:
    """LoRA; for a style on Stable Diffusion 1 and 2 also on the convolutions, which draw strokes and textures."""
    textured = context.subject.convolutions and (context.model is None or context.model.family != "sdxl")
    network_type = "locon" if textured else "lora"
    changed = apply_changes(context.config, [Change("network.type", network_type, say(""))])
    values = {"subject": context.subject.label, "layers": sum(count for _, count in planned_network(changed, context.model).layers)}
    template = "A LoRA on {layers} layers holds all that is needed for {subject}, and every host reads it."
    if textured:
        template = "Strokes and textures of {subject} are drawn by convolutions: they learn too, {layers} layers in all."
    yield Change("network.type", network_type, say(template, **values))
    if textured and (context.config.network.type == "locon" or not context.is_typed("network.type")):
        because = say("Rank {rank} suffices for convolutions, and keeps the file small.", rank=CONV_RANK)
        yield Change("network.conv_dim", CONV_RANK, because)
        yield Change("network.conv_alpha", CONV_RANK / 2, say("Half of rank {rank}, as for the other layers.", rank=CONV_RANK))


def rank(context: RuleContext) -> Iterator[Change]:
    """The rank that suits the subject and fits the memory; lower for LoHa, whose effective rank is its square."""
    kind = NETWORK_TYPES[context.config.network.type].kind
    if not NETWORK_KINDS[kind].is_low_rank:
        return
    by_subject = min(context.subject.rank, LOHA_RANK) if kind == "loha" else context.subject.rank
    dim = min(by_subject, context.limits.rank)
    values = {"rank": dim, "subject": context.subject.label, "gb": context.machine.gigabytes}
    changed = apply_changes(context.config, [Change("network.dim", dim, say(""))])
    template = "Rank {rank} holds {subject} in a file of about {mb} MB; a higher one overfits sooner."
    if dim < by_subject:
        template = "{gb} GB of VRAM leave room for rank {rank}."
    elif kind == "loha":
        template = "Two pairs of rank {rank} hold as much as one of rank {product}, in a file of about {mb} MB."
        values["product"] = dim * dim
    yield Change("network.dim", dim, say(template, mb=rounded(planned_network(changed, context.model).file_bytes / 2**20), **values))


def alpha(context: RuleContext) -> Iterator[Change]:
    """Half the rank."""
    if not NETWORK_KINDS[NETWORK_TYPES[context.config.network.type].kind].is_low_rank:
        return
    dim = context.config.network.dim
    yield Change("network.alpha", dim / 2, say("Half of rank {rank}: the learning rates suggested here belong to that.", rank=dim))


def batch_size(context: RuleContext) -> Iterator[Change]:
    """The largest batch that memory, the number of pictures and the largest bucket allow."""
    count, limits = context.sample_count.pictures, context.limits
    by_count = max(1, count // 5) if count <= 50 else math.ceil(count * 0.1)
    largest = max(counts.pictures for counts in context.bucket_counts)
    batch = min(limits.batch, by_count, largest)
    while batch > 1 and not vram.fits(context.needed_mb(not context.machine.on_cpu, batch), context.machine):
        batch -= 1
    width, height = effective.resolution(context.config)
    values = {"batch": batch, "count": count, "gb": context.machine.gigabytes, "width": width, "height": height}
    template = "{gb} GB of VRAM leave room for {batch} pictures of {width} x {height} in a step."
    if batch == by_count:
        template = "A step of {batch} suits {count} pictures: a larger one would leave too few steps to learn in."
    elif batch == largest:
        template = "The largest group of one size holds {batch} pictures."
    elif context.machine.on_cpu:
        template = "Without a GPU more than {batch} pictures in a step save no time, and training is slow ({gb} GB of RAM)."
    yield Change("data.batch_size", batch, say(template, **values))


def checkpointing(context: RuleContext) -> Iterator[Change]:
    """Gradient checkpointing where the memory tier or the estimate asks for it."""
    kept, recomputed = context.needed_mb(False), context.needed_mb(True)
    needed = context.limits.checkpointing or not vram.fits(kept, context.machine)
    template = "With {gb} GB each step recomputes: about {saved} MB less (estimate), a fifth slower, the same result."
    if not needed:
        template = "A step needs about {needed} of {free} GB (estimate): recomputing would only cost time."
    free, saved = rounded(context.machine.free_mb / GB), round(kept - recomputed)
    because = say(template, gb=context.machine.gigabytes, free=free, saved=saved, needed=rounded(kept / GB))
    yield Change("memory.gradient_checkpointing", needed, because)


def accumulation(context: RuleContext) -> Iterator[Change]:
    """Accumulates over two pictures where the batch size is 1."""
    batch, count = context.config.data.batch_size, context.sample_count.pictures
    steps = 2 if batch == 1 and count >= 2 else 1
    template = "Single pictures make unsteady steps: {together} are accumulated into one, without more memory."
    if steps == 1:
        template = "A batch of {batch} is steady enough: no accumulation is needed." if batch > 1 else "There is only {count} picture."
    yield Change("steps.gradient_accumulation_steps", steps, say(template, count=count, together=steps, batch=batch))


# --- learning ------------------------------------------------------------------------------------------------------------------------


def unet_rate(context: RuleContext) -> Iterator[Change]:
    """The optimizer's usual rate times the square root of the effective batch size (at most 2), lower for a style."""
    batch_size, less, optimizer = (
        context.sample_count.effective_batch_size,
        context.subject.rate,
        optimizer_spec(context.config.optimizer.type),
    )
    if optimizer.adaptive:
        yield Change("optimizer.unet_lr", 1.0, say("{name} finds its own step size: leave the learning rate at 1.", name=optimizer.name))
        return
    whole_weights = NETWORK_TYPES[context.config.network.type].kind == "full"
    usual, factor = optimizer.rate_range.hint * (FULL_RATE if whole_weights else 1.0), min(2.0, math.sqrt(batch_size))
    rate = _two_digits(usual * factor * less)
    template = "{usual} is usual with alpha = rank / 2; times {factor} for {together} pictures in a step."
    if whole_weights:
        template = "{usual} is usual where whole weights learn; times {factor} for {together} pictures in a step."
    elif less != 1:
        template = "{usual} is usual with alpha = rank / 2; times {factor} for {together} pictures in a step, times {less} for {subject}."
    values = {"usual": _plain(usual), "factor": rounded(factor, 2), "together": batch_size, "less": less, "subject": context.subject.label}
    yield Change("optimizer.unet_lr", rate, say(template, **values))


def text_encoder_rate(context: RuleContext) -> Iterator[Change]:
    """Half of the U-Net's; 0 where the memory is too small for both, and for SDXL."""
    if context.family == "sdxl" and effective.trains_unet(context.config):
        template = "SDXL: the U-Net alone learns subjects and styles, and without its 2 text encoders a step needs less memory."
        yield Change("optimizer.text_encoder_lr", 0.0, say(template))
        return
    if not context.limits.text_encoder and effective.trains_unet(context.config):
        because = say("{gb} GB of VRAM: only the U-Net is trained, which is where most is learned.", gb=context.machine.gigabytes)
        yield Change("optimizer.text_encoder_lr", 0.0, because)
        return
    optimizer = optimizer_spec(context.config.optimizer.type)
    if optimizer.adaptive:
        because = say("{name} finds one step size for all parts: use 1, as for the U-Net.", name=optimizer.name)
        yield Change("optimizer.text_encoder_lr", 1.0, because)
        return
    unet = effective.unet_lr(context.config) or optimizer.rate_range.hint
    because = say("Half of the U-Net's {rate}: at a higher rate the text encoder forgets other words.", rate=_plain(unet))
    yield Change("optimizer.text_encoder_lr", _two_digits(unet / 2), because)


def exposures(context: RuleContext) -> Iterator[Change]:
    """Repeats and epochs. Where folder names set the repeats, or the user typed one of the two, the other is derived."""
    config, by_folder = context.config, context.dataset.folder_repeats
    typed_steps = "steps.max_train_steps" in context.typed and config.steps.max_train_steps
    typed_repeats = "data.num_repeats" in context.typed or typed_steps
    typed_epochs = "steps.max_train_epochs" in context.typed and config.steps.max_train_epochs
    choice = repeats.choose_repeats(
        context.subject,
        context.sample_count,
        repeats=config.data.num_repeats if typed_repeats and not typed_epochs else None,
        epochs=config.steps.max_train_epochs if typed_epochs and not typed_repeats else None,
        by_folder=by_folder,
    )
    per_picture = rounded(context.sample_count.folder_repeats) if by_folder else choice.repeats
    template = "{repeats} repeats (said by the folder's name) x {epochs} epochs" if by_folder else "{repeats} repeats x {epochs} epochs"
    values: dict[str, Any] = {
        "product": say(template, repeats=per_picture, epochs=choice.epochs),
        "seen": rounded(choice.exposures),
        "count": context.sample_count.pictures,
        "steps": context.sample_count.steps(choice.repeats, choice.epochs),
        "subject": context.subject.label,
        "few": repeats.MIN_STEPS,
        "many": context.sample_count.max_steps,
    }
    because = {
        "": "{product} show each of {count} pictures {seen} times, which is right for {subject}: {steps} steps.",
        "few": "{product} show each of {count} pictures {seen} times: in fewer than {few} steps too little is learned.",
        "many": "{product} show each of {count} pictures {seen} times: more than {many} steps gain little.",
    }[choice.bound]
    if choice.repeats is not None:
        yield Change("data.num_repeats", choice.repeats, say(because, **values))
    yield Change("steps.max_train_epochs", choice.epochs, say(because, **values))


# --- schedule and intervals ----------------------------------------------------------------------------------------------------------


def schedule(context: RuleContext) -> Iterator[Change]:
    """Warm-up, then a cosine down to a tenth; constant for optimizers that schedule the rate themselves."""
    total, percent, optimizer = context.total_steps, round(MIN_LR_RATIO * 100), optimizer_spec(context.config.optimizer.type)
    if optimizer.schedule_free or optimizer.package == "dadaptation":
        yield Change("schedule.type", "constant", say("{name} schedules the learning rate by itself.", name=optimizer.name))
        yield Change("schedule.warmup_steps", 0, say("{name} schedules the learning rate by itself.", name=optimizer.name))
        return
    yield Change("schedule.type", "cosine", say("Large steps first, small ones towards the end of {steps} steps.", steps=total))
    template = (
        "The last steps still learn at {percent} % of the rate: in measurements the subject came out more reliably than with an end at 0."
    )
    yield Change("schedule.min_lr_ratio", MIN_LR_RATIO, say(template, percent=percent))
    warmup: int | str = f"{WARMUP_PERCENT}%" if total * WARMUP_PERCENT <= MAX_WARMUP_STEPS * 100 else MAX_WARMUP_STEPS
    steps = min(MAX_WARMUP_STEPS, int(WARMUP_PERCENT / 100 * total + 0.5))
    if effective.warmup_steps(context.config, total) != steps:
        template = "The rate rises over the first {warmup} of {steps} steps, while the optimizer learns how strong gradients are."
        yield Change("schedule.warmup_steps", warmup, say(template, warmup=steps, steps=total))


def intervals(context: RuleContext) -> Iterator[Change]:
    """About ten saves, previews and validations where there would be far fewer or more; by epochs, which the grid shows."""
    total, epochs = context.total_steps, math.ceil(context.total_steps / context.steps_per_epoch)
    is_used = {
        "save": True,
        "sample": bool(effective.prompt_lines(context.config)),
        "validate": bool(context.dataset.validation_records or context.config.validate.fraction),
    }
    every = max(1, round(epochs / MARKS))
    template = "Every {every} of {length} epochs makes {marks}: enough to see where it is best."
    because = say(template, every=every, length=epochs, marks=epochs // every)
    for name in (name for name, used in is_used.items() if used):
        section = getattr(context.config, name)
        by_epochs, by_steps = effective.interval_epochs(section), effective.interval_steps(section)
        marks = (epochs // by_epochs if by_epochs else 0) + (total // by_steps if by_steps else 0)
        if FEW_MARKS <= marks <= MANY_MARKS:
            continue
        # where epochs are long, also save between their ends; otherwise not by steps
        between = round(total / MARKS) if name == "save" and epochs < FEW_MARKS and total >= repeats.MIN_STEPS else 0
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


PICTURE_RULES = (clip_skip, resolution, buckets, validation_split)
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
