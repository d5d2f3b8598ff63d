"""Keys under the names of sd-scripts' command line, brought to our options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import attrs

from lora_trainer.config.build import build
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.choices.samplers import known_sampler
from lora_trainer.config.file_names import problem_of_name, slug
from lora_trainer.config.importing.learning import LEARNING, Options, Read
from lora_trainer.config.importing.networks import NETWORK
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, NOT_YET, OFF, SAFETENSORS, reason
from lora_trainer.config.importing.result import Filled, Left, Taken
from lora_trainer.config.importing.values import brought, is_empty, number
from lora_trainer.config.prompt_files import ENDINGS, rows_of_file, rows_of_lines
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.messages import Message, say


@attrs.frozen
class Key:
    """A key as it stands in the file (`key`), its name in sd-scripts (`name`), its value in sd-scripts' terms."""

    key: str
    name: str
    value: Any
    shown: Any = None
    why: Message | None = None
    """Set where it is known already that it is left."""
    into: str = ""
    """The option whose value holds it already, where another key stands for both."""


def translate_keys(
    keys: Iterable[Key], read: Read, defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Taken], list[Left], list[Filled]]:
    """(nested values, taken, left, filled). `read` gives the text of a file that a key names, or None."""
    keys = list(keys)
    given = {key.name: key.value for key in keys if key.why is None and not key.into and not is_empty(key.value)}
    flat: dict[str, Any] = {}
    origin: dict[str, Key] = {}
    left: list[Left] = []
    for key in keys:
        if key.into:
            continue
        found = key.why or _options_of(key, given, read)
        if isinstance(found, Message):
            left.append(Left(key.key, _shown(key), found))
            continue
        for path, value in found:
            flat[path] = value
            origin[path] = key
    flat = _without_wrong(flat, origin, left)
    became: dict[str, list[str]] = {}
    for path in flat:
        became.setdefault(origin[path].key, []).append(path)
    became |= {one.key: [one.into] for one in keys if one.into in flat}
    taken = [Taken(key.key, _shown(key), tuple(became[key.key])) for key in keys if key.key in became]
    told = {one.key for one in taken} | {one.key for one in left}
    left += [Left(key.key, _shown(key), say("Another key of the file decides it.")) for key in keys if key.key not in told]
    filled = [Filled(path, value) for path, value in defaults.items() if path in options() and path not in flat]
    return nested(flat | {one.path: one.value for one in filled}), taken, left, filled


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as tables."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        section, _, name = path.rpartition(".")
        place = found.setdefault(section, {}) if section else found
        place[name] = value
    return found


@lru_cache(maxsize=1)
def paths() -> dict[str, str]:
    """sd-scripts' name of each option -> its path."""
    found: dict[str, str] = {}
    for path, option in options().items():
        found.setdefault(option.option.kohya or path.rpartition(".")[2], path)
    return found


def _shown(key: Key) -> Any:
    return key.value if key.shown is None else key.shown


def _options_of(key: Key, given: Mapping[str, Any], read: Read) -> Options | Message:
    if is_empty(key.value):
        return EMPTY
    if key.name in SPECIAL:
        return SPECIAL[key.name](key.value, given, read)
    path = paths().get(key.name)
    if path is None:
        return reason(key.name, key.value)
    return [(path, brought(key.value, options()[path]))]


def _without_wrong(flat: dict[str, Any], origin: Mapping[str, Key], left: list[Left]) -> dict[str, Any]:
    """The values without those that our own checks refuse; each of these is listed with what is wrong with it."""
    while flat:
        try:
            build(nested(flat))
        except ConfigError as error:
            wrong = {path: found for found in error.problems for path in flat if found.path == path or found.path.startswith(path + "[")}
            if not wrong:
                raise
            for path, found in wrong.items():
                if path in flat:
                    left.append(Left(origin[path].key, _shown(origin[path]), say("Not taken: {why}", why=found.message)))
                    flat = {other: value for other, value in flat.items() if origin[other] is not origin[path]}
        else:
            break
    return flat


# --- keys that are more than one value under another name ----------------------------------------------------------------------------


