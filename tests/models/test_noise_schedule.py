"""The noise schedule with and without zero terminal SNR, and the v objective: by formula, by diffusers, and by gradient."""

from __future__ import annotations

import math

import pytest
import torch

from lora_trainer.loss.noise import add_noise
from lora_trainer.loss.objectives import target
from lora_trainer.loss.weights import min_snr, signal_to_noise
from lora_trainer.models.noise_schedule import SCALED_LINEAR

DIFFUSERS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_the_schedule_without_signal_at_the_end_is_diffusers():
    from diffusers.schedulers import DDIMScheduler

    theirs = DDIMScheduler(**DIFFUSERS, rescale_betas_zero_snr=True).alphas_cumprod
    assert torch.allclose(SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=True), theirs, atol=1e-6)


def test_it_ends_in_pure_noise_begins_as_before_and_falls():
    plain, zero = SCALED_LINEAR.alphas_cumprod().double(), SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=True).double()
    assert zero[-1] == 0
    assert math.isclose(zero[0], plain[0], rel_tol=1e-6)
    assert bool((zero.diff() < 0).all())
    first, last = plain[0].sqrt(), plain[-1].sqrt()
    assert torch.allclose(zero.sqrt(), (plain.sqrt() - last) * first / (first - last), atol=1e-6)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_v_that_is_learned_is_that_of_diffusers_scheduler(zero_terminal_snr):
    from diffusers.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(**DIFFUSERS, rescale_betas_zero_snr=zero_terminal_snr, prediction_type="v_prediction")
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 10, 500, 998, 999])
    alphas = SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=zero_terminal_snr)[steps]
    assert torch.allclose(add_noise(latents, noise, alphas), scheduler.add_noise(latents, noise, steps), atol=1e-5)
    assert torch.allclose(target("v", latents, noise, alphas), scheduler.get_velocity(latents, noise, steps), atol=1e-5)


def test_from_v_and_the_noisy_picture_both_noise_and_picture_come_back():
    """x = sqrt(a) z - sqrt(1 - a) v and e = sqrt(1 - a) z + sqrt(a) v (Salimans & Ho 2022, appendix D), also where a is 0."""
    latents, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alphas = SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=True)[torch.tensor([0, 400, 998, 999])].double()
    kept = alphas.view(-1, 1, 1, 1)
    noisy, v = add_noise(latents, noise, alphas), target("v", latents, noise, alphas)
    assert torch.allclose(kept.sqrt() * noisy - (1 - kept).sqrt() * v, latents, atol=1e-6)
    assert torch.allclose((1 - kept).sqrt() * noisy + kept.sqrt() * v, noise, atol=1e-6)
    assert torch.equal(v[-1], -latents[-1])  # at the last step the picture itself is asked for


def test_learning_v_has_the_gradient_of_learning_the_noise_times_what_the_formula_says():
    """With the noise that a v means, e = sqrt(1 - a) z + sqrt(a) v, the error of e is sqrt(a) times that of v, so its gradient a times."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    alphas = SCALED_LINEAR.alphas_cumprod()[torch.tensor([100, 500, 900])].double()
    kept, weight = alphas.view(-1, 1, 1, 1), torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    noisy = add_noise(latents, noise, alphas)

    def answer() -> torch.Tensor:
        return torch.einsum("oc,bchw->bohw", weight, noisy)

    for number in range(3):
        one = slice(number, number + 1)
        as_v = ((answer() - target("v", latents, noise, alphas))[one] ** 2).mean()
        meant = ((1 - kept).sqrt() * noisy + kept.sqrt() * answer())[one]
        as_noise = ((meant - target("epsilon", latents, noise, alphas)[one]) ** 2).mean()
        (of_v,), (of_noise,) = torch.autograd.grad(as_v, weight), torch.autograd.grad(as_noise, weight)
        assert torch.allclose(of_noise, of_v * alphas[number], rtol=1e-6)


def test_weights_stay_finite_where_nothing_of_the_picture_is_left():
    alphas = SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=True)[torch.tensor([0, 500, 999])]
    weights = min_snr(signal_to_noise(alphas), 5.0, "v")
    assert torch.isfinite(weights).all()
    assert weights[-1] == 0
