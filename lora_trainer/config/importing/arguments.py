"""Translation of keys under sd-scripts' argument names to our options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, get_origin

import attrs

from lora_trainer.config.build import build
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.choices.samplers import find_sampler
from lora_trainer.config.file_names import name_problem, slug
from lora_trainer.config.importing.flow import FLOW_KEYS
from lora_trainer.config.importing.learning import LEARNING, Options, ReadText
from lora_trainer.config.importing.networks import NETWORK
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, LIKE_EMPTY, NOT_YET, OFF, SAFETENSORS, reason_left
from lora_trainer.config.importing.result import Filled, Left, Taken
from lora_trainer.config.importing.values import convert, is_empty, to_number
from lora_trainer.config.prompt_files import SUFFIXES, PromptRow, rows_from_file, rows_from_lines
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.messages import Message, say


@attrs.frozen
class Key:
    """A key of the file: as written (`key`), its sd-scripts name or our option's path (`name`), its value in sd-scripts' terms."""

    key: str
    name: str
    value: Any
    shown: Any = None
    why: Message | None = None
    """The reason, if it is already known that the key is not taken."""
    merged_into: str = ""
    """The option that already holds its value, if it was merged into another key."""
    options: Options | None = None
    """Our options, if they are already known."""


@attrs.frozen
class Translated:
    """Nested values, what became of each key, defaults that were filled in, and values of a list that were not taken."""

    values: dict[str, Any]
    taken: tuple[Taken, ...]
    left: tuple[Left, ...]
    filled: tuple[Filled, ...]
    notes: tuple[Message, ...]


def translate_keys(
    keys: Iterable[Key], read: ReadText, defaults: Mapping[str, Any], context: Mapping[str, Any] | None = None
) -> Translated:
    """Our options for the keys. `read` returns the text of a file that a key names, or None. `defaults`: filled in where no key is.

    `context`: values under sd-scripts' names that the file takes for granted.
    """
    keys = list(keys)
    settings = dict(context or {}) | {
        key.name: key.value for key in keys if key.why is None and not key.merged_into and not is_empty(key.value)
    }
    flat: dict[str, Any] = {}
    origin: dict[str, Key] = {}
    left: list[Left] = []
    translations: dict[str, Options] = {}
    for key in keys:
        if key.merged_into:
            continue
        translated = key.why or _translate(key, settings, read)
        if isinstance(translated, Message):
            left.append(Left(key.key, _shown(key), translated))
            continue
        translations[key.key] = translated
        for path, value in translated:
            flat[path] = value
            origin[path] = key
    flat, refused = drop_invalid(flat)
    paths_of_key: dict[str, list[str]] = {}
    for path in flat:
        paths_of_key.setdefault(origin[path].key, []).append(path)
    paths_of_key |= {one.key: [one.merged_into] for one in keys if one.merged_into in flat}
    for name, same in translations.items():
        if name not in paths_of_key and same and all(path in flat and flat[path] == value for path, value in same):
            paths_of_key[name] = [path for path, _ in same]  # another key says the same
    notes = []
    for one in refused:
        key = origin[one.option]
        if key.key in paths_of_key:
            notes.append(
                say(
                    "{key}: {name}={value} was not taken. {why}",
                    key=key.key,
                    name=one.place.partition(".")[2],
                    value=one.value,
                    why=one.why,
                )
            )
        elif key.key not in {entry.key for entry in left}:
            left.append(Left(key.key, _shown(key), say("Not taken: {why}", why=one.why)))
    taken = [Taken(key.key, _shown(key), tuple(paths_of_key[key.key])) for key in keys if key.key in paths_of_key]
    reported = {one.key for one in taken} | {one.key for one in left}
    left += [Left(key.key, _shown(key), say("Another key of the file decides it.")) for key in keys if key.key not in reported]
    in_file = set(origin) | {paths_by_name()[key.name] for key in keys if key.name in paths_by_name() and not is_empty(key.value)}
    filled = tuple(
        Filled(path, value) for path, value in defaults.items() if path in options() and path not in flat and path not in in_file
    )
    return Translated(nest(flat | {one.path: one.value for one in filled}), tuple(taken), tuple(left), filled, tuple(notes))


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as nested tables."""
    tables: dict[str, Any] = {}
    for path, value in flat.items():
        section, _, name = path.rpartition(".")
        table = tables.setdefault(section, {}) if section else tables
        table[name] = value
    return tables


@lru_cache(maxsize=1)
def paths_by_name() -> dict[str, str]:
    """sd-scripts' name of each option -> its path."""
    paths: dict[str, str] = {}
    for path, option in options().items():
        paths.setdefault(option.option.kohya or path.rpartition(".")[2], path)
    return paths


