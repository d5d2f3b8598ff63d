"""Draws pictures without a host, with diffusers' schedulers; used by previews, the `sample` command and the grid.

Top down: whole pictures, then the sampling loop, then the samplers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.models import prompt_weights
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.models.prediction_kinds import FLOW
from lora_trainer.registry import Registry
from lora_trainer.train.inputs import vae
from lora_trainer.train.memory import placement
from lora_trainer.train.previews.dpm_solver import DPMSolver
from lora_trainer.train.previews.flow_sampling import run_flow_sampler
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.step.precision import Precision, compute_scope


def draw(
    bundle: ModelBundle,
    request: SampleRequest,
    precision: Precision,
    stopping: Callable[[], bool],
    make_ready: Callable[[str], object] = lambda kind: None,
) -> Image.Image | None:
    """The picture of a request; None when `stopping` returns True between two sampler steps.

    `make_ready` is called with the kind of work before each part of it, and may move the parts of the model.
    """
    latents = draw_latents(bundle, [request], precision, stopping, make_ready)
    if latents is None:
        return None
    make_ready(placement.PICTURES)
    return decode(bundle, latents)[0]


def draw_latents(
    bundle: ModelBundle,
    requests: list[SampleRequest],
    precision: Precision,
    stopping: Callable[[], bool],
    make_ready: Callable[[str], object] = lambda kind: None,
) -> Tensor | None:
    """Latents [n, channels, h, w] (scaled, float32) of requests that agree in all but prompt, negative and seed."""
    first = requests[0]
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    shape = (bundle.family.latent_channels, first.height // 8, first.width // 8)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(bundle.device)
    prompts = [request.negative for request in requests] + [request.prompt for request in requests]
    make_ready(placement.CAPTIONS)
    with compute_scope(precision, bundle.device, grad=False):
        conditioning = encode_prompts(bundle, prompts, first.clip_skip, first.max_token_length)
    make_ready(placement.EVALUATING)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with compute_scope(precision, bundle.device, grad=False):
            batch = torch.cat([latents, latents]).to(bundle.dtype)
            timesteps = timestep.reshape(1).expand(batch.shape[0]).to(bundle.device)
            unconditional, conditional = bundle.family.denoise(bundle, batch, timesteps, conditioning).float().chunk(2)
            return unconditional + first.cfg * (conditional - unconditional)

    if bundle.prediction == FLOW:
        return run_flow_sampler(first.sampler, noise, first.steps, first.flow_shift, predict, stopping)
    prediction_type = "v_prediction" if bundle.prediction == "v" else "epsilon"
    return run_sampler(
        first.sampler, prediction_type, noise, first.steps, predict, generators, stopping, zero_terminal_snr=bundle.zero_terminal_snr
    )


def encode_prompts(bundle: ModelBundle, prompts: list[str], clip_skip: int, max_token_length: int = 75) -> Conditioning:
    """Conditioning of prompts with weights like `(word:1.2)`, each encoded once; a `max_token_length` of 0 uses all tokens."""
    for encoder in bundle.text_encoders:
        placement.move_to_device(encoder, bundle.device)
    unique = list(dict.fromkeys(prompts))
    ids, weights = prompt_weights.tokenize_weighted(bundle.tokenizer, unique, max_token_length)
    encoded = bundle.family.encode_text(bundle, ids.to(bundle.device), clip_skip)
    widths = [encoder.config.hidden_size for encoder in bundle.text_encoders]
    encoded = attrs.evolve(encoded, states=prompt_weights.apply_weights(encoded.states, weights, widths))
    return encoded[[unique.index(prompt) for prompt in prompts]]


def decode(bundle: ModelBundle, latents: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents [n, channels, h, w], decoded one by one."""
    pictures = []
    for single in latents.split(1):
        pixels = vae.decode(bundle, single)[0]
        array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        pictures.append(Image.fromarray(array))
    return pictures


