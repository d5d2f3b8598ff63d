"""Options that are set and cannot matter are told by `check`, and those that matter are left in peace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer import assets
from lora_trainer.config.checks.option_checks import options
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.planning.preflight import early_warnings
from tests.train.runs import small_config

WORDS = ("vase, blue", "vase, red, tall", "vase", "vase, low, round, green")
"""The captions: 4 pictures of 64 x 64; in batches of 2 an epoch has 2 steps, and 12 steps are 6 epochs."""
FILE = "DATASET_FILE"
"""Stands for a dataset file with one folder that sets every option of its own."""
VALIDATION = {"validate__fraction": 0.25}

ALWAYS = {
    "seed": "every draw depends on it",
    "method": "there is one choice",
    "model.pretrained_model_name_or_path": "it is what is trained on",
    "model.vae": "pictures are encoded with it",
    "model.max_token_length": "it also limits previews, whatever the captions are",
    "model.v2": "a value that contradicts the file is refused, another one agrees with it",
    "model.prediction": "a value that contradicts the file is refused",
    "model.v_parameterization": "a value that contradicts the file is refused",
    "model.zero_terminal_snr": "a value that contradicts the file is refused",
    "data.dataset_config": "it wins over the folders",
    "data.trigger_word": "it stands in every caption and in the file",
    "data.enable_bucket": "off is what differs: pictures are cut to one size",
    "data.cache_latents_to_disk": "off is what differs",
    "data.cache_latents": "off is what differs: pictures are encoded at each step",
    "data.cache_text_encoder_outputs": "refused where the text encoder is trained, else it frees memory",
    "data.caption_prefix": "it stands in every caption",
    "data.caption_suffix": "it stands in every caption",
    "data.caption_separator": "the tags that the file lists are parted by it",
    "data.flip_aug": "every picture can be mirrored",
    "data.color_aug": "every picture has colours; refused with encoded pictures",
    "data.alpha_mask": "refused where no picture has a mask",
    "data.mask_dir": "refused where no picture has a mask",
    "data.masks_beside": "refused where no picture has a mask",
    "data.subsets": "refused beside other descriptions of the pictures",
    "network.type": "it is what is trained",
    "network.preset": "it chooses the layers",
    "network.train_norm": "every model has norms",
    "network.module_dropout": "every type reads it",
    "network.network_weights": "the network begins with them",
    "network.base_weights": "the model is changed by them",
    "optimizer.type": "it makes the steps",
    "optimizer.args": "an argument that the optimizer does not take is refused",
    "optimizer.max_grad_norm": "every gradient has a norm",
    "optimizer.unet_lr": "0 takes the part out, another value is its rate",
    "optimizer.text_encoder_lr": "0 takes the part out, another value is its rate",
    "schedule.type": "it is the schedule",
    "steps.max_train_epochs": "it wins over the steps",
    "steps.keep_awake": "off is what differs",
    "loss.loss_type": "every step has a loss",
    "loss.min_snr_gamma": "every step is weighed",
    "loss.debiased_estimation_loss": "every step is weighed",
    "loss.noise_offset": "every picture gets noise",
    "loss.ip_noise_gamma": "every picture gets noise",
    "loss.min_timestep": "every picture has a timestep",
    "loss.max_timestep": "every picture has a timestep",
    "memory.mixed_precision": "every step has a precision",
    "memory.fp8_base_unet": "told when a WebUI lends its model (tests/train/test_eight_bit.py)",
    "memory.gradient_checkpointing": "every step has activations",
    "memory.attention": "every model has attention",
    "memory.vae_precision": "every run encodes or draws pictures",
    "memory.retry": "off is what differs",
    "memory.own_process": "the command line is such a process already; in a WebUI it decides what is shared",
    "memory.device": "it is where the run is calculated",
    "sample.at_first": "off is what differs",
    "validate.data_dir": "its pictures are validated; an empty folder is refused",
    "save.output_dir": "files go there",
    "save.output_name": "files are called so",
    "save.precision": "every file has a format",
    "save.runs_dir": "every run has a folder",
    "save.overwrite": "it only allows",
    "save.ema_decay": "every step is averaged",
    "save.state": "off is what differs",
    "log.csv": "off is what differs",
    "log.log_with": "every run has a log",
}
"""Why an option always has its effect."""

BESIDE_A_FILE = ("../data/test_dataset_toml.py", "test_data_fills_what_the_file_leaves_open_and_folders_beside_it_are_not_used")
ELSEWHERE = {
    "data.train_data_dir": BESIDE_A_FILE,
    "data.reg_data_dir": BESIDE_A_FILE,
    "data.in_json": BESIDE_A_FILE,
    "model.clip_skip": ("test_families.py", "test_a_clip_skip_that_a_family_does_not_read_is_told"),
    "loss.v_pred_like_loss": ("test_loss_options.py", "test_options_that_make_no_sense_together_are_named"),
}
"""Options that are without effect beside a dataset file or on models of another kind, and the test of that."""

WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "model.hub_token": {"model__hub_token": "hf_abcdefgh"},
    "data.class_tokens": {"data__class_tokens": "vase"},
    "data.num_repeats": {"FOLDER": "3_vase", "data__num_repeats": 7},
    "data.caption_extension": {"JSON": True, "data__caption_extension": ".caption"},
    "data.leave_out": {"data__leave_out": ["gone.png"]},
    "data.resolution": {"data__dataset_config": FILE, "data__resolution": 128},
    "data.batch_size": {"data__batch_size": 9},
    "data.min_bucket_reso": {"data__min_bucket_reso": 128},
    "data.max_bucket_reso": {"data__resolution": 256, "data__min_bucket_reso": 64, "data__max_bucket_reso": 128},
    "data.bucket_reso_steps": {"data__enable_bucket": False, "data__bucket_reso_steps": 32},
    "data.bucket_no_upscale": {"data__bucket_no_upscale": True},
    "data.resize_interpolation": {"data__resize_interpolation": "area"},
    "data.vae_batch_size": {"data__cache_latents": False, "data__vae_batch_size": 4},
    "data.npz_caches": {"data__cache_latents": False, "data__npz_caches": True},
    "data.cache_text_encoder_outputs_to_disk": {
        "optimizer__text_encoder_lr": 0,
        "data__cache_text_encoder_outputs_to_disk": True,
        "data__shuffle_caption": True,
    },
    "data.shuffle_caption": {"data__shuffle_caption": True, "data__caption_separator": ";"},
    "data.keep_tokens": {"data__keep_tokens": 1},
    "data.caption_dropout_rate": {"data__caption_dropout_rate": 1.0},
    "data.caption_dropout_every_n_epochs": {"data__caption_dropout_every_n_epochs": 7},
    "data.caption_tag_dropout_rate": {"data__caption_tag_dropout_rate": 0.1, "data__keep_tokens": 5},
    "data.keep_tokens_separator": {"data__keep_tokens_separator": "|||", "data__shuffle_caption": True},
    "data.secondary_separator": {"data__secondary_separator": ";;;"},
    "data.enable_wildcard": {"data__enable_wildcard": True},
    "data.token_warmup_min": {"data__token_warmup_min": 3},
    "data.token_warmup_step": {"data__token_warmup_step": 500},
    "data.random_crop": {"data__cache_latents": False, "data__random_crop": True},
    "data.face_crop_aug_range": {"data__cache_latents": False, "data__face_crop_aug_range": "2.0,4.0"},
    "data.mask_threshold": {"data__mask_threshold": 0.5},
    "data.mask_min_value": {"data__mask_min_value": 0.5},
    "data.crops": {"data__crops": ["gone.png=0,0,0.5,0.5"]},
    "network.dim": {"network": {"type": "full", "dim": 4}},
    "network.alpha": {"network": {"type": "full", "alpha": 4}},
    "network.include": {"network__include": ["attn2", "nothing_like_it"]},
    "network.exclude": {"network__exclude": ["nothing_like_it"]},
    "network.conv_dim": {"network__preset": "attn-only", "network__conv_dim": 4},
    "network.conv_alpha": {"network__conv_alpha": 4.0},
    "network.text_encoder_dim": {"optimizer__text_encoder_lr": 0, "network__text_encoder_dim": 4},
    "network.text_encoder_alpha": {"optimizer__text_encoder_lr": 0, "network__text_encoder_alpha": 4.0},
    "network.rs_lora": {"network": {"type": "full", "rs_lora": True}},
    "network.dora_wd": {"network": {"type": "oft", "dora_wd": True}},
    "network.dora_axis": {"network__dora_axis": "out"},
    "network.use_tucker": {"network__use_tucker": True},
    "network.factor": {"network__factor": 8},
    "network.decompose_both": {"network": {"type": "lokr", "full_matrix": True, "decompose_both": True}},
    "network.full_matrix": {"network__full_matrix": True},
    "network.unit": {"network__unit": 2},
    "network.constraint": {"network__constraint": 1.0},
    "network.rescaled": {"network__rescaled": True},
    "network.initialization": {"network": {"type": "loha", "initialization": "orthogonal"}},
    "network.dropout": {"network": {"type": "loha", "dropout": 0.1}},
    "network.rank_dropout": {"network": {"type": "oft", "rank_dropout": 0.1}},
    "network.scale_weight_norms": {"network": {"type": "dora", "scale_weight_norms": 1.0}},
    "network.block_dims": {"optimizer__unet_lr": 0, "network__block_dims": ",".join(["4"] * 25)},
    "network.block_alphas": {"network__block_alphas": ",".join(["4"] * 25)},
    "network.conv_block_dims": {"network__preset": "attn-only", "network__conv_block_dims": ",".join(["4"] * 25)},
    "network.conv_block_alphas": {"network__conv_block_alphas": ",".join(["4"] * 25)},
    "network.down_lr_weight": {"optimizer__unet_lr": 0, "network__down_lr_weight": "cosine"},
    "network.mid_lr_weight": {"optimizer__unet_lr": 0, "network__mid_lr_weight": "0.5"},
    "network.up_lr_weight": {"optimizer__unet_lr": 0, "network__up_lr_weight": "cosine"},
    "network.block_lr_zero_threshold": {"network__block_lr_zero_threshold": 0.1},
    "network.dim_from_weights": {"network__dim_from_weights": True},
    "network.base_weights_multiplier": {"network__base_weights_multiplier": 0.5},
    "optimizer.learning_rate": {"optimizer__unet_lr": 1e-3, "optimizer__text_encoder_lr": 1e-4},
    "optimizer.scale_lr": {"data__batch_size": 1, "optimizer__scale_lr": "linear"},
    "optimizer.loraplus_lr_ratio": {"network__type": "oft", "optimizer__loraplus_lr_ratio": 16.0},
    "optimizer.loraplus_unet_lr_ratio": {"optimizer__unet_lr": 0, "optimizer__loraplus_unet_lr_ratio": 16.0},
    "optimizer.loraplus_text_encoder_lr_ratio": {"optimizer__text_encoder_lr": 0, "optimizer__loraplus_text_encoder_lr_ratio": 16.0},
    "schedule.warmup_steps": {"schedule__warmup_steps": 500},
    "schedule.min_lr_ratio": {"schedule__type": "constant", "schedule__min_lr_ratio": 0.1},
    "schedule.num_cycles": {"schedule__num_cycles": 3},
    "schedule.power": {"schedule__power": 2.0},
    "schedule.decay_steps": {"schedule__decay_steps": 4},
    "schedule.timescale": {"schedule__timescale": 100},
    "schedule.args": {"schedule__args": "T_max=100"},
    "steps.max_train_steps": {"steps__max_train_epochs": 2},
    "steps.gradient_accumulation_steps": {"steps__gradient_accumulation_steps": 3},
    "steps.pause_after_n_epochs": {"steps__pause_after_n_epochs": 6},
    "steps.pause_seconds": {"steps__pause_seconds": 5.0},
    "loss.prior_loss_weight": {"loss__prior_loss_weight": 0.5},
    "loss.huber_schedule": {"loss__huber_schedule": "constant"},
    "loss.huber_c": {"loss__huber_c": 0.2},
    "loss.huber_scale": {"loss__loss_type": "huber", "loss__huber_scale": 2.0},
    "loss.scale_v_pred_loss_like_noise_pred": {"loss__scale_v_pred_loss_like_noise_pred": True},
    "loss.noise_offset_random_strength": {"loss__noise_offset_random_strength": True},
    "loss.adaptive_noise_scale": {"loss__adaptive_noise_scale": 0.1},
    "loss.multires_noise_iterations": {"loss__multires_noise_iterations": 6, "loss__multires_noise_discount": 0.0},
    "loss.multires_noise_discount": {"loss__multires_noise_discount": 0.5},
    "loss.ip_noise_gamma_random_strength": {"loss__ip_noise_gamma_random_strength": True},
    "loss.timestep_sampling": {"loss__timestep_sampling": "mode", "loss__mode_scale": 0.0},
    "loss.logit_mean": {"loss__logit_mean": 1.0},
    "loss.logit_std": {"loss__logit_std": 2.0},
    "loss.mode_scale": {"loss__mode_scale": 1.0},
    "loss.discrete_flow_shift": {"loss__discrete_flow_shift": 2.0},
    "memory.checkpointing_budget_gb": {"memory__checkpointing_budget_gb": 2.0},
    "memory.pictures_at_once": {"memory__pictures_at_once": 4},
    "memory.cuda_graphs": {"memory__device": "cpu", "memory__cuda_graphs": True},
    "memory.compile": {"network__dropout": 0.1, "memory__compile": True},
    "sample.prompts": {"sample__prompts": ["a vase"], "sample__every_n_epochs": 0, "sample__at_first": False},
    "sample.prompt_file": {"sample__prompt_file": "some.txt", "sample__every_n_epochs": 0, "sample__at_first": False},
    "sample.every_n_epochs": {"sample__prompts": ["a vase"], "sample__every_n_epochs": 9},
    "sample.every_n_steps": {"sample__prompts": ["a vase"], "sample__every_n_epochs": 1, "sample__every_n_steps": 5},
    "sample.sampler": {"sample__sampler": "euler"},
    "sample.flow_shift": {"sample__flow_shift": 2.0},
    "validate.fraction": {"PICTURES": 1, **VALIDATION},
    "validate.every_n_epochs": {"validate__every_n_epochs": 2},
    "validate.every_n_steps": {**VALIDATION, "validate__every_n_steps": 500},
    "validate.seed": {"validate__seed": 5},
    "validate.max_pictures": {**VALIDATION, "validate__max_pictures": 9},
    "validate.early_stop_patience": {**VALIDATION, "validate__early_stop_patience": 50},
    "validate.early_stop_min_delta": {"validate__early_stop_min_delta": 0.1},
    "save.every_n_epochs": {"save__every_n_epochs": 9},
    "save.every_n_steps": {"save__every_n_steps": 500},
    "save.state_every_n_steps": {"save__state_every_n_steps": 500},
    "save.state_every_minutes": {"save__state": False, "save__state_every_minutes": 5.0},
    "save.last_n_states": {"save__state": False, "save__last_n_states": 5},
    "log.logging_dir": {"log__log_with": "none", "log__logging_dir": "logs"},
    "log.log_prefix": {"log__log_prefix": "a"},
    "log.log_tracker_name": {"log__log_tracker_name": "a"},
}
"""How an option can be set and be without effect."""


def make_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 64), (number * 50, 40, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(WORDS[number], encoding="utf-8")
    return folder


def told(tmp_path: Path, changes: dict[str, Any]) -> dict[str, str]:
    """Option -> what `check` tells of it, for a run of 12 steps on 4 pictures in batches of 2."""
    values = dict(changes)
    folder = make_pictures(tmp_path / values.pop("FOLDER", "pictures"), values.pop("PICTURES", 4))
    if values.pop("JSON", False):
        (tmp_path / "all.json").write_text('{"0": {"caption": "vase"}, "1": {"caption": "vase, blue"}}', encoding="utf-8")
        values["data__in_json"] = str(tmp_path / "all.json")
    if values.get("data__dataset_config") == FILE:
        text = f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = {str(folder)!r}\n"
        (tmp_path / "sets.toml").write_text(text, encoding="utf-8")
        values["data__dataset_config"] = str(tmp_path / "sets.toml")
    config = small_config(tmp_path, data__train_data_dir=str(folder), data__trigger_word="", **values)
    warnings = early_warnings(config, load_dataset(config), assets.toy_checkpoint())
    return {warned.path: warned.message.text() for warned in warnings}


def test_every_option_is_in_one_table():
    tables = (ALWAYS, ELSEWHERE, WITHOUT_EFFECT)
    assert sorted(path for table in tables for path in table) == sorted(options())
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WITHOUT_EFFECT)
def test_an_option_that_is_set_and_cannot_matter_is_told(tmp_path: Path, path: str):
    assert path in told(tmp_path, WITHOUT_EFFECT[path])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": {"warmup_steps": 6, "min_lr_ratio": 0.1, "num_cycles": 2, "type": "cosine_with_restarts"}},
        {"schedule": {"type": "warmup_stable_decay", "decay_steps": 6, "warmup_steps": 2}},
        {"schedule": {"type": "piecewise_constant", "args": "step_rules=1:6,0.1"}},
        {"schedule": {"type": "torch.optim.lr_scheduler.OneCycleLR", "args": "max_lr=1 total_steps=20"}},
        {"data__shuffle_caption": True, "data__keep_tokens": 1, "data__caption_tag_dropout_rate": 0.1, "data__batch_size": 4},
        {"data__token_warmup_step": 6, "data__token_warmup_min": 2},
        {"data__caption_dropout_every_n_epochs": 6, "data__caption_dropout_rate": 0.1},
        {"data__resolution": 128, "data__bucket_no_upscale": True},
        {"data__min_bucket_reso": 64, "data__max_bucket_reso": 512, "data__bucket_reso_steps": 32},
        {"network": {"type": "lokr", "decompose_both": True, "factor": 4, "conv_dim": 4, "conv_alpha": 2.0, "use_tucker": True}},
        {"network": {"dora_wd": True, "dora_axis": "out", "text_encoder_dim": 2, "dropout": 0.1, "conv_dim": 4}},
        {"optimizer": {"learning_rate": 2e-4, "unet_lr": 1e-4, "loraplus_unet_lr_ratio": 16.0, "scale_lr": "sqrt"}},
        {"steps": {"max_train_epochs": 6, "gradient_accumulation_steps": 2, "pause_after_n_epochs": 2, "pause_seconds": 1.0}},
        {"sample": {"prompts": ["a vase"], "every_n_steps": 6, "sampler": "euler"}, "memory__pictures_at_once": 1},
        {"validate": {"fraction": 0.5, "every_n_steps": 2, "max_pictures": 1, "early_stop_patience": 2, "seed": 3}, "data__batch_size": 1},
        {"save": {"every_n_epochs": 6, "every_n_steps": 6, "state_every_n_steps": 6}},
        {"log": {"logging_dir": "logs", "log_prefix": "a"}},
        {"FOLDER": "3_vase", "data__num_repeats": 3},
        {"sample__every_n_epochs": 0, "validate__every_n_epochs": 0, "save__every_n_epochs": 0},
    ],
    ids=str,
)
def test_options_that_matter_are_left_in_peace(tmp_path: Path, changes: dict[str, Any]):
    assert [path for path in told(tmp_path, changes) if path and path != "data.resolution"] == []


@pytest.mark.parametrize(
    ("changes", "path", "text"),
    [
        ({"schedule__warmup_steps": 500}, "schedule.warmup_steps", "500 warm-up steps, 12 steps in all: the learning rate never reaches"),
        ({"schedule__warmup_steps": "100%"}, "schedule.warmup_steps", "12 warm-up steps, 12 steps in all: the learning rate never reaches"),
        ({"schedule__warmup_steps": 9}, "schedule.warmup_steps", "for most of the run the learning rate only rises"),
        (
            {"sample__prompts": ["a"], "sample__every_n_epochs": 2, "sample__every_n_steps": 3},
            "sample.every_n_steps",
            "sample.every_n_steps has no effect beside sample.every_n_epochs: epochs win.",
        ),
        (
            {"schedule": {"type": "warmup_stable_decay", "decay_steps": 10, "warmup_steps": 4}},
            "schedule.decay_steps",
            "10 steps of decay, 12 steps in all: there are none at the full learning rate.",
        ),
        (
            {"schedule": {"type": "piecewise_constant", "args": "step_rules=1:6,0.1:90,0.01"}},
            "schedule.args",
            "changes the rate at step 90",
        ),
        ({"data__token_warmup_step": 12}, "data.token_warmup_step", "Captions grow until step 12, and the run has 12 steps"),
        ({"data__caption_dropout_rate": 1.0}, "data.caption_dropout_rate", "learned without words"),
        ({"steps__max_train_epochs": 3}, "steps.max_train_steps", "no effect beside steps.max_train_epochs"),
    ],
    ids=str,
)
def test_an_effect_that_nobody_wants_is_told_with_its_numbers(tmp_path: Path, changes: dict[str, Any], path: str, text: str):
    assert text in told(tmp_path, changes)[path]


def large_pictures(tmp_path: Path, sizes: list[tuple[int, int]], **changes: Any) -> dict[str, str]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number * 90, 40, 90)).save(folder / f"{number}.png")
    values = {"data__train_data_dir": str(folder), "data__bucket_no_upscale": True, "data__max_bucket_reso": 2048, **changes}
    config = small_config(tmp_path, data__min_bucket_reso=64, **values)
    return {warned.path: warned.message.text() for warned in early_warnings(config, load_dataset(config), assets.toy_checkpoint())}


@pytest.mark.parametrize(
    ("sizes", "resolution", "text"),
    [
        # 1536 x 1500: sd-scripts' rule rounds 1036 x 1012 down to 960 x 960, of 1024 x 1024
        ([(1536, 1500), (1500, 1536)], 1024, "of 2 pictures, which need no enlarging; one of them is trained at 960 x 960, 12 % less"),
        ([(1536, 1500), (1024, 1024)], 1024, "of 1 pictures"),
        ([(1100, 1050)], 1024, ""),  # 1024 x 960: 6 % less
        ([(1023, 1023)], 1024, "of 1 pictures"),  # smaller: its own size, cut to steps of 64
        ([(2048, 2048), (1024, 1024)], 1024, "no effect: no picture would be enlarged"),
        ([(512, 512)], 1024, ""),
    ],
)
def test_area_that_never_enlarging_gives_up_is_told(tmp_path: Path, sizes: list[tuple[int, int]], resolution: int, text: str):
    found = large_pictures(tmp_path, sizes, data__resolution=resolution).get("data.bucket_no_upscale", "")
    assert text in found and bool(text) == bool(found)
