"""sd-scripts' dataset TOML (or JSON): [general], [[datasets]], [[datasets.subsets]], each level inheriting from the one above."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.files import read_toml, resolve_beside
from lora_trainer.config.parse import read_value
from lora_trainer.config.schema import DataConfig
from lora_trainer.config.subsets import PER_DATASET, PER_SUBSET, normalize_value, table_options, unknown_name_problem
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.files import read_regular
from lora_trainer.messages import Message, say
from lora_trainer.parsing import MAX_TOML_CHARACTERS, parse_json

OPTION = "data.dataset_config"
DATASET_OPTIONS = (*PER_DATASET, "validation_split", "validation_seed", "network_multiplier")
INHERITED_OPTIONS = (*(name for name in PER_SUBSET if name not in ("trigger_word", "mask_dir")), "cache_info", "custom_attributes")
SUBSET_OPTIONS = ("image_dir", "metadata_file", "conditioning_data_dir", "is_reg", "validation_split", "validation_seed")
FOLDER_OPTIONS = ("is_reg", "class_tokens", "caption_extension", "cache_info")
"""Options that a subset with a metadata file cannot have."""
IGNORED = ("cache_info", "custom_attributes")
"""Options of sd-scripts without effect here."""
COMMAND_LINE_NAMES = {
    "debug_dataset": "check --show",
    "max_token_length": "model.max_token_length",
    "prior_loss_weight": "loss.prior_loss_weight",
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
    "train_data_dir": "image_dir",
    "reg_data_dir": "image_dir, is_reg = true",
    "in_json": "metadata_file",
}
"""sd-scripts' command line options that do not belong in the file, and what to use instead."""


@attrs.frozen
class SubsetTable:
    """One subset: its location in the file, own and inherited values by the names of config.subsets, and the location of each value."""

    location: str
    values: Mapping[str, Any]
    locations: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class DatasetFile:
    """The subsets of each dataset, and warnings."""

    datasets: tuple[tuple[SubsetTable, ...], ...]
    warnings: tuple[Message, ...]


def read_dataset_file(path: Path, data: DataConfig) -> DatasetFile:
    """Reads the datasets of a file. Missing options are those of [data], else sd-scripts' defaults.

    Raises ConfigError with all wrong keys and values; their path is `data.dataset_config` and the location in the file.
    """
    parser = _Parser(path.parent)
    mapping = _read_mapping(path)
    datasets = tuple(parser.datasets(mapping, _defaults(data)))
    if parser.problems:
        raise ConfigError(parser.problems)
    if not any(datasets):
        raise ConfigError([_problem("datasets", "none of its folders is used.", "Give one of them num_repeats of at least 1.")])
    return DatasetFile(datasets, tuple(parser.warnings))