def run_sampler(
    name: str,
    prediction_type: str,
    noise: Tensor,
    steps: int,
    predict: Callable[[Tensor, Tensor], Tensor],
    generators: list[torch.Generator],
    stopping: Callable[[], bool],
    *,
    zero_terminal_snr: bool = False,
) -> Tensor | None:
    """Latents [n, c, h, w] that a sampler makes of standard normal `noise`; None when `stopping` returns True between two steps.

    `predict(latents of variance 1, timestep)` is the guided model. A stochastic sampler draws each picture's noise from its own
    generator, so that results do not depend on the batch. `zero_terminal_snr`: sampling starts at the last timestep, pure noise.
    """
    sampler = SAMPLERS[name]
    scheduler = with_zero_terminal_snr(sampler.build(prediction_type)) if zero_terminal_snr else sampler.build(prediction_type)
    scheduler.set_timesteps(min(steps, sampler.facts.get("max_steps", steps)))
    latents = noise * float(scheduler.init_noise_sigma)
    kwargs: dict[str, Any] = {"generator": generators} if sampler.facts.get("stochastic") else {}
    for timestep in scheduler.timesteps:
        if stopping():
            return None
        output = predict(scheduler.scale_model_input(latents, timestep), timestep)
        with torch.inference_mode(False), torch.no_grad():
            latents = scheduler.step(output, timestep, latents, **kwargs, return_dict=False)[0]
    return latents


def with_zero_terminal_snr(scheduler: Any) -> Any:
    """The same scheduler with a schedule of zero terminal SNR, starting at its last timestep (Lin et al. 2023).

    The last alpha is 2**-24 instead of 0, since the samplers divide by it.
    """
    if isinstance(scheduler, DPMSolver):
        return DPMSolver(with_zero_terminal_snr(scheduler.levels), scheduler.prediction_type)
    if isinstance(scheduler, LinearMultistep):
        return LinearMultistep(with_zero_terminal_snr(scheduler.euler), scheduler.prediction_type)
    alphas = SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=True).double().clamp(min=2.0**-24)
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    changes = {"trained_betas": betas.tolist(), **({"timestep_spacing": "trailing"} if "timestep_spacing" in config else {})}
    return type(scheduler)(**config | changes)


SAMPLERS: Registry[Callable[[str], Any]] = Registry("sampler")
"""Each builds a scheduler for a prediction type, "epsilon" or "v_prediction".

Facts: `stochastic`, it adds noise in each step; `max_steps`, beyond which its timestep spacing no longer works.
"""
NOISE_SCHEDULE = SCALED_LINEAR.scheduler_config()


@SAMPLERS.add("ddim", "DDIM", max_steps=250)
def ddim(prediction_type: str) -> Any:
    """DDIM without added noise (Song et al. 2021)."""
    from diffusers.schedulers import DDIMScheduler

    return DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type)


@SAMPLERS.add("ddpm", "DDPM", stochastic=True)
def ddpm(prediction_type: str) -> Any:
    """Ancestral sampling (Ho et al. 2020)."""
    from diffusers.schedulers import DDPMScheduler

    return DDPMScheduler(**NOISE_SCHEDULE, clip_sample=False, steps_offset=1, timestep_spacing="trailing", prediction_type=prediction_type)


@SAMPLERS.add("pndm", "PNDM", max_steps=250)
def pndm(prediction_type: str) -> Any:
    """Pseudo linear multistep of order 4, a WebUI's PLMS (Liu et al. 2022)."""
    from diffusers.schedulers import PNDMScheduler

    return PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type)


@SAMPLERS.add("lms", "LMS")
def lms(prediction_type: str) -> Any:
    """Linear multistep of order 4 (Adams and Bashforth, on uneven steps)."""
    return LinearMultistep(euler(prediction_type), prediction_type)


@SAMPLERS.add("heun", "Heun")
def heun(prediction_type: str) -> Any:
    """Heun's method (Karras et al. 2022, algorithm 1): two model evaluations per step."""
    from diffusers.schedulers import HeunDiscreteScheduler

    return HeunDiscreteScheduler(**NOISE_SCHEDULE, prediction_type=prediction_type)


@SAMPLERS.add("euler", "Euler")
def euler(prediction_type: str) -> Any:
    """Euler's method on the probability flow (Karras et al. 2022)."""
    from diffusers.schedulers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**NOISE_SCHEDULE, prediction_type=prediction_type)


@SAMPLERS.add("euler_a", "Euler a", stochastic=True)
def euler_a(prediction_type: str) -> Any:
    """Euler's method with fresh noise in each step."""
    from diffusers.schedulers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(**NOISE_SCHEDULE, prediction_type=prediction_type)


