"""Drawing pictures without a host: a short sampler on diffusers' schedulers, shared by previews, `sample` and the grid."""

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
from lora_trainer.models.noise_schedule import alphas_cumprod
from lora_trainer.registry import Registry
from lora_trainer.train.inputs import vae
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.step.precision import Precision, cast_for_inference, compute_scope


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
    with compute_scope(precision, bundle.device, grad=False):
        conditioning = encode_texts(bundle, words, first.clip_skip, first.max_token_length)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with compute_scope(precision, bundle.device, grad=False):
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
        cast_for_inference(encoder, bundle.device)
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


SAMPLERS: Registry[Callable[[str], Any]] = Registry("sampler")
"""Each makes a scheduler for a prediction type, "epsilon" or "v_prediction".

Facts: `noisy`, it adds noise in each step; `most`, the steps from which on its own way of choosing among the 1000 goes wrong.
"""
NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@SAMPLERS.add("ddim", "DDIM", most=250)
def ddim(prediction: str) -> Any:
    """DDIM without added noise (Song et al. 2021)."""
    from diffusers.schedulers import DDIMScheduler

    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction)


@SAMPLERS.add("ddpm", "DDPM", noisy=True)
def ddpm(prediction: str) -> Any:
    """The reverse of the noising, with its noise (Ho et al. 2020)."""
    from diffusers.schedulers import DDPMScheduler

    return DDPMScheduler(**NOISE, clip_sample=False, steps_offset=1, timestep_spacing="trailing", prediction_type=prediction)


@SAMPLERS.add("pndm", "PNDM", most=250)
def pndm(prediction: str) -> Any:
    """Pseudo linear multistep of order 4, a WebUI's PLMS (Liu et al. 2022)."""
    from diffusers.schedulers import PNDMScheduler

    return PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction)


@SAMPLERS.add("lms", "LMS")
def lms(prediction: str) -> Any:
    """Linear multistep of order 4 (Adams and Bashforth, on uneven steps)."""
    return LinearMultistep(euler(prediction), prediction)


@SAMPLERS.add("heun", "Heun")
def heun(prediction: str) -> Any:
    """Heun's method (Karras et al. 2022, algorithm 1): the model is asked twice a step."""
    from diffusers.schedulers import HeunDiscreteScheduler

    return HeunDiscreteScheduler(**NOISE, prediction_type=prediction)


@SAMPLERS.add("euler", "Euler")
def euler(prediction: str) -> Any:
    """Euler's method on the probability flow (Karras et al. 2022)."""
    from diffusers.schedulers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**NOISE, prediction_type=prediction)


@SAMPLERS.add("euler_a", "Euler a", noisy=True)
def euler_a(prediction: str) -> Any:
    """Euler's method with fresh noise in each step."""
    from diffusers.schedulers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(**NOISE, prediction_type=prediction)


@SAMPLERS.add("dpmsolver", "DPM-Solver", most=999)
def dpmsolver(prediction: str) -> Any:
    """DPM-Solver-2, multistep (Lu et al. 2022)."""
    from diffusers.schedulers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**NOISE, algorithm_type="dpmsolver", final_sigmas_type="sigma_min", prediction_type=prediction)


@SAMPLERS.add("dpmsolver++", "DPM-Solver++", most=999)
def dpmsolver_plus(prediction: str) -> Any:
    """DPM-Solver++(2M) (Lu et al. 2022b)."""
    from diffusers.schedulers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**NOISE, algorithm_type="dpmsolver++", prediction_type=prediction)


@SAMPLERS.add("dpmsingle", "DPM-Solver++ single", most=999)
def dpmsingle(prediction: str) -> Any:
    """DPM-Solver++(2S) (Lu et al. 2022b)."""
    from diffusers.schedulers import DPMSolverSinglestepScheduler

    return DPMSolverSinglestepScheduler(**NOISE, lower_order_final=True, prediction_type=prediction)


@SAMPLERS.add("dpm_2", "DPM2")
def dpm_2(prediction: str) -> Any:
    """A midpoint method (Karras et al. 2022, algorithm 2 without added noise): the model is asked twice a step."""
    from diffusers.schedulers import KDPM2DiscreteScheduler

    return KDPM2DiscreteScheduler(**NOISE, prediction_type=prediction)


@SAMPLERS.add("dpm_2_a", "DPM2 a", noisy=True)
def dpm_2_a(prediction: str) -> Any:
    """The midpoint method with fresh noise in each step."""
    from diffusers.schedulers import KDPM2AncestralDiscreteScheduler

    return KDPM2AncestralDiscreteScheduler(**NOISE, prediction_type=prediction)


