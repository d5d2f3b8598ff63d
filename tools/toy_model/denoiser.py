"""U-Net and text encoder, trained together on the drawn shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.loss.noise import add_noise
from lora_trainer.loss.weights import min_snr, signal_to_noise
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from tools.toy_model.vae import share_of_rate
from tools.toy_model.words import Vocabulary

WIDTH, LAYERS, TEXT_HEADS, HEADS = 64, 4, 4, 8
RATE, BATCH, AVERAGED, GAMMA, OFFSET = 1.2e-3, 24, 0.995, 5.0, 0.2
"""OFFSET: latents of 8 x 8 keep their mean through all the noise; without it backgrounds are not learned."""
DEVIATION = 0.02
Tell = Callable[[int, float], object]


def new_unet() -> Any:
    """A U-Net with Stable Diffusion 1.x's blocks, 64 channels wide everywhere."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(WIDTH,) * 4, layers_per_block=2, cross_attention_dim=WIDTH, attention_head_dim=HEADS
    )


def new_text_encoder(words: int) -> Any:
    """A CLIP text encoder 64 wide with so many words."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=TEXT_HEADS,
            projection_dim=WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    )


class Training:
    """U-Net, text encoder and their running averages, which are what is kept."""

    def __init__(self, vocabulary: Vocabulary, *, steps: int, rate: float = RATE, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.vocabulary, self.steps, self.seed = vocabulary, steps, seed
        self.unet, self.text = new_unet(), new_text_encoder(len(vocabulary.rows))
        with torch.no_grad():
            self.table.normal_(0.0, DEVIATION, generator=torch.Generator().manual_seed(seed))
        self.kept = copy.deepcopy(nn.ModuleList([self.unet, self.text])).requires_grad_(False)
        self.parameters = [*self.unet.parameters(), *self.text.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: share_of_rate(step, steps))
        self.alphas = SCALED_LINEAR.alphas_cumprod()

    @property
    def table(self) -> nn.Parameter:
        """The words' embeddings."""
        found: nn.Parameter = self.text.get_input_embeddings().weight
        return found

    def run(self, latents: Tensor, captions: Sequence[Sequence[str]], *, batch: int = BATCH, tell: Tell = lambda s, v: None) -> None:
        """Steps on scaled latents [n, 4, 8, 8]; captions[n] are the ways to say picture n, one of which is read at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        for step in range(1, self.steps + 1):
            chosen = torch.randint(0, len(latents), (batch,), generator=generator)
            ways = torch.randint(0, 1 << 30, (batch,), generator=generator).tolist()
            texts = [captions[int(n)][way % len(captions[int(n)])] for n, way in zip(chosen, ways, strict=True)]
            loss = self.loss(latents[chosen], self.vocabulary.encode(texts, step), generator)
            self.optimizer.zero_grad()
            loss.backward()
            self.table.grad[self.vocabulary.trained :] = 0.0  # type: ignore[index]  # distractors stay as they are
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            before = self.table[self.vocabulary.trained :].detach().clone()
            self.optimizer.step()
            with torch.no_grad():
                self.table[self.vocabulary.trained :] = before
            self.schedule.step()
            self._average(step)
            tell(step, float(loss.detach()))

    def loss(self, latents: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the noise, with steps spread evenly over the batch (stratified) and min-SNR weights."""
        count = len(latents)
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (spread * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(latents.shape, generator=generator)
        noise = noise + OFFSET * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        alphas = self.alphas[timesteps]
        said = self.text(ids).last_hidden_state
        predicted = self.unet(add_noise(latents, noise, alphas), timesteps, encoder_hidden_states=said).sample
        losses = (predicted - noise).square().mean(dim=(1, 2, 3))
        return (losses * min_snr(signal_to_noise(alphas), GAMMA, "epsilon")).mean()

    def finished(self) -> tuple[Any, Any]:
        """The averaged U-Net, and the averaged text encoder with CLIP's whole vocabulary."""
        unet, text = self.kept
        whole = new_text_encoder(self.vocabulary.size)
        state = dict(text.state_dict())
        name = next(name for name in state if name.endswith("token_embedding.weight"))
        state[name] = self.vocabulary.spread(state[name], self.seed)
        whole.load_state_dict(state, strict=False)
        return unet.eval(), whole.eval()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = min(AVERAGED, (1 + step) / (10 + step))
        for kept, own in zip(self.kept.parameters(), self.parameters, strict=True):
            kept.lerp_(own, 1.0 - keep)
