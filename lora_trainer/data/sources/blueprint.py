"""What is trained on, resolved: datasets, the folders in them, and the options that hold for each, wherever they were written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import attrs

from lora_trainer.config.files import TABLE_INPUTS
from lora_trainer.config.schema import DataConfig
from lora_trainer.config.subsets import PER_DATASET, SUBSETS, check_given, with_given
from lora_trainer.data.captions import CaptionRules, rules_from
from lora_trainer.data.sources.dataset_toml import OPTION, Table, read_dataset_file
from lora_trainer.data.sources.metadata_json import read_metadata
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.messages import Message, say

REGULARISATION = "regularisation"
VALIDATION = "validation"


@attrs.frozen
class Source:
    """Where pictures and their captions are read from: all that reading depends on.

    `field`: the option that named it. `whole`: the folder may be a parent of folders, or have a number in its name. `prefix` stands
    before each picture's key. `words` are used for a picture without caption where the folder's name has none.
    """

    field: str
    folder: str
    metadata_file: str = ""
    whole: bool = True
    prefix: str = ""
    num_repeats: int = 1
    class_tokens: str = ""
    words: str = ""
    endings: tuple[str, ...] = ()
    separator: str = ","
    every_line: bool = False
    leave_out: tuple[str, ...] = ()


@attrs.frozen
class SubsetRules:
    """One folder's rules: `data` holds every option as it counts for it, `dataset` is its place in the datasets."""

    source: Source
    data: DataConfig
    dataset: int = 0
    is_reg: bool = False
    validation: bool = False
    validation_split: float = 0.0
    validation_seed: int | None = None

    @property
    def caption(self) -> CaptionRules:
        """How captions of this folder are put together."""
        return caption_rules(self.data, is_reg=self.is_reg)

    @property
    def flip_aug(self) -> bool:
        """Whether its pictures are mirrored at random."""
        return self.data.flip_aug

    @property
    def place(self) -> str:
        """The option, or the place in the dataset file, that describes it."""
        return self.source.field


@attrs.frozen
class DatasetBlueprint:
    """Datasets (their options) and the folders in them; the validation folder is the last of the subsets."""

    datasets: tuple[DataConfig, ...]
    subsets: tuple[SubsetRules, ...]
    simple: bool = True
    """Whether one folder (and perhaps one of regularisation pictures) is all."""
    warnings: tuple[Message, ...] = ()


def resolve_dataset(data: DataConfig, validation_dir: str = "") -> DatasetBlueprint:
    """Everything that a config says of pictures. Raises ConfigError for a wrong dataset file."""
    if data.dataset_config.strip():
        found = _of_file(data)
    elif data.subsets:
        tables = [Table(f"{SUBSETS}[{number}]", dict(table.given)) for number, table in enumerate(data.subsets)]
        found = _of_tables(data, tables)
    else:
        found = DatasetBlueprint((data,), tuple(_of_options(data)))
    if validation_dir.strip():
        endings = _endings(found.subsets[0].data.caption_extension if found.subsets else data.caption_extension)
        source = Source(
            "validate.data_dir", validation_dir, prefix=_free(VALIDATION, found), class_tokens=data.class_tokens, endings=endings
        )
        rules = SubsetRules(source, found.datasets[0] if found.datasets else data, validation=True)
        found = attrs.evolve(found, subsets=(*found.subsets, rules))
    return found


def caption_rules(data: DataConfig, *, is_reg: bool = False) -> CaptionRules:
    """How captions are put together; regularisation pictures never get the trigger word."""
    rules = rules_from(data)
    return attrs.evolve(rules, trigger_word="", class_tokens="") if is_reg else rules


def training_size(data: DataConfig) -> tuple[int, int]:
    """Width and height of the largest dataset's training size."""
    several = data.dataset_config.strip() or data.subsets
    sizes = [size_of(own) for own in resolve_dataset(data).datasets] if several else [size_of(data)]
    return max(sizes, key=lambda size: size[0] * size[1])


def size_of(data: DataConfig) -> tuple[int, int]:
    """Width and height of a dataset's training size."""
    return (data.resolution, data.resolution) if isinstance(data.resolution, int) else data.resolution


