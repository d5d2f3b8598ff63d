"""What each option of loss and validation does to a run: its gradient when on, nothing when off, its words in header and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lora_trainer.config.build import build
from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import LossConfig, ValidateConfig
from lora_trainer.errors import ConfigError
from lora_trainer.events import Finished, Saved, Stepped, Validated, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train import setup
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.planning import preflight
from lora_trainer.train.step.objective import make_batch, per_image_losses
from lora_trainer.train.validation import choose_records
from tests.train.runs import assets, events_of, small_config, tensors_of
from tests.train.test_distributed import ended, lines, started

PLAIN = LossConfig()
VAL = str(assets.toy_pictures() / "crescent" / "val")
ON: list[dict[str, Any]] = [
    {"loss_type": "l1"},
    {"loss_type": "huber"},
    {"loss_type": "smooth_l1"},
    {"loss_type": "huber", "huber_schedule": "exponential"},
    {"loss_type": "huber", "huber_schedule": "constant"},
    {"loss_type": "huber", "huber_c": 0.3},
    {"loss_type": "huber", "huber_schedule": "constant", "huber_scale": 2.0},
    {"min_snr_gamma": 1.0},
    {"debiased_estimation_loss": True},
    {"v_pred_like_loss": 0.5},
    {"noise_offset": 0.1},
    {"noise_offset": 0.1, "noise_offset_random_strength": True},
    {"noise_offset": 0.1, "adaptive_noise_scale": 0.2},
    {"multires_noise_iterations": 6},
    {"multires_noise_iterations": 6, "multires_noise_discount": 0.8},
    {"ip_noise_gamma": 0.1},
    {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
    {"min_timestep": 600},
    {"max_timestep": 200},
    {"timestep_sampling": "logit_normal"},
    {"timestep_sampling": "logit_normal", "logit_mean": 1.0},
    {"timestep_sampling": "logit_normal", "logit_std": 0.1},
    {"timestep_sampling": "mode"},
    {"timestep_sampling": "mode", "mode_scale": -0.5},
]
OFF: list[dict[str, Any]] = [
    {"huber_schedule": "constant", "huber_c": 0.5, "huber_scale": 3.0},
    {"scale_v_pred_loss_like_noise_pred": True},
    {"noise_offset_random_strength": True, "adaptive_noise_scale": 1.0},
    {"multires_noise_discount": 0.9},
    {"ip_noise_gamma_random_strength": True},
    {"logit_mean": 3.0, "logit_std": 0.1, "mode_scale": 0.0},
    {"discrete_flow_shift": 3.0},
]


@pytest.fixture(scope="module")
def gradient(tmp_path_factory):
    """gradient(options): that of the network for four showings of the small model's pictures."""
    folder = tmp_path_factory.mktemp("gradient")
    config = small_config(folder, optimizer__text_encoder_lr=0)
    pictures = load_dataset(config)
    with StandaloneHost(folder).lease(config.model) as lease:
        trainer = setup.prepare(config, pictures, lease)
    trainer.attach()
    records = pictures.train_records[:4]
    latents, keys = [trainer.latent(record, False) for record in records], [(1, 1, record.key, 0) for record in records]

    def of(options: dict[str, Any]) -> torch.Tensor:
        rules = LossConfig(**options)
        with torch.enable_grad(), trainer.adapter.using_tensors(trainer.optimizer.tensors(None)):
            words = trainer.caption_encoder.encode
            batch = make_batch(latents, keys, lambda: words(trainer.bundle, ["a crescent"] * 4), rules, torch.device("cpu"))
            per_image_losses(trainer.bundle, batch, rules).sum().backward()
        found = torch.cat([part.flatten().clone() for part in trainer.optimizer.gradients()])
        trainer.optimizer.zero_grad()
        return found

    yield of
    trainer.detach()


def test_every_option_changes_what_is_learned_when_it_is_on(gradient):
    found = {str(options): gradient(options) for options in [{}, *ON]}
    same = [(a, b) for a in found for b in found if a < b and torch.equal(found[a], found[b])]
    assert same == []
    assert all(part.isfinite().all() for part in found.values())
    tried = {name for options in (*ON, *OFF) for name in options} | {"prior_loss_weight"}
    assert tried == {option.path for option in declared_options(LossConfig)}


