"""What a training step of Stable Diffusion needs, counted allocation by allocation, beside what the plan predicts.

    python benchmarks/memory.py                     twelve configurations, about two minutes; nothing is calculated
    python benchmarks/memory.py --shape sdxl        of another family: sd21, sdxl
    python benchmarks/memory.py --json              for programs
    python benchmarks/memory.py --time              recomputing at 256 px by CPU time: none, half the bytes, everything (ten minutes)

Counted: forward and backward of the real modules run on tensors without memory, and each storage is followed from the operation that makes
it to its end; the most that was alive at a time is what torch's allocator would have handed out. Not counted: what single
kernels take for a moment, and what an allocator rounds up. `--as-cuda` casts as CUDA's autocast does (norms in float32).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import attrs
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_checkpoint import SD15, SD21, SDXL, TINY, TINY_SDXL, Widths
from lora_trainer.adapters.lora_file import LoraAdapter
from lora_trainer.config.schema import LossConfig
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.families import family
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.optim.optimizers import GroupPlan, make_optimizer
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import DtypeSizes
from lora_trainer.train.memory.checkpointing import Checkpointing, activation_blocks, option_names
from lora_trainer.train.planning.memory_plan import memory_parts
from lora_trainer.train.step.objective import Batch, per_image_losses
from lora_trainer.train.step.precision import Precision, compute_scope

CPU = torch.device("cpu")
SHAPES = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL, "tiny": TINY, "tiny-sdxl": TINY_SDXL}


@attrs.frozen
class Setting:
    """One configuration: side in pixels, pictures, share of the activations that may be kept (1: all, 0: nothing more than must), rank."""

    side: int
    pictures: int
    share: float
    rank: int
    held_out: bool = False

    @property
    def name(self) -> str:
        """In words."""
        kept = {1.0: "keeps all", 0.0: "all again"}.get(self.share, f"keeps {self.share:.0%}")
        return f"{self.side} px, {self.pictures} pictures, {kept}, rank {self.rank}"


SETTINGS = (
    Setting(256, 1, 1.0, 16),
    Setting(256, 4, 0.5, 4),
    Setting(384, 1, 0.0, 64),
    Setting(384, 2, 0.5, 128, held_out=True),
    Setting(512, 1, 1.0, 4),
    Setting(512, 1, 0.5, 16),
    Setting(512, 2, 0.0, 16, held_out=True),
    Setting(512, 2, 1.0, 64),
    Setting(640, 1, 0.5, 32),
    Setting(640, 1, 1.0, 8, held_out=True),
    Setting(768, 1, 0.0, 32),
    Setting(768, 1, 0.5, 4, held_out=True),
)


class Allocations(TorchDispatchMode):
    """Follows every storage that an operation makes to its end: bytes alive now, and the most so far (to a fiftieth).

    More than `room` bytes at a time there are not: then it raises as torch does.
    """

    def __init__(self, room: float = float("inf")) -> None:
        super().__init__()
        self.room, self.peak = room, 0.0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self._alive = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        if not operation._schema.is_mutable:
            tree_map(self._seen, made)
        return made

    @property
    def alive(self) -> int:
        """Bytes of what is still there."""
        self._known = {place: entry for place, entry in self._known.items() if not entry[0].expired()}
        self._alive = sum(size for _, size in self._known.values())
        return self._alive

    def already(self, tensors: Sequence[Tensor]) -> None:
        """Those are somebody else's."""
        for tensor in tensors:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._known[reference.cdata] = reference, 0

    def _seen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            reference = StorageWeakRef(value.untyped_storage())
            if reference.cdata not in self._known:
                self._take(reference, value.untyped_storage().nbytes())
        return value

    def _take(self, reference: StorageWeakRef, size: int) -> None:
        """Looks at what is gone only where that can make a difference."""
        if self._alive + size > min(self.room, 1.02 * self.peak):
            now = self.alive + size
            if now > self.room:
                raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes.")
            self.peak = max(self.peak, now)
        self._known[reference.cdata] = reference, size
        self._alive += size


@contextmanager
def as_cuda() -> Iterator[None]:
    """Casts as autocast does on CUDA: norms in float32, matrices, convolutions and attention in half."""
    places = [(functional, name, torch.float32) for name in ("group_norm", "layer_norm", "softmax")]
    places += [(functional, name, torch.bfloat16) for name in ("linear", "conv2d", "scaled_dot_product_attention")]
    places.append((torch, "addmm", torch.bfloat16))
    before = [getattr(module, name) for module, name, _ in places]
    for (module, name, dtype), function in zip(places, before, strict=True):
        setattr(module, name, _casting(function, dtype))
    try:
        yield
    finally:
        for (module, name, _), function in zip(places, before, strict=True):
            setattr(module, name, function)


