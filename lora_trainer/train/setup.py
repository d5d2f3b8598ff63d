"""The composition root: from a config and a lent model to everything that the loop needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer import assets
from lora_trainer.adapters.files import rank_and_alpha, start_from
from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.adapters.targets import text_prefixes
from lora_trainer.config import derive
from lora_trainer.config.build import to_mapping
from lora_trainer.config.optimizers import optimizer_named
from lora_trainer.config.rates import rate_notes, refuse_different_rates
from lora_trainer.config.schema import DataConfig, LossConfig, ModelConfig, TrainConfig
from lora_trainer.control import Control
from lora_trainer.data import caption_notes, captions, closer, masks
from lora_trainer.data.cache import LatentCache, OnDisk
from lora_trainer.data.describe import SubsetRules, describe, training_size
from lora_trainer.data.gather import about_regularisation, arranged, gather
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.store import LATENTS
from lora_trainer.errors import DatasetError, ModelError, TrainingError
from lora_trainer.events import Event, Phase, Progress, Warned
from lora_trainer.host.base import Host, Lease, find_checkpoint
from lora_trainer.messages import Message, say
from lora_trainer.models import hub, layout
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detect import ModelFacts, inspect_with
from lora_trainer.models.families import family
from lora_trainer.models.identity import encoder_of
from lora_trainer.models.load import load
from lora_trainer.models.source import ModelSource
from lora_trainer.optim.optimizers import CannotStep, GroupPlan, TrainingOptimizer, make_optimizer, probe
from lora_trainer.train import attention, doubts, economy, metadata, vae
from lora_trainer.train.average import Average, shown
from lora_trainer.train.checkpointing import Checkpointing
from lora_trainer.train.compiling import Compiled
from lora_trainer.train.conditioning import Captions
from lora_trainer.train.graphs import Replays
from lora_trainer.train.plan import TrainingPlan
from lora_trainer.train.prompts import Prompts, SampleRequest, multiple_of_8, read_prompts
from lora_trainer.train.runtime import Precision, choose_precision, make_scaler
from lora_trainer.train.shares import Shares
from lora_trainer.train.views import Views, sizes_of

RELEASED: Any = None
MEGABYTE = 2**20
ALIKE = ("seed", "network", "optimizer", "schedule", "steps", "loss")
"""Sections that several processes of a run must have alike; folders may have other names on other machines."""
NAMED = 5
"""Files that are not used and named one by one."""
ONE_TOKEN = 64
"""Pictures of at most this side are one single token in the middle block, whose attention then has nothing to choose."""
MIDDLE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"


@attrs.frozen(slots=False)
class Pictures:
    """The pictures of a run: `trained` and `held` (validation), both usable and placed into buckets.

    `subsets` are the folders that they come from, `datasets` what batches share; a record holds its places in both.
    """

    trained: tuple[ImageRecord, ...]
    held: tuple[ImageRecord, ...]
    subsets: tuple[SubsetRules, ...]
    datasets: tuple[DataConfig, ...]
    warnings: tuple[Message, ...]

    @property
    def rules(self) -> captions.CaptionRules:
        """How captions of the first folder that is not of regularisation pictures are put together."""
        return next(rules.caption for rules in self.subsets if not rules.is_reg)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Pictures per step of each dataset."""
        return tuple(data.batch_size for data in self.datasets)

    @cached_property
    def _captions(self) -> tuple[captions.CaptionRules, ...]:
        return tuple(rules.caption for rules in self.subsets)

    def rules_of(self, record: ImageRecord) -> captions.CaptionRules:
        """How the captions of a picture's folder are put together."""
        return self._captions[record.subset]

    def subset_of(self, record: ImageRecord) -> SubsetRules:
        """The rules of the folder that a picture comes from."""
        return self.subsets[record.subset]

    def without_held(self) -> Pictures:
        """For a process that trains along with another one, which validates."""
        return attrs.evolve(self, held=())

    @cached_property
    def digest(self) -> str:
        """Equal where the same batches of the same pictures come."""
        told = [(record.key, record.bucket, record.repeats, record.crop, record.dataset) for record in self.trained]
        return hashlib.sha256(repr(told).encode("utf-8", "replace")).hexdigest()

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Both together."""
        return self.trained + self.held


def read_pictures(config: TrainConfig) -> Pictures:
    """Scans, decodes, holds back and places the pictures. Raises DatasetError when none can be trained on.

    A picture that cannot be decoded to its end is left out here, before steps are counted, as the tab shows it.
    """
    description = describe(config.data, config.validate.data_dir)
    found = gather(description)
    records, about_masks = masks.with_masks(
        closer.verified(found.records, assets.cache_folder()), lambda record: description.subsets[record.subset].data
    )
    usable, prior = [record for record in records if record.usable], config.loss.prior_loss_weight
    placed = arranged(usable, description, seed=derive.validation_seed(config), fraction=config.validate.fraction, prior_weight=prior)
    pictures = Pictures(
        tuple(record for record in placed if not record.validation and record.repeats),
        tuple(record for record in placed if record.validation),
        description.subsets,
        description.datasets,
        (*found.warnings, *about_masks, *about_regularisation(placed, config.data.trigger_word, prior), *_not_used(records)),
    )
    subjects = [record for record in pictures.trained if not record.is_reg]
    if not subjects:
        first = description.subsets[0].source
        raise DatasetError(
            "{folder} holds no picture that can be trained on.",
            folder=first.folder or first.metadata_file,
            path=first.field,
            fix="Add pictures.",
        )
    if not any(captions.caption_of(record, pictures.rules_of(record)) for record in subjects):
        raise DatasetError(
            "none of the {count} pictures has a caption, and there is neither a trigger word nor a class word.",
            count=len(subjects),
            path="data.trigger_word",
            fix="Write a trigger word, or put a .txt caption beside each picture.",
        )
    return pictures


def _not_used(records: Sequence[ImageRecord]) -> Iterator[Message]:
    """What is wrong with each file that is not trained on, unless the user left it out; the first few by name."""
    wrong = [record for record in records if not record.usable and record.reason is not None and "left-out" not in record.notes]
    for record in wrong[:NAMED]:
        yield say("{file} is not used: {why}", file=record.key, why=record.reason)
    if len(wrong) > NAMED:
        yield say("{count} more files are not used.", count=len(wrong) - NAMED)


@attrs.define(eq=False)
class Trainer:
    """Everything that the loop works with. `bundle` is replaced when the host's model had to be read anew."""

    config: TrainConfig
    pictures: Pictures
    precision: Precision
    source: ModelSource
    device: torch.device
    bundle: ModelBundle
    adapter: LoraAdapter
    optimizer: TrainingOptimizer
    scaler: Any
    captions: Captions
    cache: LatentCache
    views: Views
    rules: LossConfig
    checkpointing: Checkpointing | None = None
    average: Average | None = None
    attention: str = "sdpa"
    notes: tuple[Warned, ...] = ()
    compiled: Compiled | None = None
    replays: Replays | None = None

    def attach(self) -> None:
        """Puts network, attention and checkpointing on the bundle's modules."""
        attention.use(self.bundle.unet, self.attention, upcast=attention.wants_upcast(self.bundle))
        self.adapter.attach(self.bundle)
        if self.compiled is not None:
            self.compiled.put_on(self.bundle.unet)
        self.checkpointing = economy.checkpointing(self)

    def detach(self) -> None:
        """Takes both off again."""
        if self.checkpointing is not None:
            self.checkpointing.remove()
            self.checkpointing = None
        if self.compiled is not None:
            self.compiled.remove()
        if self.replays is not None:
            self.replays.forget()
        self.adapter.detach()

    @torch.inference_mode(False)
    def rebuild(self, source: ModelSource) -> None:
        """The network on a model that was lent anew (after a pause, or when somebody generated meanwhile)."""
        self.detach()
        if source is not self.source or self.bundle is RELEASED:
            if self.bundle is RELEASED:
                self._move(self.device)
            self.bundle, self.source = load(source, self.device, self.precision.base), source
            vae.hold(self.bundle, self.config.memory.vae_precision)
        self.attach()

    @torch.inference_mode(False)
    def reset(self, config: TrainConfig) -> None:
        """Other settings of [memory] from now on, and of how many pictures are encoded together."""
        self.detach()
        self.config, self.cache.batch = config, config.data.vae_batch_size
        if config.memory.attention != "auto":
            self.attention = config.memory.attention
        if not config.memory.cuda_graphs:
            self.replays = None
        self.attach()

    @torch.inference_mode(False)
    def release(self) -> None:
        """Lets go of the model and parks network and optimizer, so that nothing stays on the device; `rebuild` brings all back."""
        self.detach()
        self._move(torch.device("cpu"))
        self.bundle = RELEASED

    def _move(self, device: torch.device) -> None:
        """Network, optimizer and average as fresh copies there."""
        self.optimizer.unpark(device)
        if self.average is not None:
            self.average.move(device)
        if self.scaler is not None:  # its two numbers are made anew, where they are needed, from what it knows
            kept = self.scaler.state_dict()
            self.scaler._scale = self.scaler._growth_tracker = None
            self.scaler.load_state_dict(kept)

    def shown(self) -> AbstractContextManager[None]:
        """Inside, the network holds the weights that are saved, drawn with and validated with."""
        return shown(self.optimizer, self.average)

    def told(self, record: ImageRecord, caption: str) -> Conditioning:
        """What the U-Net is told with a picture as it is: its caption, and its sizes where the family reads them."""
        found = self.captions.encode(self.bundle, [caption])
        if not self.bundle.family.reads_sizes:
            return found
        return found.with_sizes(torch.tensor([sizes_of(record, False)], device=self.bundle.device))

    def latent(self, record: ImageRecord, flipped: bool) -> Tensor:
        """Scaled latents [4, h/8, w/8] of a picture, from memory or read now."""
        return self.cache.get(record, flipped)