def test_no_option_changes_a_bit_when_it_is_off(gradient):
    plain = gradient({})
    assert [options for options in [{}, *OFF] if not torch.equal(plain, gradient(options))] == []


def test_a_run_with_everything_on_learns_something_else_and_says_so_in_its_file(tmp_path: Path):
    loss = {
        "loss_type": "huber",
        "huber_c": 0.2,
        "min_snr_gamma": 5.0,
        "v_pred_like_loss": 0.1,
        "noise_offset": 0.05,
        "noise_offset_random_strength": True,
        "adaptive_noise_scale": 0.01,
        "multires_noise_iterations": 6,
        "ip_noise_gamma": 0.1,
        "min_timestep": 20,
        "timestep_sampling": "logit_normal",
    }
    tensors = []
    for name, given in (("plain", {}), ("all", loss)):
        config = small_config(tmp_path / name, loss=given, steps__max_train_steps=2, validate__fraction=0.1, validate__seed=9)
        assert isinstance(events_of(config, tmp_path / name)[-1], Finished)
        tensors.append(tensors_of(tmp_path / name / "loras" / "small.safetensors"))
    assert any(not torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    words = []
    for name in ("plain", "all"):
        with safe_open(tmp_path / name / "loras" / "small.safetensors", framework="pt") as file:
            words.append(file.metadata())
    plain, told = words
    assert (plain["ss_loss_type"], plain["ss_huber_schedule"], plain["ss_huber_c"], plain["ss_huber_scale"]) == ("l2", "snr", "0.1", "1.0")
    assert (plain["ss_noise_offset"], plain["ss_ip_noise_gamma"], plain["ss_debiased_estimation"]) == ("None", "None", "False")
    assert "ss_min_timestep" not in plain and "ss_timestep_sampling" not in plain
    given = {f"ss_{name}": str(value) for name, value in loss.items()}
    assert {name: told.get(name) for name in given} == given
    assert (told["ss_validation_split"], told["ss_validation_seed"], told["ss_max_validation_steps"]) == ("0.1", "9", "None")


@pytest.mark.parametrize(
    ("loss", "facts", "path", "words"),
    [
        ({"min_snr_gamma": 5.0, "debiased_estimation_loss": True}, {}, "loss.debiased_estimation_loss", "Use one of them"),
        ({"huber_c": 0.2}, {}, "loss.huber_c", "no effect while loss.loss_type is l2"),
        ({"loss_type": "huber", "huber_scale": 2.0}, {}, "loss.huber_scale", "no effect while loss.huber_schedule is snr"),
        ({"adaptive_noise_scale": 0.1}, {}, "loss.adaptive_noise_scale", "no effect while loss.noise_offset is off"),
        ({"noise_offset": 0.1, "multires_noise_iterations": 6}, {}, "loss.multires_noise_iterations", "Use one of them"),
        ({"scale_v_pred_loss_like_noise_pred": True}, {}, "loss.scale_v_pred_loss_like_noise_pred", "predicts the noise"),
        ({"v_pred_like_loss": 0.1}, {"prediction": "v"}, "loss.v_pred_like_loss", "predicts v already"),
        ({"noise_offset": 0.1}, {"prediction": "v", "zero_terminal_snr": True}, "loss.noise_offset", "zero terminal SNR"),
        ({"min_snr_gamma": 5.0}, {"zero_terminal_snr": True}, "loss.min_snr_gamma", "a signal of 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_together_are_named(loss: dict, facts: dict, path: str, words: str):
    found = list(preflight.loss_warnings(LossConfig(**loss), **facts))
    assert [named for named, _ in found] == [path] and words in found[0][1].text()


@pytest.mark.parametrize(
    "loss",
    [{}, {"min_snr_gamma": 5.0}, {"loss_type": "huber", "huber_c": 0.2}, {"noise_offset": 0.1, "adaptive_noise_scale": 0.1}],
    ids=str,
)
def test_options_that_make_sense_are_left_in_peace(loss: dict):
    assert list(preflight.loss_warnings(LossConfig(**loss))) == []
    assert list(preflight.loss_warnings(PLAIN, prediction="v", zero_terminal_snr=True)) == []


def test_a_doubt_is_told_before_the_first_step_and_an_empty_range_is_refused(tmp_path: Path):
    config = small_config(tmp_path, loss__huber_c=0.2, validate__early_stop_patience=2, steps__max_train_steps=1)
    events = events_of(config, tmp_path)
    first = next(place for place, event in enumerate(events) if isinstance(event, Stepped))
    assert {"loss.huber_c", "validate.early_stop_patience"} <= {event.path for event in events[:first] if isinstance(event, Warned)}
    with pytest.raises(ConfigError) as refused:
        build({"loss": {"min_timestep": 500, "max_timestep": 500}})
    assert [problem.path for problem in refused.value.problems] == ["loss.min_timestep"]


def test_an_end_that_cannot_come_is_told():
    assert [path for path, _ in preflight.validation_warnings(ValidateConfig(early_stop_patience=3), 0)] == ["validate.early_stop_patience"]
    never = ValidateConfig(early_stop_patience=3, every_n_epochs=0)
    assert len(list(preflight.validation_warnings(never, 5))) == 1
    assert not list(preflight.validation_warnings(ValidateConfig(early_stop_patience=3), 5))


def test_a_run_that_validates_no_better_ends_early_as_finished(tmp_path: Path):
    config = small_config(
        tmp_path,
        validate={"data_dir": VAL, "every_n_steps": 1, "early_stop_patience": 2, "early_stop_min_delta": 0.5, "max_pictures": 1},
        save__every_n_epochs=0,
    )
    events = events_of(config, tmp_path)
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2]
    (told,) = [event for event in events if isinstance(event, Warned) and event.path == "validate.early_stop_patience"]
    assert "ends early" in told.message.text()
    assert isinstance(events[-1], Finished) and events[-1].step == 2
    assert [Path(event.path).name for event in events if isinstance(event, Saved)] == ["small.safetensors"]
    validated = [event for event in events if isinstance(event, Validated)]
    lowest = min(validated[1:], key=lambda event: event.loss)
    assert [event.step for event in validated] == [0, 1, 2] and lowest.best and not validated[0].best


@pytest.mark.slow
def test_an_early_end_reaches_every_process(tmp_path: Path):
    rules = {"data_dir": VAL, "every_n_steps": 2, "early_stop_patience": 1, "early_stop_min_delta": 0.9, "max_pictures": 1}
    process = started(tmp_path, small_config(tmp_path, validate=rules, steps__max_train_steps=1000), processes=2)
    assert ended(tmp_path, process) == 0
    assert [event["step"] for event in lines(tmp_path, "finished")] == [2]


def test_patience_that_does_not_run_out_changes_no_bit(tmp_path: Path):
    given = {"data_dir": VAL, "every_n_steps": 2, "max_pictures": 2}
    results = []
    for patience in (0, 50):
        folder = tmp_path / str(patience)
        events = events_of(small_config(folder, validate={**given, "early_stop_patience": patience}, steps__max_train_steps=4), folder)
        results.append(([event for event in events if isinstance(event, Validated)], tensors_of(folder / "loras" / "small.safetensors")))
    (seen, plain), (again, patient) = results
    assert seen == again and all(torch.equal(plain[name], patient[name]) for name in plain)


def test_at_most_so_many_pictures_are_validated_and_always_the_same(tmp_path: Path):
    held = load_dataset(small_config(tmp_path, validate__data_dir=VAL)).validation_records
    few = choose_records(held, 2)
    assert len(few) == 2 < len(held) and choose_records(held, 0) == tuple(held) == choose_records(held, 1000)
    assert set(choose_records(list(reversed(held)), 2)) == set(few) and choose_records(few, 2) == few


def test_another_validation_seed_holds_other_pictures_back(tmp_path: Path):
    def held(**seeds) -> set[str]:
        return {record.key for record in load_dataset(small_config(tmp_path, validate__fraction=0.3, **seeds)).validation_records}

    assert held(seed=1) == held(seed=1, validate__seed=1) == held(seed=5, validate__seed=1) != held(seed=1, validate__seed=2)
