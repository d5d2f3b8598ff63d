"""Checks of values beyond their type: bounds, choices, format; and of combinations of options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_trainer.config import arguments, effective
from lora_trainer.config.checks.network_checks import check_network
from lora_trainer.config.checks.picture_options import parse_crop, parse_face_crop_range, varying_options
from lora_trainer.config.choices.optimizers import CLASS_PATH as CLASS
from lora_trainer.config.file_names import name_problem, slug
from lora_trainer.config.param import SECRET, DeclaredOption, declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import Problem
from lora_trainer.messages import Message

FREE_TEXT_KINDS = ("prompt", "prompts")
PATH_KINDS = ("folder", "file", "checkpoint", "vae", "name", "hidden")
_PERCENTAGE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*")


@lru_cache(maxsize=1)
def options() -> dict[str, DeclaredOption]:
    """Every option of a run, by dotted path."""
    return {option.path: option for option in declared_options(TrainConfig)}


def problem(path: str, template: str, fix: str = "", /, **values: Any) -> Problem:
    """A problem whose message and remedy share their values."""
    return Problem(path, Message(template, values), Message(fix, values))


def format_value(value: Any) -> str:
    """A value as a user would write it, shortened to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def check_value(option: DeclaredOption, value: Any) -> Iterator[Problem]:
    """Problems of one value of the right type."""
    if value is None:
        return
    if isinstance(value, str):
        yield from _check_text(option, value)
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, (int, float)) and not isinstance(part, bool):
            yield from _check_bounds(option, part)
        elif isinstance(part, str):
            yield from _check_characters(option, part)


def _check_bounds(option: DeclaredOption, value: float) -> Iterator[Problem]:
    details = option.option
    bounds = _format_bounds({"value": value, "low": details.low, "high": details.high, "above": details.above})
    fix = "Choose a value up to {high}."
    if details.low is not None:
        fix = "Choose a value from {low} up." if details.high is None else "Choose a value from {low} to {high}."
    if details.low is not None and value < details.low:
        yield problem(option.path, "{value} is too small: at least {low}.", fix, **bounds)
    elif details.above is not None and value <= details.above:
        yield problem(option.path, "{value} is too small: it must be more than {above}.", fix, **bounds)
    elif details.high is not None and value > details.high:
        yield problem(option.path, "{value} is too large: at most {high}.", fix, **bounds)
    elif details.kind == "size" and value % 8:
        nearest = max(64, int(value / 64 + 0.5) * 64)
        yield problem(
            option.path, "{value} is not a multiple of 8.", "Take a multiple of 64, for example {near}.", value=value, near=nearest
        )


def _format_bounds(bounds: dict[str, Any]) -> dict[str, Any]:
    """The bounds that are set, whole numbers without a decimal point."""
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in bounds.items() if v is not None}


def _check_text(option: DeclaredOption, value: str) -> Iterator[Problem]:
    details = option.option
    if details.choices and value not in details.choices and not (details.kind == "class" and CLASS.fullmatch(value)):
        nearest = get_close_matches(value.lower(), [choice.lower() for choice in details.choices], 1, 0.5)
        suggestion = next((choice for choice in details.choices if nearest and choice.lower() == nearest[0]), "")
        fix = "Did you mean {near}?" if suggestion else "Choose one of these: {choices}."
        choices = ", ".join(details.choices)
        yield problem(
            option.path, "{value} is not one of the choices: {choices}.", fix, value=format_value(value), choices=choices, near=suggestion
        )
    if details.kind == "steps" and not (_PERCENTAGE.fullmatch(value) and float(value.rstrip("% ")) <= 100):
        yield problem(
            option.path,
            "{value} is not a share from 0% to 100%.",
            'Write a number of steps, or a share such as "5%".',
            value=format_value(value),
        )
    if details.kind == "name" and value and (name_error := name_problem(value)):
        yield problem(option.path, "{wrong}", "Take another name, for example {near}.", wrong=name_error, near=slug(value))


