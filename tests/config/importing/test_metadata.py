"""Train again like this file: what a trained file's header tells comes into the form, and what it cannot tell is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_trainer.config.importing import import_metadata
from lora_trainer.errors import ConfigError

SD_SCRIPTS = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_network_args": "{}",
    "ss_learning_rate": "0.0001",
    "ss_unet_lr": "0.0002",
    "ss_text_encoder_lr": "5e-05",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_lr_scheduler": "cosine",
    "ss_lr_warmup_steps": "100",
    "ss_num_epochs": "8",
    "ss_max_train_steps": "1600",
    "ss_batch_size_per_device": "2",
    "ss_resolution": "(512, 768)",
    "ss_clip_skip": "2",
    "ss_seed": "42",
    "ss_mixed_precision": "fp16",
    "ss_gradient_checkpointing": "True",
    "ss_min_snr_gamma": "5.0",
    "ss_noise_offset": "None",
    "ss_shuffle_caption": "True",
    "ss_keep_tokens": "1",
    "ss_enable_bucket": "True",
    "ss_min_bucket_reso": "256",
    "ss_sd_model_name": "v1-5.safetensors",
    "ss_tag_frequency": "{}",
    "ss_steps": "1600",
    "modelspec.trigger_phrase": "sks cat",
}


def test_the_header_of_sd_scripts_comes_into_the_form():
    config = import_metadata(SD_SCRIPTS).config
    assert (config.network.type, config.network.dim, config.network.alpha) == ("lora", 32, 16.0)
    assert (config.optimizer.type, config.optimizer.unet_lr, config.optimizer.text_encoder_lr) == ("AdamW8bit", 0.0002, 5e-05)
    assert "weight_decay=0.1" in config.optimizer.args
    assert "betas=" in config.optimizer.args
    assert (config.schedule.type, config.steps.max_train_epochs, config.data.batch_size) == ("cosine", 8, 2)
    assert tuple(config.data.resolution) == (512, 768)
    assert (config.model.clip_skip, config.seed, config.loss.min_snr_gamma) == (2, 42, 5.0)
    assert config.memory.gradient_checkpointing
    assert (config.data.shuffle_caption, config.data.keep_tokens, config.data.trigger_word) == (True, 1, "sks cat")


def test_every_key_is_taken_or_left_with_a_reason():
    found = import_metadata(SD_SCRIPTS)
    told = [one.key for one in (*found.taken, *found.left)]
    assert {key.partition(" (")[0] for key in told} == set(SD_SCRIPTS)
    left = {one.key: one.why.text() for one in found.left}
    assert left["ss_max_train_steps"] == "ss_num_epochs wins."
    assert "not a setting" in left["ss_tag_frequency"]
    assert "choose it" in left["ss_sd_model_name"]
    assert found.filled == ()


def test_lycoris_comes_back_as_its_type():
    words = SD_SCRIPTS | {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "loha", "conv_dim": "8"})}
    assert import_metadata(words).config.network.type == "loha"


def test_layers_of_different_ranks_leave_the_rank_open():
    found = import_metadata(SD_SCRIPTS | {"ss_network_dim": "Dynamic"})
    assert "different ones" in next(one.why.text() for one in found.left if one.key == "ss_network_dim")
    assert found.config.network.dim == 16


def test_one_trainers_own_record_is_read():
    settings: dict[str, Any] = {
        "learning_rate": 0.0003, "epochs": 20, "batch_size": 4, "resolution": "512", "lora_rank": 24, "lora_alpha": 12.0,
        "optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.01}, "learning_rate_scheduler": "COSINE", "train_dtype": "BFLOAT_16",
        "concept_file_name": "mine.json",
    }  # fmt: skip
    found = import_metadata({"ot_config": json.dumps(settings), "ot_branch": "master"})
    config = found.config
    assert (config.network.dim, config.network.alpha, config.steps.max_train_epochs, config.data.batch_size) == (24, 12.0, 20, 4)
    assert (config.optimizer.type.lower(), config.schedule.type, config.memory.mixed_precision) == ("prodigy", "cosine", "bf16")
    assert config.optimizer.args == "weight_decay=0.01"
    assert {one.key for one in found.left} == {"concept_file_name"}


DATASET = {
    "batch_size_per_device": 3, "resolution": [448, 448], "enable_bucket": True, "min_bucket_reso": 256, "max_bucket_reso": 768,
    "tag_frequency": {"vase": {"vase": 9}}, "bucket_info": None,
    "subsets": [{"num_repeats": 2, "flip_aug": True, "shuffle_caption": True, "keep_tokens": 1, "image_dir": "vase", "is_reg": False},
                {"num_repeats": 5, "flip_aug": True, "shuffle_caption": True, "keep_tokens": 1, "image_dir": "vases", "is_reg": False},
                {"num_repeats": 1, "flip_aug": False, "keep_tokens": 0, "image_dir": "class", "is_reg": True}],
}  # fmt: skip


def test_options_of_a_dataset_file_are_taken_where_all_folders_agree():
    words = {"ss_network_module": "networks.lora", "ss_datasets": json.dumps([DATASET])}
    data = import_metadata(words).config.data
    assert (data.batch_size, data.resolution, data.enable_bucket, data.min_bucket_reso, data.max_bucket_reso) == (
        3,
        (448, 448),
        True,
        256,
        768,
    )
    assert (data.flip_aug, data.shuffle_caption, data.keep_tokens, data.num_repeats) == (True, True, 1, 1)


def test_what_folders_of_a_dataset_file_do_not_share_is_told():
    notes = [note.text() for note in import_metadata({"ss_network_module": "networks.lora", "ss_datasets": json.dumps([DATASET])}).notes]
    assert "ss_datasets: the folders and their repeats were vase x 2, vases x 5." in notes
    assert "ss_datasets: folders of regularisation pictures were class x 1." in notes
    assert [note for note in notes if "differs" in note] == [
        "ss_datasets: num_repeats differs (vase: 2, vases: 5), so it is not taken: set it for each folder."
    ]


@pytest.mark.parametrize("text", ["", "[", "null", "[]", "[3]", '[{"subsets": null}]', "[" * 3000])
def test_a_list_of_datasets_that_says_nothing_is_left(text: str):
    found = import_metadata({"ss_network_module": "networks.lora", "ss_datasets": text})
    assert [one.key for one in found.left] == ["ss_datasets"]


@pytest.mark.parametrize("words", [{}, {"format": "pt"}, {"modelspec.title": "x"}, {"ss_steps": "3"}])
def test_a_header_without_settings_is_refused(words: dict[str, str]):
    with pytest.raises(ConfigError, match="holds no settings"):
        import_metadata(words)
