"""Folders of pictures as the tab shows them: each file's verdict, frame, mask and crop, counts, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lora_trainer.api.scan_cache import ScanCache, ScannedDataset, placed_as_trained
from lora_trainer.api.tokens import Tokens
from lora_trainer.config.build import build
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data import buckets, captions
from lora_trainer.data.pictures.masks import has_mask
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.assemble import about_regularisation
from lora_trainer.data.sources.blueprint import SubsetRules, size_of
from lora_trainer.errors import ConfigError, DatasetError, TrainerError
from lora_trainer.messages import Message

TO_LOOK_AT = {"broken", "not-a-picture", "too-small", "small", "copy"}
CROPPED = 0.9
"""A picture of which less than this is kept counts as cropped."""
NEEDED = ("train_data_dir", "reg_data_dir", "in_json", "dataset_config", "subsets", "trigger_word", "class_tokens", "leave_out", "crops")


def lenient(mapping: Mapping[str, Any]) -> TrainConfig:
    """The config without the values that are wrong: pictures are shown although a rate is mistyped."""
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
        except ConfigError:  # options that are right alone but not together
            return build({"data": {key: value for key, value in plain.get("data", {}).items() if key in NEEDED}})


def pictures(folders: ScanCache, config: TrainConfig, language: str) -> dict[str, Any]:
    """What POST /pictures answers. Raises DatasetError where no folder can be read."""
    reading = folders.read(config)
    description = reading.description
    looked, count = folders.looked(reading.found.records)
    problems, masks = list(reading.problems), []
    try:
        looked, masks = folders.masked(looked, description)
    except DatasetError as error:
        problems.extend(error.problems)
    placed = placed_as_trained(looked, description, config)
    shown = _shown(placed, description.subsets)
    own = [record for record in placed if not record.is_reg and not description.subsets[record.subset].validation]
    used = [record for record in own if record.usable and not record.validation]
    captioned = sum(record.has_caption for record in used)
    held = [record for record in placed if record.usable and record.validation]
    regular = [record for record in placed if record.is_reg and record.usable and not record.validation]
    groups = _groups(shown, {record.key: record.repeats for record in looked}, reading)
    from_folder = any(rules.validation for rules in description.subsets)
    regularisation = about_regularisation(placed, config.data.trigger_word, config.loss.prior_loss_weight)
    warnings = [*reading.found.warnings, *regularisation, *(message for message in masks if not _is_mask_count(message))]
    return {
        "understood": reading.found.understood.text(language),
        "pictures": [_picture(record, groups, reading, language) for record in shown],
        "groups": [{key: value for key, value in group.items() if key != "place"} for group in groups.values()],
        "counts": {
            "all": len(own),
            "used": len(used),
            "needs_look": sum(bool(TO_LOOK_AT & set(record.notes)) for record in own),
            "cropped": sum(record.frame is not None or record.kept < CROPPED for record in used),
            "left_out": sum("left-out" in record.notes for record in own),
            "captions": captioned,
            "without": len(used) - captioned,
        },
        "regularisation": {"count": sum(record.repeats > 0 for record in regular), "all": len(regular)},
        "masks": _masks(masks),
        "looking": {"done": count, "total": len(looked)},
        "buckets": [
            {"width": width, "height": height, "count": number}
            for (width, height), number in sorted(buckets.bucket_counts(placed), key=lambda entry: -entry[1])
        ],
        "shapes": [_shapes(data) for data in description.datasets],
        "validation": {"count": len(held), "source": "folder" if from_folder else "held" if held else "none"},
        "warnings": list(dict.fromkeys(message.text(language) for message in warnings)),
        "problems": [problem.to_json(language) for problem in problems],
        "trigger": _trigger(folders.tokens, config.data.trigger_word, language),
        "class_tokens": _class_tokens(used),
    }


def _shown(placed: Sequence[ImageRecord], subsets: Sequence[SubsetRules]) -> list[ImageRecord]:
    """Pictures to learn from, then regularisation, then the validation folder's; within each as they come."""
    return sorted(placed, key=lambda record: (subsets[record.subset].validation, record.is_reg, record.subset))


