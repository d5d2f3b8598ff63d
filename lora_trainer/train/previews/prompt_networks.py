"""Networks that a prompt names as a WebUI does, <lora:NAME:WEIGHT>: the files, and the prompt without them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import attrs

from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Lease
from lora_trainer.messages import Message, say
from lora_trainer.models.files.tensor_file import read_header
from lora_trainer.train.previews.preview_prompts import NETWORK_TAG, Prompts

TAG = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([^<>]*))?>")
SUFFIX = ".safetensors"


@attrs.frozen
class NetworkPrompt:
    """A prompt without the tags whose files were found, and these as (tag, file, weight).

    `own_tags` name the network that is trained and were taken out; `missing_tags` name files that are not there and stay in the text.
    """

    text: str
    networks: tuple[tuple[str, Path, float], ...] = ()
    own_tags: tuple[str, ...] = ()
    missing_tags: tuple[str, ...] = ()


@attrs.frozen
class PromptNetworks:
    """Where the files of a prompt's networks are looked for: directly in `folders`, then anywhere in `lora_dir`.

    `own_name`: the network that is trained; "" where none is.
    """

    folders: tuple[Path, ...]
    lora_dir: Path
    own_name: str = ""

    def find(self, name: str) -> Path | None:
        """The file NAME.safetensors."""
        if not {"/", "\\"}.intersection(name):
            for path in (folder / f"{name}{SUFFIX}" for folder in self.folders):
                with suppress(OSError, ValueError):  # a name that no system takes
                    if path.is_file():
                        return path
        return self.in_lora_dir(name)

    def read(self, prompt: str) -> NetworkPrompt:
        """A prompt with its networks looked up. Raises TrainerError for a weight that is not one number."""
        found: list[tuple[str, Path, float]] = []
        own, missing = [], []
        text = prompt
        for match in TAG.finditer(prompt):
            tag, name, path = match.group(0), match.group(1), None
            if name == self.own_name:
                own.append(tag)
            elif (path := self.find(name)) is None:
                missing.append(tag)
                continue
            if path is not None:
                found.append((tag, path, tag_weight(match)))
            text = text.replace(tag, " ", 1)
        return NetworkPrompt(" ".join(text.split()) if text != prompt else text, tuple(found), tuple(own), tuple(missing))

    def for_host(self, prompt: str) -> str:
        """The prompt for a host, which reads the files of its own folder: without the network that is trained and without missing ones.

        A name that it does not know makes a host read its list anew, and forget the network that the preview is drawn with.
        """
        text = prompt
        for match in TAG.finditer(prompt):
            if match.group(1) == self.own_name or self.in_lora_dir(match.group(1)) is None:
                text = text.replace(match.group(0), " ", 1)
        return text if text == prompt else " ".join(text.split())

    def in_lora_dir(self, name: str) -> Path | None:
        """The file in the LoRA folder that is called NAME, or whose header says that name, as WebUIs know it too."""
        try:
            return find_lora(name, [self.lora_dir])
        except TrainerError:
            files = sorted(self.lora_dir.rglob(f"*{SUFFIX}")) if self.lora_dir.is_dir() else []
            return next((path for path in files if _name_in_header(path) == name), None)


def network_notes(prompts: Prompts, networks: PromptNetworks, lease: Lease) -> list[Message]:
    """A note for each network that the previews of these prompts are not drawn with as they are written."""
    return (notes_of_host if lease.own_previews else notes_of_trainer)(prompts, networks)


def notes_of_trainer(prompts: Prompts, networks: PromptNetworks) -> list[Message]:
    """What is not used as it is written in prompts that the trainer's own samplers draw."""
    notes = []
    for index, request in prompts.requests:
        number = index + 1
        try:
            prompt = networks.read(request.prompt)
        except TrainerError as error:
            problem = error.problems[0]
            notes.append(say("prompt {number} is not drawn: {message} {fix}", number=number, message=problem.message, fix=problem.fix))
            continue
        notes += [_own_note(number, tag) for tag in prompt.own_tags]
        notes += [
            say(
                "prompt {number}: there is no file for {tag}, which is drawn as words. Put the file into {folder}, or take it out.",
                number=number,
                tag=tag,
                folder=str(networks.lora_dir),
            )
            for tag in prompt.missing_tags
        ]
        tags = [tag for tag in NETWORK_TAG.findall(f"{prompt.text} {request.negative}") if tag not in prompt.missing_tags]
        if tags:
            template = "prompt {number}: {tags} is read by a WebUI only; here it is drawn as words. Take it out."
            notes.append(say(template, number=number, tags=" ".join(tags)))
    return notes


def notes_of_host(prompts: Prompts, networks: PromptNetworks) -> list[Message]:
    """What is not used as it is written in prompts that a WebUI draws: it reads the files of its own folder."""
    notes = []
    for index, request in prompts.requests:
        for match in TAG.finditer(request.prompt):
            tag, name = match.group(0), match.group(1)
            if name == networks.own_name:
                notes.append(_own_note(index + 1, tag))
            elif networks.in_lora_dir(name) is None:
                notes.append(
                    say(
                        "prompt {number}: {folder} has no file for {tag}: it is left out. Put the file there, or correct the name.",
                        number=index + 1,
                        tag=tag,
                        folder=str(networks.lora_dir),
                    )
                )
    return notes


def _own_note(number: int, tag: str) -> Message:
    template = "prompt {number}: {tag} names the network that is trained, which is on in its previews anyway: it is left out."
    return say(template, number=number, tag=tag)


def _name_in_header(path: Path) -> str:
    """`ss_output_name` of a file; "" where it says none, or cannot be read."""
    try:
        stat = path.stat()
        return _read_name(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, TrainerError):
        return ""


@lru_cache(maxsize=4096)
def _read_name(path: Path, _size: int, _mtime: int) -> str:
    metadata = read_header(path).get("__metadata__")
    return str(metadata.get("ss_output_name", "")) if isinstance(metadata, dict) else ""


def find_lora(name: str, folders: Sequence[Path]) -> Path:
    """The path of a LoRA by its file stem. Raises TrainerError when no folder contains it."""
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.rglob(f"*{SUFFIX}")):
                if path.stem == name:
                    return path
    raise TrainerError("there is no LoRA called {name}.", name=name, path="prompt", fix="Correct its name in the prompt, or take it out.")


def split_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """A prompt without its LoRA tags, and the tags as (name, weight); the weight of `<lora:NAME>` is 1.

    Raises TrainerError for a weight that is not a number, or that differs between text encoder and U-Net.
    """
    loras = [(match.group(1), tag_weight(match)) for match in TAG.finditer(prompt)]
    return " ".join(TAG.sub(" ", prompt).split()), loras


def tag_weight(match: re.Match[str]) -> float:
    """The weight of a match of TAG. Raises TrainerError where it is not one number."""
    text = "1" if match.group(2) is None else match.group(2)
    parts = [part.partition("=")[2] or part for part in text.split(":")]
    try:
        weights = {float(part) for part in parts}
    except ValueError:
        weights = set()
    if len(weights) != 1 or not all(map(math.isfinite, weights)):
        raise TrainerError(
            "the weight in {tag} is not one number.", tag=match.group(0), path="prompt", fix="Write for example <lora:NAME:0.8>."
        )
    return weights.pop()
