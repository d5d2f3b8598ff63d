"""What the importers of several programs share: switches, pictures, preview prompts, lengths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PureWindowsPath
from typing import Any

from lora_trainer.config.file_names import name_problem, slug
from lora_trainer.config.importing.learning import Options
from lora_trainer.config.importing.values import is_empty, to_number
from lora_trainer.messages import Message, say

YES = (True, "true", "True", "ON", "on")
TRAINED = say("The part is trained here too, at its learning rate.")
CHOOSE_PICTURES = say("The pictures are listed in another file: set their folder here.")


def is_on(value: Any) -> bool:
    """Whether a switch is on, also one written as text."""
    return any(type(value) is type(yes) and value == yes for yes in YES)


def one_size_note(key: str, value: Any) -> Message:
    """The note about a key that held several sizes."""
    return say("{key} = {value}: one size of pictures is possible here; the largest was taken.", key=key, value=value)


def output_options(path: str) -> Options:
    """Folder and name of a result's path, in the form of any system."""
    parts = PureWindowsPath(path) if "\\" in path else None
    folder, name = (str(parts.parent), parts.stem) if parts else _posix_parts(path)
    name = slug(name) if name_problem(name) else name
    return ([("save.output_dir", folder)] if folder not in ("", ".") else []) + ([("save.output_name", name)] if name else [])


def _posix_parts(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, re.sub(r"\.(safetensors|ckpt|pt)$", "", name, flags=re.IGNORECASE)


def largest_size(value: Any) -> tuple[Any, bool]:
    """The size of pictures as a number or "W,H", the largest of several, and whether there were several."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    sizes = value if isinstance(value, list) else [value]
    readable = [size for size in sizes if _area(size)]
    largest = max(readable, key=_area) if readable else value
    return (largest.lower().replace("x", ",") if isinstance(largest, str) else largest), len(readable) > 1


def _area(size: Any) -> float:
    sides = [to_number(side) for side in str(size).lower().split("x")]
    return sides[0] * sides[-1] if len(sides) in (1, 2) else 0.0


def prompt_line(prompt: str, values: Mapping[str, Any]) -> str:
    """A prompt line of sd-scripts; `values`: its options n, w, h, d, l, s, those that are empty left out."""
    words = [" ".join(str(prompt).split())]
    words += [f"--{name} {' '.join(str(value).split())}" for name, value in values.items() if not is_empty(value) and value is not False]
    return " ".join(words)


def folder_options(folders: Iterable[Mapping[str, Any]]) -> Options:
    """Our options for folders of pictures, each a table of `data.subsets`; those of a single one stand in [data] where they exist."""
    folders = [folder for folder in folders if not is_empty(folder.get("image_dir"))]
    if len(folders) == 1 and not folders[0].get("is_reg"):
        return [("data.train_data_dir" if name == "image_dir" else f"data.{name}", value) for name, value in folders[0].items()]
    return [("data.subsets", [dict(folder) for folder in folders])] if folders else []


def optimizer_args(values: Mapping[str, Any]) -> str:
    """Arguments as sd-scripts writes them; beta1 and beta2 are `betas`."""
    values = {name: value for name, value in values.items() if not is_empty(value)}
    betas = [values.pop(name) for name in ("beta1", "beta2", "beta3") if name in values]
    return " ".join(
        [f"{name}={value}" for name, value in values.items()] + ([f"betas={','.join(map(str, betas))}"] if len(betas) > 1 else [])
    )


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every value; lists of tables are walked too: `process[0].network.linear`."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from leaves(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from leaves(part, f"{prefix}[{number}]")
    else:
        yield prefix, value
