"""Block 6: memory runs out in each phase of a run. It ends well or with a remedy, and takes each measure once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.card.block import Block, Card, Figures, require
from benchmarks.card.meter import Room
from benchmarks.card.runs import crescent, ended_well, events_of, losses, with_validation
from lora_trainer.config.schema import TrainConfig
from lora_trainer.events import Changed, Event, Phase, Sampled, Started, Stepped, Warned
from lora_trainer.train.memory import placement
from lora_trainer.train.trainer import Trainer

RAN_OUT = "Memory ran out"
OFF = 1e-2
HELPED_SHARE = 0.5
"""Of what a step takes at most when it may take all: recomputing and smaller pieces need less."""
STEPS = 3


def shortage_in_every_phase(card: Card) -> Figures:
    """A row a phase: nothing more is handed out from its begin on."""
    starts: dict[str, Callable[[Card, Room], _Limit]] = {
        "start": lambda card, room: _Limit(room),
        "load": lambda card, room: _Limit(room, event=Started),
        "step": lambda card, room: _Limit(room, kind=placement.STEP),
        "validation": lambda card, room: _Limit(room, phase="validating"),
        "preview": lambda card, room: _Limit(room, phase="sampling", is_short=True),
        "save": lambda card, room: _Limit(room, kind=placement.EVALUATING),
    }
    rows = [_short(card, name, make, _plain if name in ("start", "load", "step") else _config) for name, make in starts.items()]
    require(rows[-2]["outcome"] == "finished", "a preview that lacks memory ends the run")
    folder = card.new_folder()
    require(len(losses(events_of(card, _plain(card, folder), folder))) == STEPS, "a run afterwards does not train")
    return {"rows": rows}


def shortage_while_encoding(card: Card) -> Figures:
    """The same for captions and pictures, where a repeated try once put back what the try before had moved off."""
    starts: dict[str, Callable[[Card, Room], _Limit]] = {
        "captions": lambda card, room: _Limit(room, kind=placement.CAPTIONS),
        "pictures": lambda card, room: _Limit(room, kind=placement.PICTURES, phase="" if card.is_cuda else "caching"),
    }
    return {"rows": [_short(card, name, make, _plain) for name, make in starts.items()]}


class _Limit:
    """Sets a room's limit where a kind of work or a phase begins, or at an event; at once without any of them.

    `is_short`: lifts it at the first picture or warning, after which nothing may fail any more.
    """

    def __init__(self, room: Room, *, kind: str = "", phase: str = "", event: type[Event] | None = None, is_short: bool = False) -> None:
        self.room, self.kind, self.phase, self.event, self.is_short, self.is_set = room, kind, phase, event, is_short, False
        if not kind and not phase and event is None:
            self._set()

    def work_begins(self, kind: str) -> None:
        """Called with each kind of work."""
        if kind == self.kind:
            self._set()

    def watch(self, event: Event) -> None:
        """Called with each event."""
        if (isinstance(event, Phase) and event.name == self.phase) or type(event) is self.event:
            self._set()
        elif isinstance(event, (Sampled, Warned)) and self.is_set and self.is_short:
            self.room.lift()

    def _set(self) -> None:
        if not self.is_set:
            self.is_set = True
            self.room.leave(0)


def _short(card: Card, name: str, make: Callable[[Card, Room], _Limit], config: Callable[[Card, Path], TrainConfig]) -> dict[str, Any]:
    folder, room = card.new_folder(), Room(card)
    limit, make_ready = make(card, room), Trainer.make_ready

    def begins(trainer: Trainer, kind: str) -> None:
        limit.work_begins(kind)
        make_ready(trainer, kind)

    try:
        with patch.object(Trainer, "make_ready", begins):
            events, error = ended_well(card, config(card, folder), folder, watch=limit.watch, around=room.around)
    finally:
        room.lift()
    require(limit.is_set, f"{name}: the run never came there")
    require_each_measure_once(name, events)
    measures = sum(isinstance(event, Changed) for event in events)
    outcome = "finished" if error is None else f"ended: {error.problems[0].fix.text()}"
    return {"phase": name, "outcome": outcome, "warnings": len(_said(events)), "measures": measures}


def require_each_measure_once(name: str, events: list[Event]) -> None:
    """No warning that memory ran out comes twice between two steps."""
    said: set[str] = set()
    for event in events:
        if isinstance(event, Stepped):
            said.clear()
        elif isinstance(event, Warned) and RAN_OUT in (text := str(event.message)):
            require(text not in said, f"{name}: a measure was taken twice ({text})")
            said.add(text)


def _said(events: list[Event]) -> list[str]:
    return [str(event.message) for event in events if isinstance(event, Warned) and RAN_OUT in str(event.message)]


def step_gets_by_with_less(card: Card) -> Figures:
    """With half of what a step takes at most, the run finishes with other settings and the same losses."""
    plain, folder = card.new_folder(), card.new_folder()
    most = _Most(card)
    full = events_of(card, _large(card, plain), plain, watch=most.watch, around=most.room.around)
    room, is_limited = Room(card), []

    def watch(event: Event) -> None:
        if isinstance(event, Phase) and event.name == "training" and not is_limited:
            is_limited.append(True)
            room.leave(HELPED_SHARE * most.above)

    try:
        events, error = ended_well(card, _large(card, folder), folder, watch=watch, around=room.around)
    finally:
        room.lift()
    require(error is None, f"the run ended: {error}")
    changed = [event.path for event in events if isinstance(event, Changed)]
    require("memory.gradient_checkpointing" in changed, f"what was changed: {changed}")
    require_each_measure_once("step", events)
    off = max(abs(own / other - 1) for own, other in zip(losses(events), losses(full), strict=True))
    require(off <= OFF, f"a loss is {off:.2g} off that of a run with all the memory")
    return {"most of a step, MB": most.above / 2**20, "with MB": HELPED_SHARE * most.above / 2**20, "changed": changed, "losses off": off}


class _Most:
    """The most bytes that a run has handed out above those at the begin of its steps."""

    def __init__(self, card: Card) -> None:
        self.room, self.above, self._base = Room(card), 0.0, -1

    def watch(self, event: Event) -> None:
        """Called with each event."""
        if isinstance(event, Phase) and event.name == "training" and self._base < 0:
            self._base = self.room.begin_peak()
        elif isinstance(event, Stepped):
            self.above = max(self.above, self.room.peak - self._base)


def _plain(card: Card, folder: Path) -> TrainConfig:
    """Without validation, which would encode the captions before the work whose kind is that."""
    return crescent(folder, steps__max_train_steps=STEPS)


def _config(card: Card, folder: Path) -> TrainConfig:
    prompts = ["a sks crescent --w 64 --h 64 --s 2"]
    changes = {"sample__prompts": prompts, "sample__every_n_steps": 2, "sample__at_first": False, "save__every_n_steps": 1}
    return crescent(folder, **with_validation(steps__max_train_steps=STEPS, validate__max_pictures=1, **changes))


def _large(card: Card, folder: Path) -> TrainConfig:
    """Four pictures a step, on a card large ones, since its allocator hands out pieces of 20 MB."""
    return crescent(folder, data__batch_size=4, data__resolution=512 if card.is_cuda else 64, steps__max_train_steps=2)


BLOCKS = (
    Block(
        "E1-encoding-short", "memory runs out while captions or pictures are encoded: no endless loop", shortage_while_encoding, 8.0, 4.0
    ),
    Block("shortage", "memory runs out while loading, in a step, validation, preview, save", shortage_in_every_phase, 20.0, 16.0),
    Block("shortage-helped", "half of a step's memory: other settings, the same losses", step_gets_by_with_less, 12.0, 6.0),
)