@torch.inference_mode(False)
def prepare(config: TrainConfig, pictures: Pictures, lease: Lease, cache_dir: Path | None = None, *, resumed: bool = False) -> Trainer:
    """Loads the model, makes network, optimizer and caches. Nothing of the host is changed.

    Encoded pictures are kept below `cache_dir`, where the config wants that; without it in memory. The weights of a run that is
    `resumed` are in its state.
    """
    config, told = working_optimizer(config, str(lease.device))
    precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
    bundle = load(lease.source, lease.device, precision.base)
    vae.hold(bundle, config.memory.vae_precision)
    attend, notes = attention.choose(config.memory.attention, bundle)
    parts = [
        part for part, wanted in (("unet", derive.trains_unet(config)), ("text_encoder", derive.trains_text_encoder(config))) if wanted
    ]
    adapter = LoraAdapter(bundle, rank=config.network.dim, alpha=config.network.alpha, parts=parts, seed=config.seed)
    if config.network.network_weights and not resumed:
        start_from(adapter, Path(config.network.network_weights))
    optimizer = make_optimizer(config.optimizer.type, adapter.parameters(), group_plans(config, adapter), derive.optimizer_args(config))
    cache = _cache(config.data, lambda: trainer.bundle, cache_dir)
    trainer = Trainer(
        config=config,
        pictures=pictures,
        precision=precision,
        source=lease.source,
        device=lease.device,
        bundle=bundle,
        adapter=adapter,
        optimizer=optimizer,
        scaler=make_scaler(precision, lease.device),
        captions=Captions(precision, config.model.clip_skip, "text_encoder" in parts, config.model.max_token_length),
        cache=cache,
        views=Views(cache, lambda record: pictures.subset_of(record).data, config.seed),
        rules=config.loss,
        average=Average(optimizer, config.save.ema_decay) if config.save.ema_decay else None,
        attention=attend,
        notes=(*told, *notes),
        compiled=Compiled() if config.memory.compile else None,
    )
    return trainer


