"""sd-scripts' lists of blocks: how they are written, and which layer stands in which block."""

from __future__ import annotations

import math

import pytest

from lora_trainer.config.build import build
from lora_trainer.config.choices import unet_blocks
from lora_trainer.config.choices.unet_blocks import SD, SDXL
from lora_trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", 1),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", 3),
        ("lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn1_to_q", 8),
        ("lora_unet_down_blocks_3_resnets_1_conv2", 11),
        ("lora_unet_mid_block_attentions_0_proj_in", 12),
        ("lora_unet_up_blocks_0_resnets_0_conv1", 13),
        ("lora_unet_up_blocks_1_upsamplers_0_conv", 18),
        ("lora_unet_up_blocks_3_attentions_2_proj_out", 24),
        ("lora_unet_conv_in", 0),
        ("lora_unet_time_embedding_linear_1", None),
    ],
)
def test_a_layer_of_stable_diffusion_1_stands_in_the_block_that_sd_scripts_counts(name, place):
    assert SD.count == 25 and SD.block_index(name) == place


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("lora_unet_time_embed_0", 0),
        ("lora_unet_label_emb_0_0", 0),
        ("lora_unet_input_blocks_0_0", 1),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 5),
        ("lora_unet_middle_block_1_proj_in", 11),
        ("lora_unet_output_blocks_0_1_proj_in", 13),
        ("lora_unet_output_blocks_8_0_in_layers_2", 21),
        ("lora_unet_out_2", 22),
    ],
)
def test_a_layer_of_sdxl_stands_in_the_block_that_sd_scripts_counts(name, place):
    assert SDXL.count == 23 and SDXL.block_index(name) == place


def test_a_list_of_twenty_gives_the_middle_one_number_for_its_three_blocks():
    short = tuple(float(number) for number in range(20))
    whole = SDXL.expand(short)
    assert len(whole) == 23 and whole[:10] == short[:10]
    assert whole[10:13] == (10.0, 10.0, 10.0) and whole[13:22] == short[11:20]


@pytest.mark.parametrize(
    ("curve", "height"),
    [
        ("cosine", lambda share: math.sin(math.pi * (1 - share) / 2)),
        ("sine", lambda share: math.sin(math.pi * share / 2)),
        ("linear", lambda share: share),
        ("reverse_linear", lambda share: 1 - share),
        ("zeros", lambda share: 0.0),
    ],
)
def test_curves_are_those_of_sd_scripts_with_what_is_added(curve, height):
    expected = [height(place / 11) + 0.25 for place in range(12)]
    assert unet_blocks.parse_lr_weights(f"{curve}+.25", 12) == pytest.approx(expected)


def test_missing_shares_are_one_and_sides_that_are_not_given_keep_the_rate():
    found = unet_blocks.lr_weights("0,.5", "", "0.05,1,", 0.1, SD)
    assert found == (0.0, 0.5, *[1.0] * 10, 1.0, 0.0, 1.0, 0.0, *[1.0] * 9)
    assert unet_blocks.lr_weights("", "", "", 0.1, SD) is None
    assert len(unet_blocks.lr_weights("1", "", "", 0.0, SDXL) or ()) == 23


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("block_dims", "4,8", "2 numbers"),
        ("block_dims", ",".join(["4"] * 24 + ["x"]), "x is not a number"),
        ("block_dims", ",".join(["4"] * 24 + ["1.5"]), "1.5 is not a whole number"),
        ("conv_block_alphas", ",".join(["4"] * 24 + ["-1"]), "-1 is not a number"),
        ("down_lr_weight", "tangent", "tangent is not a share"),
        ("up_lr_weight", "1,-1", "-1.0 is not a share"),
    ],
)
def test_a_list_that_is_none_is_refused_with_what_is_wrong(option, text, said):
    with pytest.raises(ConfigError) as refused:
        build({"network": {option: text}})
    (problem,) = refused.value.problems
    assert problem.path == f"network.{option}" and said in problem.message.text() and problem.fix.text()


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_is_none_is_refused(option):
    with pytest.raises(ConfigError) as refused:
        build({"network": {option: ["attn2", "to_["]}})
    assert "to_[" in refused.value.problems[0].message.text()


def test_a_strength_for_each_file_beneath_or_one_for_all():
    assert build({"network": {"base_weights": ["a", "b"], "base_weights_multiplier": 0.5}}).network.base_weights_multiplier == 0.5
    with pytest.raises(ConfigError):
        build({"network": {"base_weights": ["a", "b"], "base_weights_multiplier": [0.5]}})
