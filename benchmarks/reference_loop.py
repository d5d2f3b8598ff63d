"""The yardstick: the least that training a LoRA with diffusers can be. Nothing of the trainer is imported here.

A frozen U-Net in one dtype, LoRA by addmm on the attention layers, latents and text that were made beforehand, one fused
AdamW, no events and no reading of the loss. `bare` is the forward and the backward alone, which no loop can go below.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

RATE, CLIP = 1e-4, 1.0


class ReferenceLoop:
    """`unet` is frozen and gets a LoRA of `rank` (alpha the same); latents [n, 4, h, w] and texts [n, 77, width] take turns."""

    def __init__(self, unet: nn.Module, alphas: Tensor, latents: Tensor, texts: Tensor, rank: int) -> None:
        self.unet, self.alphas, self.latents, self.texts = unet, alphas, latents, texts
        self.dtype = next(unet.parameters()).dtype
        self.lora = [tensor for module in attention_layers(unet) for tensor in add_lora(module, rank)]
        self.optimizer = adamw(self.lora)
        self.turn = 0

    def step(self) -> None:
        """One training step on one picture."""
        latents, text = self._next()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, len(self.alphas), (len(latents),), device=latents.device)
        kept = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        predicted = self._predict(noisy, timesteps, text)
        functional.mse_loss(predicted.float(), noise).backward()
        nn.utils.clip_grad_norm_(self.lora, CLIP, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def bare(self) -> Callable[[], None]:
        """Forward and backward of one picture with the LoRA on, ready to be called; gradients are left on the parameters."""
        latents, text = self._next()
        timesteps, towards = torch.tensor([500] * len(latents), device=latents.device), torch.ones_like(latents)

        def forward_and_backward() -> None:
            self._predict(latents, timesteps, text).backward(towards)

        return forward_and_backward

    def forget(self) -> None:
        """Drops the gradients that `bare` left."""
        self.optimizer.zero_grad(set_to_none=True)

    def _next(self) -> tuple[Tensor, Tensor]:
        place = self.turn % len(self.latents)
        self.turn += 1
        return self.latents[place : place + 1], self.texts[place : place + 1]

    def _predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return self.unet(noisy.to(self.dtype), timesteps, encoder_hidden_states=text, return_dict=False)[0]


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Fused where this torch has that for the device (2.1 has not for the CPU)."""
    try:
        return torch.optim.AdamW(parameters, lr=RATE, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(parameters, lr=RATE, foreach=True)


def attention_layers(unet: nn.Module) -> list[nn.Module]:
    """Linear layers and 1 x 1 convolutions of the attention blocks: 192 in Stable Diffusion 1.x."""
    blocks = [module for module in unet.modules() if type(module).__name__ == "Transformer2DModel"]
    return [
        layer
        for block in blocks
        for layer in block.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]


def add_lora(layer: nn.Module, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Replaces the layer's forward by one that adds up(down(x)); the matrices are in the layer's own dtype."""
    weight, bias = layer.weight, layer.bias
    down = nn.Parameter(torch.empty(rank, weight.shape[1], dtype=weight.dtype).uniform_(-1, 1) / math.sqrt(weight.shape[1]))
    up = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=weight.dtype))

    def linear(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        added = torch.addmm(functional.linear(rows, weight, bias), functional.linear(rows, down), up.t())
        return added.view(*x.shape[:-1], -1)

    def convolution(x: Tensor) -> Tensor:
        inner = functional.conv2d(x, down[:, :, None, None])
        return functional.conv2d(x, weight, bias) + functional.conv2d(inner, up[:, :, None, None])

    layer.forward = linear if isinstance(layer, nn.Linear) else convolution
    return down, up
