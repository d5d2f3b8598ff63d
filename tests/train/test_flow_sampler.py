"""Samplers of rectified flow, beside diffusers' own and beside the exact solution for a bell curve."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_trainer.config.choices.samplers import CHOICES, FLOW_SAMPLERS
from lora_trainer.errors import TrainerError
from lora_trainer.train.previews.flow_sampling import noise_shares, run_flow_sampler

MEAN, SPREAD = 0.7, 0.4


def velocity(noisy: Tensor, timestep: Tensor) -> Tensor:
    """The perfect model of pictures whose pixels are drawn from a normal distribution: E[noise - picture | noisy]."""
    t = float(timestep) / 1000
    found, variance = noisy - (1 - t) * MEAN, (1 - t) ** 2 * SPREAD**2 + t**2
    return t * found / variance - (MEAN + (1 - t) * SPREAD**2 * found / variance)


def run(name: str, noise: Tensor, steps: int, shift: float = 1.0, predict: Callable[[Tensor, Tensor], Tensor] = velocity) -> Tensor:
    latents = run_flow_sampler(name, noise, steps, shift, predict, lambda: False)
    assert latents is not None
    return latents


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("shift", [1.0, 2.5, 3.0, 12.0])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_euler_steps_are_those_of_diffusers(noise: Tensor, steps: int, shift: float):
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    asked: list[float] = []

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        asked.append(float(timestep))
        return velocity(noisy, timestep)

    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(velocity(latents, timestep), timestep, latents, return_dict=False)[0]
    found = run("euler", noise, steps, shift, predict)
    np.testing.assert_allclose(noise_shares(steps, shift), scheduler.sigmas, atol=1e-6)
    np.testing.assert_allclose(asked, scheduler.timesteps, rtol=1e-6)
    np.testing.assert_allclose(found, latents, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_sampler_ends_where_the_flow_does(noise: Tensor, shift: float):
    exact = MEAN + SPREAD * noise
    for name in FLOW_SAMPLERS:
        far, near = (float((run(name, noise, steps, shift) - exact).abs().max()) for steps in (8, 80))
        assert near < 0.1 and near < far / 4, name


def test_heun_is_of_second_order_and_ddim_is_euler(noise: Tensor):
    exact = MEAN + SPREAD * noise
    euler, heun = (float((run(name, noise, 20) - exact).abs().max()) for name in ("euler", "heun"))
    assert heun < euler / 3
    np.testing.assert_array_equal(run("ddim", noise, 5), run("euler", noise, 5))


def test_a_clean_step_of_ddim_by_its_own_formula_is_eulers(noise: Tensor):
    """Without added noise: the picture and the noise that the model sees, mixed anew for the next time."""
    latents, shares = noise, noise_shares(6, 2.0)
    for t, after in itertools.pairwise(shares):
        v = velocity(latents, torch.tensor(t * 1000))
        clean, still = latents - t * v, latents + (1 - t) * v
        latents = (1 - after) * clean + after * still
    np.testing.assert_allclose(run("ddim", noise, 6, 2.0), latents, atol=1e-5)


def test_a_sampler_of_other_models_is_refused_by_name_with_those_that_work(noise: Tensor):
    for name in set(CHOICES) - set(FLOW_SAMPLERS):
        with pytest.raises(TrainerError) as caught:
            run(name, noise, 2)
        problem = caught.value.problems[0]
        assert CHOICES[name] in str(problem.message) and "Euler" in str(problem.fix) and problem.path == "sample.sampler"


def test_it_stops_between_two_steps(noise: Tensor):
    asked = iter([False, False, True])
    assert run_flow_sampler("euler", noise, 9, 1.0, velocity, lambda: next(asked)) is None
