"""Training written down once more, as plainly as can be: what golden.json comes from.

    python -m tests.train.plain_loop > tests/train/golden.json

Of the trainer it takes the pictures and their order, the modules of the model and the matrices that a LoRA begins with. Noise, loss, the
LoRA's forward, gradients tensor by tensor, clipping, the optimizer, the schedule and the validation are its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lora_trainer import assets
from lora_trainer.adapters.lora_file import LoraAdapter
from lora_trainer.adapters.targets import targets
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import batch_sampler
from lora_trainer.data.captions import plain_caption
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.load import load
from lora_trainer.train.inputs.dataset import load_dataset
from tests.loss import formulas
from tests.train.runs import small_config

STEPS = 40
SEEDS = (1, 2, 3)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "min-snr and offset": {"min_snr_gamma": 5.0, "noise_offset": 0.1},
    "huber, debiased": {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.2, "debiased_estimation_loss": True},
    "smooth l1 and a share of v": {"loss_type": "smooth_l1", "huber_scale": 2.0, "v_pred_like_loss": 0.2, "max_timestep": 700},
}


def golden_config(folder: Path, seed: int, case: str, **changes: Any) -> TrainConfig:
    """The run that the numbers belong to."""
    given = {
        "validate__data_dir": str(assets.toy_pictures() / "crescent" / "val"),
        "validate__every_n_epochs": 0,
        "save__every_n_epochs": 0,
        "steps__max_train_steps": STEPS,
        "loss": dict(CASES[case]),
    }
    return small_config(folder, seed=seed, **given, **changes)


class PlainLoop:
    """One run on the small model in float32."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.loss = config, config.loss
        self.pictures = load_dataset(config)
        with StandaloneHost(folder).lease(config.model) as lease:
            self.bundle = load(lease.source, torch.device("cpu"), torch.float32)
        self.alphas = torch.from_numpy(formulas.alphas()).float()
        begin = LoraAdapter(
            self.bundle, rank=config.network.dim, alpha=config.network.alpha, parts=("unet", "text_encoder"), seed=config.seed
        ).state_dict()
        self.matrices: list[nn.Parameter] = []
        for part in ("unet", "text_encoder"):
            for name, module in targets(self.bundle, part):
                down, up = (nn.Parameter(begin[f"{name}.lora_{word}.weight"].clone()) for word in ("down", "up"))
                module.register_forward_hook(adding(down, up, config.network.alpha / config.network.dim))
                self.matrices += [down, up]
        self.optimizer = torch.optim.AdamW(self.matrices, lr=config.optimizer.learning_rate)

    def steps(self, count: int) -> Iterator[float]:
        """The losses of the first steps."""
        step, epoch = 0, 0
        while True:
            epoch += 1
            for batch in batch_sampler.epoch_batches(
                self.pictures.train_records, batch_size=self.pictures.batch_sizes, seed=self.config.seed, epoch=epoch
            ):
                if step == count:
                    return
                for group in self.optimizer.param_groups:
                    group["lr"] = self.config.optimizer.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
                yield self.step(batch, epoch)
                step += 1

    def step(self, batch: Any, epoch: int) -> float:
        records = [self.pictures.train_records[item.index] for item in batch]
        latents = torch.cat([self.latents(record.path) for record in records])
        drawn = [
            self.draw(latents[0], (self.config.seed, epoch, record.key, item.repeat)) for record, item in zip(records, batch, strict=True)
        ]
        timesteps, noise = torch.tensor([t for t, _ in drawn]), torch.stack([noise for _, noise in drawn])
        losses = self.losses(
            latents, noise, timesteps, self.read([plain_caption(record, self.pictures.caption_rules_of(record)) for record in records])
        )
        losses.mean().backward()
        nn.utils.clip_grad_norm_([matrix for matrix in self.matrices if matrix.grad is not None], self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(losses.detach().mean())

    def losses(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Weighted error of each picture."""
        kept, rules = self.alphas[timesteps], self.loss
        wide = kept.view(-1, 1, 1, 1)
        answer = self.bundle.unet(wide.sqrt() * latents + (1 - wide).sqrt() * noise, timesteps, encoder_hidden_states=text).sample
        square = (answer - noise) ** 2
        if rules.loss_type != "l2":
            c = formulas.threshold(rules.huber_schedule, timesteps.numpy(), kept.double().numpy(), rules.huber_c, rules.huber_scale)
            threshold = torch.from_numpy(c).float().view(-1, 1, 1, 1)
            root = (square + threshold**2).sqrt() - threshold
            square = 2.0 * root * (threshold if rules.loss_type == "huber" else 1.0)
        given = {name: float(getattr(rules, name)) for name in ("min_snr_gamma", "debiased_estimation_loss", "v_pred_like_loss")}
        return square.mean(dim=(1, 2, 3)) * torch.from_numpy(formulas.weight(given, kept.double().numpy(), "epsilon")).float()

    def draw(self, like: Tensor, words: tuple[object, ...]) -> tuple[int, Tensor]:
        """Timestep, noise and offset of one showing, in this order from one generator."""
        generator = seeded(*words)
        timestep = int(torch.randint(self.loss.min_timestep, self.loss.max_timestep, (1,), generator=generator))
        noise = torch.randn(tuple(like.shape), generator=generator)
        if self.loss.noise_offset:
            noise = noise + self.loss.noise_offset * torch.randn((len(like), 1, 1), generator=generator)
        return timestep, noise

    @torch.no_grad()
    def latents(self, path: Path) -> Tensor:
        pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        return self.bundle.vae.encode(pixels).latent_dist.mean * 0.18215

    def read(self, captions: list[str]) -> Tensor:
        ids = self.bundle.tokenizer(captions, truncation=True, padding="max_length", max_length=77)["input_ids"]
        return self.bundle.text_encoder(torch.tensor(ids)).last_hidden_state

    @torch.no_grad()
    def validation(self) -> float:
        """Mean squared error of the pictures that are held back, at ten steps."""
        found = []
        for record in self.pictures.validation_records:
            text = self.read([plain_caption(record, self.pictures.caption_rules_of(record))])
            latents = self.latents(record.path)
            for t in range(50, 1000, 100):
                noise = torch.randn(tuple(latents.shape[1:]), generator=seeded("validation", record.key, t))[None]
                kept = self.alphas[t]
                answer = self.bundle.unet(kept.sqrt() * latents + (1 - kept).sqrt() * noise, t, encoder_hidden_states=text).sample
                found.append(float(((answer - noise) ** 2).mean()))
        return sum(found) / len(found)


def adding(down: nn.Parameter, up: nn.Parameter, scale: float) -> Callable[..., Tensor]:
    """A hook that adds up(down(x)) * scale to what a layer gives."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if down.ndim == 2:
            return output + inputs[0] @ down.T @ up.T * scale
        return output + nn.functional.conv2d(nn.functional.conv2d(inputs[0], down), up) * scale

    return hook


def seeded(*words: object) -> torch.Generator:
    """The generator that belongs to some words."""
    digest = hashlib.blake2b("\0".join(str(word) for word in words).encode("utf-8"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def main() -> None:
    """Writes golden.json."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"steps": STEPS, "first losses": {}, "validation at the end": {}}
        for case in CASES:
            loop = PlainLoop(golden_config(folder, 1, case), folder)
            found["first losses"][case] = [round(loss, 8) for loss in loop.steps(3)]
        for seed in SEEDS:
            loop = PlainLoop(golden_config(folder, seed, "plain"), folder)
            list(loop.steps(STEPS))
            found["validation at the end"][str(seed)] = round(loop.validation(), 8)
        json.dump(found, sys.stdout, indent=1)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
