"""Plain values become a config, or a list of everything that is wrong with them."""

from __future__ import annotations

from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.build import apply_overrides, build, to_mapping
from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError


def problems(mapping):
    with pytest.raises(ConfigError) as caught:
        build(mapping)
    return {problem.path: problem for problem in caught.value.problems}


def test_four_mistakes_in_one_file_are_four_problems_with_path_value_bound_and_nearest_name():
    found = problems({"resolutoin": 64, "data": {"flip_aug": "false", "batch_size": 2.7}, "network": {"dim": 0}})
    assert set(found) == {"resolutoin", "data.flip_aug", "data.batch_size", "network.dim"}
    assert "data.resolution" in found["resolutoin"].text()
    assert '"false"' in found["data.flip_aug"].text() and "true or false" in found["data.flip_aug"].text()
    assert "2.7" in found["data.batch_size"].text() and "whole number" in found["data.batch_size"].text()
    assert found["network.dim"].message.values["value"] == 0 and found["network.dim"].message.values["low"] == 1


def test_nothing_given_is_the_default_config():
    assert build({}) == TrainConfig()


@pytest.mark.parametrize("value", [True, "4", 4.0, 4.5, None, [4], {"x": 4}, float("nan")])
def test_a_whole_number_is_never_guessed_from_something_else(value):
    assert "whole number" in problems({"data": {"batch_size": value}})["data.batch_size"].text()


@pytest.mark.parametrize("value", [1, 0, "true", "false", "", None, 1.0])
def test_a_switch_is_never_guessed_from_something_else(value):
    assert "true or false" in problems({"data": {"flip_aug": value}})["data.flip_aug"].text()


@pytest.mark.parametrize("value", [True, "1e-4", float("nan"), float("inf"), float("-inf"), [0.1], 10**400])
def test_a_number_is_finite_and_never_guessed_from_something_else(value):
    assert "must be a number" in problems({"optimizer": {"learning_rate": value}})["optimizer.learning_rate"].text()


def test_a_whole_number_serves_where_a_number_is_wanted():
    alpha = build({"network": {"alpha": 2}}).network.alpha
    assert alpha == 2.0 and type(alpha) is float


@pytest.mark.parametrize("value", [3, True, ["a"], None])
def test_text_is_never_guessed_from_something_else(value):
    assert "must be text" in problems({"data": {"trigger_word": value}})["data.trigger_word"].text()


@pytest.mark.parametrize(
    "given_size, size", [(64, 64), ([512, 768], (512, 768)), ("512,768", (512, 768)), ("512", 512), ("512x768", (512, 768))]
)
def test_a_training_size_is_a_number_a_pair_or_sd_scripts_text(given_size, size):
    assert build({"data": {"resolution": given_size}}).data.resolution == size


@pytest.mark.parametrize(
    "given_size, said",
    [
        ([512], "width and height"),
        ([512, 512, 512], "width and height"),
        ("wide", "width and height"),
        ([512, 2.5], "width and height"),
        ([True, 512], "width and height"),
        ([512, 700], "multiple of 64, for example 704"),
        (60, "at least 64"),
        ([64, 5000], "at most 4096"),
        ("512,700", "not a multiple of 8"),
    ],
)
def test_a_wrong_training_size_is_refused_with_the_reason(given_size, said):
    assert said in problems({"data": {"resolution": given_size}})["data.resolution"].text()


def test_one_prompt_or_many_are_both_a_list():
    assert build({"sample": {"prompts": "a dog, --w 64"}}).sample.prompts == ("a dog, --w 64",)
    assert build({"sample": {"prompts": ["a", "b"]}}).sample.prompts == ("a", "b")
    assert build({"sample": {"prompts": ""}}).sample.prompts == ()
    assert "list of texts" in problems({"sample": {"prompts": ["a", 3]}})["sample.prompts"].text()


@pytest.mark.parametrize("value", [0, 100, "5%", "2.5 %", "100%"])
def test_warm_up_is_steps_or_a_share(value):
    assert build({"schedule": {"warmup_steps": value}}).schedule.warmup_steps == value


@pytest.mark.parametrize("value", ["5", "101%", "-1%", "five", "%", -1, 2.5, True])
def test_a_wrong_warm_up_is_refused(value):
    assert "schedule.warmup_steps" in problems({"schedule": {"warmup_steps": value}})