def _check_characters(option: DeclaredOption, value: str) -> Iterator[Problem]:
    """Problems of control characters: in "C:\\new\\train" TOML reads \\n and \\t as escapes."""
    if option.option.kind in FREE_TEXT_KINDS:
        return
    if option.option.kind == SECRET:
        if not all(33 <= ord(character) < 127 for character in value.strip()):
            yield problem(option.path, "it holds characters that no token has.", "Copy it again from the page where you got it.")
        return
    control_character = next((character for character in value if ord(character) < 32 or ord(character) == 127), "")
    if control_character and option.option.kind in PATH_KINDS:
        yield problem(
            option.path,
            "the path {value} holds the control character {sign}: between double quotes a \\ begins an escape.",
            "Use single quotes ('C:\\new\\train') or / instead of \\.",
            value=format_value(value),
            sign=format_value(control_character).strip('"'),
        )
    elif control_character:
        yield problem(option.path, "{value} holds a control character.", "Take it out.", value=format_value(value))


def check_combinations(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """(paths of the options concerned, problem) of each wrong combination."""
    data, size = config.data, config.data.resolution
    shortest = size if isinstance(size, int) else min(size)
    if data.bucket_reso_steps % 8:
        yield (
            ("data.bucket_reso_steps",),
            problem(
                "data.bucket_reso_steps",
                "{value} is not a multiple of 8.",
                "Take 64, or another multiple of 8.",
                value=data.bucket_reso_steps,
            ),
        )
    elif data.enable_bucket and data.bucket_reso_steps > shortest:
        yield (
            ("data.bucket_reso_steps", "data.resolution"),
            problem(
                "data.bucket_reso_steps",
                "steps of {value} pixels are larger than the training size {size}.",
                "Take 64 or less, or set data.enable_bucket = false.",
                value=data.bucket_reso_steps,
                size=shortest,
            ),
        )
    if data.min_bucket_reso > data.max_bucket_reso:
        yield (
            ("data.min_bucket_reso", "data.max_bucket_reso"),
            problem(
                "data.min_bucket_reso",
                "the smallest side {low} is larger than the longest side {high} (data.max_bucket_reso).",
                "Set data.min_bucket_reso to {high} or less.",
                low=data.min_bucket_reso,
                high=data.max_bucket_reso,
            ),
        )
    if config.optimizer.unet_lr == 0 and config.optimizer.text_encoder_lr == 0:
        yield (
            ("optimizer.unet_lr", "optimizer.text_encoder_lr"),
            problem(
                "optimizer.unet_lr",
                "unet_lr and text_encoder_lr are both 0: nothing would be trained.",
                "Give one of them a rate, for example unet_lr = 0.0001.",
            ),
        )
    yield from _check_pictures(config)
    yield from _check_captions(config)
    yield from _check_validation(config)
    yield from _check_timesteps(config)
    yield from _check_optimizer_args(config)
    yield from _check_fp8(config)
    yield from check_network(config.network)


def _check_pictures(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    data = config.data
    faces = data.face_crop_aug_range
    if faces and parse_face_crop_range(faces) is None:
        yield (
            ("data.face_crop_aug_range",),
            problem(
                "data.face_crop_aug_range",
                "{value} is not a range of two numbers from 1 up.",
                'Write for example "2.0,4.0".',
                value=format_value(faces),
            ),
        )
    for name in varying_options(data) if data.cache_latents else ():
        yield (
            (f"data.{name}", "data.cache_latents"),
            problem(
                f"data.{name}",
                "pictures are different each time with this, so they cannot be kept encoded (data.cache_latents).",
                "Set data.cache_latents = false, or switch this off.",
            ),
        )
    if faces and data.random_crop:
        yield (
            ("data.face_crop_aug_range", "data.random_crop"),
            problem(
                "data.face_crop_aug_range",
                "the face decides what is cut, so it cannot be cut at random too (data.random_crop).",
                "Set data.random_crop = false, or leave data.face_crop_aug_range empty.",
            ),
        )
    for text in data.crops:
        if parse_crop(text) is None:
            yield (
                ("data.crops",),
                problem(
                    "data.crops",
                    "{value} is not of the form key=left,top,right,bottom with shares from 0 to 1.",
                    "Choose the part of the picture again, or take the entry out.",
                    value=format_value(text),
                ),
            )


def _check_fp8(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """What calculates with the frozen weights themselves: their 8 bits would round a small change away."""
    for path in effective.uses_of_unet_weights(config) if config.memory.fp8_base_unet else ():
        yield (
            (path, "memory.fp8_base_unet"),
            problem(
                "memory.fp8_base_unet",
                "{option} changes the U-Net's own weights, which cannot be done in 8 bits.",
                "Set memory.fp8_base_unet = false, or train a plain LoRA, LoHa or LoKr.",
                option=f"{path} = {config.network.type}" if path == "network.type" else path,
            ),
        )


def _check_captions(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    for name in ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"):
        if getattr(config.data, name) and effective.trains_text_encoder(config):
            yield (
                (f"data.{name}", "optimizer.text_encoder_lr"),
                problem(
                    f"data.{name}",
                    "captions cannot be kept encoded while the text encoder is trained: its output changes with each step.",
                    "Set optimizer.text_encoder_lr = 0, or switch this off.",
                ),
            )
    if config.model.max_token_length not in (75, 150, 225):
        yield (
            ("model.max_token_length",),
            problem(
                "model.max_token_length", "{value} tokens cannot be read.", "Take 75, 150 or 225.", value=config.model.max_token_length
            ),
        )
    if not config.data.caption_separator:
        yield (
            ("data.caption_separator",),
            problem(
                "data.caption_separator",
                "there is nothing between the parts of captions.",
                'Write for example data.caption_separator = ",".',
            ),
        )
    extension = config.data.caption_extension
    if extension and not re.fullmatch(r"\.?[\w-]+", extension):
        yield (
            ("data.caption_extension",),
            problem(
                "data.caption_extension",
                "{value} is not the ending of a file name.",
                'Write for example ".txt", or leave it empty.',
                value=format_value(extension),
            ),
        )


def _check_validation(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    folder = config.validate.data_dir.strip()
    if folder and config.validate.fraction:
        yield (
            ("validate.fraction", "validate.data_dir"),
            problem(
                "validate.fraction",
                "pictures are held back ({value}) and a validation folder is given too.",
                "Set validate.fraction = 0, or leave validate.data_dir empty.",
                value=config.validate.fraction,
            ),
        )
    if folder and config.data.train_data_dir.strip() and Path(folder).absolute() == Path(config.data.train_data_dir.strip()).absolute():
        yield (
            ("validate.data_dir", "data.train_data_dir"),
            problem(
                "validate.data_dir",
                "the validation folder is the folder that is trained on: its loss would say nothing.",
                "Choose another folder, or leave it empty and set validate.fraction = 0.1.",
            ),
        )


def _check_timesteps(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    low, high = config.loss.min_timestep, config.loss.max_timestep
    if low >= high:
        yield (
            ("loss.min_timestep", "loss.max_timestep"),
            problem(
                "loss.min_timestep",
                "no timestep is left: the first is {low}, and the one to stop before is {high} (loss.max_timestep).",
                "Set loss.min_timestep to less than {high}.",
                low=low,
                high=high,
            ),
        )


def _check_optimizer_args(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    for path, text in (("optimizer.args", config.optimizer.args), ("schedule.args", config.schedule.args)):
        for word in arguments.split_args(text):
            if not arguments.ARGUMENT.fullmatch(word):
                yield (
                    (path,),
                    problem(
                        path,
                        "{value} is not of the form name=value.",
                        "Write for example weight_decay=0.01 betas=.9,.999",
                        value=format_value(word),
                    ),
                )


def nearest_option(path: str) -> str:
    """Dotted path of the option whose name, here or in sd-scripts, is nearest to an unknown `path`; "" if none is similar."""
    section, _, name = path.rpartition(".")
    best, best_score = "", 0.6
    for candidate, option in options().items():
        candidate_section, _, field = candidate.rpartition(".")
        names = [field, option.option.kohya, f"{candidate_section}_{field}"]
        score = max(SequenceMatcher(None, name.lower(), part.lower()).ratio() for part in names if part)
        score = max(score, 0.8) if name == "".join(part[0] for part in field.split("_")) else score  # lr
        score += 0.05 if candidate_section == section else 0.0
        score += 0.05 if option.option.kohya == name else 0.0
        if score > best_score:
            best, best_score = candidate, score
    return best