def _casting(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda value: _cast(value, dtype), (args, kwargs))
        return function(*args, **kwargs)

    return run


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@attrs.frozen
class Counted:
    """Bytes: the model, what is alive between steps besides, and the most within a step besides both."""

    model: float
    between: float
    within: float

    @property
    def all(self) -> float:
        """The most of all."""
        return self.model + self.between + self.within


class Step:
    """A training step of a U-Net with a LoRA, the trainer's own parts, as often as it is called."""

    def __init__(self, widths: Widths, setting: Setting, dtype: torch.dtype, numbers: DtypeSizes) -> None:
        self.bundle = _bundle(widths, dtype)
        self.dtype = dtype
        self.precision = Precision(dtype, None, False)
        adapter = LoraAdapter(self.bundle, rank=setting.rank, alpha=setting.rank, parts=["unet"])
        self.optimizer = make_optimizer("AdamW", adapter.parameters(), [GroupPlan("unet", "unet", 1e-4)], {})
        adapter.attach(self.bundle)
        self.adapter = adapter
        size = setting.side // 8
        self.batch = Batch(
            torch.randn(setting.pictures, 4, size, size),
            torch.randn(setting.pictures, 4, size, size),
            torch.zeros(setting.pictures, dtype=torch.long),
            torch.randn(setting.pictures, 77, sum(text.width for text in widths.texts())).to(dtype),
            pooled=None if widths.text_2 is None else torch.randn(setting.pictures, widths.text_2.width).to(dtype),
            sizes=None if widths.text_2 is None else torch.full((setting.pictures, 6), setting.side),
        )
        blocks, rest = activation_blocks(
            self.bundle, pixels=setting.side**2, pictures=setting.pictures, rank=setting.rank, trains_text=False, sizes=numbers
        )
        self.choice = chosen(blocks, rest, setting.share)
        self.checkpointing = Checkpointing(self.bundle.unet, self.bundle.text_encoder, option_names(self.choice))

    def __call__(self) -> None:
        tensors = self.optimizer.tensors(None if self.dtype is torch.float32 else self.dtype)
        with self.adapter.using_tensors(tensors):
            with compute_scope(self.precision, CPU, grad=True):
                losses = per_image_losses(self.bundle, self.batch, LossConfig())
            losses.sum().backward()
        self.optimizer.step(1.0)


def chosen(blocks: Sequence[activations.Block], rest: float, share: float) -> activations.RecomputeChoice:
    """Keeping all, nothing that need not be, or at most this share of what keeping all takes."""
    everything = activations.keep_all(blocks, rest)
    if share == 1.0:
        return everything
    return activations.recompute_within(blocks, rest, everything.kept_bytes * share) if share else activations.recompute_all(blocks, rest)


def _bundle(widths: Widths, dtype: torch.dtype) -> ModelBundle:
    from diffusers import UNet2DConditionModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        unet = UNet2DConditionModel(**widths.unet_config())
    finally:
        torch.set_default_dtype(before)
    unet.requires_grad_(False).eval()
    none = torch.nn.Identity()
    return ModelBundle(family(widths.family), unet, none, None, none, SCALED_LINEAR.alphas_cumprod(), "epsilon", dtype, CPU)


def count(widths: Widths, setting: Setting, dtype: torch.dtype, *, cuda: bool) -> tuple[Counted, activations.RecomputeChoice]:
    """The second step's allocations, without calculating anything."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(patch.object(Tensor, "uniform_", lambda tensor, *_, **__: tensor))  # torch 2.1 cannot, and no number counts
        step = Step(widths, setting, dtype, DtypeSizes(_size(dtype), 4 if cuda else _size(dtype)))
        model = sum(parameter.numel() * parameter.element_size() for parameter in step.bundle.unet.parameters())
        if cuda:
            stack.enter_context(as_cuda())
        step()
        allocations = stack.enter_context(Allocations())
        allocations.already(lasting(step))
        step()
        between = sum(tensor.numel() * tensor.element_size() for tensor in _of_optimizer(step))
        return Counted(model, between, allocations.peak), step.choice


def lasting(step: Step) -> list[Tensor]:
    """What is there before and after a step: the model, the network, the optimizer's state, what it trains on."""
    told = [value for value in attrs.astuple(step.batch, recurse=False) if isinstance(value, Tensor)]
    return [*step.bundle.unet.parameters(), *_of_optimizer(step), *told]