def with_rank_of_weights(config: TrainConfig) -> TrainConfig:
    """The config with rank and alpha of the file that the training begins with, where it says so. Raises ModelError."""
    network = config.network
    if not (network.network_weights and network.dim_from_weights):
        return config
    rank, alpha = rank_and_alpha(Path(network.network_weights))
    return attrs.evolve(config, network=attrs.evolve(network, dim=rank, alpha=alpha, dim_from_weights=False))


def group_plans(config: TrainConfig, adapter: LoraAdapter) -> list[GroupPlan]:
    """The learning rates of a config for the parts of a network; LoRA+ parts the upper matrices from the others.

    Raises TrainerError for rates that the optimizer does not take.
    """
    refuse_different_rates(config)
    rates, plans = derive.rates(config), []
    for part, parameters in adapter.parameters().items():
        upper = adapter.upper(part) if f"{part} plus" in rates else ()
        plans.append(GroupPlan(part, part, rates[part], tuple(sorted({*range(len(parameters))} - {*upper}))))
        if upper:
            plans.append(GroupPlan(f"{part} plus", part, rates[f"{part} plus"], upper))
    return plans


def _cache(data: DataConfig, bundle: Callable[[], ModelBundle], cache_dir: Path | None) -> LatentCache:
    def disk() -> OnDisk:
        return OnDisk((cache_dir or Path()) / LATENTS, encoder_of(bundle(), together=data.vae_batch_size))

    return LatentCache(
        lambda pixels: vae.encode(bundle(), pixels),
        keep=data.cache_latents,
        disk=disk if cache_dir is not None and data.cache_latents and data.cache_latents_to_disk else None,
        batch=data.vae_batch_size,
        npz_scale=lambda: bundle().family.latent_scale if data.npz_caches else 0.0,
    )


