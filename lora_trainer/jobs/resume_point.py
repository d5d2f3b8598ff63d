"""What a run kept of itself so that it can go on: found and looked at without torch."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.live_settings import changeable
from lora_trainer.errors import TrainerError
from lora_trainer.files import file_sha256

FOLDER = "state"
"""Inside a run's folder."""
TENSORS, PLAIN = "state.safetensors", "state.json"
PREFIX = "step-"


@attrs.frozen
class KeptState:
    """A state on the disk: `step` optimizer steps were done, `number` of the run's states it is; `plain` is its state.json."""

    path: Path
    step: int
    number: int
    plain: dict[str, Any]

    def whole(self) -> bool:
        """Whether its tensors are those that were written, bit for bit."""
        try:
            return file_sha256(self.path / TENSORS) == self.plain.get("sha256")
        except OSError:
            return False


@attrs.frozen
class ResumePoint:
    """Where a run goes on: its state, and the changes that were made after it, as {"path", "new", "step"} in order.

    `told` are the files of weights that its events tell of.
    """

    kept: KeptState
    replay: tuple[Mapping[str, Any], ...] = ()
    told: frozenset[str] = frozenset()

    def settings(self) -> dict[str, Any]:
        """Path -> value of everything that is changed when the run goes on."""
        made = [*self.kept.plain["changes"], *(one for one in self.replay if one["step"] <= self.kept.step)]
        return {one["path"]: one["new"] for one in made}


def since(run: Path, events: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> ResumePoint:
    """The newest state of a run, the changes that its `events` tell of after it, and `more` changes (path -> value) on top.

    Raises TrainerError where there is no state.
    """
    kept = state_to_resume(run)
    told = changes_of(events)[len(kept.plain["changes"]) :]
    files = frozenset(event["path"] for event in events if event["event"] == "saved" and event["step"] <= kept.step)
    return ResumePoint(kept, (*told, *({"path": path, "new": value, "step": kept.step} for path, value in more.items())), files)


def changes_of(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The changes that somebody made to a run, in order, each once: what a killed process had done after its last state was done again."""
    found: list[Mapping[str, Any]] = []
    for event in events:
        if event["event"] == "changed" and changeable(event["path"]):  # a run also changes by itself what uses less memory
            one = {key: event[key] for key in ("path", "new", "step")}
            if one not in found[-1:]:
                found.append(one)
        elif event["event"] == "resumed" and event.get("reason") == "state":
            found = [one for one in found if one["step"] <= event["step"]]
    return found


def free_place(run: Path, step: int) -> Path:
    """RUN/state/step-00000120, or step-00000120-2 ... where that is taken: nothing that is whole is ever written over."""
    name, number = f"{PREFIX}{step:08d}", 1
    while (path := run / FOLDER / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path


def kept_in(run: Path) -> list[KeptState]:
    """The states of a run, newest first. One that was not written to its end has no such name, and is none."""
    found = []
    with suppress(OSError):
        for path in (run / FOLDER).iterdir():
            if path.name.startswith(PREFIX) and (plain := _read(path / PLAIN)) and _there(path, plain):
                found.append(KeptState(path, plain["step"], plain["states"], plain))
    return sorted(found, key=lambda state: (state.step, state.number), reverse=True)


def newest_step(run: Path) -> int | None:
    """The step of the newest state, by its name alone; None where there is none."""
    found = []
    with suppress(OSError):
        found = [path.name[len(PREFIX) :].partition("-")[0] for path in (run / FOLDER).iterdir() if path.name.startswith(PREFIX)]
    return max((int(number) for number in found if number.isdigit()), default=None)


def newest(run: Path) -> KeptState | None:
    """The newest state whose tensors are whole; None where there is none."""
    return next((state for state in kept_in(run) if state.whole()), None)


def state_to_resume(run: Path) -> KeptState:
    """As `newest`. Raises TrainerError where the run has nothing to go on from."""
    found = newest(run)
    if found is None:
        raise TrainerError(
            "the run {run} kept nothing that it could go on from.",
            run=run.name,
            path="save.state",
            fix="Start it anew, or begin a new run with its last file as network.network_weights.",
        )
    return found


def remove_old(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` states; each is renamed first, so that half of one is never taken for a state."""
    for state in kept_in(run)[keep:]:
        away = state.path.with_name(f".{state.path.name}.{secrets.token_hex(4)}.old")
        with suppress(OSError):
            state.path.replace(away)
    sweep(run)


def sweep(run: Path) -> None:
    """Deletes what a killed run left half-written in its own folder."""
    for path in _left_over(run):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _left_over(run: Path) -> Iterator[Path]:
    for folder in (run, run / FOLDER, run / "samples"):
        with suppress(OSError):
            yield from [path for path in folder.iterdir() if path.name.startswith(".") and path.suffix in (".part", ".old")]


def _there(path: Path, plain: dict[str, Any]) -> bool:
    try:
        return (path / TENSORS).stat().st_size == plain["bytes"] and {type(plain["step"]), type(plain["states"])} == {int}
    except (OSError, KeyError):
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def digest(content: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(content).hexdigest()
