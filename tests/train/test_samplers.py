"""Samplers against what is known without any: pictures whose distribution is a bell curve, and one another."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from lora_trainer import assets
from lora_trainer.config.choices.samplers import ALIASES, CHOICES, SAMPLER_SPECS, find_sampler, webui_names
from lora_trainer.models.load import load
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.models.source import FileSource
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.previews.sampling import SAMPLERS, decode, draw_latents, lms_coefficients, run_sampler
from lora_trainer.train.step.precision import choose_precision

NOISY = ("ddpm", "euler_a", "dpm_2_a")
STEADY = tuple(name for name in CHOICES if name not in NOISY)
MEAN, SPREAD = 0.7, 0.4


def levels() -> Tensor:
    """Share of signal at each of the 1000 steps of Stable Diffusion, by its definition."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def bell(prediction: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect model of pictures whose pixels are drawn from a normal distribution: Bayes' rule, no network."""
    shares = levels()

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        low = int(timestep)
        share = shares[low] + (float(timestep) - low) * (shares[min(low + 1, 999)] - shares[low])
        signal, noise = share**0.5, (1 - share) ** 0.5
        found = noisy.double() - signal * MEAN
        epsilon = noise * found / (signal**2 * SPREAD**2 + noise**2)
        clean = MEAN + signal * SPREAD**2 * found / (signal**2 * SPREAD**2 + noise**2)
        return (epsilon if prediction == "epsilon" else signal * epsilon - noise * clean).float()

    return predict


def end_of(noise: Tensor) -> Tensor:
    """Where the probability flow takes it: the whole of a bell curve is pushed onto the other, nothing overtakes."""
    signal = levels()[-1] ** 0.5
    return MEAN + SPREAD * (noise.double() - signal * MEAN) / (signal**2 * SPREAD**2 + 1 - signal**2) ** 0.5


def walked(name: str, prediction: str, noise: Tensor, steps: int, seeds: list[int] | None = None) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(noise))]
    found = run_sampler(name, prediction, noise, steps, bell(prediction), generators, lambda: False)
    assert found is not None
    return found


def noise_of(*seeds: int, side: int = 24) -> Tensor:
    return torch.stack([torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_every_name_of_sd_scripts_is_a_sampler():
    theirs = "ddim pndm lms heun euler euler_a dpmsolver dpmsolver++ dpmsingle k_lms k_euler k_euler_a dpm_2 dpm_2_a k_dpm_2 k_dpm_2_a"
    assert {find_sampler(name) for name in theirs.split()} <= set(SAMPLERS.names()) == set(CHOICES)
    assert find_sampler("K_Euler_A") == "euler_a" and find_sampler("DPM++ 2M") == "dpmsolver++" and find_sampler("fancy") is None
    assert set(ALIASES.values()) <= set(CHOICES) and all(sampler.webui_names for sampler in SAMPLER_SPECS)
    assert webui_names("pndm")[0] == "PLMS" and webui_names("DPM++ SDE") == ("DPM++ SDE",)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", STEADY)
def test_a_sampler_without_noise_ends_where_the_flow_does(name: str, prediction: str):
    noise = noise_of(1)
    coarse, fine = walked(name, prediction, noise, 25), walked(name, prediction, noise, 250)
    far = [float((found.double() - end_of(noise)).pow(2).mean().sqrt()) for found in (coarse, fine)]
    assert far[0] < 0.14 * SPREAD and far[1] < 0.03 * SPREAD


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpm_solver_walks_as_the_one_of_diffusers_that_is_deprecated(prediction: str, steps: int):
    from diffusers.schedulers import DPMSolverMultistepScheduler

    kinds = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "prediction_type": prediction}
    theirs, latents = DPMSolverMultistepScheduler(**SCALED_LINEAR.scheduler_config(), **kinds), noise_of(1, side=8)
    theirs.set_timesteps(steps)
    for timestep in theirs.timesteps:
        latents = theirs.step(bell(prediction)(latents, timestep), timestep, latents, return_dict=False)[0]
    # twenty steps of some ten operations in float32
    torch.testing.assert_close(walked("dpmsolver", prediction, noise_of(1, side=8), steps), latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NOISY)
def test_a_sampler_with_noise_ends_in_the_right_distribution(name: str):
    found = walked(name, "epsilon", noise_of(1), 300)
    assert abs(float(found.mean()) - MEAN) < 4 * SPREAD / found.numel() ** 0.5 + 0.01
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.05)
    assert not torch.equal(walked(name, "epsilon", noise_of(1), 3), walked(name, "epsilon", noise_of(1), 3, [99]))


