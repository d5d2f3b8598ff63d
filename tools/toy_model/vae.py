"""The small VAE: built so that it averages and repeats pixels before any training, then trained for the details.

Channels of each group of the normalisation: one signal, one constant (large) and one zero. Beside the constant the signal hardly
changes the group's deviation, so that normalising is almost linear, and a large bias keeps SiLU on its straight part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, GROUPS, LATENTS = (32, 64, 64, 64), 8, 4
CONSTANT, STRAIGHT = 8.0, 6.0
SIGNALS = 4
"""Red, green, blue, and how much brighter the left half is than the right one."""
NOISE, FACTOR = 0.03, 0.18215
GREY = (0.299, 0.587, 0.114)
Tell = Callable[[int, float], object]


def new_vae(channels: tuple[int, ...] = CHANNELS, groups: int = GROUPS) -> Any:
    """The VAE with its constructed start: an encoder that averages 8 x 8 pixels, a decoder that repeats them."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        layers_per_block=1,
        norm_num_groups=groups,
        latent_channels=LATENTS,
        sample_size=64,
    )
    with torch.no_grad():
        _silence(vae)
        _carry_in(vae.encoder.conv_in, range(3))
        for level, block in enumerate(vae.encoder.down_blocks):
            if block.downsamplers is not None:
                _carry_down(block.downsamplers[0].conv, halves=level == len(channels) - 2)
        _carry_in(vae.decoder.conv_in, range(LATENTS))
        for block in vae.decoder.up_blocks:
            if block.upsamplers is not None:
                _carry(block.upsamplers[0].conv)
        for module in vae.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                _carry(module)
        for norm in (vae.encoder.conv_norm_out, vae.decoder.conv_norm_out):
            norm.weight.fill_(1.0)
            norm.bias.fill_(STRAIGHT)
        nn.init.zeros_(vae.quant_conv.weight)
        vae.quant_conv.weight[:LATENTS, :LATENTS, 0, 0] = torch.eye(LATENTS)
        vae.quant_conv.bias.zero_()
        vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(LATENTS)
        vae.post_quant_conv.bias.zero_()
    return vae


def fit_ends(vae: Any, pixels: Tensor) -> None:
    """Gains of the two last convolutions by least squares, so that the start averages and repeats. pixels [n, 3, 64, 64]."""
    with torch.no_grad():
        wanted = averaged(pixels)
        _solve(vae.encoder.conv_out, _before_end(vae.encoder, pixels), wanted)
        latents = vae.quant_conv(vae.encoder(pixels))[:, :LATENTS]
        _solve(vae.decoder.conv_out, _before_end(vae.decoder, vae.post_quant_conv(latents)), repeated(wanted))


def averaged(pixels: Tensor) -> Tensor:
    """[n, 4, 8, 8]: colours averaged over 8 x 8 pixels, and half the difference between left and right."""
    colours = functional.avg_pool2d(pixels, 8)
    grey = (pixels * torch.tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    halves = functional.avg_pool2d(grey, (8, 4))
    return torch.cat([colours, (halves[..., 0::2] - halves[..., 1::2]) / 2], dim=1)


def repeated(latents: Tensor) -> Tensor:
    """[n, 3, 64, 64]: each cell's colour over its 8 x 8 pixels."""
    return functional.interpolate(latents[:, :3], scale_factor=8, mode="nearest")


def train(
    vae: Any, pixels: Tensor, *, steps: int = 520, batch: int = 4, rate: float = 3e-4, seed: int = 0, tell: Tell = lambda s, v: None
) -> None:
    """Joint training of both sides with a little noise on the latents; what was constructed moves ten times slower."""
    built = [vae.encoder.conv_in, vae.decoder.conv_in, vae.encoder.conv_out, vae.decoder.conv_out]
    built += [module for module in vae.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)]
    built += [block.downsamplers[0].conv for block in vae.encoder.down_blocks if block.downsamplers is not None]
    built += [block.upsamplers[0].conv for block in vae.decoder.up_blocks if block.upsamplers is not None]
    slow = {id(parameter) for module in built for parameter in module.parameters()}
    groups = [
        {"params": [parameter for parameter in vae.parameters() if id(parameter) not in slow], "lr": rate},
        {"params": [parameter for parameter in vae.parameters() if id(parameter) in slow], "lr": rate / 10},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, steps))
    generator = torch.Generator().manual_seed(seed)
    vae.train()
    for step in range(1, steps + 1):
        some = pixels[torch.randint(0, len(pixels), (batch,), generator=generator)]
        latents = encode(vae, some)
        latents = latents + NOISE * torch.randn(latents.shape, generator=generator)
        off = decode(vae, latents) - some
        loss = off.abs().mean() + off.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tell(step, float(loss.detach()))
    vae.eval()