@SAMPLERS.add("dpmsolver", "DPM-Solver", max_steps=999)
def dpmsolver(prediction_type: str) -> Any:
    """DPM-Solver-2, multistep (Lu et al. 2022)."""
    from diffusers.schedulers import DPMSolverMultistepScheduler

    levels = DPMSolverMultistepScheduler(**NOISE_SCHEDULE, final_sigmas_type="sigma_min", prediction_type=prediction_type)
    return DPMSolver(levels, prediction_type)


@SAMPLERS.add("dpmsolver++", "DPM-Solver++", max_steps=999)
def dpmsolver_plus(prediction_type: str) -> Any:
    """DPM-Solver++(2M) (Lu et al. 2022b)."""
    from diffusers.schedulers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, algorithm_type="dpmsolver++", prediction_type=prediction_type)


@SAMPLERS.add("dpmsingle", "DPM-Solver++ single", max_steps=999)
def dpmsingle(prediction_type: str) -> Any:
    """DPM-Solver++(2S) (Lu et al. 2022b)."""
    from diffusers.schedulers import DPMSolverSinglestepScheduler

    return DPMSolverSinglestepScheduler(**NOISE_SCHEDULE, lower_order_final=True, prediction_type=prediction_type)


@SAMPLERS.add("dpm_2", "DPM2")
def dpm_2(prediction_type: str) -> Any:
    """A midpoint method (Karras et al. 2022, algorithm 2 without added noise): two model evaluations per step."""
    from diffusers.schedulers import KDPM2DiscreteScheduler

    return KDPM2DiscreteScheduler(**NOISE_SCHEDULE, prediction_type=prediction_type)


@SAMPLERS.add("dpm_2_a", "DPM2 a", stochastic=True)
def dpm_2_a(prediction_type: str) -> Any:
    """The midpoint method with fresh noise in each step."""
    from diffusers.schedulers import KDPM2AncestralDiscreteScheduler

    return KDPM2AncestralDiscreteScheduler(**NOISE_SCHEDULE, prediction_type=prediction_type)


class LinearMultistep:
    """Linear multistep scheduler of order 4, as diffusers' LMSDiscreteScheduler, which needs scipy for the same coefficients.

    The noise levels are those of the Euler scheduler.
    """

    ORDER = 4

    def __init__(self, euler: Any, prediction_type: str) -> None:
        self.euler, self.prediction_type = euler, prediction_type
        self.derivatives: list[Tensor] = []
        self.index = 0

    def set_timesteps(self, steps: int) -> None:
        """Starts a picture of `steps` steps."""
        self.euler.set_timesteps(steps)
        self.derivatives, self.index = [], 0

    @property
    def timesteps(self) -> Tensor:
        """Timesteps at which the model is evaluated, [steps]."""
        timesteps: Tensor = self.euler.timesteps
        return timesteps

    @property
    def init_noise_sigma(self) -> Any:
        """Standard deviation of the initial noise."""
        return self.euler.init_noise_sigma

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The latents scaled to variance 1, as the model takes them."""
        return sample / float(self.euler.sigmas[self.index] ** 2 + 1) ** 0.5

    def step(self, output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The latents at the next noise level."""
        sigmas = [float(sigma) for sigma in self.euler.sigmas]
        sigma, order = sigmas[self.index], min(self.index + 1, self.ORDER)
        if self.prediction_type == "v_prediction":
            output = (output + sample * sigma / (sigma**2 + 1) ** 0.5) / (sigma**2 + 1) ** 0.5
        self.derivatives = [output, *self.derivatives][: self.ORDER]
        coefficients = lms_coefficients(sigmas[self.index + 1], sigmas[self.index - order + 1 : self.index + 1][::-1])
        self.index += 1
        return (sample + sum(factor * derivative for factor, derivative in zip(coefficients, self.derivatives, strict=False)),)


def lms_coefficients(next_sigma: float, sigmas: list[float]) -> list[float]:
    """Coefficients of the derivatives for a step from sigmas[0] to `next_sigma`: integrals of the Lagrange polynomials through at most
    four `sigmas`, newest first. Gauss-Legendre quadrature with two points is exact for their degree.
    """
    points, weights = np.polynomial.legendre.leggauss(2)
    half = (next_sigma - sigmas[0]) / 2
    coefficients = []
    for index in range(len(sigmas)):
        others = sigmas[:index] + sigmas[index + 1 :]
        values = [np.prod([(sigmas[0] + half * (point + 1) - other) / (sigmas[index] - other) for other in others]) for point in points]
        coefficients.append(float(half * (weights * np.array(values)).sum()))
    return coefficients