def _shown(key: Key) -> Any:
    return key.value if key.shown is None else key.shown


def _translate(key: Key, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    if key.options is not None:
        return key.options
    if is_empty(key.value):
        return EMPTY
    if key.name in options():
        return [(key.name, convert(key.value, options()[key.name]))]
    if key.name in SPECIAL:
        return SPECIAL[key.name](key.value, settings, read)
    path = paths_by_name().get(key.name)
    if path is None:
        return reason_left(key.name, key.value)
    return [(path, convert(key.value, options()[path]))]


@attrs.frozen
class Refused:
    """A value that our own checks refuse: its option, its own place (`data.subsets[1].num_repeats`), and why."""

    option: str
    place: str
    value: Any
    why: Message


def drop_invalid(flat: dict[str, Any]) -> tuple[dict[str, Any], list[Refused]]:
    """The values that pass our own checks, and those that do not. Of a list only the refused members are dropped."""
    refused: list[Refused] = []
    while flat:
        try:
            build(nest(flat))
        except ConfigError as error:
            dropped = _refusals(error, flat)
            if not dropped:
                raise
            refused += dropped
            flat = _without(flat, dropped)
        else:
            break
    return flat, refused


def _refusals(error: ConfigError, flat: Mapping[str, Any]) -> list[Refused]:
    refused: dict[str, Refused] = {}
    for problem in error.problems:
        option = next((path for path in flat if problem.path == path or problem.path.startswith(path + "[")), None)
        if option is None:
            continue
        value = flat[option]
        if problem.path == option and isinstance(value, list) and get_origin(options()[option].type) is tuple:
            wrong = [index for index, member in enumerate(value) if not _is_valid(option, member)]
            if 0 < len(wrong) < len(value):
                for index in wrong:
                    refused[f"{option}[{index}]"] = Refused(option, f"{option}[{index}]", value[index], problem.message)
                continue
        refused.setdefault(problem.path, Refused(option, problem.path, problem.message.values.get("value", value), problem.message))
    return list(refused.values())


def _is_valid(option: str, member: Any) -> bool:
    try:
        build(nest({option: [member]}))
    except ConfigError:
        return False
    return True


def _without(flat: Mapping[str, Any], dropped: Iterable[Refused]) -> dict[str, Any]:
    """The values without the refused ones: whole options, members of lists, or values of one table in a list."""
    kept = {path: list(value) if isinstance(value, list) else value for path, value in flat.items()}
    members: list[tuple[str, int]] = []
    for one in dropped:
        member = _MEMBER.fullmatch(one.place)
        tables = kept.get(one.option)
        if member is None or not isinstance(tables, list):
            kept.pop(one.option, None)
        elif member["key"] and member["key"] in tables[int(member["index"])] and member["key"] not in ("image_dir", "metadata_file"):
            index = int(member["index"])
            tables[index] = {name: value for name, value in tables[index].items() if name != member["key"]}
        else:
            members.append((one.option, int(member["index"])))
    for option, index in sorted(set(members), reverse=True):
        if option in kept:
            del kept[option][index]
    return {path: value for path, value in kept.items() if value != [] or flat[path] == []}


_MEMBER = re.compile(r".*?\[(?P<index>\d+)\](?:\.(?P<key>\w+))?")


# --- keys that need more than a new name ----------------------------------------------------------------------------


def _sample_prompts(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """The prompts themselves, or those of a prompt file."""
    text = "\n".join(part for part in value if isinstance(part, str)) if isinstance(value, list) else str(value)
    if text.lower().endswith(SUFFIXES) and "\n" not in text:
        content = read(text)
        if content is None:
            return say("The prompt file {file} cannot be read from here: write its prompts into sample.prompts.", file=text)
        try:
            lines = list(_readable_lines(rows_from_file(content, text)))
        except TrainerError as error:
            return say("Not taken: {why}", why=error.problems[0].message)
    else:
        lines = [row.to_line() for row in rows_from_lines(text)]
    return [("sample.prompts", lines)] if lines else EMPTY


def _readable_lines(rows: Iterable[PromptRow]) -> Iterator[str]:
    for row in rows:
        with suppress(TrainerError):  # prompt_notes names it
            yield row.to_line()


def prompt_notes(settings: Mapping[str, Any], read: ReadText) -> Iterator[Message]:
    """A note for each row of the prompt file that cannot be read."""
    name = str(settings.get("sample_prompts", ""))
    if not name.lower().endswith(SUFFIXES) or (content := read(name)) is None:
        return
    with suppress(TrainerError):  # the whole file: said where the key is left
        for row in rows_from_file(content, name):
            try:
                row.to_line()
            except TrainerError as error:
                problem = error.problems[0]
                yield say("{place} is not drawn: {message} {fix}", place=row.source, message=problem.message, fix=problem.fix)


def _sampler(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    name = find_sampler(str(value))
    if name is None:
        return say("The sampler {name} is not supported: previews are drawn with {default}.", name=value, default="ddim")
    return [("sample.sampler", name)]


def _log_with(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    if str(value).lower() in ("tensorboard", "all"):
        return [("log.log_with", "tensorboard")]
    return say("{name} is not used here: every run keeps its own log, and TensorBoard can be chosen.", name=value)


def _log_name(path: str) -> Callable[[Any, Mapping[str, Any], ReadText], Options | Message]:
    """A part of a folder's name, made valid as one."""

    def take(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
        return [(path, slug(str(value)) if name_problem(str(value)) else str(value))]

    return take


def _mask_folder(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    if settings.get("masked_loss") not in (True, "true", "True"):
        return say("sd-scripts uses it only with masked_loss.")
    path = paths_by_name().get("conditioning_data_dir")
    return NOT_YET if path is None else [(path, str(value))]


def _masked_loss(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    return say("Masks are used here as soon as their folder, or alpha_mask, is given.") if value in (True, "true", "True") else OFF


def _model_format(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    return ITSELF if value == "safetensors" else SAFETENSORS


def _caption_extension(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    if "caption_extension" in settings and value == settings.get("caption_extention"):
        return say("caption_extension wins.")
    return [("data.caption_extension", str(value))]


def _bucket_steps(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    smallest = int(options()["data.bucket_reso_steps"].option.low or 1)
    return [
        ("data.bucket_reso_steps", smallest if 0 < to_number(value) < smallest else convert(value, options()["data.bucket_reso_steps"]))
    ]


def _clip_skip(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    return LIKE_EMPTY if to_number(value) == 0 else [("model.clip_skip", convert(value, options()["model.clip_skip"]))]


def _noise_type(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    return say("Each kind of noise is used here as soon as its value is not 0.")


def _validation_batches(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """sd-scripts counts batches, we count pictures."""
    return [("validate.max_pictures", int(to_number(value) * max(1.0, to_number(settings.get("train_batch_size", 1)))))]


def _model_flag(path: str) -> Callable[[Any, Mapping[str, Any], ReadText], Options | Message]:
    """Detected from the model file: only a flag that is set is taken, to be compared with it."""
    return lambda value, settings, read: [(path, True)] if value in (True, "true", "True") else ITSELF


def _token_length(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    path = paths_by_name().get("max_token_length")
    if path is None:
        return OFF if to_number(value) == 75 else NOT_YET
    value = 225 if to_number(value) == 255 else value  # one program offers 255, which sd-scripts does not accept
    return [(path, convert(value, options()[path]))]


def _attention(way: str) -> Callable[[Any, Mapping[str, Any], ReadText], Options | Message]:
    """sd-scripts has a switch for each backend; of several it uses the first of these."""

    def take(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
        if value in ATTENTION:  # kohya_ss writes the name of the chosen one
            return [("memory.attention", ATTENTION[value])]
        if value not in (True, "true", "True"):
            return OFF
        chosen = next(name for name in ATTENTION if settings.get(name) in (True, "true", "True"))
        return [("memory.attention", way)] if ATTENTION[chosen] == way else say("Another key of the file decides it.")

    return take


def _cache_captions(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """kohya_ss' own name of the switch for SDXL."""
    return [("data.cache_text_encoder_outputs", True)] if value in (True, "true", "True") else OFF


def _fp8_base(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """In sd-scripts it covers the text encoders too, unless fp8_base_unet is set."""
    return [("memory.fp8_base_unet", True)] if value in (True, "true", "True") else OFF


def _vae_fp32(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    return [("memory.vae_precision", "fp32")] if value in (True, "true", "True") else OFF


ATTENTION = {"mem_eff_attn": "sliced", "xformers": "xformers", "sdpa": "sdpa"}
SPECIAL: dict[str, Callable[[Any, Mapping[str, Any], ReadText], Options | Message]] = {
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
    "caption_extention": _caption_extension,
    "clip_skip": _clip_skip,
    "bucket_reso_steps": _bucket_steps,
    "max_token_length": _token_length,
    **{name: _attention(way) for name, way in ATTENTION.items()},
    "no_half_vae": _vae_fp32,
    "sdxl_no_half_vae": _vae_fp32,
    "fp8_base": _fp8_base,
    "sdxl_cache_text_encoder_outputs": _cache_captions,
    "noise_offset_type": _noise_type,
    "max_validation_steps": _validation_batches,
    **{name: _model_flag(f"model.{name}") for name in ("v2", "v_parameterization", "zero_terminal_snr")},
    **FLOW_KEYS,
}