def share_of_rate(step: int, steps: int) -> float:
    """Share of the learning rate: rising over a tenth of the steps (at most 100), then along a cosine to 0."""
    warm = max(1, min(100, steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """The middle of the latents' distribution, unscaled."""
    return vae.quant_conv(vae.encoder(pixels))[:, :LATENTS]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels of unscaled latents."""
    return vae.decoder(vae.post_quant_conv(latents))


def whiten(vae: Any, pixels: Tensor) -> None:
    """Folds a change of latents into the two 1 x 1 convolutions: uncorrelated, and of deviation 1 after the usual factor 0.18215."""
    with torch.no_grad():
        latents = torch.cat([encode(vae, some) for some in pixels.split(32)]).double()
        flat = latents.transpose(0, 1).reshape(LATENTS, -1)
        mean = flat.mean(dim=1)
        values, vectors = torch.linalg.eigh(torch.cov(flat))
        there = vectors @ torch.diag(values.clamp_min(1e-8).rsqrt()) @ vectors.T / FACTOR
        back = torch.linalg.inv(there)
        weight, bias = vae.quant_conv.weight[:LATENTS, :, 0, 0].double(), vae.quant_conv.bias[:LATENTS].double()
        vae.quant_conv.weight[:LATENTS, :, 0, 0] = (there @ weight).float()
        vae.quant_conv.bias[:LATENTS] = (there @ (bias - mean)).float()
        vae.quant_conv.weight[LATENTS:] = 0.0
        vae.quant_conv.bias[LATENTS:] = 2.0 * float(torch.log(torch.tensor(0.01 / FACTOR)))
        out = vae.post_quant_conv.weight[:, :, 0, 0].double()
        vae.post_quant_conv.bias += (out @ mean).float()
        vae.post_quant_conv.weight[:, :, 0, 0] = (out @ back).float()


def _silence(vae: Any) -> None:
    """Every branch beside a shortcut gives nothing."""
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _places(channels: int) -> tuple[list[int], list[int]]:
    """(channel of each signal, channel of each group's constant)."""
    size = channels // GROUPS
    return [group * size for group in range(SIGNALS)], [group * size + size - 1 for group in range(GROUPS)]


def _carry_in(convolution: nn.Conv2d, given: range) -> None:
    """From colours, or latents, to the first signals; constants come from the bias."""
    signals, constants = _places(convolution.out_channels)
    middle = convolution.kernel_size[0] // 2
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    for channel in given:
        convolution.weight[signals[channel], channel, middle, middle] = 1.0
    if len(given) == 3:  # pixels: the fourth signal begins as brightness
        for channel, share in enumerate(GREY):
            convolution.weight[signals[3], channel, middle, middle] = share
    convolution.bias[constants] = CONSTANT


def _carry(convolution: nn.Conv2d) -> None:
    """Signals and constants pass."""
    if convolution.in_channels < GROUPS or convolution.out_channels < GROUPS * 2:
        return
    middle = convolution.kernel_size[0] // 2
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    for old, new in zip(_both(convolution.in_channels), _both(convolution.out_channels), strict=True):
        convolution.weight[new, old, middle, middle] = 1.0


def _carry_down(convolution: nn.Conv2d, *, halves: bool) -> None:
    """Signals averaged over 2 x 2; `halves`: the fourth becomes half the difference of left and right."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    for old, new in zip(_both(convolution.in_channels), _both(convolution.out_channels), strict=True):
        convolution.weight[new, old, :2, :2] = 0.25
    if halves:
        old, new = _places(convolution.in_channels)[0][3], _places(convolution.out_channels)[0][3]
        convolution.weight[new, old, :2, 1] = -0.25


def _both(channels: int) -> list[int]:
    signals, constants = _places(channels)
    return [*signals, *constants]


def _before_end(side: Any, given: Tensor) -> Tensor:
    """What the last convolution of encoder or decoder reads."""
    found: list[Tensor] = []
    handle = side.conv_out.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    try:
        side(given)
    finally:
        handle.remove()
    return found[0]


def _solve(convolution: nn.Conv2d, given: Tensor, wanted: Tensor) -> None:
    """Weights of the middle of the kernel that bring `given` nearest to `wanted`; other outputs give nothing."""
    signals, _ = _places(convolution.in_channels)
    columns = given[:, signals].transpose(0, 1).reshape(len(signals), -1).double()
    columns = torch.cat([columns, torch.ones(1, columns.shape[1], dtype=torch.float64)])
    targets = wanted.transpose(0, 1).reshape(wanted.shape[1], -1).double()
    gains = torch.linalg.lstsq(columns.T, targets.T).solution.T.float()
    middle = convolution.kernel_size[0] // 2
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    for output in range(len(gains)):
        convolution.weight[output, signals, middle, middle] = gains[output, :-1]
        convolution.bias[output] = gains[output, -1]
