"""Which layers are trained, with which ranks and rates, and how large the file gets, from settings alone."""

from __future__ import annotations

import pytest

from lora_trainer.adapters.layer_selection import pattern_hits, select_layers
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import ConfigError
from lora_trainer.models.layers import of_family

BOTH = ("unet", "text_encoder")


def chosen(family="sd1", parts=BOTH, **options):
    return select_layers(of_family(family), NetworkConfig(**options), parts, family)


def counts(found):
    return tuple(sum(one.plan.part == part for one in found) for part in BOTH)


@pytest.mark.parametrize(("family", "unet", "text"), [("sd1", 192, 72), ("sd2", 192, 138), ("sdxl", 722, 264)])
def test_an_ordinary_lora_stands_on_the_layers_that_sd_scripts_trains(family, unet, text):
    assert counts(chosen(family)) == (unet, text)


def test_a_file_of_an_ordinary_lora_is_as_large_as_published():
    """Rank 16 in fp16 is 18.87 MB (LyCORIS' table: rank 32 37 MB)."""
    assert round(2 * sum(one.parameter_count for one in chosen(dim=16)) / 1e6, 2) == 18.87


@pytest.mark.parametrize(
    ("preset", "unet", "text"),
    [
        ("attn-only", 128, 48),
        ("attn-mlp", 192, 72),
        ("blocks", 278, 72),
        ("full", 282, 72),
        ("unet-transformer-only", 192, 0),
        ("unet-convblock-only", 86, 0),
    ],
)
def test_presets_hold_these_layers_of_stable_diffusion_1(preset, unet, text):
    assert counts(chosen(preset=preset)) == (unet, text)


def test_a_preset_without_wide_convolutions_holds_none():
    found = chosen(preset="full-lin")
    assert found and all(one.shape.weight[2:] in ((), (1, 1)) for one in found)


def test_types_that_train_convolutions_do_so_unless_their_rank_is_none():
    assert counts(chosen(type="locon"))[0] == 278
    assert counts(chosen(type="locon", conv_dim=0)) == counts(chosen())
    assert counts(chosen(conv_dim=4))[0] == 278


@pytest.mark.parametrize(("family", "unread"), [("sd1", 0), ("sd2", 23 * 3), ("sdxl", 32 * 3)])
def test_a_full_difference_has_no_biases_that_a1111_does_not_read(family, unread):
    """Those of query, key and value of an encoder that is packed as open_clip's."""
    left = [one for one in chosen(family, type="full") if one.plan.options.get("bias") is False]
    assert len(left) == unread and all(one.shape.bias and one.parameter_count == one.shape.weight[0] * one.shape.weight[1] for one in left)


def test_empty_alphas_keep_the_strength_that_alpha_has_for_its_rank():
    found = chosen(type="locon", dim=16, alpha=4.0, conv_dim=8, text_encoder_dim=4)
    ranks = {(one.plan.part, one.shape.weight[2:] == (3, 3)): (one.plan.rank, one.plan.alpha) for one in found}
    assert ranks == {("unet", False): (16, 4.0), ("unet", True): (8, 2.0), ("text_encoder", False): (4, 1.0)}


def test_given_alphas_stand():
    found = chosen(conv_dim=8, conv_alpha=1.0, text_encoder_alpha=3.0)
    assert {one.plan.alpha for one in found if one.shape.weight[2:] == (3, 3)} == {1.0}
    assert {one.plan.alpha for one in found if one.plan.part == "text_encoder"} == {3.0}


def test_include_and_exclude_leave_what_their_patterns_say():
    found = chosen(include=("attn2", r"ff_net"), exclude=(r"up_blocks_3",))
    names = [one.plan.name for one in found]
    assert names and all(("attn2" in name or "ff_net" in name) and "up_blocks_3" not in name for name in names)
    assert len(names) == 16 * 4 + 16 * 2 - 3 * 6


def test_a_pattern_is_told_how_many_layers_it_hits():
    found = pattern_hits(of_family("sd1"), NetworkConfig(include=("attn2", "nothing"), exclude=("to_k$",)), BOTH, "sd1")
    assert found == {"include": {"attn2": 64, "nothing": 0}, "exclude": {"to_k$": 32}}


def test_ranks_by_block_and_blocks_without_a_rank():
    ranks = ",".join(["0"] * 12 + ["2"] + ["8"] * 12)
    found = [one.plan for one in chosen(block_dims=ranks, dim=16, alpha=8.0) if one.plan.part == "unet"]
    assert {(plan.rank, plan.alpha) for plan in found if "mid_block" in plan.name} == {(2, 1.0)}
    assert {(plan.rank, plan.alpha) for plan in found if "up_blocks" in plan.name} == {(8, 4.0)}
    assert not any("down_blocks" in plan.name for plan in found)


def test_a_block_whose_share_of_the_rate_is_none_is_not_trained():
    found = [one.plan for one in chosen(parts=("unet",), down_lr_weight="zeros", mid_lr_weight="0.5")]
    assert {plan.name.split("_")[2] for plan in found} == {"mid", "up"}
    assert {plan.lr_weight for plan in found if "mid_block" in plan.name} == {0.5}
    assert {plan.lr_weight for plan in found if "up_blocks" in plan.name} == {1.0}


@pytest.mark.parametrize(("family", "length"), [("sd1", 23), ("sd2", 20), ("sdxl", 25)])
def test_a_list_for_another_family_is_refused_with_the_length_that_it_wants(family, length):
    with pytest.raises(ConfigError) as refused:
        chosen(family, block_dims=",".join(["4"] * length))
    assert ("23 / 20" if family == "sdxl" else "25") in refused.value.problems[0].message.text()


def test_lists_of_twenty_and_twenty_three_mean_the_same_blocks_of_sdxl():
    short = ",".join(["4"] * 10 + ["2"] + ["8"] * 9)
    whole = ",".join(["4"] * 10 + ["2"] * 3 + ["8"] * 9 + ["4"])
    plans = [[one.plan for one in chosen("sdxl", block_dims=text)] for text in (short, whole)]
    assert plans[0] == plans[1]
    assert {plan.rank for plan in plans[0] if "middle_block" in plan.name} == {2}


def test_norms_are_trained_along_where_that_is_asked_for():
    found = chosen(preset="blocks", train_norm=True)
    assert {one.plan.kind for one in found if len(one.shape.weight) == 1} == {"norm"}
    assert len(found) - len(chosen(preset="blocks")) == 22 * 2 + 16 * 4


def test_options_of_a_kind_reach_its_layers_and_others_do_not():
    plain = {one.plan.options.get("factor", -1) for one in chosen(factor=8)}
    lokr = {one.plan.options.get("factor", -1) for one in chosen(type="lokr", factor=8)}
    assert (plain, lokr) == ({-1}, {8})
    assert {one.plan.options["dora"] for one in chosen(type="dora")} == {"in"}
    assert {one.plan.options["dora"] for one in chosen(dora_wd=True, dora_axis="out")} == {"out"}