def _picture(record: ImageRecord, groups: Mapping[Any, Mapping[str, Any]], reading: ScannedDataset, language: str) -> dict[str, Any]:
    width, height = reading.whole.get(record.key, (record.width, record.height))
    found: dict[str, Any] = {
        "key": record.key,
        "path": str(record.path),
        "name": record.path.name,
        "width": width,
        "height": height,
        "bucket": list(record.bucket) if record.bucket else None,
        "crop": _shares(record),
        "kept": round(record.kept * _area(record), 4),
        "notes": list(record.notes),
        "usable": record.usable,
        "reason": record.reason.text(language) if record.reason else "",
        "validation": record.validation,
        "caption": captions.first_line(record.caption),
        "has_caption": record.has_caption,
        "repeats": record.repeats,
        "group": groups[_place(record)]["number"],
        "dataset": record.dataset,
    }
    if record.frame is not None:
        found |= {"frame": list(record.frame), "part": [record.width, record.height]}
    if record.is_reg:
        found["regularisation"] = True
    if record.usable and has_mask(record):
        found["mask"] = str(record.mask_path or "")
    if "copy" in record.notes and record.reason is not None:
        found["like"] = record.reason.values.get("other", "")
    return found


def _area(record: ImageRecord) -> float:
    if record.frame is None:
        return 1.0
    left, top, right, bottom = record.frame
    return (right - left) * (bottom - top)


def _shares(record: ImageRecord) -> list[float]:
    """[left, top, right, bottom] of what is kept, as shares of the whole picture's sides."""
    frame = record.frame or (0.0, 0.0, 1.0, 1.0)
    if record.resized is None or record.crop is None:
        return list(frame)
    (width, height), (left, top, wide, high) = record.resized, record.crop
    inside = (left / width, top / height, (left + wide) / width, (top + high) / height)
    sides = (frame[2] - frame[0], frame[3] - frame[1])
    return [round(frame[number % 2] + share * sides[number % 2], 5) for number, share in enumerate(inside)]


def _place(record: ImageRecord) -> tuple[int, str]:
    """The folder that a picture lies in: those of one source are told apart by the names in front of the pictures'."""
    return record.subset, str(PurePosixPath(record.key).parent)


def _groups(records: Sequence[ImageRecord], repeats: Mapping[str, int], reading: ScannedDataset) -> dict[tuple[int, str], dict[str, Any]]:
    """Each folder with what was understood of it, in the order in which its pictures are shown."""
    description = reading.description
    several = len(description.datasets) > 1
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for record in records:
        rules, place = description.subsets[record.subset], _place(record)
        kind = "validation" if rules.validation else "regularisation" if record.is_reg else "trained"
        group = found.setdefault(
            place,
            {
                "number": len(found),
                "name": record.path.parent.name,
                "folder": str(record.path.parent),
                "kind": kind,
                "count": 0,
                "used": 0,
                "captions": 0,
                "repeats": repeats.get(record.key, record.repeats),
                "words": record.class_tokens,
                "size": list(size_of(rules.data)) if several else None,
                "batch": rules.data.batch_size if several else None,
            },
        )
        group["count"] += 1
        group["used"] += record.usable
        group["captions"] += record.usable and record.has_caption
    return found


def _shapes(data: DataConfig) -> list[list[int]]:
    """The sizes that a picture of this dataset can be brought to; none where each keeps its own."""
    if not data.enable_bucket:
        return [list(size_of(data))]
    if data.bucket_no_upscale:
        return []
    return [list(size) for size in buckets.bucket_sizes(size_of(data), data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps)]


def _masks(messages: Sequence[Message]) -> dict[str, Any] | None:
    """{"count", "all", "share" in per cent} where masks are used."""
    for message in messages:
        if _is_mask_count(message):
            return {key: message.values[key] for key in ("count", "all", "share")}
    return None


def _is_mask_count(message: Message) -> bool:
    return {"count", "all", "share"} <= message.values.keys()


def _class_tokens(used: Sequence[ImageRecord]) -> str:
    """The class words that all pictures share, by the folder's name or the config."""
    found = {record.class_tokens for record in used}
    return found.pop() if len(found) == 1 else ""


def _trigger(tokens: Tokens, trigger: str, language: str) -> dict[str, Any]:
    warning = tokens.warning(trigger) if trigger.strip() else None
    return {"tokens": tokens.count(trigger) if trigger.strip() else 0, "warning": warning.text(language) if warning else ""}


def caption_file(picture: Path) -> Path:
    """The caption file of a picture: the .txt or .caption beside it, else the .txt that is to be. Raises TrainerError for another file."""
    from lora_trainer.data.sources.folders import CAPTION_SUFFIXES, is_picture

    if not is_picture(picture.name) or not picture.is_file():
        raise TrainerError("{path} is not a picture.", path=str(picture), fix="Choose a picture of the list.")
    beside = [picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    return next((path for path in beside if path.is_file()), beside[0])
