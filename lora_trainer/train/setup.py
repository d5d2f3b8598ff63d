"""The composition root: from a config and a lent model to everything that the loop needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

from lora_trainer import assets
from lora_trainer.adapters.initial_weights import load_initial_weights, ranks_of_file
from lora_trainer.adapters.lora_file import read_base_weights
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import planned
from lora_trainer.config import effective
from lora_trainer.config.build import to_mapping
from lora_trainer.config.checks.learning_rate_checks import refuse_different_rates
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.choices.optimizers import optimizer_named
from lora_trainer.config.schema import DataConfig, ModelConfig, TrainConfig
from lora_trainer.control import Control
from lora_trainer.data.cache.array_store import LATENTS, TEXTS
from lora_trainer.data.cache.latent_cache import LatentCache, OnDisk
from lora_trainer.data.captions import caption_of
from lora_trainer.data.sources.blueprint import training_size
from lora_trainer.errors import ModelError
from lora_trainer.events import Event, Phase, Progress, Warned
from lora_trainer.host.base import Host, Lease, find_checkpoint, find_vae
from lora_trainer.host.devices import require_step
from lora_trainer.messages import say
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.detection.detect import ModelFacts, inspect_with
from lora_trainer.models.files import hub
from lora_trainer.models.identity import encoder_of
from lora_trainer.optim.optimizers import CannotStep, GroupPlan, make_optimizer, probe
from lora_trainer.train.distributed import SingleProcess
from lora_trainer.train.inputs import vae
from lora_trainer.train.inputs.caption_cache import CaptionCache, encoder_key
from lora_trainer.train.inputs.caption_encoder import CaptionEncoder
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.inputs.examples import LatentViews
from lora_trainer.train.memory import eight_bit
from lora_trainer.train.outputs import metadata
from lora_trainer.train.outputs.ema import EmaWeights
from lora_trainer.train.planning.plan import TrainingPlan
from lora_trainer.train.previews.preview_prompts import Prompts, SampleRequest, multiple_of_8, read_prompts
from lora_trainer.train.step import attention
from lora_trainer.train.step.compiling import CompiledBlocks
from lora_trainer.train.step.precision import Precision, choose_precision, make_scaler
from lora_trainer.train.trainer import Trainer

MEGABYTE = 2**20
NO_COMPILING = say("Blocks are not compiled: {reason}", reason=say("the network draws at random in each step."))
ALIKE = ("seed", "network", "optimizer", "schedule", "steps", "loss")
"""Sections that several processes of a run must have alike; folders may have other names on other machines."""


@torch.inference_mode(False)
def prepare(
    config: TrainConfig, pictures: TrainingDataset, lease: Lease, cache_dir: Path | None = None, *, resumed: bool = False
) -> Trainer:
    """Loads the model, makes network, optimizer and caches. Nothing of the host is changed.

    Encoded pictures are kept below `cache_dir`, where the config wants that; without it in memory. The weights of a run that is
    `resumed` are in its state.
    """
    config, told = working_optimizer(config, str(lease.device))
    precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
    require_step(lease.device, precision.base)
    bundle = eight_bit.loaded(lease.source, lease.device, precision.base, asked=config.memory.fp8_base_unet)
    vae.set_precision(bundle, config.memory.vae_precision)
    attend, notes = attention.choose(config.memory.attention, bundle, lease.attention)
    below = read_base_weights(config.network.base_weights, config.network.base_weights_multiplier)
    adapter = NetworkAdapter(bundle, planned(bundle, config.network, effective.parts(config)), seed=config.seed, below=below)
    if config.network.network_weights and not resumed:
        load_initial_weights(adapter, Path(config.network.network_weights))
    optimizer = make_optimizer(config.optimizer.type, adapter.parameters(), group_plans(config, adapter), effective.optimizer_args(config))
    cache = _cache(config.data, lambda: trainer.bundle, cache_dir)
    captions = _captions(config, pictures, precision, "text_encoder" in adapter.layers, lambda: trainer.bundle, cache_dir)
    compiles = config.memory.compile and not adapter.is_random
    uncompiled = [Warned(NO_COMPILING, "memory.compile")] if config.memory.compile and not compiles else []
    trainer = Trainer(
        config=config,
        dataset=pictures,
        precision=precision,
        source=lease.source,
        device=lease.device,
        bundle=bundle,
        adapter=adapter,
        optimizer=optimizer,
        scaler=make_scaler(precision, lease.device),
        caption_encoder=captions,
        latent_cache=cache,
        views=LatentViews(cache, lambda record: pictures.subset_of(record).data, config.seed),
        loss_config=config.loss,
        ema=EmaWeights(optimizer, config.save.ema_decay) if config.save.ema_decay else None,
        attention=attend,
        notes=(*told, *notes, *_of_eight_bits(config, lease), *uncompiled),
        compiled=CompiledBlocks() if compiles else None,
    )
    return trainer


def _of_eight_bits(config: TrainConfig, lease: Lease) -> list[Warned]:
    """That a lent model is not changed into eight bits."""
    asked = config.memory.fp8_base_unet
    if not asked or eight_bit.applies(lease.source, asked=asked):
        return []
    template = "The WebUI's model is used as it is held: 8 bits are for runs that read a file (a process of their own, for example)."
    return [Warned(say(template), "memory.fp8_base_unet")]


def with_rank_of_weights(config: TrainConfig) -> TrainConfig:
    """The config with the ranks and alphas of the file that the training begins with, where it says so. Raises ModelError."""
    network = config.network
    if not (network.network_weights and network.dim_from_weights):
        return config
    rooted = network.rs_lora or bool(NETWORK_TYPES[network.type].fixed.get("rs_lora"))
    found = ranks_of_file(Path(network.network_weights), rs_lora=rooted)
    ranks = {f"{group}{word}": value for group, pair in found.items() for word, value in zip(("dim", "alpha"), pair, strict=True)}
    return attrs.evolve(config, network=attrs.evolve(network, **ranks, dim_from_weights=False))


def group_plans(config: TrainConfig, adapter: NetworkAdapter) -> list[GroupPlan]:
    """The learning rates of a config for the parts of a network; LoRA+ parts the upper matrices from the others, blocks have shares.

    Raises TrainerError for rates that the optimizer does not take.
    """
    rates = effective.rates(config)
    plans: list[GroupPlan] = []
    for part, shares in adapter.rates().items():
        upper = {*adapter.upper(part)} if f"{part} plus" in rates else set()
        for share in sorted({*shares}, reverse=True):
            places = {place for place, own in enumerate(shares) if own == share}
            for name, own in ((part, places - upper), (f"{part} plus", places & upper)):
                if own:
                    plans.append(GroupPlan(effective.group_name(name, share), part, rates[name] * share, tuple(sorted(own))))
    refuse_different_rates(config, [plan.rate for plan in plans])
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


def _captions(
    config: TrainConfig,
    pictures: TrainingDataset,
    precision: Precision,
    trained: bool,
    bundle: Callable[[], ModelBundle],
    cache_dir: Path | None,
) -> CaptionEncoder:
    """What encodes captions; on disk stay those that a picture has where nothing of them is drawn, and the empty one."""
    skip, length = config.model.clip_skip, config.model.max_token_length
    store = None
    if cache_dir is not None and config.data.cache_text_encoder_outputs_to_disk and not trained:
        store = CaptionCache(cache_dir / TEXTS, lambda: encoder_key(bundle(), precision, skip, length))
    lasting = {caption_of(record, pictures.rules_of(record)) for record in pictures.records} if store is not None else set()
    return CaptionEncoder(precision, skip, trained, length, store=store, lasting={*lasting, ""})


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
        probe(config.optimizer.type, effective.optimizer_args(config), device)
    except CannotStep as error:
        known = optimizer_named(config.optimizer.type)
        if not known.stand_in:
            raise
        instead = attrs.evolve(config, optimizer=attrs.evolve(config.optimizer, type=known.stand_in))
        probe(known.stand_in, effective.optimizer_args(instead), device)
        told = say("{why} {other} takes its place: the same steps, more memory.", why=error.problems[0].message, other=known.stand_in)
        return instead, [Warned(told, "optimizer.type")]
    return config, []


def fetched(model: ModelConfig, host: Host, control: Control) -> Iterator[Event]:
    """Brings the Hub's models here that the config names as model and VAE and that are not; Progress in MB. Raises ModelError."""
    named = model.pretrained_model_name_or_path
    looks: list[Callable[[], object]] = [lambda: named and find_checkpoint(named, host.checkpoints())]
    if host.name == "standalone":  # a WebUI takes files of its own only
        looks.append(lambda: find_vae(model.vae, host.vaes()))
    for look in looks:
        try:
            look()
        except hub.NotFetched as missing:
            yield from _fetching(missing, model.hub_token, control)
        except ModelError:
            return  # the lease says what is wrong


