"""sd-scripts' dataset TOML (or JSON): [general], [[datasets]], [[datasets.subsets]], each inheriting from the one above."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.files import found_beside, read_toml
from lora_trainer.config.parse import read_value
from lora_trainer.config.schema import DataConfig
from lora_trainer.config.subsets import PER_DATASET, PER_SUBSET, plain_value, table_options, unknown_name
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import Message, say

OPTION = "data.dataset_config"
OF_DATASET = (*PER_DATASET, "validation_split", "validation_seed", "network_multiplier")
ANYWHERE = (*(name for name in PER_SUBSET if name not in ("trigger_word", "mask_dir")), "cache_info", "custom_attributes")
OF_SUBSET = ("image_dir", "metadata_file", "conditioning_data_dir", "is_reg", "validation_split", "validation_seed")
OF_FOLDERS = ("is_reg", "class_tokens", "caption_extension", "cache_info")
"""What a subset with a metadata file cannot give."""
IGNORED = ("cache_info", "custom_attributes")
"""Read by sd-scripts and of no use here."""
ON_THE_COMMAND_LINE = {
    "debug_dataset": "check --show",
    "max_token_length": "model.max_token_length",
    "prior_loss_weight": "loss.prior_loss_weight",
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
    "train_data_dir": "image_dir",
    "reg_data_dir": "image_dir, is_reg = true",
    "in_json": "metadata_file",
}
"""Names of sd-scripts' command line that have no place in the file, and what to use instead."""


@attrs.frozen
class Table:
    """One subset: its place in the file, every value that it gives or inherits by the names of config.subsets, and where each stands."""

    place: str
    given: Mapping[str, Any]
    places: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class DatasetFile:
    """The subsets of each dataset, and what was ignored on purpose."""

    datasets: tuple[tuple[Table, ...], ...]
    warnings: tuple[Message, ...]


def read_dataset_file(path: Path, data: DataConfig) -> DatasetFile:
    """The datasets of the file. What it does not say is [data]'s, else sd-scripts' default.

    Raises ConfigError with every wrong key and value; their path is `data.dataset_config` and the place in the file.
    """
    reading = _Reading(path.parent)
    mapping = _mapping_of(path)
    datasets = tuple(reading.datasets(mapping, _defaults(data)))
    if reading.problems:
        raise ConfigError(reading.problems)
    return DatasetFile(datasets, tuple(reading.warnings))


