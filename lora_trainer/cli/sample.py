"""sample --model FILE [--lora FILE[:WEIGHT]]... --prompt TEXT ... --out FILE|DIR"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.cli.common_args import add_json, finite_number, host, usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.main import as_usage_error
from lora_trainer.config.choices.samplers import CHOICES, find_sampler
from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say
from lora_trainer.models.detection.prediction_type import AUTO, KINDS
from lora_trainer.models.prediction_kinds import FLOW

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_trainer.train.previews.preview_prompts import SampleRequest

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("--model", required=True, metavar="FILE", help=console.translate(say("the checkpoint")))
    lora = say("a LoRA file, with its weight after a colon; can be repeated")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help=console.translate(lora))
    parser.add_argument("--prompt", required=True, metavar="TEXT", help=console.translate(say("what is to be drawn")))
    parser.add_argument("--negative", default="", metavar="TEXT", help=console.translate(say("what is not to be drawn")))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=finite_number, default=7.5)
    parser.add_argument("--width", type=int, help=console.translate(say("pixels; without: the model's own size")))
    parser.add_argument("--height", type=int, help=console.translate(say("pixels; without: the width")))
    names = say("one of {names}; sd-scripts' names with k_ too", names=", ".join(CHOICES))
    parser.add_argument("--sampler", default="ddim", metavar="NAME", help=console.translate(names))
    kinds = say("what the model predicts, where its file does not say it: {names}", names=", ".join(KINDS))
    parser.add_argument("--prediction", choices=KINDS, default=AUTO, metavar="NAME", help=console.translate(kinds))
    shift = say("shift of the timesteps, for models of rectified flow")
    parser.add_argument("--flow-shift", type=finite_number, default=3.0, metavar="NUMBER", help=console.translate(shift))
    parser.add_argument("--clip-skip", type=int, choices=(1, 2), default=1)
    tokens = say("tokens of the prompt that are read; without: all of them")
    parser.add_argument("--max-token-length", type=int, choices=(75, 150, 225), default=0, help=console.translate(tokens))
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE|DIR", help=console.translate(say("a picture file, or a folder for it"))
    )
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Draws one picture and prints its path."""
    from lora_trainer.train.previews.flow_sampling import require_flow_sampler
    from lora_trainer.train.previews.preview_prompts import MARK, NETWORK_TAG, SampleRequest

    loras = [split_weight(text) for text in args.lora]
    prompt, in_prompt, notes = _networks_in_prompt(args.prompt, [args.out, *(path.parent for path, _ in loras)])
    loras += in_prompt
    try:
        model, facts = _check_files(args.model, loras, args.prediction)
        if facts.prediction == FLOW:
            require_flow_sampler(_sampler(args.sampler))
    except TrainerError as error:
        raise as_usage_error(error) from error
    width = args.width or facts.native_size
    request = SampleRequest(
        prompt,
        negative=args.negative,
        width=_side(width, "--width"),
        height=_side(args.height or width, "--height"),
        seed=args.seed,
        cfg=args.cfg,
        steps=args.steps,
        sampler=_sampler(args.sampler),
        clip_skip=args.clip_skip,
        max_token_length=args.max_token_length,
        flow_shift=_shift(args.flow_shift),
    )
    if not 1 <= args.steps <= 1000:
        raise usage_error("--steps", say("{value} steps cannot be drawn.", value=args.steps), say("Give 1 to 1000."))
    notes += [
        say(
            "no file was found for {tag}, so it is drawn as words: give --lora FILE:WEIGHT, for example --lora mika.safetensors:0.8",
            tag=tag,
        )
        for tag in NETWORK_TAG.findall(f"{prompt} {args.negative}")
    ]
    if marks := MARK.findall(f"{args.prompt} {args.negative}"):
        template = "{marks} is read as a part of the text: give --negative, --width, --height, --seed, --cfg, --steps and --sampler."
        notes.append(say(template, marks=", ".join(marks)))
    for note in notes:
        console.note(say("Note: {message}", message=note))
    target = _target(args.out.absolute(), args.seed)
    (picture,) = ImageSampler(model, args.prediction).draw_seeds(request, [args.seed], loras)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)
    console.line(str(target))
    console.document(
        {
            "file": str(target),
            "seed": args.seed,
            "prompt": args.prompt,
            "notes": [note.text(console.language) for note in notes],
            "loras": [{"file": str(path), "weight": weight} for path, weight in loras],
        }
    )
    return DONE


