"""The composition root: from a config and a loaded or lent model to everything that the loop needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

from lora_trainer import assets
from lora_trainer.adapters.base import Adapter
from lora_trainer.adapters.initial_weights import load_initial_weights, ranks_of_file
from lora_trainer.adapters.lora_file import read_base_weights
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import plan_layers
from lora_trainer.config import effective
from lora_trainer.config.build import to_mapping
from lora_trainer.config.checks.learning_rate_checks import require_single_rate
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.choices.optimizers import optimizer_spec
from lora_trainer.config.schema import DataConfig, ModelConfig, TrainConfig
from lora_trainer.control import Control
from lora_trainer.data.cache.array_store import LATENTS, TEXTS
from lora_trainer.data.cache.latent_cache import DiskCache, LatentCache
from lora_trainer.data.cache.npz import NpzFormat
from lora_trainer.data.captions import plain_caption
from lora_trainer.data.sources.blueprint import largest_resolution
from lora_trainer.errors import ModelError
from lora_trainer.events import Event, Phase, Progress, Warned
from lora_trainer.host.base import Host, HostPaths, Lease, find_checkpoint, find_vae
from lora_trainer.host.devices import require_step
from lora_trainer.messages import say
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.detection.detect import ModelFacts, inspect_with_flags
from lora_trainer.models.files import hub
from lora_trainer.models.identity import vae_encoder_id
from lora_trainer.optim.optimizers import CannotStep, GroupPlan, make_optimizer, probe
from lora_trainer.train.distributed import SingleProcess
from lora_trainer.train.inputs import vae
from lora_trainer.train.inputs.caption_cache import CaptionCache, encoder_key
from lora_trainer.train.inputs.caption_encoder import CaptionEncoder
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.inputs.examples import LatentViews
from lora_trainer.train.memory import eight_bit
from lora_trainer.train.memory.oom import raise_as_out_of_memory
from lora_trainer.train.memory.placement import LOADING
from lora_trainer.train.outputs import metadata
from lora_trainer.train.outputs.ema import EmaWeights
from lora_trainer.train.planning.flow_checks import require_fitting_options
from lora_trainer.train.planning.plan import TrainingPlan
from lora_trainer.train.previews.preview_prompts import Prompts, SampleRequest, multiple_of_8, read_prompts
from lora_trainer.train.previews.prompt_networks import PromptNetworks
from lora_trainer.train.step import attention
from lora_trainer.train.step.compiling import CompiledBlocks
from lora_trainer.train.step.precision import Precision, choose_precision, make_scaler
from lora_trainer.train.trainer import Trainer

MEGABYTE = 2**20
NOT_COMPILED = say("Blocks are not compiled: {reason}", reason=say("the network makes random choices in each step."))
SHARED_SECTIONS = ("seed", "network", "optimizer", "schedule", "steps", "loss")
"""Sections that must be equal in all processes of a run; folders may differ from machine to machine."""


@torch.inference_mode(False)
def prepare(
    config: TrainConfig, dataset: TrainingDataset, lease: Lease, cache_dir: Path | None = None, *, is_resumed: bool = False
) -> Trainer:
    """Loads the model, makes adapter, optimizer and caches. Nothing of the host is changed.

    Latents and captions are cached below `cache_dir` where the config wants that, else in memory. A resumed run reads no initial
    weights: its state has them. Raises TrainerError.
    """
    config, warnings = with_working_optimizer(config, str(lease.device))
    precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
    require_step(lease.device, precision.base)
    bundle = eight_bit.load_bundle(lease.source, lease.device, precision.base, fp8=config.memory.fp8_base_unet)
    require_fitting_options(config, bundle.prediction, preview_prompts(config))
    vae.set_precision(bundle, config.memory.vae_precision)
    attention_name, notes = attention.choose(config.memory.attention, bundle, lease.attention)
    base_weights = read_base_weights(config.network.base_weights, config.network.base_weights_multiplier)
    adapter = NetworkAdapter(
        bundle, plan_layers(bundle, config.network, effective.trained_parts(config)), seed=config.seed, base_weights=base_weights
    )
    if config.network.network_weights and not is_resumed:
        load_initial_weights(adapter, Path(config.network.network_weights), takes_ranks=config.network.dim_from_weights)
    optimizer = make_optimizer(
        config.optimizer.type, adapter.parameters(), plan_param_groups(config, adapter), effective.optimizer_args(config)
    )
    latent_cache = _make_latent_cache(config.data, lambda: trainer.bundle, cache_dir)
    caption_encoder = _make_caption_encoder(
        config, dataset, precision, "text_encoder" in adapter.parameters(), lambda: trainer.bundle, cache_dir
    )
    compiles = config.memory.compile and not adapter.is_random
    uncompiled = [Warned(NOT_COMPILED, "memory.compile")] if config.memory.compile and not compiles else []
    trainer = Trainer(
        config=config,
        dataset=dataset,
        precision=precision,
        source=lease.source,
        device=lease.device,
        bundle=bundle,
        adapter=adapter,
        optimizer=optimizer,
        scaler=make_scaler(precision, lease.device),
        caption_encoder=caption_encoder,
        latent_cache=latent_cache,
        views=LatentViews(latent_cache, lambda record: dataset.subset_of(record).data, config.seed),
        loss_config=config.loss,
        ema=EmaWeights(optimizer, config.save.ema_decay) if config.save.ema_decay else None,
        attention=attention_name,
        notes=(*warnings, *notes, *_eight_bit_warnings(config, lease), *uncompiled),
        compiled=CompiledBlocks() if compiles else None,
    )
    return trainer


def _eight_bit_warnings(config: TrainConfig, lease: Lease) -> list[Warned]:
    """A warning where fp8 is wanted and the model is a lent one, which is not quantized."""
    fp8 = config.memory.fp8_base_unet
    if not fp8 or eight_bit.is_quantized(lease.source, fp8=fp8):
        return []
    message = say(
        "The WebUI's model is used in its own format: 8 bits are only for runs that read a file (in a process of their own, for example)."
    )
    return [Warned(message, "memory.fp8_base_unet")]


def with_ranks_of_weights(config: TrainConfig) -> TrainConfig:
    """The config with the ranks and alphas of its network_weights, where dim_from_weights is on and each group has one.

    Raises ModelError. They are what the run is described by; layer_selection reads the layers of the file, and the rank of each.
    """
    network = config.network
    if not (network.network_weights and network.dim_from_weights):
        return config
    rs_lora = network.rs_lora or bool(NETWORK_TYPES[network.type].fixed.get("rs_lora"))
    file_ranks = ranks_of_file(Path(network.network_weights), rs_lora=rs_lora)
    if file_ranks is None:
        return config
    ranks = {f"{prefix}{name}": value for prefix, pair in file_ranks.items() for name, value in zip(("dim", "alpha"), pair, strict=True)}
    return attrs.evolve(config, network=attrs.evolve(network, **ranks))


def plan_param_groups(config: TrainConfig, adapter: Adapter) -> list[GroupPlan]:
    """The optimizer's parameter groups: by part, by block rate, and with LoRA+ the upper matrices apart from the others.

    Raises TrainerError for rates that the optimizer does not take.
    """
    rates = effective.learning_rates(config)
    plans: list[GroupPlan] = []
    for part, lr_weights in adapter.lr_weights().items():
        plus = {*adapter.lora_plus_indices(part)} if f"{part} plus" in rates else set()
        for lr_weight in sorted({*lr_weights}, reverse=True):
            indices = {index for index, own in enumerate(lr_weights) if own == lr_weight}
            for name, members in ((part, indices - plus), (f"{part} plus", indices & plus)):
                if members:
                    plans.append(GroupPlan(effective.group_name(name, lr_weight), part, rates[name] * lr_weight, tuple(sorted(members))))
    require_single_rate(config, [plan.lr for plan in plans])
    return plans


def _make_latent_cache(data: DataConfig, bundle: Callable[[], ModelBundle], cache_dir: Path | None) -> LatentCache:
    def disk() -> DiskCache:
        return DiskCache(
            (cache_dir or Path()) / LATENTS, vae_encoder_id(bundle(), batch_size=data.vae_batch_size), bundle().family.latent_channels
        )

    def npz() -> NpzFormat | None:
        if not data.npz_caches:
            return None
        return NpzFormat(bundle().family.latent_scale, bundle().family.latent_channels)

    return LatentCache(
        lambda pixels: vae.encode(bundle(), pixels),
        keep=data.cache_latents,
        disk=disk if cache_dir is not None and data.cache_latents and data.cache_latents_to_disk else None,
        batch_size=data.vae_batch_size,
        npz=npz,
    )


def _make_caption_encoder(
    config: TrainConfig,
    dataset: TrainingDataset,
    precision: Precision,
    trains_encoder: bool,
    bundle: Callable[[], ModelBundle],
    cache_dir: Path | None,
) -> CaptionEncoder:
    """The encoder of captions; on disk it keeps each picture's caption as it is without shuffling and dropout, and the empty one."""
    clip_skip, max_token_length = config.model.clip_skip, config.model.max_token_length
    cache = None
    if cache_dir is not None and config.data.cache_text_encoder_outputs_to_disk and not trains_encoder:
        cache = CaptionCache(cache_dir / TEXTS, lambda: encoder_key(bundle(), precision, clip_skip, max_token_length))
    kept_captions = {plain_caption(record, dataset.caption_rules_of(record)) for record in dataset.records} if cache is not None else set()
    return CaptionEncoder(precision, clip_skip, trains_encoder, max_token_length, cache=cache, persistent={*kept_captions, ""})


