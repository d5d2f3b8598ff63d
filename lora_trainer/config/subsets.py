"""Tables [[data.subsets]]: folders with their own options. Options that a table does not set come from [data]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import check_combinations, problem
from lora_trainer.config.param import DeclaredOption, declared_options, param, section
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
"""Options of [data] that all pictures of a batch share: tables that differ in one of these become several datasets."""
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
class SubsetOnlyOptions:
    """Options that exist only in a table."""

    image_dir: str = param(
        "", "Folder", "The folder whose pictures are used; folders inside it and a number in its name do not count.", kind="folder"
    )
    metadata_file: str = param("", "Metadata file", "JSON with captions and tags of the pictures.", kind="file")
    is_reg: bool = param(False, "Regularisation", "Whether these are pictures of what the subject is in general.")
    validation_split: float = param(0.0, "Held back", "Share of these pictures that is held back for validation.", low=0.0, high=1.0)
    validation_seed: int | None = param(None, "Seed of what is held back", "Empty: the run's seed.", low=0, high=2**32 - 1)


@lru_cache(maxsize=1)
def table_options() -> Mapping[str, DeclaredOption]:
    """Every option that a table may set, by name."""
    subset_only = {option.path: option for option in declared_options(SubsetOnlyOptions)}
    shared = {option.path: option for option in declared_options(DataConfig) if option.path in (*PER_DATASET, *PER_SUBSET)}
    return {**subset_only, **shared}


def read_tables(tables: Any, problems: list[Problem]) -> tuple[SubsetConfig, ...]:
    """The tables of `data.subsets`; each unknown name and each wrong value becomes a problem with its path."""
    if not isinstance(tables, (list, tuple)) or not all(isinstance(table, Mapping) for table in tables):
        problems.append(
            problem(SUBSETS, "must be tables, not a value.", "Write [[data.subsets]] and its options below, once for each folder.")
        )
        return ()
    return tuple(read_table(table, f"{SUBSETS}[{number}]", problems) for number, table in enumerate(tables))


def read_table(table: Mapping[str, Any], table_path: str, problems: list[Problem]) -> SubsetConfig:
    """One table; `table_path` precedes the names in the problems' paths."""
    values = {}
    for name, value in table.items():
        path = f"{table_path}.{name}"
        if name not in table_options():
            problems.append(unknown_name_problem(path, name, table_options()))
        elif (parsed := read_value(attrs.evolve(table_options()[name], path=path), normalize_value(name, value), problems)) is not None:
            values[name] = parsed
    if not str(table.get("image_dir", "")).strip() and not str(table.get("metadata_file", "")).strip():
        problems.append(problem(f"{table_path}.image_dir", "no folder of pictures is given.", "Write image_dir = '...'"))
    return SubsetConfig(tuple(values.items()))


def normalize_value(name: str, value: Any) -> Any:
    """A value in the form of our option of that name: sd-scripts writes the range of face crops as a list."""
    if name == "face_crop_aug_range" and isinstance(value, (list, tuple)):
        return ",".join(str(number) for number in value)
    return value


def unknown_name_problem(path: str, name: str, names: Iterable[str]) -> Problem:
    """The problem of an unknown option name, with the nearest existing one."""
    nearest = get_close_matches(name.lower(), list(names), 1)
    if nearest:
        return problem(path, "there is no setting of this name.", "Did you mean {near}?", near=nearest[0])
    return problem(path, "there is no setting of this name.", "Take it out: no setting has a similar name.")


def with_table_values(data: DataConfig, values: Mapping[str, Any]) -> DataConfig:
    """[data] with a table's options in place of its own, and without the options that name other folders."""
    emptied = {"train_data_dir": "", "reg_data_dir": "", "in_json": "", "dataset_config": "", "subsets": ()}
    shared = {name: value for name, value in values.items() if name in PER_DATASET or name in PER_SUBSET}
    return attrs.evolve(data, **emptied, **shared)  # type: ignore[misc]  # mypy takes a section for no attrs class


def check_tables(config: TrainConfig, invalid: Iterable[str] = ()) -> Iterator[Problem]:
    """Problems of the tables as a whole, and of each one's options combined with [data]'s."""
    if not config.data.subsets:
        return
    for name in ("train_data_dir", "in_json", "reg_data_dir", "dataset_config"):
        if getattr(config.data, name).strip():
            yield problem(
                f"data.{name}",
                "pictures are described by [[data.subsets]] and here.",
                "Keep one of them: empty this, or take the tables out.",
            )
    invalid = set(invalid)
    for number, table in enumerate(config.data.subsets):
        values, path = dict(table.values), f"{SUBSETS}[{number}]"
        if not {f"{path}.{name}" for name in values} & invalid:
            yield from check_table_values(config.data, values, {name: f"{path}.{name}" for name in values})


def check_table_values(data: DataConfig, values: Mapping[str, Any], paths: Mapping[str, str]) -> Iterator[Problem]:
    """The problems that a table's options cause together with [data]'s; `paths` says where each name was set."""
    existing = {conflict.path for _, conflict in check_combinations(TrainConfig(data=data))}  # type: ignore[call-arg]  # mypy takes no default for one
    for options, conflict in check_combinations(TrainConfig(data=with_table_values(data, values))):  # type: ignore[call-arg]
        names = [path.removeprefix("data.") for path in (conflict.path, *options) if path.startswith("data.")]
        name = next((name for name in names if name in paths), None)
        if name is not None and conflict.path not in existing:
            yield attrs.evolve(conflict, path=paths[name])
