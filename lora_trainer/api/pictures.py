"""Folders of pictures as the tab shows them: each file's verdict, frame, mask and crop, counts, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lora_trainer.api.scan_cache import ScanCache, ScannedDataset, bucket_records
from lora_trainer.config.build import build
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data import buckets, captions
from lora_trainer.data.pictures.masks import has_mask
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.assemble import regularisation_warnings
from lora_trainer.data.sources.blueprint import SubsetRules, resolution_of
from lora_trainer.errors import ConfigError, DatasetError, TrainerError
from lora_trainer.messages import Message
from lora_trainer.prep.caption_tokens import ClipTokens

NEEDS_LOOK = {"broken", "not-a-picture", "too-small", "small", "copy"}
CROPPED_BELOW = 0.9
"""A picture counts as cropped when a smaller share of its area is kept."""
SHOWN_CAPTION = 1000
"""Characters of a caption that the list of pictures holds; the captions' own list has them all."""
ESSENTIAL = ("train_data_dir", "reg_data_dir", "in_json", "dataset_config", "subsets", "trigger_word", "class_tokens", "leave_out", "crops")


def build_lenient(mapping: Mapping[str, Any]) -> TrainConfig:
    """The config without its invalid values, so that pictures are shown although a learning rate is mistyped."""
    plain: Any = {key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
    try:
        return build(plain)
    except ConfigError as error:
        for problem in error.problems:
            section, _, name = problem.path.rpartition(".")
            place = plain.get(section, {}) if section else plain
            if isinstance(place, dict):
                place.pop(name, None)
        try:
            return build(plain)
        except ConfigError:  # options that are valid alone but not together
            return build({"data": {key: value for key, value in plain.get("data", {}).items() if key in ESSENTIAL}})


def list_pictures(scans: ScanCache, config: TrainConfig, language: str) -> dict[str, Any]:
    """The response of POST /pictures. Raises DatasetError when no folder can be read."""
    dataset = scans.scan(config)
    blueprint = dataset.blueprint
    records, checked = scans.check_decodes(dataset.assembled.records)
    problems, masks = list(dataset.problems), []
    try:
        records, masks = scans.attach_masks(records, blueprint)
    except DatasetError as error:
        problems.extend(error.problems)
    bucketed = bucket_records(records, blueprint, config)
    shown = _in_display_order(bucketed, blueprint.subsets)
    trained = [record for record in bucketed if not record.is_reg and not blueprint.subsets[record.subset].validation]
    used = [record for record in trained if record.usable and not record.validation]
    captioned = sum(record.has_caption for record in used)
    validation = [record for record in bucketed if record.usable and record.validation]
    reg_images = [record for record in bucketed if record.is_reg and record.usable and not record.validation]
    groups = _group_pictures(shown, {record.key: record.repeats for record in records}, dataset)
    from_folder = any(rules.validation for rules in blueprint.subsets)
    regularisation = regularisation_warnings(bucketed, config.data.trigger_word, config.loss.prior_loss_weight)
    warnings = [*dataset.assembled.warnings, *regularisation, *(message for message in masks if not _is_mask_count(message))]
    return {
        "understood": dataset.assembled.summary.text(language),
        "pictures": [_picture_json(record, groups, dataset, language) for record in shown],
        "groups": list(groups.values()),
        "counts": {
            "all": len(trained),
            "used": len(used),
            "needs_look": sum(bool(NEEDS_LOOK & set(record.notes)) for record in trained),
            "cropped": sum(record.frame is not None or record.kept_area < CROPPED_BELOW for record in used),
            "left_out": sum("left-out" in record.notes for record in trained),
            "captions": captioned,
            "without": len(used) - captioned,
        },
        "regularisation": {"count": sum(record.repeats > 0 for record in reg_images), "all": len(reg_images)},
        "masks": _mask_counts(masks),
        "looking": {"done": checked, "total": len(records)},
        "buckets": [
            {"width": width, "height": height, "count": number}
            for (width, height), number in sorted(buckets.bucket_counts(bucketed), key=lambda entry: -entry[1])
        ],
        "shapes": [_bucket_shapes(data) for data in blueprint.datasets],
        "validation": {"count": len(validation), "source": "folder" if from_folder else "held" if validation else "none"},
        "warnings": list(dict.fromkeys(message.text(language) for message in warnings)),
        "problems": [problem.to_json(language) for problem in problems],
        "trigger": _trigger_json(scans.tokens, config.data.trigger_word, language),
        "class_tokens": _shared_class_tokens(used),
    }


def _in_display_order(records: Sequence[ImageRecord], subsets: Sequence[SubsetRules]) -> list[ImageRecord]:
    """Training pictures, then regularisation, then the validation folder's; within each in the order of the scan."""
    return sorted(records, key=lambda record: (subsets[record.subset].validation, record.is_reg, record.subset))


def _picture_json(record: ImageRecord, groups: Mapping[Any, Mapping[str, Any]], dataset: ScannedDataset, language: str) -> dict[str, Any]:
    width, height = dataset.full_sizes.get(record.key, (record.width, record.height))
    picture: dict[str, Any] = {
        "key": record.key,
        "path": str(record.path),
        "name": record.path.name,
        "width": width,
        "height": height,
        "bucket": list(record.bucket) if record.bucket else None,
        "crop": _crop_box(record),
        "kept": round(record.kept_area * _frame_area(record), 4),
        "notes": list(record.notes),
        "usable": record.usable,
        "reason": record.reason.text(language) if record.reason else "",
        "validation": record.validation,
        "caption": captions.first_line(record.caption)[:SHOWN_CAPTION],
        "has_caption": record.has_caption,
        "repeats": record.repeats,
        "group": groups[_group_key(record)]["number"],
        "dataset": record.dataset,
    }
    if record.frame is not None:
        picture |= {"frame": list(record.frame), "part": [record.width, record.height]}
    if record.is_reg:
        picture["regularisation"] = True
    if record.usable and has_mask(record):
        picture["mask"] = str(record.mask_path or "")
    if "copy" in record.notes and record.reason is not None:
        picture["like"] = record.reason.values.get("other", "")
    return picture


def _frame_area(record: ImageRecord) -> float:
    if record.frame is None:
        return 1.0
    left, top, right, bottom = record.frame
    return (right - left) * (bottom - top)


def _crop_box(record: ImageRecord) -> list[float]:
    """[left, top, right, bottom] of the kept area, as fractions of the whole picture's sides."""
    frame = record.frame or (0.0, 0.0, 1.0, 1.0)
    if record.resized is None or record.crop is None:
        return list(frame)
    (width, height), (left, top, wide, high) = record.resized, record.crop
    inside = (left / width, top / height, (left + wide) / width, (top + high) / height)
    sides = (frame[2] - frame[0], frame[3] - frame[1])
    return [round(frame[number % 2] + share * sides[number % 2], 5) for number, share in enumerate(inside)]


def _group_key(record: ImageRecord) -> tuple[int, str]:
    """The picture's subset and its folder within it."""
    return record.subset, str(PurePosixPath(record.key).parent)


def _group_pictures(
    records: Sequence[ImageRecord], repeats: Mapping[str, int], dataset: ScannedDataset
) -> dict[tuple[int, str], dict[str, Any]]:
    """Each folder with its counts and settings, in the order in which its pictures are shown."""
    blueprint = dataset.blueprint
    several = len(blueprint.datasets) > 1
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    for record in records:
        rules, place = blueprint.subsets[record.subset], _group_key(record)
        kind = "validation" if rules.validation else "regularisation" if record.is_reg else "trained"
        group = groups.setdefault(
            place,
            {
                "number": len(groups),
                "name": record.path.parent.name,
                "folder": str(record.path.parent),
                "kind": kind,
                "count": 0,
                "used": 0,
                "captions": 0,
                "repeats": repeats.get(record.key, record.repeats),
                "words": record.class_tokens,
                "size": list(resolution_of(rules.data)) if several else None,
                "batch": rules.data.batch_size if several else None,
            },
        )
        group["count"] += 1
        group["used"] += record.usable
        group["captions"] += record.usable and record.has_caption
    return groups


def _bucket_shapes(data: DataConfig) -> list[list[int]]:
    """The bucket resolutions of a dataset; none where every picture keeps its own size."""
    if not data.enable_bucket:
        return [list(resolution_of(data))]
    if data.bucket_no_upscale:
        return []
    return [
        list(size)
        for size in buckets.make_bucket_resolutions(resolution_of(data), data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps)
    ]


def _mask_counts(messages: Sequence[Message]) -> dict[str, Any] | None:
    """{"count", "all", "share" in per cent} when masks are used, else None."""
    for message in messages:
        if _is_mask_count(message):
            return {key: message.values[key] for key in ("count", "all", "share")}
    return None


def _is_mask_count(message: Message) -> bool:
    return {"count", "all", "share"} <= message.values.keys()


def _shared_class_tokens(records: Sequence[ImageRecord]) -> str:
    """The class tokens, from the folder's name or the config, when all pictures have the same; else ""."""
    class_tokens = {record.class_tokens for record in records}
    return class_tokens.pop() if len(class_tokens) == 1 else ""


def _trigger_json(tokens: ClipTokens, trigger: str, language: str) -> dict[str, Any]:
    warning = tokens.trigger_warning(trigger) if trigger.strip() else None
    return {"tokens": tokens.count(trigger) if trigger.strip() else 0, "warning": warning.text(language) if warning else ""}


def caption_path(picture: Path) -> Path:
    """The caption file of a picture: the .txt or .caption beside it, else the .txt to create. Raises TrainerError for another file."""
    from lora_trainer.data.sources.folders import CAPTION_SUFFIXES, is_picture

    if not is_picture(picture.name) or not picture.is_file():
        raise TrainerError("{path} is not a picture.", path=str(picture), fix="Choose a picture of the list.")
    beside = [picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    return next((path for path in beside if path.is_file()), beside[0])