def check_optimizer(config: TrainConfig) -> None:
    """Raises TrainerError when the optimizer is not installed, or does not take its arguments or the rates."""
    require_single_rate(config)
    gpu = optimizer_spec(config.optimizer.type).package == "bitsandbytes" and torch.cuda.is_available()
    with raise_as_out_of_memory(lambda: config, kind=LOADING):
        with_working_optimizer(config, "cuda" if gpu else "cpu")


def with_working_optimizer(config: TrainConfig, device: str) -> tuple[TrainConfig, list[Warned]]:
    """The config with an optimizer that works on the device: an 8-bit one that does not gives way to its full-precision equivalent.

    Raises TrainerError where there is none.
    """
    try:
        probe(config.optimizer.type, effective.optimizer_args(config), device)
    except CannotStep as error:
        choice = optimizer_spec(config.optimizer.type)
        if not choice.fallback:
            raise
        replaced = attrs.evolve(config, optimizer=attrs.evolve(config.optimizer, type=choice.fallback))
        probe(choice.fallback, effective.optimizer_args(replaced), device)
        message = say("{why} {other} is used instead: the same steps, more memory.", why=error.problems[0].message, other=choice.fallback)
        return replaced, [Warned(message, "optimizer.type")]
    return config, []


def fetch_models(model: ModelConfig, host: Host, control: Control) -> Iterator[Event]:
    """Downloads the Hub's models that the config names as model and VAE and that are not there yet; Progress in MB. Raises ModelError."""
    name = model.pretrained_model_name_or_path
    lookups: list[Callable[[], object]] = [lambda: name and find_checkpoint(name, host.checkpoints())]
    if host.name == "standalone":  # a WebUI takes files of its own only
        lookups.append(lambda: find_vae(model.vae, host.vaes()))
    for lookup in lookups:
        try:
            lookup()
        except hub.NotDownloaded as missing:
            yield from _fetch_model(missing, model.hub_token, control)
        except ModelError:
            return  # the lease will raise it