def test_choices_ignore_letter_case_and_a_wrong_one_names_the_nearest():
    assert build({"optimizer": {"type": "adamw"}}).optimizer.type == "AdamW"
    assert "Did you mean cosine?" in problems({"schedule": {"type": "cosin"}})["schedule.type"].text()
    assert "Choose one of these: lora." in problems({"method": "dreambooth"})["method"].text()


@pytest.mark.parametrize(
    "mapping, path, near",
    [
        ({"train_batch_size": 2}, "train_batch_size", "data.batch_size"),
        ({"data": {"train_batch_size": 2}}, "data.train_batch_size", "data.batch_size"),
        ({"network_dim": 8}, "network_dim", "network.dim"),
        ({"network": {"network_alpha": 8}}, "network.network_alpha", "network.alpha"),
        ({"optimizer": {"lr": 1}}, "optimizer.lr", "optimizer.learning_rate"),
        ({"unet_lr": 1}, "unet_lr", "optimizer.unet_lr"),
        ({"save": {"save_every_n_epochs": 1}}, "save.save_every_n_epochs", "save.every_n_epochs"),
        ({"sample": {"every_n_epoch": 1}}, "sample.every_n_epoch", "sample.every_n_epochs"),
        ({"lr_scheduler": "cosine"}, "lr_scheduler", "schedule.type"),
        ({"optmizer": {}}, "optmizer", "[optimizer]"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_over_sd_scripts_names_too(mapping, path, near):
    assert near in problems(mapping)[path].fix.text()


def test_a_name_that_is_near_to_nothing_is_to_be_taken_out():
    assert "Take it out" in problems({"qqqqzzzz": 1})["qqqqzzzz"].fix.text()


def test_a_value_where_a_section_belongs_is_named():
    assert "[model]" in problems({"model": "sd15.safetensors"})["model"].text()


@pytest.mark.parametrize("option", list(declared_options(TrainConfig)), ids=lambda option: option.path)
def test_every_bound_is_guarded_on_both_sides(option):
    known = option.option
    for bound, outside, inside in [
        (known.low, lambda low: low - 1, lambda low: low),
        (known.high, lambda high: high + 1, lambda high: high),
        (known.above, lambda above: above, lambda above: above + 1),
    ]:
        if bound is None:
            continue
        whole = float not in (get_args(option.type) or (option.type,))
        as_given = int if whole else float
        found = problems(_nested(option.path, as_given(outside(bound))))
        assert f"{int(bound) if float(bound).is_integer() else bound}" in found[option.path].message.text()
        try:
            build(_nested(option.path, as_given(inside(bound))))
        except ConfigError as error:  # allowed alone, but perhaps not beside the other defaults
            assert all("too small" not in problem.text() and "too large" not in problem.text() for problem in error.problems)


def _nested(path, value):
    section, _, name = path.rpartition(".")
    return {section: {name: value}} if section else {name: value}


@pytest.mark.parametrize(
    "mapping, path",
    [
        ({"data": {"bucket_reso_steps": 12}}, "data.bucket_reso_steps"),
        ({"data": {"bucket_reso_steps": 128, "resolution": 64}}, "data.bucket_reso_steps"),
        ({"data": {"min_bucket_reso": 512, "max_bucket_reso": 256}}, "data.min_bucket_reso"),
        ({"optimizer": {"unet_lr": 0, "text_encoder_lr": 0}}, "optimizer.unet_lr"),
        ({"validate": {"fraction": 0.1, "data_dir": "val"}}, "validate.fraction"),
        ({"validate": {"data_dir": "pictures/."}, "data": {"train_data_dir": "pictures"}}, "validate.data_dir"),
        ({"optimizer": {"args": "weight_decay"}}, "optimizer.args"),
        ({"data": {"caption_extension": "*.txt"}}, "data.caption_extension"),
        ({"save": {"output_name": "NUL"}}, "save.output_name"),
    ],
)
def test_options_that_do_not_go_together_are_named(mapping, path):
    assert set(problems(mapping)) == {path}


def test_a_learning_rate_of_zero_for_all_parts_is_allowed():
    assert build({"optimizer": {"learning_rate": 0}}).optimizer.learning_rate == 0.0


def test_what_goes_together_is_not_judged_by_a_value_that_is_wrong_itself():
    assert set(problems({"data": {"min_bucket_reso": 512, "max_bucket_reso": "wide"}})) == {"data.max_bucket_reso"}


@pytest.mark.parametrize("path", ["data.train_data_dir", "model.vae", "save.output_dir", "model.pretrained_model_name_or_path"])
def test_a_path_with_an_escape_in_it_is_refused_with_the_remedy(path):
    text = problems(_nested(path, "C:\new\train"))[path].text()
    assert "\\n" in text and "single quotes" in text and "/ instead" in text


def test_a_prompt_may_hold_line_breaks():
    assert build({"sample": {"prompts": ["one\n# note\ntwo"]}}).sample.prompts == ("one\n# note\ntwo",)


def test_values_of_tomlkit_are_taken_like_plain_ones():
    import tomlkit

    config = build(tomlkit.parse('[data]\nresolution = [64, 64]\ntrigger_word = "sks"\n[network]\nalpha = 4\n'))
    assert type(config.data.trigger_word) is str and config.data.resolution == (64, 64) and type(config.network.alpha) is float


CHANGED = {
    "seed": st.integers(0, 2**32 - 1),
    "data.resolution": st.one_of(st.sampled_from([64, 512]), st.tuples(st.sampled_from([64, 256]), st.sampled_from([128, 512]))),
    "data.leave_out": st.lists(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1), max_size=3).map(
        tuple
    ),
    "network.alpha": st.floats(0.1, 4096, allow_nan=False),
    "optimizer.unet_lr": st.one_of(st.none(), st.floats(1e-8, 10)),
    "schedule.warmup_steps": st.one_of(st.integers(0, 1000), st.sampled_from(["5%", "12.5%"])),
    "sample.prompts": st.lists(st.text(), max_size=3).map(tuple),
    "save.every_n_epochs": st.one_of(st.none(), st.integers(0, 10)),
    "data.flip_aug": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=CHANGED))
def test_a_config_survives_the_way_to_plain_values_and_back(changed):
    config = TrainConfig()
    for path, value in changed.items():
        section, _, name = path.rpartition(".")
        config = (
            attrs.evolve(config, **{section: attrs.evolve(getattr(config, section), **{name: value})})
            if section
            else attrs.evolve(config, **{name: value})
        )
    assert build(to_mapping(config)) == config
    assert build(to_mapping(config, changed_only=True)) == config


def test_only_what_was_changed_is_told_when_asked_for():
    config = build({"data": {"batch_size": 4, "resolution": 512}, "seed": 1})
    assert to_mapping(config, changed_only=True) == {"data": {"batch_size": 4}}


def test_sets_are_read_as_toml_else_as_text():
    sets = ["data.resolution=[64, 128]", "data.flip_aug=true", "sample.prompts=a dog, --w 64", "seed=3", "optimizer.args=weight_decay=0.1"]
    config = build(apply_overrides({"seed": 1, "data": {"batch_size": 2}}, sets))
    assert (config.seed, config.data.batch_size, config.data.resolution, config.data.flip_aug) == (3, 2, (64, 128), True)
    assert config.sample.prompts == ("a dog, --w 64",) and config.optimizer.args == "weight_decay=0.1"


def test_a_set_keeps_text_that_looks_like_a_number_and_backslashes():
    config = build(apply_overrides({}, ["save.output_name=2024", r"data.train_data_dir=C:\new\train", "data.trigger_word='sks'"]))
    assert config.save.output_name == "2024" and config.data.train_data_dir == r"C:\new\train" and config.data.trigger_word == "sks"


def test_sets_leave_the_mapping_that_they_were_given_alone():
    mapping = {"data": {"batch_size": 2}}
    apply_overrides(mapping, ["data.batch_size=3", "network.dim=1"])
    assert mapping == {"data": {"batch_size": 2}}


@pytest.mark.parametrize("text", ["data.batch_size", "=3", ""])
def test_a_set_without_a_name_or_a_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"section\.name=value"):
        apply_overrides({}, [text])


def test_a_set_of_an_unknown_name_is_answered_with_the_nearest():
    assert "data.batch_size" in problems(apply_overrides({}, ["data.batchsize=3"]))["data.batchsize"].fix.text()
