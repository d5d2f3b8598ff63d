"""What a model learns: how noise is added, the target of the prediction, the elementwise loss between the two, the weight of a timestep."""

from __future__ import annotations

import math
from typing import Protocol

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from lora_trainer.config.schema import LossConfig
from lora_trainer.loss import noise as noising
from lora_trainer.loss import weights
from lora_trainer.models.noise_schedule import RECTIFIED_FLOW, RectifiedFlow
from lora_trainer.models.prediction_kinds import FLOW

TRAIN_TIMESTEPS = 1000
THRESHOLD_LOSSES = ("huber", "smooth_l1")


class Objective(Protocol):
    """What a model of one prediction type learns. Latents x and noise e are [batch, c, h, w], timesteps [batch] as its U-Net takes them."""

    def draw(self, latents: Tensor, loss_config: LossConfig, *key: object) -> noising.NoisyExample:
        """Timestep and noise of one image [c, h, w], seeded by its key."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents that the U-Net is given, [batch, c, h, w]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What it is to predict, [batch, c, h, w]."""
        ...

    def huber_threshold(self, loss_config: LossConfig, timesteps: Tensor) -> Tensor | None:
        """The threshold of each timestep [batch]; None for losses without one."""
        ...

    def timestep_weights(self, loss_config: LossConfig, timesteps: Tensor) -> list[Tensor]:
        """The loss weights [batch] that the config asks for."""
        ...


@attrs.frozen(eq=False)
class Diffusion:
    """Noise e ("epsilon") or velocity ("v") along sqrt(a) x + sqrt(1 - a) e; `alphas_cumprod` a is float32 [1000] on the device."""

    prediction: str
    alphas_cumprod: Tensor

    def draw(self, latents: Tensor, loss_config: LossConfig, *key: object) -> noising.NoisyExample:
        """A whole timestep."""
        return noising.draw_noise(latents, loss_config, *key)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(a) x + sqrt(1 - a) e."""
        return noising.add_noise(latents, noise, self.alphas_cumprod[timesteps])

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See `target`."""
        return target(self.prediction, latents, noise, self.alphas_cumprod[timesteps])

    def huber_threshold(self, loss_config: LossConfig, timesteps: Tensor) -> Tensor | None:
        """See `huber_threshold`."""
        return _threshold(loss_config, timesteps, self.alphas_cumprod[timesteps])

    def timestep_weights(self, loss_config: LossConfig, timesteps: Tensor) -> list[Tensor]:
        """See `timestep_weights`."""
        return timestep_weights(loss_config, self.alphas_cumprod[timesteps], self.prediction)


@attrs.frozen(eq=False)
class FlowMatching:
    """The velocity e - x along the straight path (1 - t) x + t e, t = timestep / 1000 (Liu et al. 2022; Esser et al. 2024, eq. 13)."""

    flow: RectifiedFlow = RECTIFIED_FLOW

    def draw(self, latents: Tensor, loss_config: LossConfig, *key: object) -> noising.NoisyExample:
        """Any timestep, shifted by discrete_flow_shift."""
        return noising.draw_noise(latents, loss_config, *key, flow=self.flow)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - t) x + t e."""
        return noising.add_noise_on_line(latents, noise, self.flow.noise_share(timesteps))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """e - x."""
        return noise - latents

    def huber_threshold(self, loss_config: LossConfig, timesteps: Tensor) -> Tensor | None:
        """As for diffusion, with a = (1 - t)^2 / ((1 - t)^2 + t^2): sigma is t / (1 - t), the threshold by it (1 - c) (1 - t)^2 + c."""
        t = self.flow.noise_share(timesteps)
        return _threshold(loss_config, timesteps, (1.0 - t) ** 2 / ((1.0 - t) ** 2 + t**2))

    def timestep_weights(self, loss_config: LossConfig, timesteps: Tensor) -> list[Tensor]:
        """None: those that the config knows are made for models that predict e or v (`flow_checks` refuses them)."""
        return []


def objective_for(prediction: str, alphas_cumprod: Tensor) -> Objective:
    """The objective of a model that predicts "epsilon", "v" or "flow"."""
    return FlowMatching() if prediction == FLOW else Diffusion(prediction, alphas_cumprod)


def target(prediction: str, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise e ("epsilon"), or sqrt(a) e - sqrt(1 - a) x ("v"; Salimans & Ho 2022, eq. 10, https://arxiv.org/abs/2202.00512).

    Args: latents x and noise e [batch, c, h, w]; alphas_cumprod a [batch].
    """
    if prediction == "epsilon":
        return noise
    a = alphas_cumprod.view(-1, 1, 1, 1).to(latents.dtype)
    return a.sqrt() * noise - (1.0 - a).sqrt() * latents


