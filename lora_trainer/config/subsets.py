"""Tables [[data.subsets]]: folders with options of their own. Whatever a table does not give is taken from [data]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import check_together, problem
from lora_trainer.config.param import Declared, declared, param, section
from lora_trainer.config.parse import read_value
from lora_trainer.config.schema import DataConfig, SubsetConfig, TrainConfig
from lora_trainer.errors import Problem

SUBSETS = "data.subsets"
PER_DATASET = (
    "resolution",
    "batch_size",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
)
"""Options of [data] that all pictures of one batch share: tables that differ in one of these make several datasets."""
PER_SUBSET = (
    "num_repeats",
    "trigger_word",
    "class_tokens",
    "caption_extension",
    "caption_prefix",
    "caption_suffix",
    "caption_separator",
    "keep_tokens",
    "keep_tokens_separator",
    "secondary_separator",
    "shuffle_caption",
    "enable_wildcard",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_min",
    "token_warmup_step",
    "flip_aug",
    "color_aug",
    "random_crop",
    "face_crop_aug_range",
    "alpha_mask",
    "mask_dir",
    "resize_interpolation",
)
"""Options of [data] that may differ from folder to folder."""


@section
class OwnOptions:
    """What only a table has."""

    image_dir: str = param(
        "", "Folder", "The folder whose pictures are used; folders inside it and a number in its name do not count.", kind="folder"
    )
    metadata_file: str = param("", "Metadata file", "JSON with captions and tags of the pictures.", kind="file")
    is_reg: bool = param(False, "Regularisation", "Whether these are pictures of what the subject is in general.")
    validation_split: float = param(0.0, "Held back", "Share of these pictures that is held back for validation.", low=0.0, high=1.0)
    validation_seed: int | None = param(None, "Seed of what is held back", "Empty: the run's seed.", low=0, high=2**32 - 1)


@lru_cache(maxsize=1)
def table_options() -> Mapping[str, Declared]:
    """Every option that a table may give, by its name."""
    own = {option.path: option for option in declared(OwnOptions)}
    shared = {option.path: option for option in declared(DataConfig) if option.path in (*PER_DATASET, *PER_SUBSET)}
    return {**own, **shared}


def read_tables(tables: Any, problems: list[Problem]) -> tuple[SubsetConfig, ...]:
    """The tables of `data.subsets`; each unknown name and each wrong value becomes a problem that names its place."""
    if not isinstance(tables, (list, tuple)) or not all(isinstance(table, Mapping) for table in tables):
        problems.append(
            problem(SUBSETS, "must be tables, not a value.", "Write [[data.subsets]] and its options below, once for each folder.")
        )
        return ()
    return tuple(read_table(table, f"{SUBSETS}[{number}]", problems) for number, table in enumerate(tables))


def read_table(table: Mapping[str, Any], place: str, problems: list[Problem]) -> SubsetConfig:
    """One table; `place` stands in front of the names in problems."""
    given = {}
    for name, value in table.items():
        path = f"{place}.{name}"
        if name not in table_options():
            problems.append(unknown_name(path, name, table_options()))
        elif (found := read_value(attrs.evolve(table_options()[name], path=path), plain_value(name, value), problems)) is not None:
            given[name] = found
    if not str(table.get("image_dir", "")).strip() and not str(table.get("metadata_file", "")).strip():
        problems.append(problem(f"{place}.image_dir", "no folder of pictures is given.", "Write image_dir = '...'"))
    return SubsetConfig(tuple(given.items()))


def plain_value(name: str, value: Any) -> Any:
    """A value as our option of that name takes it: sd-scripts writes the range of face crops as a list."""
    if name == "face_crop_aug_range" and isinstance(value, (list, tuple)):
        return ",".join(str(number) for number in value)
    return value


def unknown_name(path: str, name: str, known: Iterable[str]) -> Problem:
    """The problem of a name that no option has, with the nearest one that exists."""
    near = get_close_matches(name.lower(), list(known), 1)
    if near:
        return problem(path, "there is no setting of this name.", "Did you mean {near}?", near=near[0])
    return problem(path, "there is no setting of this name.", "Take it out: no setting is called like it.")


def with_given(data: DataConfig, given: Mapping[str, Any]) -> DataConfig:
    """[data] with the options of a table in place of its own, and without what describes other folders."""
    plain = {"train_data_dir": "", "reg_data_dir": "", "in_json": "", "dataset_config": "", "subsets": ()}
    shared = {name: value for name, value in given.items() if name in PER_DATASET or name in PER_SUBSET}
    return attrs.evolve(data, **plain, **shared)  # type: ignore[misc]  # mypy takes a section for no attrs class


def check_tables(config: TrainConfig, bad: Iterable[str] = ()) -> Iterator[Problem]:
    """What is wrong with the tables as a whole, and with each one's options together with [data]'s."""
    if not config.data.subsets:
        return
    for name in ("train_data_dir", "in_json", "reg_data_dir", "dataset_config"):
        if getattr(config.data, name).strip():
            yield problem(
                f"data.{name}",
                "pictures are described by [[data.subsets]] and here.",
                "Keep one of them: empty this, or take the tables out.",
            )
    bad = set(bad)
    for number, table in enumerate(config.data.subsets):
        given, place = dict(table.given), f"{SUBSETS}[{number}]"
        if not {f"{place}.{name}" for name in given} & bad:
            yield from check_given(config.data, given, {name: f"{place}.{name}" for name in given})


def check_given(data: DataConfig, given: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[Problem]:
    """The problems that a table's options make together with [data]'s; `places` says where each name was given."""
    before = {found.path for _, found in check_together(TrainConfig(data=data))}  # type: ignore[call-arg]  # mypy takes no default for one
    for paths, found in check_together(TrainConfig(data=with_given(data, given))):  # type: ignore[call-arg]
        names = [path.removeprefix("data.") for path in (found.path, *paths) if path.startswith("data.")]
        named = next((name for name in names if name in places), None)
        if named is not None and found.path not in before:
            yield attrs.evolve(found, path=places[named])
