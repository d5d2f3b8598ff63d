"""Noise, targets and weights against the papers' formulas and diffusers' schedulers."""

from __future__ import annotations

import torch

from lora_trainer.config.schema import LossConfig
from lora_trainer.loss.noise import add_noise, draw_noise
from lora_trainer.loss.objectives import target
from lora_trainer.loss.weights import min_snr, signal_to_noise
from lora_trainer.models.noise_schedule import SCALED_LINEAR

PLAIN = LossConfig()


def test_noise_and_targets_are_those_of_diffusers():
    from diffusers.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    steps = torch.tensor([0, 400, 999])
    alphas = SCALED_LINEAR.alphas_cumprod()[steps]
    assert torch.allclose(add_noise(latents, noise, alphas), scheduler.add_noise(latents, noise, steps), atol=1e-6)
    assert torch.equal(target("epsilon", latents, noise, alphas), noise)
    assert torch.allclose(target("v", latents, noise, alphas), scheduler.get_velocity(latents, noise, steps), atol=1e-6)


def test_min_snr_clamps_the_weight_of_nearly_clean_steps():
    snr = torch.tensor([0.1, 5.0, 20.0])
    assert torch.allclose(min_snr(snr, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 0.25]))
    assert torch.allclose(min_snr(snr, 5.0, "v"), torch.tensor([0.1 / 1.1, 5.0 / 6.0, 5.0 / 21.0]))
    assert torch.allclose(signal_to_noise(torch.tensor([0.5, 0.8])), torch.tensor([1.0, 4.0]))


def test_the_same_words_draw_the_same_noise_and_others_do_not():
    first, again, other = (draw_noise(torch.zeros(4, 8, 8), PLAIN, 1, 2, key, 0) for key in ("a", "a", "b"))
    assert first.timestep == again.timestep
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)


def test_timesteps_cover_the_whole_schedule():
    drawn = [draw_noise(torch.zeros(1, 1, 1), PLAIN, number).timestep for number in range(4000)]
    assert min(drawn) < 10
    assert max(drawn) > 989
    assert abs(sum(drawn) / len(drawn) - 499.5) < 25


def test_noise_offset_shifts_whole_channels():
    latents = torch.zeros(4, 32, 32)
    difference = draw_noise(latents, LossConfig(noise_offset=0.5), "x").noise - draw_noise(latents, PLAIN, "x").noise
    assert difference.std(dim=(1, 2)).max() < 1e-6
    assert difference.abs().max() > 0.01