def _networks_in_prompt(prompt: str, folders: Iterable[Path]) -> tuple[str, list[tuple[Path, float]], list[Message]]:
    """The prompt without <lora:NAME:WEIGHT>, their files with the weights, and a note for each: as a WebUI and `grid` read them."""
    from lora_trainer.train.previews.prompt_networks import PromptNetworks

    near = (Path(), *(folder if folder.is_dir() else folder.parent for folder in folders))
    read = PromptNetworks(near, host().paths().lora_dir).read(prompt)
    notes = [
        say("{tag} is read as --lora {file}:{weight}", tag=tag, file=str(path), weight=f"{weight:g}") for tag, path, weight in read.networks
    ]
    return read.text, [(path, weight) for _, path, weight in read.networks], notes


class ImageSampler:
    """A loaded checkpoint that draws with the trainer's own samplers."""

    def __init__(self, model: Path, prediction: str = AUTO) -> None:
        from lora_trainer.host.devices import default_device
        from lora_trainer.models.load import load
        from lora_trainer.models.source import FileSource
        from lora_trainer.train.step.precision import choose_precision

        device, _ = default_device()
        source = FileSource(model, prediction=None if prediction == AUTO else prediction)
        self.precision = choose_precision("auto", source, device)
        self.bundle = load(source, device, self.precision.base)

    def draw_seeds(self, request: SampleRequest, seeds: Iterable[int], loras: list[tuple[Path, float]]) -> Iterator[Image]:
        """Pictures of the request, one per seed, with (LoRA file, weight) pairs applied."""
        from lora_trainer.adapters.lora_file import with_loras
        from lora_trainer.train.previews.sampling import draw

        for seed in seeds:
            with with_loras(self.bundle, loras):
                picture = draw(self.bundle, attrs.evolve(request, seed=seed), self.precision, lambda: False)
            if picture is not None:
                yield picture


def split_weight(text: str, argument: str = "--lora") -> tuple[Path, float]:
    """(path, weight) of FILE[:WEIGHT]; a drive letter's colon belongs to the file. Raises ConfigError if the weight is not a number."""
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists() or (len(head) == 1 and tail[:1] in ("\\", "/")):
        return Path(text), 1.0
    try:
        return Path(head), finite_number(tail)
    except ValueError:
        raise usage_error(
            argument, say("the weight {value} is not a number.", value=tail), say("Write for example file.safetensors:0.8")
        ) from None


def _check_files(model: str, loras: list[tuple[Path, float]], prediction: str) -> tuple[Path, Any]:
    from lora_trainer.adapters.lora_file import read_lora
    from lora_trainer.host.base import find_checkpoint
    from lora_trainer.models.detection.detect import inspect

    path = find_checkpoint(model, host().checkpoints())
    facts = inspect(path).with_flags(prediction=prediction)
    for lora, _ in loras:
        read_lora(lora)
    return path, facts


def _shift(value: float) -> float:
    if value <= 0:
        message = say("{value} is too small: it must be more than {above}.", value=value, above=0)
        raise usage_error("--flow-shift", message, say("Give 1 to 10."))
    return value


def _sampler(text: str) -> str:
    if (name := find_sampler(text)) is None:
        raise usage_error("--sampler", say("there is no sampler {name}.", name=text), say("Known are {known}.", known=", ".join(CHOICES)))
    return name


def _side(value: int, option: str) -> int:
    if not 64 <= value <= 4096 or value % 8:
        raise usage_error(option, say("{value} pixels cannot be drawn.", value=value), say("Give a multiple of 8 from 64 to 4096."))
    return value


def _target(out: Path, seed: int) -> Path:
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        return out
    number = 1
    while (path := out / f"{seed}-{number:03d}.png").exists():
        number += 1
    return path
