"""The resolved dataset description: datasets, their subsets (folders), and the options of each, wherever they were written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import attrs

from lora_trainer.config.files import SUBSET_INPUT_PATHS
from lora_trainer.config.schema import DataConfig
from lora_trainer.config.subsets import PER_DATASET, SUBSETS, check_table_values, with_table_values
from lora_trainer.data.captions import CaptionRules, rules_from
from lora_trainer.data.sources.dataset_toml import OPTION, SubsetTable, read_dataset_file
from lora_trainer.data.sources.metadata_json import read_metadata
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.messages import Message, say

REGULARISATION = "regularisation"
VALIDATION = "validation"


@attrs.frozen
class Source:
    """Where pictures and captions are read from: everything that a scan depends on.

    `field`: the option that names it. `reads_subfolders`: the folder may be a parent of folders, or have repeats in its name. `prefix`:
    start of each picture's key. `class_tokens` override those in folder names, `fallback_class_tokens` are used if there are none.
    """

    field: str
    folder: str
    metadata_file: str = ""
    reads_subfolders: bool = True
    prefix: str = ""
    num_repeats: int = 1
    class_tokens: str = ""
    fallback_class_tokens: str = ""
    caption_extensions: tuple[str, ...] = ()
    separator: str = ","
    every_line: bool = False
    leave_out: tuple[str, ...] = ()


@attrs.frozen
class SubsetRules:
    """One subset: `data` has all options with its own values, `dataset` is its index in the datasets."""

    source: Source
    data: DataConfig
    dataset: int = 0
    is_reg: bool = False
    validation: bool = False
    validation_split: float = 0.0
    validation_seed: int | None = None

    @property
    def caption_rules(self) -> CaptionRules:
        """How captions of this subset are processed."""
        return caption_rules(self.data, is_reg=self.is_reg)

    @property
    def flip_aug(self) -> bool:
        """Whether its pictures are randomly mirrored."""
        return self.data.flip_aug

    @property
    def location(self) -> str:
        """The option, or the place in the dataset file, that defines it."""
        return self.source.field


@attrs.frozen
class DatasetBlueprint:
    """Datasets (their options) and subsets; the validation folder is the last subset."""

    datasets: tuple[DataConfig, ...]
    subsets: tuple[SubsetRules, ...]
    is_simple: bool = True
    """Whether there is one folder only, perhaps with one of regularisation pictures."""
    warnings: tuple[Message, ...] = ()


def resolve_dataset(data: DataConfig, validation_dir: str = "") -> DatasetBlueprint:
    """The blueprint of a config. Raises ConfigError for a wrong dataset file."""
    if data.dataset_config.strip():
        blueprint = _blueprint_from_file(data)
    elif data.subsets:
        tables = [SubsetTable(f"{SUBSETS}[{number}]", dict(table.values)) for number, table in enumerate(data.subsets)]
        blueprint = _blueprint_from_tables(data, tables)
    else:
        blueprint = DatasetBlueprint((data,), tuple(_subsets_from_options(data)))
    if validation_dir.strip():
        extensions = _caption_extensions(blueprint.subsets[0].data.caption_extension if blueprint.subsets else data.caption_extension)
        source = Source(
            "validate.data_dir",
            validation_dir,
            prefix=_unused_prefix(VALIDATION, blueprint),
            class_tokens=data.class_tokens,
            caption_extensions=extensions,
        )
        rules = SubsetRules(source, blueprint.datasets[0] if blueprint.datasets else data, validation=True)
        blueprint = attrs.evolve(blueprint, subsets=(*blueprint.subsets, rules))
    return blueprint


def caption_rules(data: DataConfig, *, is_reg: bool = False) -> CaptionRules:
    """How captions are processed; regularisation pictures never get the trigger word."""
    rules = rules_from(data)
    return attrs.evolve(rules, trigger_word="", class_tokens="") if is_reg else rules


def largest_resolution(data: DataConfig) -> tuple[int, int]:
    """The largest training resolution (width, height) of all datasets."""
    several = data.dataset_config.strip() or data.subsets
    sizes = [resolution_of(dataset) for dataset in resolve_dataset(data).datasets] if several else [resolution_of(data)]
    return max(sizes, key=lambda size: size[0] * size[1])


def resolution_of(data: DataConfig) -> tuple[int, int]:
    """A dataset's training resolution (width, height)."""
    return (data.resolution, data.resolution) if isinstance(data.resolution, int) else data.resolution


def source_paths(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, path) of every folder and file named by the subsets, dataset file and metadata files of a plain [data].

    For path guards: reads unchecked values. A file that cannot be read names nothing, because a run cannot read it either.
    """
    subsets, file = data.get("subsets"), _text_value(data, "dataset_config")
    numbered = enumerate(subsets) if isinstance(subsets, list) else ()
    tables = [SubsetTable(f"{SUBSETS}[{number}]", table) for number, table in numbered if isinstance(table, Mapping)]
    with suppress(TrainerError):
        tables += [table for dataset in (read_dataset_file(Path(file), DataConfig()).datasets if file else ()) for table in dataset]
    for table in tables:
        yield from ((f"{table.location}.{name}", text) for name in SUBSET_INPUT_PATHS if (text := _text_value(table.values, name)))
        yield from _metadata_folders(
            f"{table.location}.metadata_file", _text_value(table.values, "metadata_file"), _text_value(table.values, "image_dir")
        )
    yield from _metadata_folders("data.in_json", _text_value(data, "in_json"), _text_value(data, "train_data_dir"))


def subset_paths(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, path) of every folder and file in the subsets of a plain [data] itself; no file is read."""
    subsets = data.get("subsets")
    for number, table in enumerate(subsets if isinstance(subsets, list) else ()):
        if isinstance(table, Mapping):
            yield from ((f"{SUBSETS}[{number}].{name}", text) for name in SUBSET_INPUT_PATHS if (text := _text_value(table, name)))


