"""Networks of sd-scripts, LyCORIS and the programs around them mean the same here; what has no counterpart is told."""

from __future__ import annotations

import json

import pytest
import tomlkit

from lora_trainer.adapters.layer_selection import select_layers
from lora_trainer.config.build import build
from lora_trainer.config.importing import import_text
from lora_trainer.config.importing.metadata import import_metadata
from lora_trainer.models.layers import of_family
from lora_trainer.train.outputs.network_metadata import network_metadata


def network_of(**keys):
    return import_text(tomlkit.dumps({"network_module": "networks.lora", "train_batch_size": 1, **keys})).config.network


def test_sd_scripts_lists_of_blocks_come_along_with_its_own_alphas():
    ranks = ",".join(["4"] * 12 + ["8"] + ["16"] * 12)
    found = network_of(
        network_alpha=2, network_args=[f"block_dims={ranks}", "conv_dim=4", "down_lr_weight=cosine+.25", "block_lr_zero_threshold=0.1"]
    )
    assert (found.type, found.conv_dim, found.conv_alpha, found.block_dims) == ("lora", 4, 1.0, ranks)
    assert found.block_alphas == ",".join(["2"] * 25)
    assert (found.down_lr_weight, found.block_lr_zero_threshold) == ("cosine+.25", 0.1)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("loha", "loha"), ("lokr", "lokr"), ("locon", "locon"), ("full", "full"), ("diag-oft", "oft"), ("dylora", "dylora")],
)
def test_lycoris_algorithms_are_types_and_train_the_layers_that_lycoris_does(algorithm, kind):
    found = network_of(network_module="lycoris.kohya", network_dim=8, network_alpha=4, network_args=[f"algo={algorithm}", "conv_dim=2"])
    assert (found.type, found.preset, found.conv_dim, found.conv_alpha) == (kind, "full", 2, 4.0)


def test_options_of_a_lycoris_network_keep_their_values():
    found = network_of(
        network_module="lycoris.kohya",
        network_args=[
            "algo=lokr",
            "preset=attn-mlp",
            "factor=8",
            "decompose_both=True",
            "full_matrix=False",
            "dora_wd=True",
            "wd_on_output=True",
        ],
    )
    assert (found.preset, found.factor, found.decompose_both, found.full_matrix) == ("attn-mlp", 8, True, False)
    assert (found.dora_wd, found.dora_axis) == (True, "out")


def test_an_argument_without_a_counterpart_is_told_and_the_others_are_taken():
    found = import_text(
        'network_module = "lycoris.kohya"\nnetwork_args = ["algo=loha", "use_scalar=True", "frobnicate=1", "rank_dropout=0.1"]\n'
    )
    assert found.config.network.rank_dropout == 0.1
    notes = " ".join(note.text() for note in found.notes)
    assert "use_scalar=True" in notes and "frobnicate=1" in notes and "rank_dropout" not in notes


def test_a_network_that_is_not_here_is_left_with_its_name():
    found = import_text('network_module = "lycoris.kohya"\nnetwork_dim = 4\nnetwork_args = ["algo=ia3"]\n')
    assert found.config.network.type == "lora"
    assert "ia3" in next(left.why.text() for left in found.left if left.key == "network_module")


def test_the_window_of_kohya_ss_with_lokr():
    given = {"LoRA_type": "LyCORIS/LoKr", "LyCORIS_preset": "attn-only", "factor": 4, "network_dim": 8, "network_alpha": 1, "conv_dim": 0}
    found = import_text(json.dumps({**given, "train_batch_size": 1, "dora_wd": True, "use_cp": True, "bypass_mode": False}))
    network = found.config.network
    assert (network.type, network.preset, network.factor, network.conv_dim) == ("lokr", "attn-only", 4, None)
    assert network.dora_wd and network.use_tucker


def test_a_plain_lora_of_the_window_ignores_what_belongs_to_other_networks():
    found = import_text(json.dumps({"LoRA_type": "Standard", "network_dim": 8, "conv_dim": 4, "train_batch_size": 1, "rank_dropout": 0.2}))
    assert found.config.network.conv_dim is None and found.config.network.rank_dropout == 0.2


def test_files_that_lie_beneath_come_with_a_strength_each():
    listed = network_of(base_weights=["a.safetensors", "b.safetensors"], base_weights_multiplier=[0.5])
    lines = network_of(base_weights="a.safetensors\nb.safetensors", base_weights_multiplier="0.5\n1.0")
    for found in (listed, lines):
        assert (found.base_weights, found.base_weights_multiplier) == (("a.safetensors", "b.safetensors"), (0.5, 1.0))


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"type": "locon", "conv_dim": 4, "conv_alpha": 2.0},
        {"type": "loha", "dim": 8, "alpha": 4.0, "preset": "full", "rank_dropout": 0.1},
        {"type": "lokr", "factor": 4, "decompose_both": True, "include": ["attn2", "to_[qk]"], "text_encoder_dim": 4},
        {"type": "dylora", "unit": 2},
        {"type": "dora", "exclude": ["up_blocks_3"], "dropout": 0.2},
        {"type": "oft", "constraint": 1e-4, "rescaled": True},
        {"block_dims": ",".join(["4"] * 25), "up_lr_weight": "cosine+0.1", "block_lr_zero_threshold": 0.2},
    ],
)
def test_what_a_header_says_of_our_network_trains_the_same_layers_again(network):
    first = build({"network": network}).network
    words = {
        "ss_network_dim": str(first.dim),
        "ss_network_alpha": str(first.alpha),
        "ss_sd_scripts_commit_hash": "x",
        **network_metadata(first),
    }
    again = import_metadata({**words, "ss_learning_rate": "0.0001"}).config.network
    made = [[one.plan for one in select_layers(of_family("sd1"), one, ("unet", "text_encoder"), "sd1")] for one in (first, again)]
    assert made[0] == made[1]
