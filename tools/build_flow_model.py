"""Makes a small model of rectified flow: continues the U-Net of the small model that ships with that objective.

python tools/build_flow_model.py OUT            nine minutes of CPU time
python tools/build_flow_model.py OUT --quick    a few steps, to see that all of it runs

OUT then holds toy-sd15-rectified-flow.safetensors, whose header says what it predicts, and a sheet of samples. Nothing of it ships.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lora_trainer import assets  # noqa: E402
from lora_trainer.loss.objectives import FlowMatching  # noqa: E402
from lora_trainer.models import layout  # noqa: E402
from lora_trainer.models.bundle import ModelBundle  # noqa: E402
from lora_trainer.models.conditioning import Conditioning  # noqa: E402
from lora_trainer.models.load import load  # noqa: E402
from lora_trainer.models.prediction_kinds import FLOW  # noqa: E402
from lora_trainer.models.source import FileSource  # noqa: E402
from lora_trainer.models.tokenize import tokenize  # noqa: E402
from tools.build_toy_model import PROMPTS  # noqa: E402
from tools.toy_model import drawing, export, vae  # noqa: E402
from tools.toy_model.vae import share_of_rate  # noqa: E402

NAME = "toy-sd15-rectified-flow"
RATE, BATCH, AVERAGED, WAYS, SAMPLE_SHIFT = 8e-4, 16, 0.99, 2, 1.0
CPU = torch.device("cpu")
OBJECTIVE = FlowMatching()


def main() -> None:
    """Trains, writes the checkpoint, draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if asked.quick:
        asked.steps, asked.pictures = 2, 8
    print(build(asked.out, pictures=asked.pictures, steps=asked.steps, seed=asked.seed))


def build(out: Path, *, pictures: int, steps: int, seed: int = 0) -> Path:
    """Returns the checkpoint's path."""
    begun = time.monotonic()
    bundle = load(FileSource(assets.toy_checkpoint(), prediction=FLOW), CPU)
    scenes = drawing.scenes(pictures, seed)
    captions = [[drawing.caption(scene, way * 100_003 + number) for way in range(WAYS)] for number, scene in enumerate(scenes)]
    latents, texts = _latents(bundle, scenes), _encoded(bundle, [text for ways in captions for text in ways])
    print(f"{pictures} pictures and their captions encoded, {time.monotonic() - begun:.0f} s", flush=True)
    bundle.unet = _trained(bundle, latents, captions, texts, steps, seed)
    path = _write(out / f"{NAME}.safetensors", bundle)
    _sheet(path, out / "samples.png")
    print(f"{steps} steps, {time.monotonic() - begun:.0f} s, {time.process_time():.0f} of the CPU")
    return path


@torch.no_grad()
def _latents(bundle: ModelBundle, scenes: list[drawing.Scene]) -> Tensor:
    encoded, narrow = [], vae.new_vae()
    narrow.load_state_dict(export.narrowed(bundle.vae, narrow))
    narrow.eval()
    for start in range(0, len(scenes), 32):
        drawn = [drawing.draw_scene(scene, start + place) for place, scene in enumerate(scenes[start : start + 32])]
        encoded.append(vae.encode(narrow, torch.from_numpy(drawing.as_pixels(drawn))) * vae.FACTOR)
    return torch.cat(encoded)


@torch.no_grad()
def _encoded(bundle: ModelBundle, captions: list[str]) -> dict[str, Tensor]:
    """Caption -> states of the text encoder, which stays as it is; "" too."""
    unique = ["", *dict.fromkeys(captions)]
    states = []
    for start in range(0, len(unique), 64):
        ids = tokenize(bundle.tokenizer, unique[start : start + 64])
        states.append(bundle.family.encode_text(bundle, ids, 1).states)
    return dict(zip(unique, torch.cat(states), strict=True))


def _trained(bundle: ModelBundle, latents: Tensor, captions: list[list[str]], texts: dict[str, Tensor], steps: int, seed: int) -> nn.Module:
    """The running average of the U-Net over `steps` with the velocity as its target; a tenth of the captions is empty."""
    unet = bundle.unet.requires_grad_(True).train()
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, steps))
    generator, begun, told = torch.Generator().manual_seed(seed), time.monotonic(), 0.0
    for step in range(1, steps + 1):
        chosen = torch.randint(0, len(latents), (BATCH,), generator=generator).tolist()
        ways = torch.randint(0, 10, (BATCH,), generator=generator).tolist()
        states = torch.stack([texts["" if way == 0 else captions[n][way % WAYS]] for n, way in zip(chosen, ways, strict=True)])
        loss = _loss(bundle, latents[chosen], Conditioning(states), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            keep = min(AVERAGED, (1 + step) / (10 + step))
            for kept, own in zip(average.parameters(), unet.parameters(), strict=True):
                kept.lerp_(own, 1.0 - keep)
        if step == steps or time.monotonic() - told > 30:
            told = time.monotonic()
            print(
                f"step {step} of {steps}, loss {float(loss.detach()):.4f}, {told - begun:.0f} s, {time.process_time():.0f} of the CPU",
                flush=True,
            )
    return average.eval()


def _loss(bundle: ModelBundle, latents: Tensor, conditioning: Conditioning, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity, with times spread evenly over the batch (stratified)."""
    spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    timesteps, noise = spread * OBJECTIVE.flow.steps, torch.randn(latents.shape, generator=generator)
    predicted = bundle.family.denoise(bundle, OBJECTIVE.add_noise(latents, noise, timesteps), timesteps, conditioning)
    return (predicted - OBJECTIVE.target(latents, noise, timesteps)).square().mean()


def _write(path: Path, bundle: ModelBundle) -> Path:
    """The small model's checkpoint with the new U-Net, and its yaml."""
    tensors = load_file(assets.toy_checkpoint())
    for name, tensor in export.renamed(bundle.unet.state_dict(), layout.invert(layout.unet_prefixes())).items():
        old = tensors[layout.UNET + name]
        tensors[layout.UNET + name] = tensor.detach().to(old.dtype).reshape(old.shape).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), metadata={"format": "pt", "modelspec.prediction_type": FLOW})
    return path


def _sheet(path: Path, sheet: Path) -> None:
    """Samples of the finished checkpoint, read as the trainer reads any."""
    from lora_trainer.train.previews.preview_prompts import SampleRequest
    from lora_trainer.train.previews.sampling import draw
    from lora_trainer.train.step.precision import choose_precision

    source = FileSource(path)
    bundle, precision = load(source, CPU), choose_precision("no", source, CPU)
    requests = [
        SampleRequest(prompt, width=64, height=64, seed=number, cfg=4.0, steps=20, sampler="euler", flow_shift=SAMPLE_SHIFT)
        for number, prompt in enumerate(PROMPTS, start=1)
    ]
    drawn = [picture for request in requests if (picture := draw(bundle, request, precision, lambda: False)) is not None]
    whole = np.concatenate([np.asarray(picture) for picture in drawn], axis=1)
    Image.fromarray(whole).resize((whole.shape[1] * 3, whole.shape[0] * 3), Image.Resampling.NEAREST).save(sheet)


if __name__ == "__main__":
    main()