def _read_mapping(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".json":
        return read_toml(path)
    try:
        mapping = parse_json(read_regular(path, MAX_TOML_CHARACTERS).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError([problem(OPTION, "{file} cannot be read ({why}).", "Check the file.", file=str(path), why=str(error))]) from error
    return mapping if isinstance(mapping, dict) else {}


def _defaults(data: DataConfig) -> dict[str, Any]:
    """sd-scripts' default is no buckets; it holds unless [data] changes enable_bucket."""
    return {} if data.enable_bucket != DataConfig().enable_bucket else {"enable_bucket": False}


@attrs.define
class _Parser:
    """Parses one file from the top down; `locations`: (table, option) -> path of its value."""

    folder: Path
    problems: list[Problem] = attrs.field(factory=list)
    locations: dict[tuple[str, str], str] = attrs.field(factory=dict)
    warnings: list[Message] = attrs.field(factory=list)

    def datasets(self, mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[SubsetTable, ...]]:
        for name in mapping:
            if name not in ("general", "datasets"):
                self._refuse(name, name, ("general", "datasets"))
        general = mapping.get("general", {})
        if not isinstance(general, Mapping):
            self._wrong_kind("general", "Write [general] and its options below.")
            general = {}
        inherited = {**defaults, **self._values(general, "general", (*DATASET_OPTIONS, *INHERITED_OPTIONS))}
        datasets = self._tables(mapping, "datasets", "")
        if defaults and "enable_bucket" not in general and not all("enable_bucket" in dataset for dataset in datasets):
            self.warnings.append(
                say("The dataset file does not give enable_bucket: pictures are cut to the training size, as sd-scripts does.")
            )
        if not datasets:
            self.problems.append(_problem("datasets", "there is no dataset.", "Write [[datasets]] and below it [[datasets.subsets]]."))
        for number, dataset in enumerate(datasets):
            yield self._dataset(dataset, f"datasets[{number}]", inherited)

    def _dataset(self, dataset: Mapping[str, Any], location: str, inherited: Mapping[str, Any]) -> tuple[SubsetTable, ...]:
        subsets = self._tables(dataset, "subsets", f"{location}.")
        if not subsets:
            self.problems.append(
                _problem(f"{location}.subsets", "there is no folder in this dataset.", "Write [[datasets.subsets]] with an image_dir.")
            )
        with_metadata = [number for number, subset in enumerate(subsets) if "metadata_file" in subset]
        if with_metadata and len(with_metadata) < len(subsets):
            self.problems.append(
                _problem(
                    f"{location}.subsets[{with_metadata[0]}].metadata_file",
                    "folders with caption files and metadata files cannot share a dataset.",
                    "Put them into two [[datasets]].",
                )
            )
        options = {name: value for name, value in dataset.items() if name != "subsets"}
        values = {**inherited, **self._values(options, location, (*DATASET_OPTIONS, *INHERITED_OPTIONS), metadata=bool(with_metadata))}
        tables: list[SubsetTable] = []
        locations: dict[Any, str] = {}
        for number, subset in enumerate(subsets):
            table = self._subset(subset, f"{location}.subsets[{number}]", values)
            if table is None:
                continue
            key = _identity(table.values)
            if key in locations:
                self.warnings.append(
                    say("{place} is left out: {first} is the same folder in the same dataset.", place=table.location, first=locations[key])
                )
                continue
            locations[key] = table.location
            tables.append(table)
        return tuple(tables)

    def _subset(self, subset: Mapping[str, Any], location: str, inherited: Mapping[str, Any]) -> SubsetTable | None:
        metadata = "metadata_file" in subset
        if subset.get("num_repeats", 1) == 0 or (type(subset.get("num_repeats")) is int and subset["num_repeats"] < 0):
            self.warnings.append(say("{place} is left out: its num_repeats is less than 1.", place=location))
            return None
        for name in DATASET_OPTIONS[: len(PER_DATASET)]:
            if name in subset:
                self.problems.append(
                    _problem(
                        f"{location}.{name}",
                        "belongs to the dataset, not to one of its folders.",
                        "Write it below [[datasets]], or use two datasets.",
                    )
                )
        options = {name: value for name, value in subset.items() if name not in PER_DATASET}
        values = {**inherited, **self._values(options, location, (*INHERITED_OPTIONS, *SUBSET_OPTIONS), metadata=metadata)}
        for name in ("metadata_file",) if metadata else ("image_dir",):
            if not str(subset.get(name, "")).strip():
                self.problems.append(_problem(f"{location}.{name}", "is missing.", "Write {name} = '...'", name=name))
        for name in ("image_dir", "metadata_file", "mask_dir"):
            if values.get(name):
                values[name] = resolve_beside(values[name], self.folder)
        levels = (location, location.partition(".")[0], "general")
        locations = {name: next((at for level in levels if (at := self.locations.get((level, name)))), "") for name in values}
        return SubsetTable(location, values, {name: at for name, at in locations.items() if at})

    def _values(self, table: Mapping[str, Any], location: str, allowed: tuple[str, ...], *, metadata: bool = False) -> dict[str, Any]:
        """The values of a table by our names; unknown names and wrong values become problems."""
        values: dict[str, Any] = {}
        for name, value in table.items():
            path = f"{location}.{name}"
            if name not in allowed:
                self._refuse(path, name, allowed)
            elif metadata and name in FOLDER_OPTIONS:
                self.problems.append(_problem(path, "belongs to folders with caption files, not to a metadata file.", "Take it out."))
            elif name in IGNORED:
                self.warnings.append(say("{place} is not used: it has no effect here.", place=path))
            elif name == "network_multiplier":
                if value != 1:
                    self.problems.append(
                        _problem(path, "another strength for one dataset cannot be trained.", "Take it out, or set it to 1.")
                    )
            else:
                option_name = "mask_dir" if name == "conditioning_data_dir" else name
                option = attrs.evolve(table_options()[option_name], path=_path(path))
                if (parsed := read_value(option, normalize_value(name, value), self.problems)) is not None:
                    values[option_name] = parsed
                    self.locations[location, option_name] = _path(path)
        return values

    def _refuse(self, path: str, name: str, allowed: tuple[str, ...]) -> None:
        if name in COMMAND_LINE_NAMES:
            instead = COMMAND_LINE_NAMES[name]
            self.problems.append(_problem(path, "has no place in a dataset file.", "Use {instead} instead.", instead=instead))
        else:
            self.problems.append(unknown_name_problem(_path(path), name, allowed))

    def _tables(self, mapping: Mapping[str, Any], name: str, prefix: str) -> list[Mapping[str, Any]]:
        tables = mapping.get(name, [])
        if isinstance(tables, list) and all(isinstance(table, Mapping) for table in tables):
            return tables
        self._wrong_kind(f"{prefix}{name}", "Write [[datasets]] and [[datasets.subsets]], with two brackets.")
        return []

    def _wrong_kind(self, location: str, fix: str) -> None:
        self.problems.append(_problem(location, "must be tables, not a value.", fix))


def _identity(values: Mapping[str, Any]) -> tuple[str, str]:
    """Equal for subsets of the same metadata file, else of the same folder."""
    name = "metadata_file" if values.get("metadata_file") else "image_dir"
    text = str(values.get(name, ""))
    try:
        return name, str(Path(text).resolve())
    except (OSError, ValueError):
        return name, text


def _path(location: str) -> str:
    return f"{OPTION}.{location}"


def _problem(location: str, template: str, fix: str, /, **values: Any) -> Problem:
    return problem(_path(location), template, fix, **values)
