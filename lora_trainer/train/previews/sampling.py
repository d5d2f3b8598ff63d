"""Drawing pictures without a host: a short sampler on diffusers' schedulers, shared by previews, `sample` and the grid."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.models import prompt_weights
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.train.inputs import vae
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.previews.samplers import walk
from lora_trainer.train.step.precision import Precision, computing, ready


def draw(bundle: ModelBundle, request: SampleRequest, precision: Precision, stopping: Callable[[], bool]) -> Image.Image | None:
    """The picture of a request, or None when `stopping` says so between two sampler steps."""
    latents = draw_latents(bundle, [request], precision, stopping)
    return None if latents is None else decode(bundle, latents)[0]


def draw_latents(bundle: ModelBundle, requests: list[SampleRequest], precision: Precision, stopping: Callable[[], bool]) -> Tensor | None:
    """Latents [n, 4, h, w] (scaled, float32) of requests that agree in all but prompt, negative and seed."""
    first = requests[0]
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    shape = (4, first.height // 8, first.width // 8)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(bundle.device)
    words = [request.negative for request in requests] + [request.prompt for request in requests]
    with computing(precision, bundle.device, grad=False):
        conditioning = encode_texts(bundle, words, first.clip_skip, first.max_token_length)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with computing(precision, bundle.device, grad=False):
            both = torch.cat([latents, latents]).to(bundle.dtype)
            steps = timestep.reshape(1).expand(both.shape[0]).to(bundle.device)
            free, told = bundle.family.denoise(bundle, both, steps, conditioning).float().chunk(2)
            return free + first.cfg * (told - free)

    prediction = "v_prediction" if bundle.prediction == "v" else "epsilon"
    zero = bundle.zero_terminal_snr
    return walk(first.sampler, prediction, noise, first.steps, predict, generators, stopping, zero_terminal_snr=zero)


def encode_texts(bundle: ModelBundle, texts: list[str], clip_skip: int, max_token_length: int = 75) -> Conditioning:
    """What the U-Net reads for some prompts, each encoded once; a `max_token_length` of 0 reads them to their ends."""
    for encoder in bundle.text_encoders:
        ready(encoder, bundle.device)
    unique = list(dict.fromkeys(texts))
    ids, weights = prompt_weights.read(bundle.tokenizer, unique, max_token_length)
    encoded = bundle.family.encode_text(bundle, ids.to(bundle.device), clip_skip)
    widths = [encoder.config.hidden_size for encoder in bundle.text_encoders]
    encoded = attrs.evolve(encoded, states=prompt_weights.strengthened(encoded.states, weights, widths))
    return encoded[[unique.index(text) for text in texts]]


def decode(bundle: ModelBundle, latents: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents [n, 4, h, w], decoded one by one."""
    pictures = []
    for single in latents.split(1):
        pixels = vae.decode(bundle, single)[0]
        array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        pictures.append(Image.fromarray(array))
    return pictures
