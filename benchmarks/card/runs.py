"""Short runs of the small model that ships with the project, on the device, and what happened in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from benchmarks.card.block import Card, require
from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.errors import OutOfMemory
from lora_trainer.events import Event, Finished, Stepped, Validated, Warned
from lora_trainer.host.base import Host
from lora_trainer.train import setup
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.loop import run
from lora_trainer.train.memory import placement
from lora_trainer.train.trainer import Trainer

MOST_EVENTS = 3000
"""More events than any of these runs has: one that goes round for ever is ended here."""


def crescent(folder: Path, **changes: Any) -> TrainConfig:
    """The config of a run on the crescent that writes into `folder`; `changes` as section__name=value."""
    pictures = assets.toy_pictures() / "crescent"
    mapping: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(assets.toy_checkpoint())},
        "data": {"train_data_dir": str(pictures / "train"), "resolution": 64, "batch_size": 2, "trigger_word": "sks"},
        "network": {"dim": 4, "alpha": 4.0},
        "optimizer": {"learning_rate": 2e-3, "text_encoder_lr": 0.0},
        "steps": {"max_train_steps": 8},
        "save": {"output_dir": str(folder / "loras"), "output_name": "card", "precision": "float", "every_n_epochs": 0, "state": False},
    }
    mapping["data"]["cache_latents_to_disk"] = False
    for name, value in changes.items():
        section, _, option = name.partition("__")
        mapping.setdefault(section, {})[option] = value
    return build(mapping)


def with_validation(**changes: Any) -> dict[str, Any]:
    """Changes of `crescent` for a run that validates at its begin and end."""
    return {"validate__data_dir": str(assets.toy_pictures() / "crescent" / "val"), "validate__every_n_epochs": 0, **changes}


def events_of(
    card: Card,
    config: TrainConfig,
    folder: Path,
    *,
    host: Host | None = None,
    control: Control | None = None,
    watch: Callable[[Event], object] = lambda event: None,
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> list[Event]:
    """The events of a run; `watch` sees each, `around` is entered whenever the run works. Raises what the run raises."""
    events: list[Event] = []
    with contextlib.closing(run(config, host or card.host(folder), control or Control(), folder / "run")) as work:
        while True:
            try:
                with around():
                    event = next(work)
            except StopIteration:
                return events
            events.append(event)
            require(len(events) < MOST_EVENTS, "the run goes round for ever")
            watch(event)


def ended_well(card: Card, config: TrainConfig, folder: Path, **options: Any) -> tuple[list[Event], OutOfMemory | None]:
    """The events of a run that finishes, or that ends with OutOfMemory and a remedy; anything else is a failure of the block."""
    events: list[Event] = []
    watch = options.pop("watch", lambda event: None)

    def look(event: Event) -> None:
        events.append(event)
        watch(event)

    try:
        events_of(card, config, folder, watch=look, **options)
    except OutOfMemory as error:
        require(error.problems[0].fix.text(), "out of memory without a remedy")
        return events, error
    require(isinstance(events[-1], Finished), f"the run ended with {type(events[-1]).__name__}")
    return events, None


def losses(events: list[Event]) -> list[float]:
    """The loss of each step."""
    return [event.loss for event in events if isinstance(event, Stepped)]


def validation_losses(events: list[Event]) -> list[float]:
    """Each validation loss, the first before training."""
    return [event.loss for event in events if isinstance(event, Validated)]


def warnings(events: list[Event], phrase: str = "") -> list[str]:
    """The warnings that contain a phrase."""
    return [str(event.message) for event in events if isinstance(event, Warned) and phrase in str(event.message)]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of the file that a run of `crescent` has written."""
    from safetensors.torch import load_file

    return load_file(folder / "loras" / "card.safetensors")


@contextlib.contextmanager
def seen_trainers() -> Iterator[list[Trainer]]:
    """Inside, every Trainer that a run makes is added to the list."""
    made: list[Trainer] = []
    prepare = setup.prepare

    def prepare_and_note(*args: Any, **kwargs: Any) -> Trainer:
        made.append(prepare(*args, **kwargs))
        return made[-1]

    with patch.object(setup, "prepare", prepare_and_note):
        yield made


@contextlib.contextmanager
def prepared(card: Card, config: TrainConfig, folder: Path) -> Iterator[Trainer]:
    """A trainer, attached, with what a step needs on the device."""
    with card.host(folder).lease(config.model) as lease:
        trainer = setup.prepare(config, load_dataset(config), lease)
        trainer.attach()
        try:
            trainer.make_ready(placement.STEP)
            yield trainer
        finally:
            trainer.detach()
