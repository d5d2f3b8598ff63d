"""A grid of a run's epochs and weights, one picture per cell, then its ranking: a generator of events."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.files import read_config
from lora_trainer.control import Control
from lora_trainer.errors import TrainerError
from lora_trainer.events import Event, Finished, Paused, Phase, Progress, Rendered, Resumed, Stopped, Warned
from lora_trainer.grid import contact_sheet
from lora_trainer.grid.files import GridFile, RunFiles, chosen, files_of
from lora_trainer.grid.painter import GridPainter
from lora_trainer.grid.rank import Cell, Measured, Yardstick, rank, shortlist
from lora_trainer.grid.record import CELLS, GridRecord
from lora_trainer.grid.score import CellScorer, References, nearest_picture, read_references
from lora_trainer.grid.tags import Recipe, recipe_of
from lora_trainer.host.base import Host
from lora_trainer.messages import say
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.previews.preview_prompts import SampleRequest, parse_prompt_line
from lora_trainer.train.setup import preview_defaults, prompts_of

MEASURED = "measured"


def render(
    run: Path,
    host: Host,
    prompt: str,
    weights: Sequence[float],
    epochs: Sequence[int] | None,
    control: Control,
    out: Path,
    *,
    seed: int | None = None,
) -> Iterator[Event]:
    """Draws what is missing of the grid, ranks a shortlist, and writes grid.json (after each cell) and grid.png into `out`.

    `run` is the training run's folder, `epochs` None all that were saved. Ends with Finished or Stopped, whose `step` is the number
    of pictures; raises TrainerError. Pictures and numbers are kept in RUN/grid, so that a second call draws only what is new.
    """
    config = read_config(run / "config.toml")
    found = files_of(run)
    rows = chosen(found, list(epochs) if epochs else None)
    recipe, request = _asked(prompt, found.name, _defaults(config), seed)
    record = GridRecord(
        folder=(run / "grid").resolve(),
        out=out.resolve(),
        prompt=recipe.prompt,
        request=request,
        weights=sorted(set(weights)),
        epochs=[row.epoch for row in rows],
    )
    yield from (Warned(warning) for warning in found.warnings)
    with host.lease(config.model) as lease:
        painter = GridPainter(host, control, lease, recipe, request, record.folder / CELLS, rows[0].path.parent)
        work = _Work(config, painter, found, rows, record)
        yield from work.draw()
        if not control.stopping:
            yield from work.rank()
    yield (Stopped if control.stopping else Finished)(len(record.cells), tuple(map(str, _write_sheet(record, found))))


def _defaults(config: Any) -> SampleRequest:
    """What holds where the grid's prompt says nothing: the options of the run's first preview prompt, else of the run."""
    previews = prompts_of(config).requests
    return attrs.evolve(previews[0][1], prompt="") if previews else preview_defaults(config)


def _asked(prompt: str, name: str, defaults: SampleRequest, seed: int | None) -> tuple[Recipe, SampleRequest]:
    """The recipe, and the request with the options that stand behind it."""
    request = parse_prompt_line(prompt, defaults)
    recipe = recipe_of(request.prompt, name)
    return recipe, attrs.evolve(request, prompt=recipe.prompt, seed=request.seed if seed is None else seed)


def _write_sheet(record: GridRecord, found: RunFiles) -> list[Path]:
    """grid.png of what is drawn, and its copy; the files that the work leaves."""
    record.write()
    if not record.cells:
        return [record.out / "grid.json"]
    contact_sheet.write(record.folder, record.to_json(), found.losses())
    if record.out != record.folder:
        shutil.copyfile(record.folder / "grid.png", record.out / "grid.png")
    return [record.out / "grid.png", record.out / "grid.json"]


@attrs.define(eq=False)
class _Work:
    """A grid between two pictures."""

    config: Any
    painter: GridPainter
    found: RunFiles
    rows: Sequence[GridFile]
    record: GridRecord
    references: References | None = None

    def draw(self) -> Iterator[Event]:
        """The picture without the network, then every cell, row by row; what is there already is not drawn again."""
        yield Phase("rendering", len(self.rows) * len(self.record.weights))
        yield from self._read_references()
        begun, drawn = time.perf_counter(), 0
        for row, weight in [(None, 0.0), *((row, weight) for row in self.rows for weight in self.record.weights)]:
            yield from self._turn()
            picture = None if self.painter.control.stopping else self.painter.picture(row, weight)
            if self.painter.control.stopping:
                return
            if picture is None:
                yield Warned(say("A picture was interrupted and left out."))
                continue
            drawn += picture.fresh
            if drawn:
                self.record.seconds = round((time.perf_counter() - begun) / drawn, 3)
            if row is None:
                self.record.base = self.record.place(picture.path)
            else:
                near = nearest_picture(self.painter, self.references, picture) if self.references else None
                self.record.add(row.epoch, weight, self.painter.recipe.filled(row.stem, weight), picture.path, near)
                yield Rendered(row.epoch, weight, str(picture.path), not picture.fresh)
            self.record.write()

    def rank(self) -> Iterator[Event]:
        """Measures the shortlist and says which cell is best."""
        losses = {epoch: loss for epoch, loss in self.found.losses().items() if epoch in self.record.epochs}
        cells = shortlist(losses, self.record.weights)
        if self.references is None:
            return
        if not cells:
            self.record.not_ranked = say("Nothing to rank: every weight is 0.")
            return
        yield Phase("ranking", len(cells) + 1)
        judge = CellScorer(self.painter, self.references, self.record.folder / MEASURED)
        measured: dict[Cell, Measured] = {}
        scale = judge.yardstick()
        for cell in cells if scale is not None else ():
            yield Progress(len(measured) + 1)
            yield from self._turn()
            numbers = self._measured(judge, cell)
            if numbers is None or scale is None:
                break
            measured[cell] = numbers
            self.record.scored(rank(measured, scale, losses).scores)
            self.record.write()
        self._conclude(measured, scale, cells, losses)

    def _measured(self, judge: CellScorer, cell: Cell) -> Measured | None:
        file = next(row for row in self.rows if row.epoch == cell[0])
        return None if self.painter.control.stopping else judge.measured(file, cell[1])

    def _conclude(
        self, measured: dict[Cell, Measured], scale: Yardstick | None, cells: Sequence[Cell], losses: dict[int, float | None]
    ) -> None:
        if scale is None or len(measured) < len(cells):
            self.record.not_ranked = say("The ranking was stopped before it was done.")
        else:
            self.record.ranking = rank(measured, scale, losses)

    def _read_references(self) -> Iterator[Event]:
        """The run's pictures; where they cannot be read the grid is drawn all the same, and not ranked."""
        try:
            self.references = read_references(self.painter, load_dataset(self.config))
        except (TrainerError, OSError) as error:
            self.record.not_ranked = say("Not ranked: the run's pictures cannot be read. {reason}", reason=str(error))
            yield Warned(self.record.not_ranked)

    def _turn(self) -> Iterator[Event]:
        """Between two pictures: pause, and other people's turn at the host."""
        painter, done = self.painter, len(self.record.cells)
        if not painter.control.pausing:
            painter.lease.breathe()
            return
        painter.release()
        painter.lease.pause()
        yield Paused(done)
        painter.control.wait_while_paused()
        painter.lease.resume()
        yield Resumed(done)