@pytest.mark.parametrize("name", list(CHOICES))
def test_the_seed_decides_and_a_batch_changes_nothing(name: str):
    both = walked(name, "epsilon", noise_of(3, 4, side=8), 7, [3, 4])
    for number, seed in enumerate((3, 4)):
        alone = walked(name, "epsilon", noise_of(seed, side=8), 7, [seed])[0]
        # seven steps of some ten operations: a CPU rounds them differently at another place in its vectors
        torch.testing.assert_close(alone, both[number], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=0.1)


@pytest.mark.parametrize("name", list(CHOICES))
def test_few_steps_end_with_numbers_too(name: str):
    for steps in (1, 2, 3):
        assert walked(name, "epsilon", noise_of(1, side=2), steps).isfinite().all()


@pytest.mark.parametrize("name", [name for name in STEADY if "max_steps" in SAMPLERS[name].facts])
def test_more_steps_than_a_sampler_can_place_do_no_harm(name: str):
    noise = noise_of(1, side=8)
    assert float((walked(name, "epsilon", noise, 1000).double() - end_of(noise)).abs().max()) < 0.05


def test_a_picture_is_given_up_between_two_steps():
    asked = iter([False, False, True])
    seen: list[float] = []

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append(float(timestep))
        return noisy

    assert run_sampler("euler", "epsilon", noise_of(1, side=2), 9, predict, [torch.Generator()], lambda: next(asked)) is None
    assert len(seen) == 2


def test_multistep_weights_are_those_of_adams_and_bashforth_on_even_steps():
    assert lms_coefficients(4.0, [3.0, 2.0, 1.0, 0.0]) == pytest.approx(np.array([55, -59, 37, -9]) / 24)
    assert lms_coefficients(1.0, [3.0]) == pytest.approx([-2.0])


@lru_cache(maxsize=1)
def small_model():
    source, device = FileSource(assets.toy_checkpoint()), torch.device("cpu")
    precision = choose_precision("auto", source, device)
    return load(source, device, precision.base), precision


def drawn(*requests: SampleRequest) -> Tensor:
    bundle, precision = small_model()
    found = draw_latents(bundle, list(requests), precision, lambda: False)
    assert found is not None
    return found


def pixels(latents: Tensor) -> list[np.ndarray]:
    return [np.asarray(picture, dtype=np.float32) for picture in decode(small_model()[0], latents)]


ASKED = SampleRequest("a red circle on a white background", width=64, height=64, seed=3, cfg=5.0, steps=40)


def far_from_heun(name: str, steps: int) -> float:
    """Distance of the pictures, as a share of that between two seeds' pictures."""
    (same,) = pixels(drawn(attrs.evolve(ASKED, sampler="heun", steps=steps)))
    (found,) = pixels(drawn(attrs.evolve(ASKED, sampler=name, steps=steps)))
    (other,) = pixels(drawn(attrs.evolve(ASKED, sampler="heun", seed=4, steps=steps)))
    far, nothing_in_common = (float(np.sqrt(((picture - same) ** 2).mean())) for picture in (found, other))
    return far / nothing_in_common


def test_samplers_without_noise_draw_about_the_same_picture_with_the_small_model():
    assert far_from_heun("dpmsolver++", 14) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STEADY if name != "heun"])
def test_the_more_steps_the_more_alike_are_the_pictures_of_samplers_without_noise(name: str):
    assert far_from_heun(name, 100) < 0.1


@pytest.mark.parametrize("name", ["dpmsolver++", "dpm_2_a"])
def test_a_batch_of_the_small_model_draws_what_each_alone_draws(name: str):
    first = attrs.evolve(ASKED, sampler=name, steps=4)
    second = attrs.evolve(first, seed=5, prompt="a blue star")
    both = drawn(first, second)
    for request, found in zip((first, second), both, strict=True):
        assert torch.allclose(drawn(request)[0], found, atol=2e-3)
    assert torch.equal(drawn(first), drawn(first))


def test_a_text_is_read_to_its_end_where_nothing_limits_it():
    words = "a red circle " * 40
    cut, whole = (attrs.evolve(ASKED, prompt=f"{words} blue", steps=2, max_token_length=limit) for limit in (75, 0))
    other = attrs.evolve(whole, prompt=f"{words} green")
    assert torch.equal(drawn(cut), drawn(attrs.evolve(other, max_token_length=75)))
    assert not torch.equal(drawn(whole), drawn(other))
    assert torch.equal(drawn(attrs.evolve(ASKED, steps=2, max_token_length=0)), drawn(attrs.evolve(ASKED, steps=2)))