def _sample_prompts(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """The prompts themselves, or those of the file that holds them."""
    text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
    if text.lower().endswith(ENDINGS) and "\n" not in text:
        content = read(text)
        if content is None:
            return say("The prompt file {file} cannot be read from here: write its prompts into sample.prompts.", file=text)
        try:
            lines = [row.line() for row in rows_of_file(content, text)]
        except TrainerError as error:
            return say("Not taken: {why}", why=error.problems[0].message)
    else:
        lines = [row.line() for row in rows_of_lines(text)]
    return [("sample.prompts", lines)] if lines else EMPTY


def _sampler(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    name = known_sampler(str(value))
    if name is None:
        return say("The sampler {name} is not here: previews are drawn with {default}.", name=value, default="ddim")
    return [("sample.sampler", name)]


def _log_with(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    if str(value).lower() in ("tensorboard", "all"):
        return [("log.log_with", "tensorboard")]
    return say("{name} is not used here: every run keeps its own log, and TensorBoard can be chosen.", name=value)


def _log_name(path: str) -> Callable[[Any, Mapping[str, Any], Read], Options | Message]:
    """A part of a folder's name, brought to what may be one."""

    def take(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
        return [(path, slug(str(value)) if problem_of_name(str(value)) else str(value))]

    return take


def _mask_folder(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    if given.get("masked_loss") not in (True, "true", "True"):
        return say("sd-scripts uses it only with masked_loss.")
    path = paths().get("conditioning_data_dir")
    return NOT_YET if path is None else [(path, str(value))]


def _masked_loss(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    return say("Masks are used here as soon as their folder, or alpha_mask, is given.") if value in (True, "true", "True") else OFF


def _model_format(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    return ITSELF if value == "safetensors" else SAFETENSORS


def _caption_ending(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    if "caption_extension" in given and value == given.get("caption_extention"):
        return say("caption_extension wins.")
    return [("data.caption_extension", str(value))]


def _bucket_steps(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    finest = int(options()["data.bucket_reso_steps"].option.low or 1)
    return [("data.bucket_reso_steps", finest if 0 < number(value) < finest else brought(value, options()["data.bucket_reso_steps"]))]


def _clip_skip(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    return OFF if number(value) == 0 else [("model.clip_skip", brought(value, options()["model.clip_skip"]))]


def _noise_type(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    return say("Each kind of noise is used here as soon as its value is not 0.")


def _validation_batches(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """Batches there, pictures here."""
    return [("validate.max_pictures", int(number(value) * max(1.0, number(given.get("train_batch_size", 1)))))]


def _of_other_models(name: str) -> Callable[[Any, Mapping[str, Any], Read], Options | Message]:
    """sd-scripts reads it for models of another kind only, whatever its value; the option of that name here is not it."""
    return lambda value, given, read: reason(name, value)


def _of_the_model(path: str) -> Callable[[Any, Mapping[str, Any], Read], Options | Message]:
    """What the file tells by itself: only a flag that is set is taken along, to be compared with it."""
    return lambda value, given, read: [(path, True)] if value in (True, "true", "True") else ITSELF


def _token_length(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    path = paths().get("max_token_length")
    if path is None:
        return OFF if number(value) == 75 else NOT_YET
    value = 225 if number(value) == 255 else value  # one program offers 255, which sd-scripts does not know
    return [(path, brought(value, options()[path]))]


def _attention(way: str) -> Callable[[Any, Mapping[str, Any], Read], Options | Message]:
    """sd-scripts has a switch for each way; of several it takes the first of these."""

    def take(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
        if value in ATTENTION:  # kohya_ss writes the chosen one's name
            return [("memory.attention", ATTENTION[value])]
        if value not in (True, "true", "True"):
            return OFF
        first = next(name for name in ATTENTION if given.get(name) in (True, "true", "True"))
        return [("memory.attention", way)] if ATTENTION[first] == way else say("Another key of the file decides it.")

    return take


def _encoded_captions(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """kohya_ss' own name of the switch for SDXL."""
    return [("data.cache_text_encoder_outputs", True)] if value in (True, "true", "True") else OFF


def _eight_bits(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """There for the text encoders too, unless fp8_base_unet says otherwise."""
    return [("memory.fp8_base_unet", True)] if value in (True, "true", "True") else OFF


def _full_vae(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    return [("memory.vae_precision", "fp32")] if value in (True, "true", "True") else OFF


ATTENTION = {"mem_eff_attn": "sliced", "xformers": "xformers", "sdpa": "sdpa"}
SPECIAL: dict[str, Callable[[Any, Mapping[str, Any], Read], Options | Message]] = {
    **LEARNING,
    **NETWORK,
    "sample_prompts": _sample_prompts,
    "sample_sampler": _sampler,
    "log_with": _log_with,
    "log_prefix": _log_name("log.log_prefix"),
    "log_tracker_name": _log_name("log.log_tracker_name"),
    "save_model_as": _model_format,
    "conditioning_data_dir": _mask_folder,
    "masked_loss": _masked_loss,
    "caption_extention": _caption_ending,
    "clip_skip": _clip_skip,
    "bucket_reso_steps": _bucket_steps,
    "max_token_length": _token_length,
    **{name: _attention(way) for name, way in ATTENTION.items()},
    "no_half_vae": _full_vae,
    "sdxl_no_half_vae": _full_vae,
    "fp8_base": _eight_bits,
    "sdxl_cache_text_encoder_outputs": _encoded_captions,
    "noise_offset_type": _noise_type,
    "max_validation_steps": _validation_batches,
    **{name: _of_the_model(f"model.{name}") for name in ("v2", "v_parameterization", "zero_terminal_snr")},
    **{name: _of_other_models(name) for name in ("timestep_sampling", "logit_mean", "logit_std", "mode_scale")},
}
