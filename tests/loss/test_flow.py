"""Rectified flow against its formulas, written anew in numpy: the path, its velocity, shifted times, and what is drawn of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lora_trainer.config.schema import LossConfig
from lora_trainer.loss import noise as noising
from lora_trainer.loss.objectives import Diffusion, FlowMatching, objective_for
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.noise_schedule import RECTIFIED_FLOW, SCALED_LINEAR, schedule_for, shift_noise_share
from lora_trainer.train.step.objective import Batch, make_batch, per_image_losses
from tests.loss import formulas
from tests.loss.test_formulas import Told, numbers

CPU = torch.device("cpu")
TIMES = np.array([0.0, 1e-3, 0.05, 0.4567, 0.95, 1.0])
TIMESTEPS = torch.tensor(TIMES * 1000, dtype=torch.float32)
FLOW = FlowMatching()


def wide(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("kind", "schedule"), itertools.product(("l2", "l1", "huber", "smooth_l1"), ("snr", "exponential", "constant")))
def test_the_loss_of_a_flow_is_its_formula(kind: str, schedule: str):
    torch.manual_seed(11)
    latents, noise, answer = (torch.randn(len(TIMES), 4, 6, 8) for _ in range(3))
    mask = torch.rand(len(TIMES), 1, 6, 8)
    rules = LossConfig(loss_type=kind, huber_schedule=schedule, huber_c=0.2, huber_scale=1.5)
    model = Told(answer, "flow")
    found = per_image_losses(model, Batch(latents, noise, TIMESTEPS, answer, mask), rules)
    x, e, said = numbers(latents, noise, answer)
    np.testing.assert_allclose(model.asked.double().numpy(), (1 - wide(TIMES)) * x + wide(TIMES) * e, atol=1e-6)
    c = {"snr": 0.8 * (1 - TIMES) ** 2 + 0.2, "exponential": 1.5 * 0.2**TIMES, "constant": np.full(len(TIMES), 0.3)}[schedule]
    right = (formulas.errors(kind, said - (e - x), c) * mask.double().numpy()).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.double().numpy(), right, rtol=1e-5)


def test_whole_timesteps_of_validation_are_times_too():
    latents, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    for timesteps in (torch.tensor([50, 950]), torch.tensor([50.0, 950.0])):
        found = FLOW.add_noise(latents, noise, timesteps)
        np.testing.assert_allclose(found[1], 0.05 * latents[1] + 0.95 * noise[1], atol=1e-6)


def test_a_shift_is_its_formula_and_its_inverse_undoes_it():
    t = np.linspace(0.0, 1.0, 21)
    for shift in (0.5, 1.0, 2.5, 12.0):
        shifted = shift_noise_share(t, shift)
        np.testing.assert_allclose(shifted, shift * t / (1 + (shift - 1) * t), atol=1e-12)
        np.testing.assert_allclose(shift_noise_share(shifted, 1 / shift), t, atol=1e-12)
        assert shifted[0] == 0.0 and shifted[-1] == 1.0 and (np.diff(shifted) > 0).all()


def times(count: int = 4000, **options: object) -> np.ndarray:
    config = LossConfig(**options)
    return np.array([FLOW.draw(torch.zeros(1, 1, 1), config, number).timestep for number in range(count)]) / 1000


def test_times_are_drawn_from_the_whole_line_as_the_options_say():
    plain = times()
    assert plain.min() < 0.01 and plain.max() > 0.99 and abs(plain.mean() - 0.5) < 0.02
    assert len(set(plain)) > 3900, "times are not whole timesteps"
    np.testing.assert_allclose(times(discrete_flow_shift=2.5), shift_noise_share(plain, 2.5), atol=1e-6)
    around = times(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=0.8)
    logits = np.log(around / (1 - around))
    assert abs(logits.mean() - 0.5) < 0.05 and abs(logits.std() - 0.8) < 0.05
    both = times(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=0.8, discrete_flow_shift=3.0)
    np.testing.assert_allclose(both, shift_noise_share(around, 3.0), atol=1e-5)
    part = times(500, min_timestep=200, max_timestep=600, discrete_flow_shift=4.0)
    assert part.min() >= 0.2 and part.max() <= 0.6 and part.mean() > 0.45
    middle, ends = (times(timestep_sampling="mode", mode_scale=scale).std() for scale in (1.29, -1.0))
    assert middle < 0.26 < ends


def test_the_noise_of_a_picture_is_the_same_with_and_without_a_flow_and_at_any_time():
    latents, key = torch.randn(4, 8, 8), (1, 2, "a.png", 0)
    plain = noising.draw_noise(latents, LossConfig(noise_offset=0.1), *key)
    for options in ({}, {"discrete_flow_shift": 3.0}, {"timestep_sampling": "logit_normal"}):
        assert torch.equal(plain.noise, FLOW.draw(latents, LossConfig(noise_offset=0.1, **options), *key).noise)
    again = [FLOW.draw(latents, LossConfig(), *key).timestep for _ in range(2)]
    assert again[0] == again[1] != FLOW.draw(latents, LossConfig(), 1, 2, "b.png", 0).timestep


def test_a_batch_of_a_flow_holds_times_and_perturbed_noise_is_not_the_target():
    latents = [torch.randn(4, 4, 4) for _ in range(3)]
    keys = [(1, number) for number in range(3)]
    rules = LossConfig(ip_noise_gamma=0.1)
    batch = make_batch(latents, keys, lambda: Conditioning(torch.zeros(3, 77, 8)), rules, CPU, draw=FLOW.draw)
    assert batch.timesteps.dtype == torch.float32 and batch.timesteps.frac().any()
    model = Told(torch.zeros(3, 4, 4, 4), "flow")
    found = per_image_losses(model, batch, rules)
    target = batch.noise - batch.latents
    np.testing.assert_allclose(found, (target**2).mean(dim=(1, 2, 3)), rtol=1e-5)
    t = batch.timesteps.view(-1, 1, 1, 1) / 1000
    np.testing.assert_allclose(model.asked, (1 - t) * batch.latents + t * batch.input_noise, atol=1e-6)


def test_a_prediction_type_has_its_objective_and_its_schedule():
    alphas = SCALED_LINEAR.alphas_cumprod()
    assert isinstance(objective_for("flow", alphas), FlowMatching)
    assert [objective_for(kind, alphas).prediction for kind in ("epsilon", "v")] == ["epsilon", "v"]
    assert isinstance(objective_for("v", alphas), Diffusion)
    assert schedule_for("flow", SCALED_LINEAR) is RECTIFIED_FLOW and schedule_for("v", SCALED_LINEAR) is SCALED_LINEAR
    signal = RECTIFIED_FLOW.alphas_cumprod().double().numpy()
    t = np.arange(1000) / 1000
    np.testing.assert_allclose(signal, 1 / (1 + (t / (1 - t)) ** 2), atol=1e-6)