def _metadata_folders(field: str, file: str, folder: str) -> Iterator[tuple[str, str]]:
    """(field, folder) of the pictures in a metadata file."""
    with suppress(TrainerError):
        entries = read_metadata(Path(file), Path(folder) if folder else None, ",", field) if file else ()
        for parent in sorted({str(entry.path.parent) for entry in entries if entry.path is not None}):
            yield field, parent


def _text_value(table: Mapping[str, Any], name: str) -> str:
    text = table.get(name)
    return text if isinstance(text, str) and text.strip() else ""


def _subsets_from_options(data: DataConfig) -> Iterator[SubsetRules]:
    shared: dict[str, Any] = {"caption_extensions": _caption_extensions(data.caption_extension), "num_repeats": data.num_repeats}
    lines: dict[str, Any] = {"separator": data.caption_separator, "every_line": data.enable_wildcard, "leave_out": data.leave_out}
    metadata = data.in_json.strip()
    field = "data.in_json" if metadata and not data.train_data_dir.strip() else "data.train_data_dir"
    yield SubsetRules(
        Source(field, data.train_data_dir, metadata, reads_subfolders=not metadata, class_tokens=data.class_tokens, **shared, **lines), data
    )
    if data.reg_data_dir.strip():
        shared["num_repeats"] = 1
        source = Source(
            "data.reg_data_dir",
            data.reg_data_dir,
            prefix=_prefix_unlike_folders(REGULARISATION, data.train_data_dir),
            fallback_class_tokens=data.class_tokens,
            **shared,
            **lines,
        )
        yield SubsetRules(source, data, is_reg=True)


def _blueprint_from_file(data: DataConfig) -> DatasetBlueprint:
    file = read_dataset_file(Path(data.dataset_config), data)
    problems = {
        problem.path: problem
        for tables in file.datasets
        for table in tables
        for problem in check_table_values(data, table.values, table.locations)
    }
    if problems:
        raise ConfigError(list(problems.values()))
    warnings = list(file.warnings)
    ignored = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if getattr(data, name).strip()]
    if ignored:
        warnings.append(say("A dataset file is given, so these are not used: {names}.", names=", ".join(ignored)))
    tables = [table for dataset in file.datasets for table in dataset]
    numbers = [number for number, dataset in enumerate(file.datasets) for _ in dataset]
    blueprint = _blueprint_from_tables(
        data, [attrs.evolve(table, location=f"{OPTION}.{table.location}") for table in tables], numbers, (".caption", ".txt")
    )
    return attrs.evolve(blueprint, warnings=tuple(warnings))


def _blueprint_from_tables(
    data: DataConfig, tables: list[SubsetTable], numbers: list[int] | None = None, extensions: tuple[str, ...] = ()
) -> DatasetBlueprint:
    """One dataset for each of `numbers` (by table), else for each set of per-dataset options."""
    datasets: dict[Any, DataConfig] = {}
    rules = []
    for index, (table, prefix) in enumerate(zip(tables, _unique_prefixes(table.values for table in tables), strict=True)):
        options = with_table_values(data, table.values)
        key = numbers[index] if numbers else tuple(getattr(options, name) for name in PER_DATASET)
        datasets.setdefault(key, options)
        rules.append(_subset_from_table(table, options, prefix, list(datasets).index(key), extensions))
    return DatasetBlueprint(tuple(datasets.values()), tuple(rules), is_simple=False)


def _subset_from_table(table: SubsetTable, data: DataConfig, prefix: str, dataset: int, extensions: tuple[str, ...]) -> SubsetRules:
    values, is_reg = table.values, bool(table.values.get("is_reg", False))
    source = Source(
        f"{table.location}.{'image_dir' if values.get('image_dir') else 'metadata_file'}",
        values.get("image_dir", ""),
        values.get("metadata_file", ""),
        reads_subfolders=False,
        prefix=prefix,
        num_repeats=data.num_repeats,
        class_tokens=data.class_tokens,
        caption_extensions=_caption_extensions(data.caption_extension) or extensions,
        separator=data.caption_separator,
        every_line=data.enable_wildcard,
        leave_out=data.leave_out,
    )
    return SubsetRules(
        source,
        data,
        dataset,
        is_reg,
        validation_split=0.0 if is_reg else float(values.get("validation_split", 0.0)),
        validation_seed=values.get("validation_seed"),
    )


def _unique_prefixes(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """A key prefix for each folder: its name, numbered if several have the same."""
    used: dict[str, int] = {}
    prefixes = []
    for values in tables:
        name = PurePath(values.get("image_dir") or values.get("metadata_file") or "").name or "pictures"
        used[name] = used.get(name, 0) + 1
        prefixes.append(f"{name}/" if used[name] == 1 else f"{name} ({used[name]})/")
    return prefixes


def _unused_prefix(name: str, blueprint: DatasetBlueprint) -> str:
    """A prefix by that name that no picture of the blueprint has."""
    if not blueprint.is_simple:
        return _unique_prefixes([*({"image_dir": rules.source.prefix} for rules in blueprint.subsets), {"image_dir": name}])[-1]
    return _prefix_unlike_folders(name, blueprint.subsets[0].source.folder)


def _prefix_unlike_folders(name: str, folder: str) -> str:
    """A prefix by that name that is not a subfolder of `folder`."""
    exists = folder.strip() and (Path(folder) / name).is_dir()
    return f"{name} (2)/" if exists else f"{name}/"


def _caption_extensions(extension: str) -> tuple[str, ...]:
    return (f".{extension.strip().lstrip('.').lower()}",) if extension.strip(". ") else ()
