"""Renders a grid of a run's epochs and weights, one picture per cell, then ranks it: a generator of events."""

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
from lora_trainer.grid.cell_scores import Cell
from lora_trainer.grid.files import GridFile, RunFiles, read_run_files, select_epochs
from lora_trainer.grid.painter import GridPainter
from lora_trainer.grid.rank import Baseline, Measurements, rank, shortlist
from lora_trainer.grid.record import CELLS, GridRecord
from lora_trainer.grid.score import CellScorer, References, nearest_picture, read_references
from lora_trainer.grid.tags import PromptTemplate, parse_template
from lora_trainer.host.base import Host
from lora_trainer.messages import say
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.previews.preview_prompts import SampleRequest, parse_prompt_line, unknown_marks_note
from lora_trainer.train.setup import preview_defaults, preview_prompts

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
    """Draws the missing cells, ranks a shortlist, and writes grid.json (after each cell) and grid.png into `out`.

    `run` is the training run's folder; `epochs` None: all that were saved. Ends with Finished or Stopped, whose `step` is the number
    of pictures; raises TrainerError. Pictures and measurements are kept in RUN/grid, so that a second call draws only new cells.
    """
    config = read_config(run / "config.toml")
    run_files = read_run_files(run)
    rows = select_epochs(run_files, list(epochs) if epochs else None)
    template, request = _parse_prompt(prompt, run_files.name, _defaults(config), seed)
    record = GridRecord(
        folder=(run / "grid").resolve(),
        out=out.resolve(),
        prompt=template.prompt,
        request=request,
        weights=sorted(set(weights)),
        epochs=[row.epoch for row in rows],
    )
    yield from (Warned(warning) for warning in run_files.warnings)
    if (note := unknown_marks_note(request.prompt, request.negative)) is not None:
        yield Warned(note, "prompt")
    with host.lease(config.model) as lease:
        painter = GridPainter(host, control, lease, template, request, record.folder / CELLS, rows[0].path.parent)
        grid = _GridRun(config, painter, run_files, rows, record)
        yield from grid.draw()
        if not control.stopping:
            yield from grid.rank()
    yield (Stopped if control.stopping else Finished)(len(record.cells), tuple(map(str, _write_sheet(record, run_files))))


def _defaults(config: Any) -> SampleRequest:
    """Defaults of the grid's prompt: the options of the run's first preview prompt, else of the run."""
    previews = preview_prompts(config).requests
    return attrs.evolve(previews[0][1], prompt="") if previews else preview_defaults(config)


def _parse_prompt(prompt: str, name: str, defaults: SampleRequest, seed: int | None) -> tuple[PromptTemplate, SampleRequest]:
    """The prompt template, and the request with the options after the prompt."""
    request = parse_prompt_line(prompt, defaults)
    template = parse_template(request.prompt, name)
    return template, attrs.evolve(request, prompt=template.prompt, seed=request.seed if seed is None else seed)


def _write_sheet(record: GridRecord, run_files: RunFiles) -> list[Path]:
    """Writes grid.json and grid.png with their copies; returns the files in `out`."""
    record.write()
    if not record.cells:
        return [record.out / "grid.json"]
    contact_sheet.write(record.folder, record.to_json(), run_files.losses())
    if record.out != record.folder:
        shutil.copyfile(record.folder / "grid.png", record.out / "grid.png")
    return [record.out / "grid.png", record.out / "grid.json"]


@attrs.define(eq=False)
class _GridRun:
    """The state of a rendering grid."""

    config: Any
    painter: GridPainter
    run_files: RunFiles
    rows: Sequence[GridFile]
    record: GridRecord
    references: References | None = None

    def draw(self) -> Iterator[Event]:
        """The picture without the network, then every cell, row by row; existing pictures are kept."""
        yield Phase("rendering", len(self.rows) * len(self.record.weights))
        yield from self._read_references()
        begin, drawn = time.perf_counter(), 0
        for row, weight in [(None, 0.0), *((row, weight) for row in self.rows for weight in self.record.weights)]:
            yield from self._between_pictures()
            picture = None if self.painter.control.stopping else self.painter.draw_cell(row, weight)
            if self.painter.control.stopping:
                return
            if picture is None:
                yield Warned(say("A picture was interrupted and left out."))
                continue
            drawn += picture.is_new
            if drawn:
                self.record.seconds = round((time.perf_counter() - begin) / drawn, 3)
            if row is None:
                self.record.base = self.record.add_picture(picture.path)
            else:
                nearest = nearest_picture(self.painter, self.references, picture) if self.references else None
                self.record.add(row.epoch, weight, self.painter.template.fill(row.stem, weight), picture.path, nearest)
                yield Rendered(row.epoch, weight, str(picture.path), not picture.is_new)
            self.record.write()

    def rank(self) -> Iterator[Event]:
        """Measures the shortlist and ranks it."""
        losses = {epoch: loss for epoch, loss in self.run_files.losses().items() if epoch in self.record.epochs}
        cells = shortlist(losses, self.record.weights)
        if self.references is None:
            return
        if not cells:
            self.record.not_ranked = say("Nothing to rank: every weight is 0.")
            return
        yield Phase("ranking", len(cells) + 1)
        scorer = CellScorer(self.painter, self.references, self.record.folder / MEASURED)
        measured: dict[Cell, Measurements] = {}
        baseline = scorer.make_baseline()
        for cell in cells if baseline is not None else ():
            yield Progress(len(measured) + 1)
            yield from self._between_pictures()
            measurements = self._measure(scorer, cell)
            if measurements is None or baseline is None:
                break
            measured[cell] = measurements
            self.record.set_scores(rank(measured, baseline, losses).scores)
            self.record.write()
        self._conclude(measured, baseline, cells, losses)

    def _measure(self, scorer: CellScorer, cell: Cell) -> Measurements | None:
        file = next(row for row in self.rows if row.epoch == cell[0])
        return None if self.painter.control.stopping else scorer.measure_cell(file, cell[1])

    def _conclude(
        self, measured: dict[Cell, Measurements], baseline: Baseline | None, cells: Sequence[Cell], losses: dict[int, float | None]
    ) -> None:
        if baseline is None or len(measured) < len(cells):
            self.record.not_ranked = say("The ranking was stopped before it was done.")
        else:
            self.record.ranking = rank(measured, baseline, losses)

    def _read_references(self) -> Iterator[Event]:
        """Encodes the run's pictures; where they cannot be read, the grid is drawn without a ranking."""
        try:
            self.references = read_references(self.painter, load_dataset(self.config))
        except (TrainerError, OSError) as error:
            self.record.not_ranked = say("Not ranked: the run's pictures cannot be read. {reason}", reason=str(error))
            yield Warned(self.record.not_ranked)

    def _between_pictures(self) -> Iterator[Event]:
        """Between two pictures: pauses, or lets the host's other jobs run."""
        painter, done = self.painter, len(self.record.cells)
        if not painter.control.pausing:
            painter.lease.let_one_through()
            return
        painter.release()
        painter.lease.pause()
        yield Paused(done)
        painter.control.wait_while_paused()
        painter.lease.resume()
        yield Resumed(done)
