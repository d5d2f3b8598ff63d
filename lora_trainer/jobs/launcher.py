"""A run in its own process, followed through its events.jsonl and controlled through its control file like one of this process."""

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
from lora_trainer.jobs.claims import CLAIM_VARIABLE, Claim
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import RunView, problem_json
from lora_trainer.jobs.logs.events_log import EVENT_TYPES
from lora_trainer.jobs.process_rank import RANK_VARIABLES
from lora_trainer.jobs.status import RunStatus, message_from_json
from lora_trainer.messages import say

PACKAGE_ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.2
OUTPUT_TAIL = 1500
"""Characters of the process's output that are shown if it ended without a final event."""


class SubprocessRun(RunView):
    """Has the interface of a Job: `folder`, `status`, `running`, `command`, `snapshot`. The run outlives this process.

    `args` follow `python -m lora_trainer`; `on_end` is called once, in a thread, when the run has ended. The process's output
    goes to output.txt in the folder. `secrets` go into its environment, and nowhere else. `claim`: the caller's claim on the folder.
    """

    def __init__(
        self,
        folder: RunFolder,
        args: Sequence[str],
        *,
        cache_dir: Path,
        on_end: Callable[[], object] = lambda: None,
        secrets: Mapping[str, str] | None = None,
        claim: Claim | None = None,
    ) -> None:
        info = folder.info()
        self.folder = folder
        self.args = tuple(args)
        self.cache_dir = cache_dir
        self.on_end = on_end
        self._secrets = dict(secrets or {})
        self._claim = claim
        self.status = RunStatus(id=folder.id, name=info["name"], kind=info["kind"], of=info["of"])
        self.error: BaseException | None = None
        self.requested = ""
        self.events_read = folder.log.count()
        self.status = attrs.evolve(self.status, n=self.events_read)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def output_file(self) -> Path:
        """The process's output."""
        return self.folder.path / "output.txt"

    def start(self) -> None:
        """Starts the process, which takes the claim on the folder over, and the thread that follows it.

        Raises OSError, and HostBusy while another process runs it.
        """
        claim = self._claim = self._claim or self.folder.claim()
        try:
            self._start_process(claim)
        except BaseException:
            self.folder.release(claim)
            raise
        self._thread = threading.Thread(target=self._follow, name=f"lora-trainer follows {self.folder.id}", daemon=True)
        self._thread.start()

    def _start_process(self, claim: Claim) -> None:
        options: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the WebUI; the run is stopped by its control file
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        with self.output_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_trainer", *self.args],
                cwd=self.folder.path,
                env=subprocess_environment(self.cache_dir) | self._secrets | claim.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **options,
            )

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end; whether it was reached."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def command(self, command: str) -> None:
        """Writes a command to the run's control file. Raises ValueError for an unknown command."""
        self.folder.command(command)
        self.requested = command

    def change(self, values: Mapping[str, Any]) -> None:
        """Writes changes (dotted path -> value) to the run's control file."""
        self.folder.change(values)

    def snapshot(self, language: str = "en") -> dict[str, Any]:
        """As a Job's, with "own_process"."""
        return super().snapshot(language) | {"own_process": True}

    def _follow(self) -> None:
        process, claim = self._process, self._claim
        assert process is not None and claim is not None
        while self.running:
            has_exited = process.poll() is not None  # polled first: what it wrote before it exited is still read
            end_event = self._read_events()
            if end_event is None and has_exited:
                end_event = Stopped(self.status.step) if process.returncode == 130 else self._failed_without_event(process.returncode)
            if end_event is not None:
                process.wait()
                self.folder.release(claim)  # a killed process has not done it
                self.on_end()
                self.status = self.status.after(end_event, time.time())
                return
            time.sleep(POLL_SECONDS)

    def _read_events(self) -> Event | None:
        """Updates the status with the events written since the last call; returns the final event if it is among them."""
        for line in self.folder.events(self.events_read):
            self.events_read += 1
            event = event_from_json(line)
            if event is None:
                continue
            if line["event"] in ("finished", "stopped", "failed"):
                return event
            self.acknowledge(event)
            self.status = self.status.after(event, float(line.get("time", 0.0)))
        return None

    def _failed_without_event(self, code: int) -> Failed:
        """The failure of a process that was killed or never started to train: the end of its output says why."""
        try:
            output = self.output_file.read_text(encoding="utf-8", errors="replace").strip()[-OUTPUT_TAIL:]
        except OSError:
            output = ""
        problem = Problem(
            "",
            say("the process of the run ended without a message (status {code}).", code=code),
            say("What it printed last: {printed}", printed=output) if output else say("Start again, or resume it if it has a saved state."),
        )
        return Failed(self.status.step, [problem_json(problem)])


def subprocess_environment(cache_dir: Path) -> dict[str, str]:
    """Environment of the new process: it finds this package, shares the cache, and is not part of a distributed run."""
    inherited = {name: value for name, value in os.environ.items() if name not in (*RANK_VARIABLES, CLAIM_VARIABLE)}
    paths = [str(PACKAGE_ROOT), *filter(None, [inherited.get("PYTHONPATH", "")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "LORA_TRAINER_CACHE": str(cache_dir)}


def event_from_json(line: dict[str, Any]) -> Event | None:
    """The event of a line of events.jsonl; None if this version does not know it."""
    event_type = EVENT_TYPES.get(str(line.get("event")))
    if event_type is None:
        return None
    values = {field.name: line[field.name] for field in attrs.fields(event_type) if field.name in line}
    if event_type is events.Warned:
        values["message"] = message_from_json(values["message"])
    try:
        event: Event = event_type(**values)
    except TypeError:  # a field is missing
        return None
    return event
