"""Values that follow where an option was left empty."""

from __future__ import annotations

import pytest

from lora_trainer.config import effective
from lora_trainer.config.build import build


def test_a_part_without_a_rate_of_its_own_has_the_learning_rate():
    config = build({"optimizer": {"learning_rate": 0.5, "text_encoder_lr": 0.25}})
    assert (effective.unet_lr(config), effective.text_encoder_lr(config)) == (0.5, 0.25)


def test_only_a_rate_of_zero_of_its_own_leaves_a_part_out():
    config = build({"optimizer": {"learning_rate": 0, "text_encoder_lr": 0}})
    assert effective.trains_unet(config) and not effective.trains_text_encoder(config)


@pytest.mark.parametrize(
    "given, epochs, steps",
    [({}, 1, 0), ({"every_n_steps": 5}, 0, 5), ({"every_n_epochs": 0}, 0, 0), ({"every_n_epochs": 3}, 3, 0)],
)
@pytest.mark.parametrize("section", ["sample", "validate", "save"])
def test_intervals_left_empty_mean_each_epoch_unless_steps_are_given(section, given, epochs, steps):
    chosen = getattr(build({section: given}), section)
    assert (effective.interval_epochs(chosen), effective.interval_steps(chosen)) == (epochs, steps)


def test_with_epochs_and_steps_previews_go_by_epochs_and_the_others_by_both():
    config = build({name: {"every_n_epochs": 2, "every_n_steps": 5} for name in ("sample", "save", "validate")})
    assert (effective.interval_epochs(config.sample), effective.interval_steps(config.sample)) == (2, 0)
    assert (effective.interval_epochs(config.save), effective.interval_steps(config.save)) == (2, 5)
    assert (effective.interval_epochs(config.validate), effective.interval_steps(config.validate)) == (2, 5)


@pytest.mark.parametrize("given, total, steps", [(10, 240, 10), (10, 4, 4), ("5%", 240, 12), ("12.5 %", 100, 13), ("100%", 7, 7)])
def test_warm_up_in_steps(given, total, steps):
    assert effective.warmup_steps(build({"schedule": {"warmup_steps": given}}), total) == steps


@pytest.mark.parametrize(
    "given, per_epoch, length",
    [
        ({}, 13, (10, 130)),
        ({"max_train_epochs": 3}, 13, (3, 39)),
        ({"max_train_steps": 40}, 13, (4, 40)),
        ({"max_train_steps": 39}, 13, (3, 39)),
        ({"max_train_epochs": 3, "max_train_steps": 1000}, 13, (3, 39)),
    ],
)
def test_epochs_win_over_steps_and_with_neither_there_are_ten(given, per_epoch, length):
    assert effective.train_length(build({"steps": given}), per_epoch) == length


@pytest.mark.parametrize(
    "mapping, name",
    [
        ({"save": {"output_name": "mika v2"}, "data": {"trigger_word": "sks"}}, "mika v2"),
        ({"data": {"trigger_word": "sks mika", "train_data_dir": "x/10_y"}}, "sks_mika"),
        ({"data": {"train_data_dir": "/p/10_sks girl"}}, "sks_girl"),
        ({"data": {"train_data_dir": "D:\\photos\\mika"}}, "mika"),
        ({"data": {"train_data_dir": "/p/mika/"}}, "mika"),
        ({"data": {"train_data_dir": "/p/a_b"}}, "a_b"),
        ({}, "lora"),
    ],
)
def test_the_name_comes_from_the_name_the_trigger_or_the_folder(mapping, name):
    assert effective.output_name(build(mapping)) == name


def test_prompt_lines_without_comments_and_empty_lines():
    config = build({"sample": {"prompts": ["a dog\n# note\n\n a cat ", "#x", "last"]}})
    assert effective.prompt_lines(config) == ["a dog", "a cat", "last"]


def test_optimizer_arguments_are_python_values_else_text():
    config = build({"optimizer": {"args": "weight_decay=0.01 betas=.9,.999 fused=True decay=cosine"}})
    assert effective.optimizer_args(config) == {"weight_decay": 0.01, "betas": (0.9, 0.999), "fused": True, "decay": "cosine"}


def test_the_network_counts_alpha_over_rank():
    assert effective.network_scale(build({"network": {"dim": 16, "alpha": 4}})) == 0.25


def test_one_number_is_a_square_training_size():
    assert effective.resolution(build({"data": {"resolution": 64}})) == (64, 64)
    assert effective.resolution(build({"data": {"resolution": [64, 128]}})) == (64, 128)
