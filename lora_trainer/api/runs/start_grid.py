"""Starting an epoch x weight grid, the same for the routes and the command line."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.control import Control
from lora_trainer.errors import HostBusy, TrainerError
from lora_trainer.events import Event
from lora_trainer.host.base import Host
from lora_trainer.jobs.claims import claimed, is_held
from lora_trainer.jobs.folder import RunFolder, list_runs, remove_ended

if TYPE_CHECKING:
    from lora_trainer.jobs.job import Work

MAX_CELLS = 1000


def check_grid(folder: RunFolder, prompt: str, weights: Sequence[float], epochs: Sequence[int]) -> None:
    """Raises TrainerError when the grid cannot be drawn: no file, no weight, no prompt, an unsaved epoch, too many cells."""
    saved = [file["epoch"] for file in folder.manifest().get("files", []) if not file["final"]]
    if not saved:
        raise TrainerError("the run {run} has saved no epoch.", run=folder.id, path="run", fix="Choose a run that has saved files.")
    if not weights:
        raise TrainerError("no weight is given.", path="weights", fix="Give some, such as 0.2,0.4,0.6,0.8,1.0")
    if any(not -10 <= weight <= 10 for weight in weights):
        raise TrainerError("a weight is outside -10 to 10.", path="weights", fix="Give weights such as 0.2,0.4,0.6,0.8,1.0")
    if missing := [epoch for epoch in epochs if epoch not in saved]:
        saved_epochs = ", ".join(str(epoch) for epoch in saved)
        raise TrainerError(
            "epoch {epoch} was not saved by {run}.", epoch=missing[0], run=folder.id, path="epochs", fix="Saved are: {known}.", known=saved_epochs
        )
    if not prompt.strip():
        raise TrainerError("the prompt is empty.", path="prompt", fix="Write what is to be drawn.")
    if (count := len(set(weights)) * len(set(epochs or saved))) > MAX_CELLS:
        raise TrainerError("{count} pictures are too many.", count=count, path="weights", fix="Give fewer weights or epochs.")


def new_grid(
    folder: RunFolder, host: Host, *, prompt: str, weights: Sequence[float], epochs: Sequence[int], out: Path, seed: int | None = None
) -> tuple[RunFolder, Work]:
    """A new run folder for the grid, beside its run's, and its work for a Job. `epochs` empty: all that were saved.

    `seed` None: the run's own; another seed draws every cell again. Raises HostBusy while another grid of this run, or one in `out`, is
    being drawn.
    """
    locks = [place / ".grid.running" for place in dict.fromkeys((folder.grid_dir, out))]
    if any(is_held(lock) for lock in locks):
        raise _grid_busy(folder)
    # a grid continues where the last one ended, whose own folder is not needed any more
    remove_ended(earlier for earlier in list_runs(folder.path.parent) if earlier.info()["of"] == folder.id)
    grid_folder = RunFolder.create(folder.path.parent, f"{folder.id}-grid", kind="grid", of=folder.id)

    def work(control: Control) -> Generator[Event, None, None]:
        from lora_trainer.grid.render import render

        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(_claimed(lock, folder))
            yield from render(folder.path, host, prompt, list(weights), list(epochs) or None, control, out, seed=seed)

    return grid_folder, work


def _claimed(lock: Path, folder: RunFolder) -> AbstractContextManager[object]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return claimed(lock, _grid_busy(folder))


def _grid_busy(folder: RunFolder) -> HostBusy:
    return HostBusy(
        "another grid of the run {run} is being drawn.", run=folder.id, path="run", fix="Stop it, or wait until it has ended."
    )