class LinearMultistep:
    """A scheduler that goes along the slopes of the last four steps; diffusers' own needs scipy for the same numbers.

    The noise levels are those of Euler's scheduler.
    """

    ORDER = 4

    def __init__(self, levels: Any, prediction: str) -> None:
        self.levels, self.prediction = levels, prediction
        self.slopes: list[Tensor] = []
        self.index = 0

    def set_timesteps(self, steps: int) -> None:
        """Begins a picture of so many steps."""
        self.levels.set_timesteps(steps)
        self.slopes, self.index = [], 0

    @property
    def timesteps(self) -> Tensor:
        """Where the model is asked, [steps]."""
        found: Tensor = self.levels.timesteps
        return found

    @property
    def init_noise_sigma(self) -> Any:
        """Length of the first noise."""
        return self.levels.init_noise_sigma

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The latents as the model knows them, of variance 1."""
        return sample / float(self.levels.sigmas[self.index] ** 2 + 1) ** 0.5

    def step(self, output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The latents at the next noise level."""
        sigmas = [float(sigma) for sigma in self.levels.sigmas]
        sigma, order = sigmas[self.index], min(self.index + 1, self.ORDER)
        if self.prediction == "v_prediction":
            output = (output + sample * sigma / (sigma**2 + 1) ** 0.5) / (sigma**2 + 1) ** 0.5
        self.slopes = [output, *self.slopes][: self.ORDER]
        weights = multistep_weights(sigmas[self.index + 1], sigmas[self.index - order + 1 : self.index + 1][::-1])
        self.index += 1
        return (sample + sum(weight * slope for weight, slope in zip(weights, self.slopes, strict=False)),)


def multistep_weights(to: float, levels: list[float]) -> list[float]:
    """What each slope counts on the way from levels[0] to `to`: integrals of Lagrange's polynomials through at most 4 `levels`.

    Gauss' rule with two points is exact for their degree.
    """
    points, shares = np.polynomial.legendre.leggauss(2)
    half = (to - levels[0]) / 2
    found = []
    for one in range(len(levels)):
        others = levels[:one] + levels[one + 1 :]
        values = [np.prod([(levels[0] + half * (point + 1) - other) / (levels[one] - other) for other in others]) for point in points]
        found.append(float(half * (shares * np.array(values)).sum()))
    return found


def from_pure_noise(scheduler: Any) -> Any:
    """The same scheduler on a schedule with zero terminal SNR, from its last step on (Lin et al. 2023).

    What is left of the picture there is 2**-24 instead of nothing: the samplers divide by it.
    """
    if isinstance(scheduler, LinearMultistep):
        return LinearMultistep(from_pure_noise(scheduler.levels), scheduler.prediction)
    alphas = alphas_cumprod(zero_terminal_snr=True).double().clamp(min=2.0**-24)
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    known = {"trained_betas": betas.tolist(), **({"timestep_spacing": "trailing"} if "timestep_spacing" in config else {})}
    return type(scheduler)(**config | known)


def walk(
    name: str,
    prediction: str,
    noise: Tensor,
    steps: int,
    predict: Callable[[Tensor, Tensor], Tensor],
    generators: list[torch.Generator],
    stopping: Callable[[], bool],
    *,
    zero_terminal_snr: bool = False,
) -> Tensor | None:
    """Latents [n, c, h, w] at the end of a sampler's way from standard normal `noise`, or None when `stopping` says so between steps.

    `predict(latents of variance 1, timestep)` is the guided model. A sampler that adds noise draws each picture's from its own
    generator, so that a batch changes nothing. `zero_terminal_snr`: the model was trained down to pure noise, and is asked there first.
    """
    sampler = SAMPLERS[name]
    scheduler = from_pure_noise(sampler.make(prediction)) if zero_terminal_snr else sampler.make(prediction)
    scheduler.set_timesteps(min(steps, sampler.facts.get("most", steps)))
    latents = noise * float(scheduler.init_noise_sigma)
    more: dict[str, Any] = {"generator": generators} if sampler.facts.get("noisy") else {}
    for timestep in scheduler.timesteps:
        if stopping():
            return None
        output = predict(scheduler.scale_model_input(latents, timestep), timestep)
        with torch.inference_mode(False), torch.no_grad():
            latents = scheduler.step(output, timestep, latents, **more, return_dict=False)[0]
    return latents