def _fetching(missing: hub.NotFetched, token: str, control: Control) -> Iterator[Event]:
    total = 0
    for progress in hub.Hub.of_environment(token).fetch(missing.name, assets.cache_folder()):
        if progress.total != total:
            total = progress.total
            yield Phase("fetching", total // MEGABYTE)
        yield Progress(progress.done // MEGABYTE)
        if control.stopping:
            return


def facts_of(checkpoint: Path, model: ModelConfig, sha256: str = "") -> ModelFacts | None:
    """What the file tells with the config's flags, or None where a host holds a model whose file cannot be read so."""
    try:
        return inspect_with(checkpoint, model, sha256=sha256)
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
    return read_prompts(effective.prompts(config), config.sample.prompt_file, preview_defaults(config))


def header_options(config: TrainConfig, plan: TrainingPlan, data: DataConfig, precision: str) -> dict[str, Any]:
    """`ss_` key without the prefix -> value; `data` holds the options of the first dataset."""
    return {
        "learning_rate": config.optimizer.learning_rate,
        "unet_lr": effective.unet_lr(config),
        "text_encoder_lr": effective.text_encoder_lr(config),
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


def digest(config: TrainConfig, pictures: TrainingDataset) -> str:
    """Equal in processes that would train the same: settings, and every picture with its place."""
    plain = to_mapping(config)
    seen = [(record.key, record.bucket, record.repeats, record.crop) for record in pictures.records]
    told = repr(([plain[name] for name in ALIKE], seen))
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()


def fill_cache(trainer: Trainer, control: Control, shares: SingleProcess) -> Iterator[Event]:
    """Encodes all pictures once; Progress as it goes on. What several processes keep on disk, each encodes a part of."""
    pictures = trainer.dataset
    if not shares.rank.is_single and trainer.latent_cache.lasting:
        own = shares.shard(pictures.records)
        for event in trainer.latent_cache.fill(own, flip=lambda record: pictures.subset_of(record).flip_aug, control=control):
            yield Progress(event.done * shares.rank.world_size) if isinstance(event, Progress) else event
        shares.barrier()
    yield from trainer.latent_cache.fill(pictures.records, flip=lambda record: pictures.subset_of(record).flip_aug, control=control)