def places(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, path) of every folder and file that tables, a dataset file and metadata files of a plain [data] name.

    Takes what was typed, whatever is wrong with the rest of it. A file that cannot be read names nothing: nobody can read it later.
    """
    given, file = data.get("subsets"), _typed(data, "dataset_config")
    named = enumerate(given) if isinstance(given, list) else ()
    tables = [Table(f"{SUBSETS}[{number}]", table) for number, table in named if isinstance(table, Mapping)]
    with suppress(TrainerError):
        tables += [table for dataset in (read_dataset_file(Path(file), DataConfig()).datasets if file else ()) for table in dataset]
    for table in tables:
        yield from ((f"{table.place}.{name}", text) for name in TABLE_INPUTS if (text := _typed(table.given, name)))
        yield from _places_of_metadata(
            f"{table.place}.metadata_file", _typed(table.given, "metadata_file"), _typed(table.given, "image_dir")
        )
    yield from _places_of_metadata("data.in_json", _typed(data, "in_json"), _typed(data, "train_data_dir"))


def _places_of_metadata(field: str, file: str, folder: str) -> Iterator[tuple[str, str]]:
    """The folders of the pictures that a metadata file names."""
    with suppress(TrainerError):
        entries = read_metadata(Path(file), Path(folder) if folder else None, ",", field) if file else ()
        for place in sorted({str(entry.path.parent) for entry in entries if entry.path is not None}):
            yield field, place


def _typed(table: Mapping[str, Any], name: str) -> str:
    text = table.get(name)
    return text if isinstance(text, str) and text.strip() else ""


def _of_options(data: DataConfig) -> Iterator[SubsetRules]:
    shared: dict[str, Any] = {"endings": _endings(data.caption_extension), "num_repeats": data.num_repeats}
    lines: dict[str, Any] = {"separator": data.caption_separator, "every_line": data.enable_wildcard, "leave_out": data.leave_out}
    metadata = data.in_json.strip()
    field = "data.in_json" if metadata and not data.train_data_dir.strip() else "data.train_data_dir"
    yield SubsetRules(
        Source(field, data.train_data_dir, metadata, whole=not metadata, class_tokens=data.class_tokens, **shared, **lines), data
    )
    if data.reg_data_dir.strip():
        shared["num_repeats"] = 1
        source = Source(
            "data.reg_data_dir",
            data.reg_data_dir,
            prefix=_free_beside(REGULARISATION, data.train_data_dir),
            words=data.class_tokens,
            **shared,
            **lines,
        )
        yield SubsetRules(source, data, is_reg=True)


def _of_file(data: DataConfig) -> DatasetBlueprint:
    file = read_dataset_file(Path(data.dataset_config), data)
    problems = {found.path: found for tables in file.datasets for table in tables for found in check_given(data, table.given, table.places)}
    if problems:
        raise ConfigError(list(problems.values()))
    warnings = list(file.warnings)
    beside = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if getattr(data, name).strip()]
    if beside:
        warnings.append(say("A dataset file is given, so these are not used: {names}.", names=", ".join(beside)))
    tables = [table for dataset in file.datasets for table in dataset]
    numbers = [number for number, dataset in enumerate(file.datasets) for _ in dataset]
    found = _of_tables(data, [attrs.evolve(table, place=f"{OPTION}.{table.place}") for table in tables], numbers, (".caption", ".txt"))
    return attrs.evolve(found, warnings=tuple(warnings))


def _of_tables(data: DataConfig, tables: list[Table], numbers: list[int] | None = None, endings: tuple[str, ...] = ()) -> DatasetBlueprint:
    """Tables in the datasets of these numbers, else in one dataset for each set of options that a batch shares."""
    datasets: dict[Any, DataConfig] = {}
    rules = []
    for place, (table, prefix) in enumerate(zip(tables, _prefixes(table.given for table in tables), strict=True)):
        own = with_given(data, table.given)
        key = numbers[place] if numbers else tuple(getattr(own, name) for name in PER_DATASET)
        datasets.setdefault(key, own)
        rules.append(_of_table(table, own, prefix, list(datasets).index(key), endings))
    return DatasetBlueprint(tuple(datasets.values()), tuple(rules), simple=False)


def _of_table(table: Table, data: DataConfig, prefix: str, dataset: int, endings: tuple[str, ...]) -> SubsetRules:
    given, is_reg = table.given, bool(table.given.get("is_reg", False))
    source = Source(
        f"{table.place}.{'image_dir' if given.get('image_dir') else 'metadata_file'}",
        given.get("image_dir", ""),
        given.get("metadata_file", ""),
        whole=False,
        prefix=prefix,
        num_repeats=data.num_repeats,
        class_tokens=data.class_tokens,
        endings=_endings(data.caption_extension) or endings,
        separator=data.caption_separator,
        every_line=data.enable_wildcard,
        leave_out=data.leave_out,
    )
    return SubsetRules(
        source,
        data,
        dataset,
        is_reg,
        validation_split=0.0 if is_reg else float(given.get("validation_split", 0.0)),
        validation_seed=given.get("validation_seed"),
    )


def _prefixes(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """A name for each folder that stands before its pictures' names: the folder's own, numbered where several have it."""
    used: dict[str, int] = {}
    found = []
    for given in tables:
        name = PurePath(given.get("image_dir") or given.get("metadata_file") or "").name or "pictures"
        used[name] = used.get(name, 0) + 1
        found.append(f"{name}/" if used[name] == 1 else f"{name} ({used[name]})/")
    return found


def _free(name: str, description: DatasetBlueprint) -> str:
    """A prefix of that name that no picture of the description has."""
    if not description.simple:
        return _prefixes([*({"image_dir": rules.source.prefix} for rules in description.subsets), {"image_dir": name}])[-1]
    return _free_beside(name, description.subsets[0].source.folder)


def _free_beside(name: str, folder: str) -> str:
    """A prefix of that name which is none of the folders in `folder`."""
    taken = folder.strip() and (Path(folder) / name).is_dir()
    return f"{name} (2)/" if taken else f"{name}/"


def _endings(extension: str) -> tuple[str, ...]:
    return (f".{extension.strip().lstrip('.').lower()}",) if extension.strip(". ") else ()
