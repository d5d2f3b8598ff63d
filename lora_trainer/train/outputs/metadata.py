"""Header of a LoRA file: sd-scripts' `ss_*` fields, which the WebUI reads, and those of the ModelSpec."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_trainer import __version__
from lora_trainer.config.schema import DataConfig, LossConfig, ValidateConfig
from lora_trainer.data.captions import CaptionRules, caption_tags
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import SubsetRules, resolution_of
from lora_trainer.models import layout
from lora_trainer.models.files.diffusers_folder import main_weight_file
from lora_trainer.models.prediction_kinds import FLOW

SUBSET_OPTIONS = (
    "color_aug",
    "flip_aug",
    "random_crop",
    "shuffle_caption",
    "keep_tokens",
    "keep_tokens_separator",
    "secondary_separator",
    "enable_wildcard",
    "caption_prefix",
    "caption_suffix",
    "resize_interpolation",
)
"""Options of one folder that sd-scripts writes to the header."""
DATASET_OPTIONS = (
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "color_aug",
    "flip_aug",
    "random_crop",
    "face_crop_aug_range",
    "shuffle_caption",
    "keep_tokens",
    "enable_bucket",
    "bucket_no_upscale",
    "min_bucket_reso",
    "max_bucket_reso",
    "resize_interpolation",
)


LOSS_OPTIONS = (
    "scale_v_pred_loss_like_noise_pred",
    "v_pred_like_loss",
    "min_timestep",
    "max_timestep",
    "timestep_sampling",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "discrete_flow_shift",
)
"""Options of the loss that sd-scripts does not write to the header of such models."""
FLOW_OPTIONS = ("timestep_sampling", "discrete_flow_shift")
"""Those that it always writes for models of rectified flow."""
DEFAULT_LOSS = LossConfig()


@attrs.frozen
class RunFacts:
    """Facts that are the same in all files of a run."""

    output_name: str
    started_at: float
    checkpoint: Path
    checkpoint_sha256: str
    vae: str
    trigger: str
    resolution: tuple[int, int]
    options: Mapping[str, Any]
    """`ss_` key without the prefix -> value, of all options."""
    datasets: Sequence[Mapping[str, Any]] = ()
    """`ss_datasets`: sd-scripts' fields of each data set where there are several folders."""
    family: str = "sd1"
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False


def loss_metadata(loss: LossConfig, prediction: str = "epsilon") -> dict[str, Any]:
    """Options of the loss under sd-scripts' names (without `ss_`); those that sd-scripts does not write only where they were changed."""
    always = FLOW_OPTIONS if prediction == FLOW else ()
    return {
        "prior_loss_weight": loss.prior_loss_weight,
        "loss_type": loss.loss_type,
        "huber_schedule": loss.huber_schedule,
        "huber_c": loss.huber_c,
        "huber_scale": loss.huber_scale,
        "min_snr_gamma": loss.min_snr_gamma or None,
        "debiased_estimation": loss.debiased_estimation_loss,
        "noise_offset": loss.noise_offset or None,
        "noise_offset_random_strength": loss.noise_offset_random_strength,
        "adaptive_noise_scale": loss.adaptive_noise_scale or None,
        "multires_noise_iterations": loss.multires_noise_iterations or None,
        "multires_noise_discount": loss.multires_noise_discount,
        "ip_noise_gamma": loss.ip_noise_gamma or None,
        "ip_noise_gamma_random_strength": loss.ip_noise_gamma_random_strength,
        **{name: getattr(loss, name) for name in LOSS_OPTIONS if name in always or getattr(loss, name) != getattr(DEFAULT_LOSS, name)},
    }


def validation_metadata(validate: ValidateConfig) -> dict[str, Any]:
    """Options of validation under sd-scripts' names."""
    return {
        "validation_split": validate.fraction,
        "validation_seed": validate.seed,
        "validate_every_n_epochs": validate.every_n_epochs,
        "validate_every_n_steps": validate.every_n_steps or None,
        "max_validation_steps": validate.max_pictures or None,
    }


