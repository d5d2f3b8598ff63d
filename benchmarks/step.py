"""One training step of the trainer beside the reference loop's, in one process, turn by turn.

    python benchmarks/step.py                                  both shapes, about six minutes
    python benchmarks/step.py --shapes tiny --json             the small shape only, one minute
    python benchmarks/step.py --shapes sd15-bf16 --steps 3     Stable Diffusion 1.5 in bfloat16

Ours is a whole run: host, pictures, cache, loop, every event into the files of a run. Times are seconds of this process's CPU
with one thread, medians; several rounds, and the median of those.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import random_checkpoint
from benchmarks.random_checkpoint import SD15, TINY, Widths
from benchmarks.reference_loop import CLIP, RATE, ReferenceLoop
from lora_trainer.adapters.lora_file import LoraAdapter
from lora_trainer.config.build import build
from lora_trainer.config.schema import ModelConfig, TrainConfig
from lora_trainer.events import Stepped
from lora_trainer.host.standalone import FileLease, StandaloneHost
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection.detect import sd1_heads
from lora_trainer.models.load import clip_tokenizer, load
from lora_trainer.models.source import LiveSource
from lora_trainer.train.loop import run
from lora_trainer.train.step.precision import choose_precision, compute_scope

RANK, PICTURES, WARM_UP = 16, 2, 2
VIEWS = frozenset(
    ("_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "reshape", "select", "slice")
    + ("split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view")
)
CPU = torch.device("cpu")


@attrs.frozen
class Shape:
    """What is trained: widths of the model, side of the pictures in pixels, number format; `steps` are measured in a round."""

    name: str
    widths: Widths
    side: int
    dtype: torch.dtype
    steps: int


LIGHT = {"vae": TINY.vae, "text_layers": 1}
"""Pictures and captions are encoded once, before the steps: a small VAE and one layer of text do."""
SHAPES = {
    "tiny": Shape("tiny, 64 px, fp32", TINY, 64, torch.float32, 60),
    "tiny-bf16": Shape("tiny, 64 px, bf16", TINY, 64, torch.bfloat16, 60),
    "sd15": Shape("SD 1.5, 256 px, fp32", attrs.evolve(SD15, **LIGHT), 256, torch.float32, 5),
    "sd15-bf16": Shape("SD 1.5, 256 px, bf16", attrs.evolve(SD15, **LIGHT), 256, torch.bfloat16, 5),
}


class Operations(TorchDispatchMode):
    """Counts ATen operations that are not mere views, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operation.namespace == "aten" and operation.overloadpacket.__name__ not in VIEWS
        return operation(*args, **(kwargs or {}))


@attrs.frozen
class Figures:
    """Of one loop: CPU seconds of a step and of the bare forward and backward by round, operations of one step."""

    steps: Sequence[Sequence[float]]
    bare: Sequence[Sequence[float]]
    operations: int

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return median(median(times) for times in self.steps)

    @property
    def forward_and_backward(self) -> float:
        """Seconds of the bare forward and backward, LoRA attached."""
        return median(median(times) for times in self.bare)

    @property
    def fixed(self) -> float:
        """What a step costs besides: noise, loss, clipping, optimizer, events. Median of the rounds' own differences."""
        return median(median(step) - median(bare) for step, bare in zip(self.steps, self.bare, strict=True))


class Turns:
    """A sink, the last of a run: after each step of the run the others have their turn. `times` is in CPU seconds by name."""

    def __init__(self, others: Mapping[str, Callable[[], None]], tidy: Callable[[], None], counted: int) -> None:
        self.others, self.tidy, self.counted = others, tidy, counted
        self.times: dict[str, list[float]] = {"step": [], **{name: [] for name in others}}
        self.operations = Operations()
        self._counting = ExitStack()
        self._seen = 0
        self._begin = 0.0

    def __call__(self, record: EventRecord) -> None:
        took = time.process_time() - self._begin
        if isinstance(record.event, Stepped):
            self._counting.close()
            self._seen += 1
            if self._seen <= WARM_UP + self.counted:
                self._take_turns({"step": took})
            else:
                return
            if self._seen == WARM_UP + self.counted:
                self._counting.enter_context(self.operations)  # the step after the last measured one is counted
        self._begin = time.process_time()

    def _take_turns(self, took: dict[str, float]) -> None:
        for name, work in self.others.items():
            begin = time.process_time()
            work()
            took[name] = time.process_time() - begin
            self.tidy()
        if self._seen > WARM_UP:
            for name, seconds in took.items():
                self.times[name].append(seconds)


class HoldingHost(StandaloneHost):
    """Holds a model in memory already, as a WebUI does: the run shares its tensors with the reference, on the device where they are."""

    def __init__(self, root: Path, held: LiveSource) -> None:
        super().__init__(root, device=str(next(iter(held.unet_state.values())).device))
        self.held = held

    @contextmanager
    def lease(self, model: ModelConfig) -> Iterator[FileLease]:
        """The small model's file for its name, the held tensors for its weights."""
        with super().lease(model) as lease:
            lease.source = self.held
            yield lease