def _of_optimizer(step: Step) -> list[Tensor]:
    kept = tree_flatten([dict(state) for state in step.optimizer.inner.state.values()])[0]
    return [*(group.buffer for group in step.optimizer.groups), *(value for value in kept if isinstance(value, Tensor))]


def rows(widths: Widths, settings: Sequence[Setting], dtype: torch.dtype, *, cuda: bool) -> Iterator[dict[str, Any]]:
    """For each setting: megabytes predicted and counted of activations and of all, and how far apart they are."""
    numbers = DtypeSizes(_size(dtype), 4 if cuda else _size(dtype))
    for setting in settings:
        counted, choice = count(widths, setting, dtype, cuda=cuda)
        trained = round(counted.between / 12)
        parts = memory_parts(choice, trained, numbers)
        predicted = counted.model + sum(parts.values())
        yield {
            "name": setting.name,
            "held_out": setting.held_out,
            "kept_mb": round(choice.kept_bytes / 2**20, 1),
            "step_predicted_mb": round(sum(parts.values()) / 2**20, 1),
            "step_counted_mb": round((counted.between + counted.within) / 2**20, 1),
            "predicted_mb": round(predicted / 2**20, 1),
            "counted_mb": round(counted.all / 2**20, 1),
            "off": round(predicted / counted.all - 1, 4),
            "step_off": round(sum(parts.values()) / (counted.between + counted.within) - 1, 4),
        }


def times(widths: Widths, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a step that keeps all, half of the bytes, and nothing, turn by turn, medians; with the bytes kept."""
    torch.set_num_threads(1)
    steps = {share: Step(widths, Setting(side, 1, share, 16), torch.float32, DtypeSizes(4, 4)) for share in (1.0, 0.5, 0.0)}
    took: dict[float, list[float]] = {share: [] for share in steps}
    for number in range(rounds + 1):
        for share, step in steps.items():
            begin = time.process_time()
            step()
            if number:
                took[share].append(time.process_time() - begin)
    whole, kept = median(took[1.0]), {share: kept_bytes(step) for share, step in steps.items()}
    return {
        {1.0: "keeps all", 0.5: "half the bytes", 0.0: "all again"}[share]: {
            "seconds": round(median(seconds), 3),
            "time": round(median(seconds) / whole, 4),
            "pairs": round(median(one / all_ for one, all_ in zip(seconds, took[1.0], strict=True)), 4),
            "kept_mb": round(kept[share] / 2**20, 1),
            "bytes": round(kept[share] / kept[1.0], 4),
        }
        for share, seconds in took.items()
    }


def kept_bytes(step: Callable[[], None] | Step) -> int:
    """Bytes that a step's forward really saves for its backward, without weights and the network's own matrices."""
    assert isinstance(step, Step)
    own = {parameter.untyped_storage().data_ptr() for parameter in step.bundle.unet.parameters()}
    own |= {group.buffer.untyped_storage().data_ptr() for group in step.optimizer.groups}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            saved[place] = tensor
        return tensor

    tensors = step.optimizer.tensors(None)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, step.adapter.using_tensors(tensors), compute_scope(step.precision, CPU, grad=True):
        losses = per_image_losses(step.bundle, step.batch, LossConfig())
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del losses
    return total


def _size(dtype: torch.dtype) -> int:
    return 4 if dtype is torch.float32 else 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts or times what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--fp32", action="store_true", help="count in float32 instead of bfloat16")
    parser.add_argument("--as-cuda", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen_ = parser.parse_args(arguments)
    if chosen_.time:
        print(json.dumps(times(SHAPES[chosen_.shape], chosen_.side, chosen_.rounds), indent=1))
        return
    dtype = torch.float32 if chosen_.fp32 else torch.bfloat16
    found = list(rows(SHAPES[chosen_.shape], SETTINGS, dtype, cuda=chosen_.as_cuda))
    if chosen_.json:
        print(json.dumps({"rows": found}))
        return
    print("| configuration | predicted MB | counted MB | off | of the step alone | |\n|---|---|---|---|---|---|")
    for row in found:
        print(
            f"| {row['name']} | {row['predicted_mb']} | {row['counted_mb']} | {row['off']:+.1%} "
            f"| {row['step_predicted_mb']} / {row['step_counted_mb']} ({row['step_off']:+.1%}) | {'held out' if row['held_out'] else ''} |"
        )


if __name__ == "__main__":
    main()
