"""Block 8: steps a second of a run (eager, CUDA graphs, compiled) beside the reference loop's, and sd-scripts' where it is at hand."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import attrs
import torch
from torch.nn import functional

from benchmarks.card.block import Block, BlockLeftOut, Card, Figures, require
from benchmarks.card.runs import events_of, warnings
from benchmarks.reference_loop import CLIP, RATE, ReferenceLoop
from benchmarks.step import PICTURES, RANK, SHAPES, HoldingHost, Shape, configured, held_model, measure
from lora_trainer.events import Stepped
from lora_trainer.models import layout
from lora_trainer.models.load import load
from lora_trainer.models.source import LiveSource

WARM_UP, STEPS = 6, 24
OF_REFERENCE, OF_EAGER = 1.10, 1.05
"""Ours takes at most so many times the reference's step; with graphs and compiled at most so many times its own eager one."""
OPERATIONS = 1.05
"""On a CPU, where seconds depend on who else computes, operations of a step are compared, as benchmarks/step.py does."""


def steps_a_second(card: Card) -> Figures:
    """Stable Diffusion 1.5 at 512 px, one picture, bfloat16: eager and with graphs beside the reference loop."""
    if not card.is_cuda:
        return _operations(card)
    reference = _reference_seconds(card)
    eager, graphs = _run_seconds(card), _run_seconds(card, cuda_graphs=True)
    card.kept["eager seconds"] = eager
    rows = [_row(name, seconds, reference) for name, seconds in (("reference loop", reference), ("eager", eager), ("CUDA graphs", graphs))]
    require(eager <= OF_REFERENCE * reference, f"a step takes {eager / reference:.2f} of the reference's")
    require(graphs <= OF_EAGER * eager, f"with CUDA graphs a step takes {graphs / eager:.2f} of an eager one")
    return {"rows": rows}


def compiled_steps(card: Card) -> Figures:
    """The same with compiled blocks; where they cannot be compiled the run says so, and that is no failure."""
    eager = card.kept.get("eager seconds") or _run_seconds(card)
    notes: list[str] = []
    compiled = _run_seconds(card, notes=notes, compile=True)
    require(bool(notes) or compiled <= OF_EAGER * eager, f"compiled a step takes {compiled / eager:.2f} of an eager one")
    return {"eager it/s": 1 / eager, "compiled it/s": 1 / compiled, "ratio": compiled / eager, "said": notes or "nothing"}


def sd_scripts_step(card: Card) -> Figures:
    """sd-scripts' network on its own U-Net, with the forward, backward and AdamW of its training loop, beside an eager step of ours."""
    if importlib.util.find_spec("networks") is None or importlib.util.find_spec("library") is None:
        raise BlockLeftOut("sd-scripts is not here")
    eager = card.kept.get("eager seconds") or _run_seconds(card)
    other = _seconds_of(card, _sd_scripts(card))
    return {"sd-scripts it/s": 1 / other, "eager it/s": 1 / eager, "ratio": eager / other}


def _row(name: str, seconds: float, reference: float) -> dict[str, Any]:
    return {"loop": name, "it/s": 1 / seconds, "ms": 1000 * seconds, "of the reference's": seconds / reference}


def _operations(card: Card) -> Figures:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours, reference = measure(attrs.evolve(SHAPES["tiny"], steps=2), 1, card.new_folder())
    finally:
        torch.set_num_threads(threads)
    ratio = ours.operations / reference.operations
    require(ratio <= OPERATIONS, f"a step takes {ratio:.3f} times the reference's operations")
    return {"operations": ours.operations, "of the reference": reference.operations, "ratio": ratio}


def _shape() -> Shape:
    return attrs.evolve(SHAPES["sd15-bf16"], name="SD 1.5, 512 px, bf16", side=512)


def _source(card: Card) -> LiveSource:
    """A random Stable Diffusion 1.5 on the card, as a WebUI holds it; made once."""
    if "sd15 source" not in card.kept:
        source = held_model(_shape())
        moved = {
            name: {key: tensor.to(card.device) for key, tensor in getattr(source, name).items()}
            for name in ("unet_state", "vae_state", "text_state")
        }
        card.kept["sd15 source"] = attrs.evolve(source, **moved)
    held: LiveSource = card.kept["sd15 source"]
    return held


def _run_seconds(card: Card, notes: list[str] | None = None, **memory: Any) -> float:
    """Seconds of a step of a whole run: the median after the warm-up. What the run says of graphs and compiling goes into `notes`."""
    folder = card.new_folder()
    config = configured(_shape(), folder, WARM_UP + STEPS, **memory)
    events = events_of(card, config, folder, host=HoldingHost(folder, _source(card)))
    said = [*warnings(events, "CUDA graphs"), *warnings(events, "not compiled")]
    if notes is None:
        require(not said, f"{said[:1]}")
    else:
        notes += said
    return median([event.seconds for event in events if isinstance(event, Stepped)][WARM_UP:])


def _reference_seconds(card: Card) -> float:
    shape = _shape()
    latents = torch.randn(PICTURES, 4, shape.side // 8, shape.side // 8, device=card.device)
    texts = torch.randn(PICTURES, 77, shape.widths.text, device=card.device, dtype=shape.dtype)
    bundle = load(_source(card), card.device)
    return _seconds_of(card, ReferenceLoop(bundle.unet, bundle.alphas_cumprod, latents, texts, RANK).step)


def _sd_scripts(card: Card) -> Callable[[], None]:
    """A step as its train_network.py takes it in bf16: frozen U-Net in bfloat16, LoRA in float32, autocast, SDPA, clipping."""
    try:
        from library.original_unet import UNet2DConditionModel
        from networks.lora import create_network
    except ImportError as error:
        raise BlockLeftOut(f"sd-scripts cannot be imported: {error}") from error
    shape = _shape()
    with torch.device(card.device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=shape.widths.text)
    unet.load_state_dict(layout.rename_part("unet", _source(card).unet_state, "sd1"))
    unet.requires_grad_(False).to(card.device, shape.dtype).eval()
    unet.set_use_sdpa(True)
    network = create_network(1.0, RANK, RANK, None, [], unet)
    network.apply_to([], unet, apply_text_encoder=False, apply_unet=True)
    network.to(card.device).requires_grad_(True)
    parameters, side = list(network.parameters()), shape.side // 8
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    alphas = load(_source(card), card.device).alphas_cumprod
    latents = torch.randn(1, 4, side, side, device=card.device)
    text = torch.randn(1, 77, shape.widths.text, device=card.device, dtype=shape.dtype)

    def step() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, len(alphas), (1,), device=card.device)
        kept = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        with torch.autocast(card.device.type, dtype=shape.dtype):
            predicted = unet(noisy.to(shape.dtype), timesteps, text).sample
        loss = functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # its loop logs the loss of each step

    return step


def _seconds_of(card: Card, step: Callable[[], object]) -> float:
    """The median of steps that are waited for, as reading the loss does."""
    seconds = []
    for _ in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        step()
        card.synchronize()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[WARM_UP:])


BLOCKS = (
    Block("speed", "it/s of a run, eager and with CUDA graphs, beside the reference loop", steps_a_second, 45.0, 4.0),
    Block("speed-compiled", "it/s with compiled blocks", compiled_steps, 110.0),
    Block("speed-sd-scripts", "it/s beside sd-scripts' own step", sd_scripts_step, 25.0),
)
