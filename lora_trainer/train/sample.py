"""Drawing pictures without a host: a short sampler on diffusers' schedulers, shared by previews, `sample` and the grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.text import tokenize
from lora_trainer.registry import Registry
from lora_trainer.train.prompts import SampleRequest
from lora_trainer.train.runtime import Precision, computing

SAMPLERS: Registry[Callable[..., Any]] = Registry("sampler")
NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@SAMPLERS.add("ddim", "DDIM")
def ddim(prediction: str) -> Any:
    """DDIM without added noise (Song et al. 2021)."""
    from diffusers.schedulers import DDIMScheduler

    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction)


@SAMPLERS.add("euler", "Euler")
def euler(prediction: str) -> Any:
    """Euler's method on the probability flow (Karras et al. 2022)."""
    from diffusers.schedulers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**NOISE, prediction_type=prediction)


@SAMPLERS.add("euler_a", "Euler a")
def euler_a(prediction: str) -> Any:
    """Euler's method with fresh noise in each step."""
    from diffusers.schedulers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(**NOISE, prediction_type=prediction)


def draw(bundle: ModelBundle, request: SampleRequest, precision: Precision, stopping: Callable[[], bool]) -> Image.Image | None:
    """The picture of a request, or None when `stopping` says so between two sampler steps."""
    latents = draw_latents(bundle, [request], precision, stopping)
    return None if latents is None else decode(bundle, latents)[0]


def draw_latents(bundle: ModelBundle, requests: list[SampleRequest], precision: Precision, stopping: Callable[[], bool]) -> Tensor | None:
    """Latents [n, 4, h, w] (scaled, float32) of requests that agree in all but prompt, negative and seed."""
    first = requests[0]
    prediction = "v_prediction" if bundle.prediction == "v" else "epsilon"
    scheduler = SAMPLERS[first.sampler].make(prediction)
    scheduler.set_timesteps(first.steps)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    shape = (4, first.height // 8, first.width // 8)
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(bundle.device)
    latents = latents * float(scheduler.init_noise_sigma)
    words = [request.negative for request in requests] + [request.prompt for request in requests]
    with computing(precision, bundle.device, grad=False):
        conditioning = encode_texts(bundle, words, first.clip_skip, first.max_token_length)
    for timestep in scheduler.timesteps:
        if stopping():
            return None
        with computing(precision, bundle.device, grad=False):
            both = scheduler.scale_model_input(torch.cat([latents, latents]), timestep).to(bundle.dtype)
            steps = timestep.reshape(1).expand(both.shape[0]).to(bundle.device)
            free, told = bundle.family.denoise(bundle, both, steps, conditioning).float().chunk(2)
            guided = free + first.cfg * (told - free)
            latents = _stepped(scheduler, guided, timestep, latents, generators)
    return latents


def encode_texts(bundle: ModelBundle, texts: list[str], clip_skip: int, max_token_length: int = 75) -> Tensor:
    """What the U-Net reads for some texts, each text encoded once."""
    unique = list(dict.fromkeys(texts))
    ids = tokenize(bundle.tokenizer, unique, max_token_length).to(bundle.device)
    encoded = bundle.family.encode_text(bundle, ids, clip_skip)
    return encoded[[unique.index(text) for text in texts]]


def decode(bundle: ModelBundle, latents: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents [n, 4, h, w], decoded one by one."""
    held = next(bundle.vae.parameters())
    pictures = []
    with torch.inference_mode(False), torch.no_grad():
        bundle.vae.to(bundle.device)
        for single in latents.split(1):
            pixels = bundle.vae.decode((single / bundle.family.latent_scale).to(held.dtype)).sample[0].float()
            array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            pictures.append(Image.fromarray(array))
    return pictures


def encode(bundle: ModelBundle, pixels: Tensor) -> Tensor:
    """Scaled latents [n, 4, h/8, w/8] float32 of pictures [n, 3, h, w] in -1..1: the mean of the VAE's distribution."""
    held = next(bundle.vae.parameters())
    with torch.inference_mode(False), torch.no_grad():
        bundle.vae.to(bundle.device)
        return bundle.vae.encode(pixels.to(bundle.device, held.dtype)).latent_dist.mean.float() * bundle.family.latent_scale


def _stepped(scheduler: Any, guided: Tensor, timestep: Tensor, latents: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One step of the scheduler; one that adds noise steps picture by picture, so that a batch changes nothing."""
    if "Ancestral" not in type(scheduler).__name__:
        return scheduler.step(guided, timestep, latents, return_dict=False)[0]
    index = scheduler.step_index
    stepped = []
    for number, generator in enumerate(generators):
        scheduler._step_index = index
        single = slice(number, number + 1)
        stepped.append(scheduler.step(guided[single], timestep, latents[single], generator=generator, return_dict=False)[0])
    return torch.cat(stepped)
