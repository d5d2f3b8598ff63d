"""Each option of the loss against its formula, written anew in numpy, and against numbers that sd-scripts' own functions gave."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_trainer.config.schema import LossConfig
from lora_trainer.loss import noise
from lora_trainer.loss import noise as noising
from lora_trainer.loss.objectives import elementwise_loss, huber_threshold, timestep_weights
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.train.step.objective import Batch, apply_prior_weight, make_batch, per_image_losses
from tests.loss import formulas

SD_SCRIPTS = json.loads((Path(__file__).parent / "sd_scripts.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")
STEPS = torch.tensor([0, 1, 50, 400, 900, 999])
KINDS = ("l2", "l1", "huber", "smooth_l1")
WEIGHTS = (
    {},
    {"min_snr_gamma": 5.0},
    {"min_snr_gamma": 0.5},
    {"debiased_estimation_loss": True},
    {"scale_v_pred_loss_like_noise_pred": True},
    {"v_pred_like_loss": 0.7},
    {"min_snr_gamma": 3.0, "debiased_estimation_loss": True, "v_pred_like_loss": 0.1, "scale_v_pred_loss_like_noise_pred": True},
)


class Told:
    """A model that gives the answer that it is told, and keeps what it was asked."""

    dtype = torch.float32
    alphas_cumprod = SCALED_LINEAR.alphas_cumprod()

    def __init__(self, answer: torch.Tensor, prediction: str) -> None:
        self.answer, self.prediction, self.family = answer, prediction, self

    def denoise(self, bundle, noisy, timesteps, conditioning):
        self.asked = noisy
        return self.answer


def numbers(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_is_its_formula(weights: dict, prediction: str):
    torch.manual_seed(3)
    latents, noise, answer = (torch.randn(len(STEPS), 4, 6, 8) for _ in range(3))
    mask, is_reg = torch.rand(len(STEPS), 1, 6, 8), [False, True] * 3
    kept = SCALED_LINEAR.alphas_cumprod()[STEPS].double().numpy()
    np.testing.assert_allclose(kept, formulas.alphas()[STEPS.numpy()], rtol=2e-6)
    difference = answer.double().numpy() - formulas.wanted(prediction, *numbers(latents, noise), kept)
    for kind, schedule, masks in itertools.product(KINDS, ("snr", "exponential", "constant"), (None, mask)):
        rules = LossConfig(loss_type=kind, huber_schedule=schedule, huber_c=0.2, huber_scale=1.5, **weights)
        model = Told(answer, prediction)
        found = apply_prior_weight(per_image_losses(model, Batch(latents, noise, STEPS, answer, masks), rules), is_reg, 0.3)
        c = formulas.threshold(schedule, STEPS.numpy(), kept, 0.2, 1.5)
        each = formulas.errors(kind, difference, c) * (1.0 if masks is None else masks.double().numpy())
        right = each.mean(axis=(1, 2, 3)) * formulas.weight(weights, kept, prediction) * np.where(is_reg, 0.3, 1.0)
        np.testing.assert_allclose(found.double().numpy(), right, rtol=3e-6)
        np.testing.assert_allclose(model.asked.double().numpy(), formulas.noisy(*numbers(latents, noise), kept), atol=1e-5)


def test_a_threshold_changes_from_squares_to_lengths():
    small, large, c = torch.tensor([1e-2]).view(1, 1, 1, 1), torch.tensor([100.0]).view(1, 1, 1, 1), torch.tensor([0.5])
    zero = torch.zeros(1, 1, 1, 1)
    assert float(elementwise_loss("huber", small, zero, c)) == pytest.approx(1e-4, rel=1e-3)
    assert float(elementwise_loss("smooth_l1", large, zero, c)) == pytest.approx(2 * 99.5, rel=1e-4)


@pytest.mark.parametrize(("offset", "adaptive"), [(0.1, 0.0), (0.1, 0.5), (0.05, -0.4)])
def test_offset_noise_is_its_formula(offset: float, adaptive: float):
    torch.manual_seed(4)
    latents, noise, shift = torch.randn(4, 6, 8) + 0.4, torch.randn(4, 6, 8), torch.randn(4, 1, 1)
    found = noising.offset_noise(noise, shift, noising.offset_strength(latents, offset, adaptive))
    np.testing.assert_allclose(found.numpy(), formulas.offset_noise(*numbers(noise, shift, latents), offset, adaptive), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 24, 16), (4, 7, 31)])
def test_coarse_noise_is_its_formula_at_every_shape(shape: tuple[int, ...]):
    layers = noising.multires_levels(shape, 6, noising.generator_for("layers", *shape))
    noise = torch.randn(shape, generator=noising.generator_for("noise"))
    sizes = [tuple(layer.shape[1:]) for layer in layers]
    assert sizes[0] == shape[1:] and sorted(sizes, reverse=True) == sizes and 1 < len(sizes) <= 6
    assert [1 in size for size in sizes[:-1]] == [False] * (len(sizes) - 1)
    found = noising.multires_noise(noise, layers, 0.6)
    np.testing.assert_allclose(found.numpy(), formulas.coarse_noise(noise.double().numpy(), [*numbers(*layers)], 0.6), atol=2e-6)
    assert float(found.std()) == pytest.approx(1.0, abs=1e-5)


def test_shares_of_the_steps_are_their_formulas():
    uniform, normal = torch.rand(200), torch.randn(200)
    for mean, std in ((0.0, 1.0), (-1.5, 0.4), (2.0, 3.0)):
        np.testing.assert_allclose(noise.logit_normal(normal, mean, std), formulas.logit_normal(*numbers(normal), mean, std), atol=1e-6)
    for scale in (-1.0, 0.0, 1.29, 1.75):
        found = noise.mode_sampling(uniform, scale)
        np.testing.assert_allclose(found, formulas.mode(*numbers(uniform), scale), atol=1e-6)
        assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0


def drawn(count: int = 3000, **rules) -> np.ndarray:
    """Timesteps of many showings."""
    config = LossConfig(**rules)
    return np.array([noising.draw_noise(torch.zeros(1, 1, 1), config, number).timestep for number in range(count)])


def test_steps_are_drawn_from_their_range_and_by_their_rule():
    uniform = drawn(min_timestep=200, max_timestep=400)
    assert (uniform.min(), uniform.max()) == (200, 399) and abs(uniform.mean() - 299.5) < 5
    assert set(drawn(50, min_timestep=7, max_timestep=8)) == {7}
    around = drawn(timestep_sampling="logit_normal", logit_mean=0.7, logit_std=0.5)
    assert np.median(around) == pytest.approx(1000 / (1 + math.exp(-0.7)), abs=15)
    assert np.quantile(around, 0.84134) == pytest.approx(1000 / (1 + math.exp(-1.2)), abs=15)
    inside = drawn(timestep_sampling="logit_normal", min_timestep=500, max_timestep=600, logit_std=10.0)
    assert (inside.min(), inside.max()) == (500, 599)
    ends, middle = (drawn(timestep_sampling="mode", mode_scale=scale) for scale in (-1.0, 1.5))
    assert ends.std() > drawn().std() + 20 > middle.std() + 60


def test_an_option_of_the_noise_leaves_everything_else_that_is_drawn():
    latents = torch.randn(4, 8, 8)
    plain = noising.draw_noise(latents, LossConfig(), 1, "a.png")
    assert plain.input_noise is plain.noise
    shown = noising.draw_noise(latents, LossConfig(ip_noise_gamma=0.2, ip_noise_gamma_random_strength=True), 1, "a.png")
    more = (shown.input_noise - shown.noise) / 0.2
    assert torch.equal(shown.noise, plain.noise) and 0 < float(more.std()) < 1.2 and shown.timestep == plain.timestep
    fixed = noising.draw_noise(latents, LossConfig(ip_noise_gamma=0.2), 1, "a.png")
    ratio = more / ((fixed.input_noise - fixed.noise) / 0.2)
    assert float(ratio.std()) < 1e-3 and 0 < float(ratio.mean()) < 1
    moved = noising.draw_noise(latents, LossConfig(timestep_sampling="mode", min_timestep=10, max_timestep=300), 1, "a.png")
    assert torch.equal(moved.noise, plain.noise) and 10 <= moved.timestep < 300
    coarse = noising.draw_noise(latents, LossConfig(multires_noise_iterations=4), 1, "a.png")
    assert coarse.timestep == plain.timestep and not torch.equal(coarse.noise, plain.noise)


def test_an_offset_of_any_strength_is_drawn_for_each_picture():
    latents = torch.zeros(4, 8, 8)
    whole, part = (
        [
            noising.draw_noise(latents, LossConfig(noise_offset=0.4, noise_offset_random_strength=random), number).noise
            - noising.draw_noise(latents, LossConfig(), number).noise
            for number in range(200)
        ]
        for random in (False, True)
    )
    shares = np.array([float((some / all_).mean()) for some, all_ in zip(part, whole, strict=True)])
    assert 0 <= shares.min() < 0.1 and 0.9 < shares.max() <= 1.001 and abs(shares.mean() - 0.5) < 0.07


def test_a_perturbed_picture_is_asked_with_more_noise_than_should_be_found():
    torch.manual_seed(5)
    latents, answer = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    rules = LossConfig(ip_noise_gamma=0.1)
    batch = make_batch(list(latents), [(1, "a"), (1, "b")], lambda: Conditioning(answer), rules, CPU)
    model = Told(answer, "epsilon")
    found = per_image_losses(model, batch, rules)
    kept = formulas.alphas()[batch.timesteps.numpy()]
    noise, shown = numbers(batch.noise, batch.input_noise)
    np.testing.assert_allclose(found, ((answer.double().numpy() - noise) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(model.asked, formulas.noisy(latents.double().numpy(), shown, kept), atol=1e-5)
    assert np.std(shown - noise) == pytest.approx(0.1, rel=0.15)


def wave(*shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float32) * 1.7 + 0.3).reshape(shape)


def test_numbers_of_sd_scripts_own_functions_come_out():
    told, kept = SD_SCRIPTS, SCALED_LINEAR.alphas_cumprod()[STEPS]
    for schedule, values in told["thresholds"].items():
        assert huber_threshold(schedule, STEPS, kept, 0.2, 3.0).tolist() == pytest.approx(values, rel=2e-6)
    difference = torch.tensor(told["differences"]).view(1, 4, 1, 1)
    for kind, values in told["errors at threshold 0.25"].items():
        assert elementwise_loss(kind, difference, torch.zeros_like(difference), torch.tensor([0.25])).flatten().tolist() == pytest.approx(
            values,
            rel=1e-4,
            abs=1.2e-7,  # a root minus its threshold in float32: rounded to its last bit, 6e-8, which differs between CPUs
        )
    for words, values in told["weights"].items():
        name, *rest = words.split()
        (found,) = timestep_weights(LossConfig(**{name: float(rest[0]) if len(rest) == 2 else True}), kept, rest[-1])
        assert found.tolist() == pytest.approx(values, rel=2e-6)
    coarse = noising.multires_noise(wave(2, 5, 7).flip(-1), [wave(2, 5, 7), wave(2, 2, 3) * 0.5], 0.4)
    assert coarse.flatten().tolist() == pytest.approx(told["multires noise of waves, discount 0.4, layers 5x7 and 2x3"], abs=2e-6)
    for adaptive in (0.5, -0.5):
        strength = noising.offset_strength(wave(2, 3, 4) + 0.2, 0.1, adaptive)
        found = noising.offset_noise(torch.zeros(2, 3, 4), wave(2, 1, 1), strength)[:, 0, 0]
        assert found.tolist() == pytest.approx(told[f"noise offset 0.1 of a wave, adaptive {adaptive}"], abs=1e-6)