def now() -> float:
    """Seconds since 1970, or SOURCE_DATE_EPOCH where it is set, so that the same run writes the same bytes."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return float(fixed) if fixed else time.time()


def old_checkpoint_hash(path: Path) -> str:
    """The WebUI's old 8-digit model hash: 64 KiB of the file from 1 MiB on."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def run_metadata(
    facts: RunFacts, records: Sequence[ImageRecord], network: Mapping[str, str], rules_of: Callable[[ImageRecord], CaptionRules]
) -> dict[str, str]:
    """The header fields that all files of a run share, as strings; `rules_of` are the caption rules of a record."""
    row, weights = layout.row(facts.family), main_weight_file(facts.checkpoint)
    fields = {
        **facts.options,
        "zero_terminal_snr": facts.zero_terminal_snr,
        **({"v_parameterization": True} if facts.prediction == "v" else {}),
        **({"flow_model": True} if facts.prediction == FLOW else {}),
        "session_id": int(hashlib.sha256(f"{facts.output_name}{facts.started_at}".encode()).hexdigest()[:8], 16),
        "training_started_at": facts.started_at,
        "output_name": facts.output_name,
        "sd_model_name": facts.checkpoint.name,
        "sd_model_hash": old_checkpoint_hash(weights),
        "new_sd_model_hash": facts.checkpoint_sha256,
        "v2": row.v2,
        "base_model_version": row.base_version(facts.prediction),
        "resolution": f"({facts.resolution[0]}, {facts.resolution[1]})",
        "num_train_images": sum(record.repeats for record in records if not record.is_reg),
        "num_reg_images": sum(record.repeats for record in records if record.is_reg),
        "dataset_dirs": _folder_counts([record for record in records if not record.is_reg]),
        "reg_dataset_dirs": _folder_counts([record for record in records if record.is_reg]),
        "tag_frequency": _tag_frequency([record for record in records if not record.is_reg], rules_of),
        "bucket_info": _bucket_info(records),
        **({"datasets": list(facts.datasets)} if facts.datasets else {}),
        **({"vae_name": facts.vae} if facts.vae else {}),
    }
    return {
        **{f"ss_{key}": _text(value) for key, value in fields.items()},
        **network,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": row.architecture_for(facts.prediction),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": facts.output_name,
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(facts.started_at)),
        "modelspec.prediction_type": facts.prediction,
        "modelspec.encoder_layer": str(facts.options.get("clip_skip", 1)),
        "modelspec.implementation_version": f"lora_trainer {__version__}",
        **({"modelspec.trigger_phrase": facts.trigger} if facts.trigger else {}),
    }


def dataset_metadata(
    datasets: Sequence[DataConfig], subsets: Sequence[SubsetRules], records: Sequence[ImageRecord]
) -> list[dict[str, Any]]:
    """sd-scripts' `ss_datasets`, one entry per data set; empty with a single folder of pictures."""
    folders = [(number, rules) for number, rules in enumerate(subsets) if not rules.validation]
    if len(folders) < 2:
        return []
    entries = []
    for index, data in enumerate(datasets):
        own = [record for record in records if record.dataset == index]
        entries.append(
            {
                "is_dreambooth": not any(rules.source.metadata_file for _, rules in folders if rules.dataset == index),
                "batch_size_per_device": data.batch_size,
                "num_train_images": sum(record.repeats for record in own if not record.is_reg),
                "num_reg_images": sum(record.repeats for record in own if record.is_reg),
                "resolution": list(resolution_of(data)),
                **{name: getattr(data, name) for name in ("enable_bucket", "min_bucket_reso", "max_bucket_reso")},
                "bucket_info": _bucket_info(own),
                "subsets": [_subset_metadata(rules, number, own) for number, rules in folders if rules.dataset == index],
            }
        )
    return entries


def _subset_metadata(rules: SubsetRules, number: int, records: Sequence[ImageRecord]) -> dict[str, Any]:
    own = [record for record in records if record.subset == number]
    source = rules.source
    return {
        "img_count": len(own),
        "num_repeats": own[0].repeats if own and not rules.is_reg else rules.data.num_repeats,
        "image_dir": Path(source.folder).name,
        "class_tokens": rules.data.class_tokens or None,
        "is_reg": rules.is_reg,
        **({"metadata_file": Path(source.metadata_file).name} if source.metadata_file else {}),
        **{name: getattr(rules.data, name) for name in SUBSET_OPTIONS},
    }


def metadata_at_step(shared: Mapping[str, str], *, step: int, epoch: int) -> dict[str, str]:
    """The shared fields with those of the current step and epoch."""
    return {**shared, "ss_steps": str(step), "ss_epoch": str(epoch), "ss_training_finished_at": str(now())}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _folder(record: ImageRecord) -> str:
    return record.path.parent.name


def _folder_counts(records: Sequence[ImageRecord]) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for record in records:
        entry = counted.setdefault(_folder(record), {"n_repeats": record.repeats, "img_count": 0})
        entry["img_count"] += 1
    return counted


def _tag_frequency(records: Sequence[ImageRecord], rules_of: Callable[[ImageRecord], CaptionRules]) -> dict[str, dict[str, int]]:
    """Folder -> tag -> number of captions that may be read with it; a picture without a caption counts for the trigger word."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        rules = rules_of(record)
        counted[_folder(record)].update(
            caption_tags(record, rules) or caption_tags(attrs.evolve(record, caption=rules.trigger_word), rules)
        )
    return {folder: dict(tags) for folder, tags in counted.items()}


def _bucket_info(records: Sequence[ImageRecord]) -> dict[str, Any]:
    counts = Counter({record.bucket: 0 for record in records})
    for record in records:
        counts[record.bucket] += record.repeats
    sizes = sorted((bucket for bucket in counts if bucket is not None), key=lambda size: (size[0], size[1]))
    return {"buckets": {str(number): {"resolution": list(size), "count": counts[size]} for number, size in enumerate(sizes)}}