def elementwise_loss(kind: str, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Loss of each element, in the shape of both tensors; with d = prediction - target and the threshold c:

    "l2": d^2; "l1": |d|; "huber": 2 c (sqrt(d^2 + c^2) - c), the pseudo-Huber loss (Charbonnier et al. 1997), near d^2 for small d;
    "smooth_l1": 2 (sqrt(d^2 + c^2) - c), near 2 |d| for large d.

    Args: threshold c [batch], needed for "huber" and "smooth_l1". Raises ValueError where it is missing.
    """
    if kind == "l2":
        return functional.mse_loss(prediction, target, reduction="none")
    if kind == "l1":
        return functional.l1_loss(prediction, target, reduction="none")
    if threshold is None:
        raise ValueError(kind)
    c = threshold.view(-1, 1, 1, 1)
    distance = 2.0 * (torch.sqrt((prediction - target) ** 2 + c**2) - c)
    return distance * c if kind == "huber" else distance


def huber_threshold(schedule: str, timesteps: Tensor, alphas_cumprod: Tensor, c: float, scale: float) -> Tensor:
    """The threshold c of each timestep, [batch] (Khrapov et al. 2024).

    "constant": c s; "exponential": c^(t / 1000) s, from s at t = 0 to c s at the end; "snr": (1 - c) / (1 + sigma)^2 + c with
    sigma = sqrt((1 - a) / a), which does not use s (as in sd-scripts).

    Args: timesteps t and alphas_cumprod a, [batch]; `scale` s.
    """
    if schedule == "constant":
        return torch.full(alphas_cumprod.shape, c * scale, device=alphas_cumprod.device)
    if schedule == "exponential":
        return torch.exp(math.log(c) / TRAIN_TIMESTEPS * timesteps.to(alphas_cumprod.dtype)) * scale
    sigmas = ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()
    return (1.0 - c) / (1.0 + sigmas) ** 2 + c


def _threshold(loss_config: LossConfig, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor | None:
    if loss_config.loss_type not in THRESHOLD_LOSSES:
        return None
    return huber_threshold(loss_config.huber_schedule, timesteps, alphas_cumprod, loss_config.huber_c, loss_config.huber_scale)


def timestep_weights(loss_config: LossConfig, alphas: Tensor, prediction: str) -> list[Tensor]:
    """The loss weights [n] by timestep that the config asks for; those for models of the other prediction type are left out."""
    if not (
        loss_config.min_snr_gamma
        or loss_config.scale_v_pred_loss_like_noise_pred
        or loss_config.v_pred_like_loss
        or loss_config.debiased_estimation_loss
    ):
        return []
    snr, factors = weights.signal_to_noise(alphas), []
    if loss_config.min_snr_gamma:
        factors.append(weights.min_snr(snr, loss_config.min_snr_gamma, prediction))
    if loss_config.scale_v_pred_loss_like_noise_pred and prediction == "v":
        factors.append(weights.scale_v_like_noise(snr))
    if loss_config.v_pred_like_loss and prediction == "epsilon":
        factors.append(weights.add_v_like(snr, loss_config.v_pred_like_loss))
    if loss_config.debiased_estimation_loss:
        factors.append(weights.debiased_estimation(snr, prediction))
    return factors
