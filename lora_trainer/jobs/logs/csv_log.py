"""steps.csv in the run's folder: one line per step, and one per validation."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, TextIO

from lora_trainer.events import Resumed, Stepped, Validated
from lora_trainer.files import write_atomically
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.events_log import EventRecord, finite_or_none
from lora_trainer.jobs.status import FROM_STATE

COLUMNS = ("step", "epoch", "loss", "loss_average", "validation_loss", "lr", "grad_norm", "seconds", "vram_mb")


class StepsCsv:
    """A sink. Each line is flushed at once; when a run is resumed, the lines of steps that are repeated are dropped."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / "steps.csv"
        self._file: TextIO | None = None
        self._columns: tuple[str, ...] = COLUMNS
        self._pending: list[dict[str, Any]] = []

    def __call__(self, record: EventRecord) -> None:
        event = record.event
        if isinstance(event, Stepped):
            rates = {f"lr_{name}": rate for name, rate in event.rates.items()}
            if self._file is None:
                self._open(tuple(rates))
            self._write({name: getattr(event, name, None) for name in COLUMNS} | rates)
        elif isinstance(event, Validated):
            self._write({"step": event.step, "epoch": event.epoch, "validation_loss": event.loss})
        elif isinstance(event, Resumed) and event.reason == FROM_STATE:
            self._drop_after(event.step)

    def close(self) -> None:
        """Closes the file; lines from before the first step are written now if there was none."""
        if self._pending and self._file is None:
            self._open(())
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, rates: tuple[str, ...]) -> None:
        """Opens the file, writes the header if it is new, and the lines from before the first step."""
        self._columns, is_new = (*COLUMNS, *rates), not self.path.is_file()
        self._file = self.path.open("a", encoding="utf-8", newline="")
        if is_new:
            self._file.write(_to_csv([self._columns]))
        pending, self._pending = self._pending, []
        for values in pending:
            self._write(values)

    def _write(self, values: dict[str, Any]) -> None:
        if self._file is None:
            self._pending.append(values)
            return
        self._file.write(_to_csv([[_format_cell(values.get(name)) for name in self._columns]]))
        self._file.flush()

    def _drop_after(self, step: int) -> None:
        self.close()
        if self.path.is_file():
            header, *rows = csv.reader(io.StringIO(self.path.read_text(encoding="utf-8")))
            remaining = [row for row in rows if row and row[0].isdecimal() and int(row[0]) <= step]
            write_atomically(self.path, _to_csv([header, *remaining]).encode("utf-8"))


def _format_cell(value: Any) -> Any:
    number = finite_or_none(value)
    return "" if number is None else f"{number:.6g}" if isinstance(number, float) else number


def _to_csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