def _fetch_model(missing: hub.NotDownloaded, token: str, control: Control) -> Iterator[Event]:
    total = 0
    for progress in hub.Hub.of_environment(token).download(missing.name, assets.cache_folder()):
        if progress.total != total:
            total = progress.total
            yield Phase("fetching", total // MEGABYTE)
        yield Progress(progress.done // MEGABYTE)
        if control.stopping:
            return


def inspect_checkpoint(checkpoint: Path, model: ModelConfig, sha256: str = "") -> ModelFacts | None:
    """Facts of a checkpoint's file with the config's flags; None when the file cannot be read, as of some models that a host lends."""
    try:
        return inspect_with_flags(checkpoint, model, sha256=sha256)
    except ModelError:
        return None


def preview_defaults(config: TrainConfig) -> SampleRequest:
    """Defaults of preview prompts: the training size, the run's seed, sampler and text encoder."""
    width, height = largest_resolution(config.data)
    return SampleRequest(
        "",
        width=multiple_of_8(width),
        height=multiple_of_8(height),
        seed=config.seed,
        sampler=config.sample.sampler,
        flow_shift=config.sample.flow_shift,
        clip_skip=config.model.clip_skip,
        max_token_length=config.model.max_token_length,
    )


def preview_prompts(config: TrainConfig) -> Prompts:
    """The preview prompts of a config; reads its prompt file anew."""
    return read_prompts(effective.prompt_lines(config), config.sample.prompt_file, preview_defaults(config))


def preview_networks(config: TrainConfig, paths: HostPaths) -> PromptNetworks:
    """Where networks that preview prompts name are looked for: as by `sample`, with the folders of the run's own files."""
    network = config.network
    files = [Path(file).parent for file in (network.network_weights, *network.base_weights) if file]
    output = Path(config.save.output_dir) if config.save.output_dir else paths.lora_dir
    return PromptNetworks((Path(), output, *files), paths.lora_dir, effective.output_name(config))


def header_options(
    config: TrainConfig, plan: TrainingPlan, data_config: DataConfig, precision: str, prediction: str = "epsilon"
) -> dict[str, Any]:
    """Metadata of the options: `ss_` key without the prefix -> value; `data_config` is that of the first dataset."""
    return {
        "learning_rate": config.optimizer.learning_rate,
        "unet_lr": effective.unet_lr(config),
        "text_encoder_lr": effective.text_encoder_lr(config),
        "num_validation_images": plan.validation_images,
        "num_batches_per_epoch": plan.steps_per_epoch * config.steps.gradient_accumulation_steps,
        "num_epochs": plan.epochs,
        "max_train_steps": plan.total_steps,
        "batch_size_per_device": data_config.batch_size,
        "total_batch_size": data_config.batch_size * plan.processes,
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
        **metadata.loss_metadata(config.loss, prediction),
        **metadata.validation_metadata(config.validate),
        "network_args": None,
        **{name: getattr(data_config, name) for name in metadata.DATASET_OPTIONS},
    }


def run_digest(config: TrainConfig, dataset: TrainingDataset) -> str:
    """SHA-256 of the settings and of every picture with its bucket: equal in processes that train the same."""
    sections = to_mapping(config)
    records = [(record.key, record.bucket, record.repeats, record.crop) for record in dataset.records]
    content = repr(([sections[name] for name in SHARED_SECTIONS], records))
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()


def cache_latents(trainer: Trainer, control: Control, group: SingleProcess) -> Iterator[Event]:
    """Encodes all pictures once, with Progress. Of a cache on disk each of several processes encodes a shard."""
    dataset = trainer.dataset
    if not group.rank.is_single and trainer.latent_cache.is_on_disk:
        records = group.shard(dataset.records)
        for event in trainer.latent_cache.fill(records, flip=lambda record: dataset.subset_of(record).flip_aug, control=control):
            yield Progress(event.done * group.rank.world_size) if isinstance(event, Progress) else event
        group.barrier()
    yield from trainer.latent_cache.fill(dataset.records, flip=lambda record: dataset.subset_of(record).flip_aug, control=control)