def measure(shape: Shape, rounds: int, folder: Path) -> tuple[Figures, Figures]:
    """Trains in `folder`, turn by turn with the reference; ours and the reference's figures. Raises RuntimeError when the run fails."""
    source = held_model(shape)
    side = shape.side // 8
    latents = torch.randn(PICTURES, 4, side, side)
    texts = torch.randn(PICTURES, 77, shape.widths.text).to(shape.dtype)
    bundle = load(source, CPU)
    reference = ReferenceLoop(bundle.unet, bundle.alphas_cumprod, latents, texts, RANK)
    own_bare, own_forget = bare(source, latents[:1], texts[:1])

    def tidy() -> None:
        own_forget()
        reference.forget()

    counted = rounds * shape.steps
    turns = Turns({"reference step": reference.step, "bare": own_bare, "reference bare": reference.bare()}, tidy, counted)
    config, host, runs = configured(shape, folder, WARM_UP + counted + 1), HoldingHost(folder, source), RunFolder.create(folder, "run")
    job = Job(lambda control: run(config, host, control, runs.path), runs, [turns])
    status = job.run()
    if status.outcome != "finished" or not turns.operations.count:
        raise RuntimeError(f"{shape.name}: {status.to_json()['error'] or status.warning}") from job.error
    with Operations() as operations:
        reference.step()
    times = {
        name: [seconds[start : start + shape.steps] for start in range(0, counted, shape.steps)] for name, seconds in turns.times.items()
    }
    ours = Figures(times["step"], times["bare"], turns.operations.count)
    return ours, Figures(times["reference step"], times["reference bare"], operations.count)


def held_model(shape: Shape) -> LiveSource:
    """A random model as a host holds it."""
    parts = random_checkpoint.parts(shape.widths, shape.dtype)
    heads = sd1_heads(shape.widths.text)
    return LiveSource(parts["unet"], parts["vae"], parts["text"], random_checkpoint.HEADS, heads, clip_tokenizer(), Path("random"))


def bare(source: LiveSource, latents: Tensor, texts: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward of our U-Net with our adapter on it, and what forgets the gradients."""
    bundle, precision = load(source, CPU), choose_precision("auto", source, CPU)
    adapter = LoraAdapter(bundle, rank=RANK, alpha=RANK, parts=["unet"])
    adapter.attach(bundle)
    leaves = [tensor.detach().to(bundle.dtype).requires_grad_() for tensor in adapter.parameters()["unet"]]
    timesteps, towards = torch.tensor([500]), torch.ones_like(latents, dtype=bundle.dtype)

    def forward_and_backward() -> None:
        with adapter.using_tensors([leaves]):
            with compute_scope(precision, CPU, grad=True):
                predicted = bundle.family.denoise(bundle, latents.to(bundle.dtype), timesteps, Conditioning(texts))
            predicted.backward(towards)

    def forget() -> None:
        for leaf in leaves:
            leaf.grad = None

    return forward_and_backward, forget


def configured(shape: Shape, folder: Path, steps: int, **memory: Any) -> TrainConfig:
    """The settings of the reference, with those of [memory] that are given, and two grey pictures to train on."""
    pictures = folder / "20_sks pictures"
    pictures.mkdir(parents=True)
    for number in range(PICTURES):
        Image.new("RGB", (shape.side, shape.side), (90 * number, 128, 128)).save(pictures / f"{number}.png")
    return build(
        {
            "data": {"train_data_dir": str(pictures), "trigger_word": "sks", "resolution": shape.side, "enable_bucket": False},
            "network": {"dim": RANK, "alpha": float(RANK)},
            "optimizer": {"learning_rate": RATE, "text_encoder_lr": 0.0, "max_grad_norm": CLIP},
            "schedule": {"type": "constant"},
            "steps": {"max_train_steps": steps},
            "save": {"output_dir": str(folder / "output"), "every_n_epochs": 0},
            "memory": memory,
        }
    )


def rows(shape: Shape, ours: Figures, reference: Figures) -> list[dict[str, Any]]:
    """A row a figure: name, ours, reference, ratio, unit. The fixed cost only where the arithmetic's own spread does not hide it."""
    large = reference.step > 0.5
    scale, unit = (1.0, "s") if large else (1000.0, "ms")
    pairs = [
        ("step", ours.step * scale, reference.step * scale, unit),
        ("forward and backward", ours.forward_and_backward * scale, reference.forward_and_backward * scale, unit),
        *([] if large else [("fixed cost", ours.fixed * scale, reference.fixed * scale, unit)]),
        ("step over forward and backward", ours.step / ours.forward_and_backward, reference.step / reference.forward_and_backward, ""),
        ("operations", ours.operations, reference.operations, ""),
    ]
    return [
        {"name": f"{shape.name}: {name}", "ours": round(own, 4), "reference": round(other, 4), "ratio": round(own / other, 4), "unit": unit}
        for name, own, other, unit in pairs
    ]


def machine() -> str:
    """Processor, system and versions, as the figures' heading."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    from diffusers import __version__ as diffusers

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers}"
    return f"{model}, 1 of {os.cpu_count()} cores, {platform.system()}, {versions}"


def table(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [heading, "", "| | ours | reference | ratio | |", "|---|---|---|---|---|"]
    lines += [f"| {row['name']} | {row['ours']:g} | {row['reference']:g} | {row['ratio']:.3f} | {row['unit']} |" for row in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the shapes that were asked for and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny", "sd15"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps in a round, instead of the shape's own number")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for name in chosen.shapes:
        shape = attrs.evolve(SHAPES[name], steps=chosen.steps or SHAPES[name].steps)
        with tempfile.TemporaryDirectory() as folder:
            found += rows(shape, *measure(shape, chosen.rounds, Path(folder)))
    print(json.dumps({"machine": machine(), "rows": found}) if chosen.json else table(machine(), found))


if __name__ == "__main__":
    main()
