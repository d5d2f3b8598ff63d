"""Builds the small model that ships with the project: draws its pictures, trains VAE, U-Net and text encoder, writes the checkpoint.

python tools/build_toy_model.py OUT            about half an hour on two CPU cores; stages that are done are read again
python tools/build_toy_model.py OUT --quick    every stage for a few steps, to see that all of it runs

OUT then holds toy-sd15-host.safetensors (.xz is what ships), its .yaml, pictures of two concepts, and a sheet of samples.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lora_trainer import assets  # noqa: E402
from lora_trainer.models.load import clip_tokenizer  # noqa: E402
from tools.toy_model import drawing, export, vae  # noqa: E402
from tools.toy_model.denoiser import Training  # noqa: E402
from tools.toy_model.words import Vocabulary  # noqa: E402

WAYS = 3
PROMPTS = (
    "a red circle on a white background",
    "a green square on a black background",
    "a yellow triangle on a gray background",
    "a purple cross on a white background",
    "a cyan diamond on a gray background",
    "an orange ring on a black background",
)


def main() -> None:
    """All stages, each kept in OUT/stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps of each stage")
    parser.add_argument("--steps", type=int, default=2600, help="steps of U-Net and text encoder")
    parser.add_argument("--vae-steps", type=int, default=520)
    parser.add_argument("--pictures", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.quick:
        asked.steps, asked.vae_steps, asked.pictures = 4, 4, 64
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    build(asked.out, pictures=asked.pictures, vae_steps=asked.vae_steps, steps=asked.steps, seed=asked.seed)


def build(out: Path, *, pictures: int, vae_steps: int, steps: int, seed: int = 0) -> Path:
    """Returns the checkpoint's path."""
    stages = out / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    scenes = drawing.scenes(pictures, seed)
    wide = _kept(stages / f"wide-{pictures}-{seed}.pt", lambda: _wide(pictures * 2 // 3))
    trained = _kept(stages / f"vae-{pictures}-{vae_steps}-{seed}.pt", lambda: _vae(wide, vae_steps, seed))
    eyes = vae.new_vae()
    eyes.load_state_dict(trained)
    eyes.eval()
    latents = _kept(stages / f"latents-{pictures}-{vae_steps}-{seed}.pt", lambda: _latents(eyes, scenes))
    captions = [[drawing.caption(scene, way * 100_003 + number) for way in range(WAYS)] for number, scene in enumerate(scenes)]
    training = Training(Vocabulary(clip_tokenizer(), [text for ways in captions for text in ways]), steps=steps, seed=seed)
    training.run(latents, captions, tell=_teller("U-Net and text encoder", steps))
    unet, text = training.finished()
    path = out / f"{assets.TOY}.safetensors"
    sha256 = export.write(path, export.checkpoint(unet, eyes, text))
    shutil.copyfile(assets.HERE / f"{assets.TOY}.yaml", path.with_suffix(".yaml"))
    _concepts(out / "pictures")
    _sheet(path, out / "samples.png")
    print(f"{path}\nsha256 {sha256}\npacked {path.with_suffix('.safetensors.xz').stat().st_size / 1e6:.1f} MB")
    return path


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    if not path.is_file():
        torch.save(make(), path)
    return torch.load(path, weights_only=True)


def _wide(count: int) -> torch.Tensor:
    tell = _teller("Drawing", count)
    pictures = []
    for number in range(count):
        pictures.append(drawing.wide_picture(number))
        tell(number + 1, 0.0)
    return torch.from_numpy(drawing.as_pixels(pictures))


def _vae(pixels: torch.Tensor, steps: int, seed: int) -> Any:
    torch.manual_seed(seed)
    made = vae.new_vae()
    vae.fit_ends(made, pixels[:64])
    vae.train(made, pixels, steps=steps, seed=seed, tell=_teller("VAE", steps))
    vae.whiten(made, pixels[:512])
    return made.state_dict()


@torch.no_grad()
def _latents(eyes: Any, scenes: list[drawing.Scene]) -> torch.Tensor:
    found = []
    for start in range(0, len(scenes), 32):
        drawn = [drawing.draw_scene(scene, start + place) for place, scene in enumerate(scenes[start : start + 32])]
        found.append(vae.encode(eyes, torch.from_numpy(drawing.as_pixels(drawn))) * vae.FACTOR)
    return torch.cat(found)


def _concepts(folder: Path) -> None:
    """Two concepts that the model has not seen: 12 pictures to train on and 12 to validate, each with its caption."""
    for concept in drawing.CONCEPTS:
        for kind, first in (("train", 0), ("val", 100)):
            place = folder / concept / kind / f"10_sks {concept}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(12):
                picture, words = drawing.concept_picture(concept, first + number)
                Image.fromarray(picture).save(place / f"{number:02}.png")
                (place / f"{number:02}.txt").write_text(words, encoding="utf-8")


def _sheet(path: Path, sheet: Path) -> None:
    """Samples of the finished checkpoint, read as the trainer reads any."""
    from lora_trainer.models.load import load
    from lora_trainer.models.source import FileSource
    from lora_trainer.train.previews.preview_prompts import SampleRequest
    from lora_trainer.train.previews.sampling import draw
    from lora_trainer.train.step.precision import choose_precision

    source, device = FileSource(path), torch.device("cpu")
    bundle, precision = load(source, device), choose_precision("no", source, device)
    drawn = [
        draw(bundle, SampleRequest(prompt, width=64, height=64, seed=number, cfg=5.0, steps=20), precision, lambda: False)
        for number, prompt in enumerate(PROMPTS, start=1)
    ]
    whole = np.concatenate([np.asarray(picture) for picture in drawn if picture is not None], axis=1)
    Image.fromarray(whole).resize((whole.shape[1] * 3, whole.shape[0] * 3), Image.Resampling.NEAREST).save(sheet)


def _teller(name: str, total: int) -> Callable[[int, float], None]:
    begun = told = time.monotonic()

    def tell(step: int, value: float) -> None:
        nonlocal told
        now = time.monotonic()
        if step == total or now - told > 10:
            told = now
            print(f"{name}: {step} of {total}, {value:.4f}, {now - begun:.0f} s", flush=True)

    return tell


if __name__ == "__main__":
    main()
