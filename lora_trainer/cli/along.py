"""A process that trains along with the first one: it writes nothing, and does what the first one is told."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

from lora_trainer.cli.console import DONE
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.host.base import Host
from lora_trainer.jobs.process_rank import Place
from lora_trainer.jobs.resume_point import Since


def train_along(config: TrainConfig, host: Host, place: Place, since: Since | None = None) -> int:
    """Takes every step with the first process, to the end. Raises TrainerError, which the first one hears of."""
    from lora_trainer.train.loop import run

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the first process is asked too, and tells the others between two steps
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with closing(run(config, host, Control(), Path(), place, since)) as work:
        for _ in work:
            pass
    return DONE