def check_optimizer(config: TrainConfig) -> None:
    """Raises TrainerError when the optimizer is not installed, or does not take its arguments or the rates."""
    refuse_different_rates(config)
    gpu = optimizer_named(config.optimizer.type).package == "bitsandbytes" and torch.cuda.is_available()
    working_optimizer(config, "cuda" if gpu else "cpu")


def working_optimizer(config: TrainConfig, device: str) -> tuple[TrainConfig, list[Warned]]:
    """The config with an optimizer that steps on the device: where an 8-bit one does not, the one that steps alike with more memory.

    Raises TrainerError where there is none.
    """
    try:
        probe(config.optimizer.type, derive.optimizer_args(config), device)
    except CannotStep as error:
        known = optimizer_named(config.optimizer.type)
        if not known.stand_in:
            raise
        instead = attrs.evolve(config, optimizer=attrs.evolve(config.optimizer, type=known.stand_in))
        probe(known.stand_in, derive.optimizer_args(instead), device)
        told = say("{why} {other} takes its place: the same steps, more memory.", why=error.problems[0].message, other=known.stand_in)
        return instead, [Warned(told, "optimizer.type")]
    return config, []


def fetched(model: ModelConfig, host: Host, control: Control) -> Iterator[Event]:
    """Brings a Hub's model here where the config names one that is not; Progress in MB. Raises ModelError."""
    if not (named := model.pretrained_model_name_or_path):
        return
    try:
        find_checkpoint(named, host.checkpoints())
    except hub.NotFetched as missing:
        total = 0
        for progress in hub.Hub.of_environment().fetch(missing.name, assets.cache_folder()):
            if progress.total != total:
                total = progress.total
                yield Phase("fetching", total // MEGABYTE)
            yield Progress(progress.done // MEGABYTE)
            if control.stopping:
                return
    except ModelError:
        return  # the lease says what is wrong


def facts_of(checkpoint: Path, model: ModelConfig) -> ModelFacts | None:
    """What the file tells with the config's flags, or None where a host holds a model whose file cannot be read so."""
    try:
        return inspect_with(checkpoint, model)
    except ModelError:
        return None


def preview_defaults(config: TrainConfig) -> SampleRequest:
    """What holds where a preview prompt says nothing: the training size, the run's seed, sampler and text encoder."""
    width, height = training_size(config.data)
    return SampleRequest(
        "",
        width=multiple_of_8(width),
        height=multiple_of_8(height),
        seed=config.seed,
        sampler=config.sample.sampler,
        clip_skip=config.model.clip_skip,
        max_token_length=config.model.max_token_length,
    )


def prompts_of(config: TrainConfig) -> Prompts:
    """The preview prompts of a config, its prompt file as it is now."""
    return read_prompts(derive.prompts(config), config.sample.prompt_file, preview_defaults(config))


def header_options(config: TrainConfig, plan: TrainingPlan, data: DataConfig, precision: str) -> dict[str, Any]:
    """`ss_` key without the prefix -> value; `data` holds the options of the first dataset."""
    return {
        "learning_rate": config.optimizer.learning_rate,
        "unet_lr": derive.unet_lr(config),
        "text_encoder_lr": derive.text_encoder_lr(config),
        "num_validation_images": plan.validation_images,
        "num_batches_per_epoch": plan.steps_per_epoch * config.steps.gradient_accumulation_steps,
        "num_epochs": plan.epochs,
        "max_train_steps": plan.total_steps,
        "batch_size_per_device": data.batch_size,
        "total_batch_size": data.batch_size * plan.processes,
        "gradient_accumulation_steps": config.steps.gradient_accumulation_steps,
        "gradient_checkpointing": config.memory.gradient_checkpointing,
        "lr_scheduler": config.schedule.type,
        "lr_warmup_steps": plan.warmup_steps,
        "optimizer": config.optimizer.type + (f"({config.optimizer.args})" if config.optimizer.args else ""),
        "max_grad_norm": config.optimizer.max_grad_norm,
        "mixed_precision": precision,
        "clip_skip": config.model.clip_skip,
        "max_token_length": config.model.max_token_length,
        "cache_latents": config.data.cache_latents,
        "seed": config.seed,
        **metadata.loss_words(config.loss),
        **metadata.validation_words(config.validate),
        "network_args": None,
        **{name: getattr(data, name) for name in metadata.OF_DATASET},
    }


def digest(config: TrainConfig, pictures: Pictures) -> str:
    """Equal in processes that would train the same: settings, and every picture with its place."""
    plain = to_mapping(config)
    seen = [(record.key, record.bucket, record.repeats, record.crop) for record in pictures.records]
    told = repr(([plain[name] for name in ALIKE], seen))
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()


def fill_cache(trainer: Trainer, control: Control, shares: Shares) -> Iterator[Event]:
    """Encodes all pictures once; Progress as it goes on. What several processes keep on disk, each encodes a part of."""
    pictures = trainer.pictures
    if not shares.place.alone and trainer.cache.lasting:
        own = shares.of(pictures.records)
        for event in trainer.cache.fill(own, flip=lambda record: pictures.subset_of(record).flip_aug, control=control):
            yield Progress(event.done * shares.place.count) if isinstance(event, Progress) else event
        shares.meet()
    yield from trainer.cache.fill(pictures.records, flip=lambda record: pictures.subset_of(record).flip_aug, control=control)


def early_warnings(config: TrainConfig, pictures: Pictures, checkpoint: Path) -> list[Warned]:
    """What the user should know before the first step."""
    found = [Warned(message) for message in pictures.warnings]
    found += [Warned(note, "sample.prompts") for note in prompts_of(config).notes]
    found += [Warned(message, path) for path, message in caption_notes.notes(pictures.trained, pictures.rules_of)]
    if not config.model.pretrained_model_name_or_path and checkpoint == assets.toy_checkpoint():
        found.append(
            Warned(
                say("No base model is chosen: this trains the small model that ships for trying things out; its LoRA fits no other."),
                "model.pretrained_model_name_or_path",
            )
        )
    if config.network.alpha > config.network.dim:
        found.append(
            Warned(
                say("Alpha is larger than rank: the network counts {scale} times.", scale=round(derive.network_scale(config), 3)),
                "network.alpha",
            )
        )
    if not any(rate for rate in (derive.unet_lr(config), derive.text_encoder_lr(config))):
        found.append(Warned(say("The learning rate is 0: nothing will be learned."), "optimizer.learning_rate"))
    together = pictures.batch_sizes[0] * config.steps.gradient_accumulation_steps
    found += [Warned(message, path) for path, message in rate_notes(config, together)]
    found += _of_the_model(config, facts_of(checkpoint, config.model))
    found += [Warned(message, path) for path, message in doubts.of_validation(config.validate, len(pictures.held))]
    return found


def _of_the_model(config: TrainConfig, facts: ModelFacts | None) -> Iterator[Warned]:
    """What the model's file tells that matters for these settings; without one, what is true of most models."""
    prediction, zero = (facts.prediction, facts.zero_terminal_snr) if facts is not None else ("epsilon", False)
    for path, message in doubts.of_loss(config.loss, prediction=prediction, zero_terminal_snr=zero):
        yield Warned(message, path)
    if facts is None:
        return
    for note in facts.notes:
        yield Warned(note, "model.pretrained_model_name_or_path")
    if config.model.clip_skip > 1 and not family(facts.family).reads_clip_skip:
        label = layout.row(facts.family).label
        yield Warned(say("{label} always reads the same layer of its text: clip skip changes nothing.", label=label), "model.clip_skip")


def check_moved(trainer: Trainer) -> None:
    """After ten steps every layer that gets a gradient has moved; raises TrainingError naming the first that has not."""
    rates = {"unet": derive.unet_lr(trainer.config), "text_encoder": derive.text_encoder_lr(trainer.config)}
    unmoved = trainer.adapter.unmoved()
    still = [name for part, names in unmoved.items() if rates[part] > 0 for name in names if not _without_effect(trainer, name)]
    if still:
        raise TrainingError(
            "after ten steps {count} layers have not moved, the first is {name}.",
            count=len(still),
            name=still[0],
            fix="Please report this: nothing useful is being learned.",
        )


def _without_effect(trainer: Trainer, name: str) -> bool:
    """Whether a layer cannot matter in this run: text layers behind the one that is read, asking and being asked of one token."""
    if name.startswith("lora_te"):
        number = next(number for number, prefix in enumerate(text_prefixes(trainer.bundle)) if name.startswith(f"{prefix}_"))
        encoder = trainer.bundle.text_encoders[number]
        unread = trainer.bundle.family.unread_layers(trainer.bundle, trainer.config.model.clip_skip)[number]
        return int(name.split("_layers_")[1].split("_")[0]) >= encoder.config.num_hidden_layers - unread
    small = all(max(record.bucket or (0, 0)) <= ONE_TOKEN for record in trainer.pictures.trained)
    return small and name.startswith(MIDDLE) and name[len(MIDDLE) :] in ("q", "k")
