"""The saved states of a run, and the point from which it is resumed. No torch."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.live_settings import is_changeable
from lora_trainer.errors import TrainerError
from lora_trainer.files import file_sha256
from lora_trainer.jobs.run_files import ListOf, is_list, is_mapping, is_number, is_text, is_whole, read_object

_STATE = ListOf(
    {
        **dict.fromkeys(("step", "epoch", "groups", "states", "skipped", "steps_per_epoch", "total_steps"), is_whole),
        **dict.fromkeys(("changes", "files", "recent"), is_list),
        **dict.fromkeys(("optimizer", "saves", "early"), is_mapping),
        "began": is_number,
    }
)
_CHANGE = ListOf({"path": is_text, "step": is_whole, "new": lambda value: True})
"""What every state.json holds, and each of its changes."""
STATE_DIR = "state"
"""In a run's folder."""
TENSORS_FILE, JSON_FILE = "state.safetensors", "state.json"
PREFIX = "step-"


@attrs.frozen
class SavedState:
    """A state on disk after `step` optimizer steps, the `number`-th state of the run; `content` is its state.json."""

    path: Path
    step: int
    number: int
    content: dict[str, Any]

    def is_intact(self) -> bool:
        """Whether its tensor file has the recorded sha256."""
        try:
            return file_sha256(self.path / TENSORS_FILE) == self.content.get("sha256")
        except OSError:
            return False


@attrs.frozen
class ResumePoint:
    """Where a run resumes: its state, and the changes made after it, as {"path", "new", "step"} in order.

    `saved_files` are the weights files that it had saved by then, according to its events.
    """

    state: SavedState
    replay: tuple[Mapping[str, Any], ...] = ()
    saved_files: frozenset[str] = frozenset()

    def changed_settings(self) -> dict[str, Any]:
        """Path -> value of all settings that are changed when the run resumes."""
        changes = [*self.state.content["changes"], *(change for change in self.replay if change["step"] <= self.state.step)]
        return {change["path"]: change["new"] for change in changes}


def find_resume_point(run: Path, events: Sequence[Mapping[str, Any]], extra_changes: Mapping[str, Any]) -> ResumePoint:
    """The newest state of a run, the later changes in its `events`, and `extra_changes` (path -> value) on top.

    Raises TrainerError if there is no state.
    """
    state = require_state(run)
    later_changes = user_changes(events)[len(state.content["changes"]) :]
    saved_files = frozenset(event["path"] for event in events if event["event"] == "saved" and event["step"] <= state.step)
    return ResumePoint(
        state, (*later_changes, *({"path": path, "new": value, "step": state.step} for path, value in extra_changes.items())), saved_files
    )


def user_changes(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The user's changes to a run, in order, each once: changes after the last state of a killed process were repeated."""
    changes: list[Mapping[str, Any]] = []
    for event in events:
        if event["event"] == "changed" and is_changeable(event["path"]):  # a run also changes memory options by itself
            change = {key: event[key] for key in ("path", "new", "step")}
            if change not in changes[-1:]:
                changes.append(change)
        elif event["event"] == "resumed" and event.get("reason") == "state":
            changes = [change for change in changes if change["step"] <= event["step"]]
    return changes


def new_state_path(run: Path, step: int) -> Path:
    """RUN/state/step-00000120, or step-00000120-2 ... if that exists: a complete state is never overwritten."""
    name, number = f"{PREFIX}{step:08d}", 1
    while (path := run / STATE_DIR / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path


def list_states(run: Path) -> list[SavedState]:
    """The complete states of a run, newest first. A state gets its name only when it is complete."""
    states = []
    with suppress(OSError):
        for path in (run / STATE_DIR).iterdir():
            if path.name.startswith(PREFIX) and (content := read_object(path / JSON_FILE)[0]) and _is_complete(path, content):
                states.append(SavedState(path, content["step"], content["states"], content))
    return sorted(states, key=lambda state: (state.step, state.number), reverse=True)


def newest_state_step(run: Path) -> int | None:
    """The step of the newest state, by folder names alone; None if there is none."""
    numbers = []
    with suppress(OSError):
        numbers = [path.name[len(PREFIX) :].partition("-")[0] for path in (run / STATE_DIR).iterdir() if path.name.startswith(PREFIX)]
    return max((int(number) for number in numbers if number.isascii() and number.isdecimal() and len(number) < 16), default=None)


def newest_state(run: Path) -> SavedState | None:
    """The newest state with intact tensors; None if there is none."""
    return next((state for state in list_states(run) if state.is_intact()), None)


def require_state(run: Path) -> SavedState:
    """As `newest_state`. Raises TrainerError if the run has no intact state."""
    state = newest_state(run)
    if state is None:
        raise TrainerError(
            "the run {run} kept no state that it could be resumed from.",
            run=run.name,
            path="save.state",
            fix="Start it anew, or begin a new run with its last file as network.network_weights.",
        )
    return state


def remove_old_states(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` states; each is renamed first, so that a partly deleted one is never taken for a state."""
    for state in list_states(run)[keep:]:
        renamed = state.path.with_name(f".{state.path.name}.{secrets.token_hex(4)}.old")
        with suppress(OSError):
            state.path.replace(renamed)
    remove_leftovers(run)


def remove_leftovers(run: Path) -> None:
    """Deletes partial files that a killed run left in its folder."""
    for path in _leftovers(run):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _leftovers(run: Path) -> Iterator[Path]:
    for folder in (run, run / STATE_DIR, run / "samples"):
        with suppress(OSError):
            yield from [path for path in folder.iterdir() if path.name.startswith(".") and path.suffix in (".part", ".old")]


def _is_complete(path: Path, content: dict[str, Any]) -> bool:
    try:
        is_whole_file = (path / TENSORS_FILE).stat().st_size == content.get("bytes")
    except OSError:
        return False
    return is_whole_file and _STATE.fits(content) and all(map(_CHANGE.fits, content["changes"]))


def sha256_hex(content: bytes) -> str:
    """Hex sha256 of `content`."""
    return hashlib.sha256(content).hexdigest()
