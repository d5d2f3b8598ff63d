"""steps.csv in the run's folder: a line a step, and one for each validation."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, TextIO

from lora_trainer.events import Resumed, Stepped, Validated
from lora_trainer.files import write_atomically
from lora_trainer.jobs.events_log import EventRecord, finite
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.status import FROM_STATE

HEAD = ("step", "epoch", "loss", "loss_average", "validation_loss", "lr", "grad_norm", "seconds", "vram_mb")


class StepsCsv:
    """A sink. Each line is handed to the system at once; where a run is resumed, lines of steps that are done again go."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / "steps.csv"
        self._file: TextIO | None = None
        self._names: tuple[str, ...] = HEAD
        self._waiting: list[dict[str, Any]] = []

    def __call__(self, record: EventRecord) -> None:
        event = record.event
        if isinstance(event, Stepped):
            rates = {f"lr_{name}": rate for name, rate in event.rates.items()}
            if self._file is None:
                self._open(tuple(rates))
            self._write({name: getattr(event, name, None) for name in HEAD} | rates)
        elif isinstance(event, Validated):
            self._write({"step": event.step, "epoch": event.epoch, "validation_loss": event.loss})
        elif isinstance(event, Resumed) and event.reason == FROM_STATE:
            self._drop_after(event.step)

    def close(self) -> None:
        """Closes the file; what came before a first step is written now."""
        if self._waiting and self._file is None:
            self._open(())
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, rates: tuple[str, ...]) -> None:
        """The file with its head, where it has none yet, and what came before the first step."""
        self._names, fresh = (*HEAD, *rates), not self.path.is_file()
        self._file = self.path.open("a", encoding="utf-8", newline="")
        if fresh:
            self._file.write(_text([self._names]))
        waiting, self._waiting = self._waiting, []
        for values in waiting:
            self._write(values)

    def _write(self, values: dict[str, Any]) -> None:
        if self._file is None:
            self._waiting.append(values)
            return
        self._file.write(_text([[_cell(values.get(name)) for name in self._names]]))
        self._file.flush()

    def _drop_after(self, step: int) -> None:
        self.close()
        if self.path.is_file():
            head, *rows = csv.reader(io.StringIO(self.path.read_text(encoding="utf-8")))
            kept = [row for row in rows if row and row[0].isdecimal() and int(row[0]) <= step]
            write_atomically(self.path, _text([head, *kept]).encode("utf-8"))


def _cell(value: Any) -> Any:
    known = finite(value)
    return "" if known is None else f"{known:.6g}" if isinstance(known, float) else known


def _text(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
