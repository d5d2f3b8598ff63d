"""Trains, draws, saves and resumes, and writes to FOLDER/calls.json what of other packages it called that they call deprecated.

python -m tests.train.deprecated_calls FOLDER [--plant]    --plant: with two such calls on purpose
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = str(ROOT / "lora_trainer")
WORDS = re.compile(r"deprecat|will be removed|no longer supported", re.IGNORECASE)
SAMPLERS = ("ddim", "ddpm", "pndm", "lms", "heun", "euler", "euler_a", "dpmsolver", "dpmsolver++", "dpmsingle", "dpm_2", "dpm_2_a")


def called_by_us() -> str:
    """The innermost line of lora_trainer that is running; "" where there is none, or where what is below it is not for it to change.

    That is a package that imports another one, or that itself calls compiled code which warns (diffusers calls numpy).
    """
    frames = [frame for frame in traceback.extract_stack() if frame.filename not in (__file__, warnings.__file__, logging.__file__)]
    ours = [index for index, frame in enumerate(frames) if frame.filename.startswith(OURS)]
    if not ours or any("importlib" in frame.filename for frame in frames[ours[-1] :]):
        return ""
    if ours[-1] < len(frames) - 1 and not re.search(r"warn|deprecate", frames[-1].line or "warn"):
        return ""
    frame = frames[ours[-1]]
    return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"


@contextlib.contextmanager
def collected() -> Iterator[dict[str, str]]:
    """Inside, what is called deprecated by a warning or in a log: what was said -> where it was called."""
    found: dict[str, str] = {}

    def warned(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        place = called_by_us()
        if place and issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            found.setdefault(f"{category.__name__}: {message}", place)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            place = called_by_us()
            if place and WORDS.search(record.getMessage()):
                found.setdefault(f"{record.name}: {record.getMessage()}", place)

    handler = Handler()
    loggers = [logging.getLogger(name) for name in ("", "transformers", "diffusers")]  # the last two hand nothing on
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = warned
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield found
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


def plant() -> None:
    """Has every caption's encoding call something of diffusers and of transformers that is deprecated."""
    from diffusers.utils import deprecate
    from transformers.utils import logging as log

    from lora_trainer.models.families.sd1 import SD1

    encode = SD1.encode_text

    def encode_text(*words: Any) -> Any:
        deprecate("a call", "99.0", "A planted call is deprecated.", standard_warn=False)
        log.get_logger("transformers.planted").warning("A planted option is deprecated.")
        return encode(*words)

    SD1.encode_text = encode_text  # type: ignore[method-assign]


def work(folder: Path) -> None:
    """A run of Stable Diffusion 1 with everything that goes through other packages, resumed once, and one of SDXL."""
    import torch

    from benchmarks import random_checkpoint
    from lora_trainer.events import Finished
    from tests.train.resume_runs import folder_of, resume, small_config, train

    changes: dict[str, Any] = {
        "optimizer__text_encoder_lr": 1e-4,
        "optimizer__type": "AdaFactor",
        "memory__gradient_checkpointing": True,
        "save__state_every_n_steps": 1,
        "sample__prompts": [f"moon --w 64 --h 64 --s 2 --ss {name}" for name in SAMPLERS],
        "sample__every_n_steps": 2,
        "sample__at_first": False,
        "validate__fraction": 0.2,
    }
    config = small_config(folder / "sd1", **changes, steps__max_train_steps=2)
    run = folder_of(config)
    train(config, run)
    assert isinstance(resume(run, steps__max_train_steps=3)[-1], Finished)
    path = random_checkpoint.write(folder / "sdxl.safetensors", random_checkpoint.SHAPES["sdxl"][1], torch.float32)
    model = {"pretrained_model_name_or_path": str(path)}
    config = small_config(folder / "sdxl", model=model, optimizer__text_encoder_lr=1e-4, steps__max_train_steps=1)
    train(config, folder_of(config))


def main(words: list[str]) -> None:
    with collected() as found:
        if "--plant" in words:
            plant()
        work(Path(words[0]))
    (Path(words[0]) / "calls.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
