"""A run in a process of its own, looked at and steered from here as one of this process's: by its events.jsonl and its inbox."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_trainer import events
from lora_trainer.errors import Problem
from lora_trainer.events import Event, Failed, Stopped
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Snapshots, describe
from lora_trainer.jobs.process_rank import NAMES
from lora_trainer.jobs.status import RunStatus, message_from
from lora_trainer.messages import say

PACKAGES = Path(__file__).parents[2]
LOOK_SECONDS = 0.2
LAST_WORDS = 1500
"""Characters of the process's output that are told when it ended without a word of its own."""
_KINDS = {kind.__name__.lower(): kind for kind in Event.__args__}


class OwnProcess(Snapshots):
    """Stands where a Job stands: same `folder`, `status`, `running`, `command`, `snapshot`. The run outlives this process.

    `words` follow `python -m lora_trainer`; `at_end` is called once, in a thread, when the run has ended. What the process prints
    goes to output.txt in the folder. `secrets` go into its environment, and nowhere else.
    """

    def __init__(
        self,
        folder: RunFolder,
        words: Sequence[str],
        *,
        cache: Path,
        at_end: Callable[[], object] = lambda: None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        about = folder.about()
        self.folder = folder
        self.words = tuple(words)
        self.cache = cache
        self.at_end = at_end
        self._secrets = dict(secrets or {})
        self.status = RunStatus(id=folder.id, name=about["name"], kind=about["kind"], of=about["of"])
        self.error: BaseException | None = None
        self.asked = ""
        self.read = folder.log.count()
        self.status = attrs.evolve(self.status, n=self.read)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def output_file(self) -> Path:
        """What the process printed."""
        return self.folder.path / "output.txt"

    def start(self) -> None:
        """Starts the process, and the thread that follows it. Raises OSError."""
        quiet: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the WebUI; the run is stopped by its inbox
        if sys.platform == "win32":
            quiet = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        with self.output_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_trainer", *self.words],
                cwd=self.folder.path,
                env=environment(self.cache) | self._secrets,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **quiet,
            )
        self._thread = threading.Thread(target=self._follow, name=f"lora-trainer follows {self.folder.id}", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end; whether it was reached."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def command(self, word: str) -> None:
        """Puts a command into the run's inbox. Raises ValueError for an unknown word."""
        self.folder.command(word)
        self.asked = word

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Puts changes (dotted path -> value) into the run's inbox."""
        self.folder.change(wanted)

    def snapshot(self, language: str = "en") -> dict[str, Any]:
        """As a Job's, and that it is a process of its own."""
        return super().snapshot(language) | {"own_process": True}

    def _follow(self) -> None:
        process = self._process
        assert process is not None
        while self.running:
            gone = process.poll() is not None  # asked first: what it wrote before it went is still read
            ended = self._take_over()
            if ended is None and gone:
                ended = Stopped(self.status.step) if process.returncode == 130 else self._without_a_word(process.returncode)
            if ended is not None:
                process.wait()
                self.at_end()
                self.status = self.status.after(ended, time.time())
                return
            time.sleep(LOOK_SECONDS)

    def _take_over(self) -> Event | None:
        """Carries the status on by what was written since the last look; returns the last word when it is among it."""
        for line in self.folder.events(self.read):
            self.read += 1
            event = event_of(line)
            if event is None:
                continue
            if line["event"] in ("finished", "stopped", "failed"):
                return event
            self.answered(event)
            self.status = self.status.after(event, float(line.get("time", 0.0)))
        return None

    def _without_a_word(self, code: int) -> Failed:
        """Killed, or it never came to train: what it printed last says why."""
        try:
            printed = self.output_file.read_text(encoding="utf-8", errors="replace").strip()[-LAST_WORDS:]
        except OSError:
            printed = ""
        problem = Problem(
            "",
            say("the process of the run ended without a word (status {code}).", code=code),
            say("What it printed last: {printed}", printed=printed) if printed else say("Start again, or resume it where it has a state."),
        )
        return Failed(self.status.step, [describe(problem)])


def environment(cache: Path) -> dict[str, str]:
    """Of the new process: this package is found, encoded pictures are shared, and no other process trains along."""
    given = {name: value for name, value in os.environ.items() if name not in NAMES}
    paths = [str(PACKAGES), *filter(None, [given.get("PYTHONPATH", "")])]
    return {**given, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "LORA_TRAINER_CACHE": str(cache)}


def event_of(line: dict[str, Any]) -> Event | None:
    """The event that a line of events.jsonl tells; None for one that this version does not know."""
    kind = _KINDS.get(str(line.get("event")))
    if kind is None:
        return None
    values = {field.name: line[field.name] for field in attrs.fields(kind) if field.name in line}
    if kind is events.Warned:
        values["message"] = message_from(values["message"])
    try:
        made: Event = kind(**values)
    except TypeError:  # a field is missing
        return None
    return made