def _mapping_of(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".json":
        return read_toml(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError([problem(OPTION, "{file} cannot be read ({why}).", "Check the file.", file=str(path), why=str(error))]) from error
    return found if isinstance(found, dict) else {}


def _defaults(data: DataConfig) -> dict[str, Any]:
    """sd-scripts groups by shape only where it is told to, unless [data] says something else than its own default."""
    return {} if data.enable_bucket != DataConfig().enable_bucket else {"enable_bucket": False}


@attrs.define
class _Reading:
    """One file, read from the top down."""

    beside: Path
    problems: list[Problem] = attrs.field(factory=list)
    given_at: dict[tuple[str, str], str] = attrs.field(factory=dict)
    warnings: list[Message] = attrs.field(factory=list)

    def datasets(self, mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[Table, ...]]:
        for name in mapping:
            if name not in ("general", "datasets"):
                self._refuse(name, name, ("general", "datasets"))
        general = mapping.get("general", {})
        if not isinstance(general, Mapping):
            self._wrong_kind("general", "Write [general] and its options below.")
            general = {}
        inherited = {**defaults, **self._values(general, "general", (*OF_DATASET, *ANYWHERE))}
        datasets = self._tables(mapping, "datasets", "")
        if defaults and "enable_bucket" not in general and not all("enable_bucket" in dataset for dataset in datasets):
            self.warnings.append(
                say("The dataset file does not give enable_bucket: pictures are cut to the training size, as sd-scripts does.")
            )
        if not datasets:
            self.problems.append(_problem("datasets", "there is no dataset.", "Write [[datasets]] and below it [[datasets.subsets]]."))
        for number, dataset in enumerate(datasets):
            yield self._dataset(dataset, f"datasets[{number}]", inherited)

    def _dataset(self, dataset: Mapping[str, Any], place: str, inherited: Mapping[str, Any]) -> tuple[Table, ...]:
        subsets = self._tables(dataset, "subsets", f"{place}.")
        if not subsets:
            self.problems.append(
                _problem(f"{place}.subsets", "there is no folder in this dataset.", "Write [[datasets.subsets]] with an image_dir.")
            )
        with_metadata = [number for number, subset in enumerate(subsets) if "metadata_file" in subset]
        if with_metadata and len(with_metadata) < len(subsets):
            self.problems.append(
                _problem(
                    f"{place}.subsets[{with_metadata[0]}].metadata_file",
                    "folders with caption files and metadata files cannot share a dataset.",
                    "Put them into two [[datasets]].",
                )
            )
        own = {name: value for name, value in dataset.items() if name != "subsets"}
        values = {**inherited, **self._values(own, place, (*OF_DATASET, *ANYWHERE), metadata=bool(with_metadata))}
        tables: list[Table] = []
        seen: dict[Any, str] = {}
        for number, subset in enumerate(subsets):
            table = self._subset(subset, f"{place}.subsets[{number}]", values)
            if table is None:
                continue
            key = _identity(table.given)
            if key in seen:
                self.warnings.append(
                    say("{place} is left out: {first} is the same folder in the same dataset.", place=table.place, first=seen[key])
                )
                continue
            seen[key] = table.place
            tables.append(table)
        return tuple(tables)

    def _subset(self, subset: Mapping[str, Any], place: str, inherited: Mapping[str, Any]) -> Table | None:
        metadata = "metadata_file" in subset
        if subset.get("num_repeats", 1) == 0 or (type(subset.get("num_repeats")) is int and subset["num_repeats"] < 0):
            self.warnings.append(say("{place} is left out: its num_repeats is less than 1.", place=place))
            return None
        for name in OF_DATASET[: len(PER_DATASET)]:
            if name in subset:
                self.problems.append(
                    _problem(
                        f"{place}.{name}",
                        "belongs to the dataset, not to one of its folders.",
                        "Write it below [[datasets]], or use two datasets.",
                    )
                )
        own = {name: value for name, value in subset.items() if name not in PER_DATASET}
        given = {**inherited, **self._values(own, place, (*ANYWHERE, *OF_SUBSET), metadata=metadata)}
        for name in ("metadata_file",) if metadata else ("image_dir",):
            if not str(subset.get(name, "")).strip():
                self.problems.append(_problem(f"{place}.{name}", "is missing.", "Write {name} = '...'", name=name))
        for name in ("image_dir", "metadata_file", "mask_dir"):
            if given.get(name):
                given[name] = found_beside(given[name], self.beside)
        heights = (place, place.partition(".")[0], "general")
        places = {name: next((at for height in heights if (at := self.given_at.get((height, name)))), "") for name in given}
        return Table(place, given, {name: at for name, at in places.items() if at})

    def _values(self, table: Mapping[str, Any], place: str, allowed: tuple[str, ...], *, metadata: bool = False) -> dict[str, Any]:
        """What the table gives, by our names; unknown names and wrong values become problems."""
        found: dict[str, Any] = {}
        for name, value in table.items():
            path = f"{place}.{name}"
            if name not in allowed:
                self._refuse(path, name, allowed)
            elif metadata and name in OF_FOLDERS:
                self.problems.append(_problem(path, "belongs to folders with caption files, not to a metadata file.", "Take it out."))
            elif name in IGNORED:
                self.warnings.append(say("{place} is not used: it has no effect here.", place=path))
            elif name == "network_multiplier":
                if value != 1:
                    self.problems.append(
                        _problem(path, "another strength for one dataset cannot be trained.", "Take it out, or set it to 1.")
                    )
            else:
                ours = "mask_dir" if name == "conditioning_data_dir" else name
                option = attrs.evolve(table_options()[ours], path=_path(path))
                if (read := read_value(option, plain_value(name, value), self.problems)) is not None:
                    found[ours] = read
                    self.given_at[place, ours] = _path(path)
        return found

    def _refuse(self, path: str, name: str, allowed: tuple[str, ...]) -> None:
        if name in ON_THE_COMMAND_LINE:
            instead = ON_THE_COMMAND_LINE[name]
            self.problems.append(_problem(path, "has no place in a dataset file.", "Use {instead} instead.", instead=instead))
        else:
            self.problems.append(unknown_name(_path(path), name, allowed))

    def _tables(self, mapping: Mapping[str, Any], name: str, inside: str) -> list[Mapping[str, Any]]:
        found = mapping.get(name, [])
        if isinstance(found, list) and all(isinstance(table, Mapping) for table in found):
            return found
        self._wrong_kind(f"{inside}{name}", "Write [[datasets]] and [[datasets.subsets]], with two brackets.")
        return []

    def _wrong_kind(self, place: str, fix: str) -> None:
        self.problems.append(_problem(place, "must be tables, not a value.", fix))


def _identity(given: Mapping[str, Any]) -> tuple[str, str]:
    """By which a subset is the same as another of its dataset: the metadata file, else the folder."""
    name = "metadata_file" if given.get("metadata_file") else "image_dir"
    text = str(given.get(name, ""))
    try:
        return name, str(Path(text).resolve())
    except (OSError, ValueError):
        return name, text


def _path(place: str) -> str:
    return f"{OPTION}.{place}"


def _problem(place: str, template: str, fix: str, /, **values: Any) -> Problem:
    return problem(_path(place), template, fix, **values)
