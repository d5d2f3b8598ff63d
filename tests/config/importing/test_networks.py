"""Networks of sd-scripts, LyCORIS and the programs around them mean the same here; what has no counterpart is told."""

from __future__ import annotations

import json

import pytest
import tomlkit

from lora_trainer.adapters.layer_selection import select_layers
from lora_trainer.config.build import build
from lora_trainer.config.choices.networks import NETWORK_KINDS
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


LARGE = ["algo=lokr", "preset=full", "conv_dim=100000", "conv_alpha=1", "factor=6", "decompose_both=False"]


@pytest.mark.parametrize("full_matrix", [[], ["full_matrix=False"]])
def test_a_rank_beyond_every_layer_means_the_whole_matrix_as_in_lycoris(full_matrix):
    given = {"network_module": "lycoris.kohya", "network_dim": 100000, "network_alpha": 1, "network_args": LARGE + full_matrix}
    found = import_text(tomlkit.dumps(given))
    network = found.config.network
    assert (network.type, network.full_matrix, network.factor, network.conv_alpha, network.preset) == ("lokr", True, 6, 1.0, "full")
    assert network.dim not in (4, 16) and "network.dim" not in {filled.path for filled in found.filled}
    assert sum("whole matrix" in note.text() for note in found.notes) == 2
    layers = select_layers(of_family("sd1"), network, ("unet", "text_encoder"), "sd1")
    kind = NETWORK_KINDS["lokr"]
    assert layers and all("lokr_w2" in kind.shapes(one.shape, one.plan.rank, one.plan.options) for one in layers)


def test_the_window_of_kohya_ss_with_so_large_a_rank():
    given = {"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000, "network_alpha": 1, "conv_alpha": 1, "factor": 6}
    found = import_text(json.dumps({**given, "full_matrix": False, "train_batch_size": 1}))
    assert found.config.network.full_matrix and found.config.network.factor == 6 and found.config.network.conv_alpha == 1.0
    assert {left.key for left in found.left} == {"full_matrix"} and found.filled == ()


def test_of_a_list_only_the_wrong_value_is_left_and_no_default_takes_its_place():
    given = ["conv_dim=5000", "conv_alpha=2", "rank_dropout=0.1", "module_dropout=7"]
    found = import_text(
        tomlkit.dumps({"network_module": "networks.lora", "network_dim": 2000, "network_args": given, "lr_scheduler": "odd"})
    )
    network = found.config.network
    assert (network.conv_dim, network.conv_alpha, network.rank_dropout, network.module_dropout) == (None, 2.0, 0.1, 0.0)
    notes = " ".join(note.text() for note in found.notes)
    assert "conv_dim=5000 was not taken" in notes and "module_dropout=7 was not taken" in notes and "rank_dropout" not in notes
    assert not {"network.dim", "schedule.type", "network.conv_alpha"} & {filled.path for filled in found.filled}


def test_lycoris_is_known_by_the_name_of_its_first_months():
    found = network_of(network_module="locon.locon_kohya", network_dim=32, network_alpha=16, network_args=["conv_dim=8"])
    assert (found.type, found.dim, found.conv_dim, found.conv_alpha, found.preset) == ("locon", 32, 8, 16.0, "auto")


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
