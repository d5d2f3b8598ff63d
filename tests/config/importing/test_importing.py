"""Settings of other trainers: every key of a file is taken or listed with its reason, and what is taken means the same here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomlkit

from lora_trainer.config import arguments, effective
from lora_trainer.config.build import build
from lora_trainer.config.files import config_text, read_config
from lora_trainer.config.importing import Imported, import_file, import_text
from lora_trainer.config.importing.arguments import SPECIAL, paths_by_name
from lora_trainer.config.importing.reasons import REASONS, UNKNOWN
from lora_trainer.config.importing.values import flatten
from lora_trainer.errors import ConfigError

HERE = Path(__file__).parent
FILES = {
    "kohya_ss.json": "kohya_ss",
    "sd_scripts.toml": "sd-scripts",
    "lora_scripts.toml": "lora-scripts",
    "lora_scripts_page.toml": "lora-scripts",
    "concepts.json": "dreambooth",
}


def why(found: Imported, key: str) -> str:
    """The reason for which the key was left; "" where it was taken."""
    return next((left.why.text() for left in found.left if left.key == key), "")


@pytest.mark.parametrize(("name", "kind"), FILES.items())
def test_every_key_of_a_file_is_taken_once_or_left_with_a_reason(name: str, kind: str):
    text = (HERE / name).read_text(encoding="utf-8")
    content = json.loads(text) if name.endswith(".json") else tomlkit.parse(text).unwrap()
    if isinstance(content, list):
        given = [f"[{place}].{key}" for place, one in enumerate(content) for key in one]
    else:
        given = [key for key, _ in flatten(content)]
    found = import_file(HERE / name)
    assert found.kind == kind
    assert sorted([taken.key for taken in found.taken] + [left.key for left in found.left]) == sorted(given)
    assert all(taken.paths for taken in found.taken) and all(left.why.text() for left in found.left)
    assert found.keys == len(given)
    strange = [left.key for left in found.left if left.why == UNKNOWN]
    assert strange == (["training.frobnicate"] if name == "sd_scripts.toml" else [])


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_read_back_as_it_was_imported(name: str, tmp_path: Path):
    found = import_file(HERE / name)
    out = tmp_path / "config.toml"
    out.write_text(config_text(found.config, changed_only=True), encoding="utf-8")
    assert read_config(out) == found.config


def test_a_kohya_ss_file_keeps_its_meaning():
    found = import_file(HERE / "kohya_ss.json")
    config = found.config
    assert config.model.pretrained_model_name_or_path == "D:/models/v1-5.safetensors" and config.model.clip_skip == 2
    assert config.data.train_data_dir == "D:/work/图片" and config.data.resolution == (512, 768)
    assert (config.data.batch_size, config.data.keep_tokens, config.data.bucket_reso_steps) == (2, 1, 64)
    assert config.data.bucket_no_upscale and config.data.shuffle_caption and config.data.max_bucket_reso == 2048
    assert (config.network.dim, config.network.alpha) == (32, 16)
    assert (config.optimizer.unet_lr, config.optimizer.text_encoder_lr, config.optimizer.args) == (1e-4, 5e-5, "weight_decay=0.05")
    assert config.schedule.type == "cosine" and config.schedule.warmup_steps == "10%"
    assert (config.steps.max_train_epochs, config.steps.gradient_accumulation_steps) == (8, 2)
    assert config.sample.prompts == ("photo of mika --w 512 --h 768 --d 7", "mika at the beach --n blurry")
    assert (config.seed, config.loss.min_snr_gamma, config.loss.noise_offset) == (1234, 5, 0.05)
    assert config.optimizer.type == "AdamW8bit"
    assert config.loss.multires_noise_iterations == 6


def test_every_option_of_the_loss_means_the_same_here():
    given = {
        "loss_type": "smooth_l1",
        "huber_schedule": "exponential",
        "huber_c": 0.2,
        "huber_scale": 2.0,
        "min_snr_gamma": 3.0,
        "debiased_estimation_loss": True,
        "scale_v_pred_loss_like_noise_pred": True,
        "v_pred_like_loss": 0.5,
        "noise_offset": 0.1,
        "noise_offset_random_strength": True,
        "adaptive_noise_scale": 0.05,
        "multires_noise_iterations": 8,
        "multires_noise_discount": 0.4,
        "ip_noise_gamma": 0.1,
        "ip_noise_gamma_random_strength": True,
        "min_timestep": 100,
        "max_timestep": 900,
        "prior_loss_weight": 0.5,
    }
    own = {"max_validation_steps": 5, "train_batch_size": 4, "validation_seed": 7, "validation_split": 0.1}
    found = import_text(tomlkit.dumps({**given, **own, "timestep_sampling": "sigma", "logit_mean": 1.0}))
    assert {name: getattr(found.config.loss, name) for name in given} == given
    assert (found.config.validate.max_pictures, found.config.validate.seed, found.config.validate.fraction) == (20, 7, 0.1)
    assert {left.key for left in found.left} == {"timestep_sampling", "logit_mean"} and found.config.loss.logit_mean == 0


def test_an_sd_scripts_file_keeps_its_meaning_and_what_sd_scripts_does_by_itself():
    found = import_file(HERE / "sd_scripts.toml")
    config = found.config
    assert config.steps.max_train_steps == 800 and config.steps.max_train_epochs == 0
    assert config.schedule.type == "constant" and config.schedule.warmup_steps == "10%"
    assert config.optimizer.text_encoder_lr == 0 and config.optimizer.args == "weight_decay=0.01 betas=.9,.999"
    assert config.sample.prompts == ("a photo of mika --d 1", "mika by the sea") and config.sample.sampler == "euler"
    assert config.data.resolution == 512 and config.data.enable_bucket is False
    assert "data.enable_bucket" in {filled.path for filled in found.filled}
    assert config.save.every_n_steps == 200 and config.save.every_n_epochs is None
    assert config.data.reg_data_dir == "class"


def test_rates_of_an_optimizer_that_is_not_here_are_not_given_to_another():
    found = import_text('network_module = "networks.lora"\noptimizer_type = "Frobnicate"\nunet_lr = 3e-5\noptimizer_args = ["a=1"]\n')
    assert found.config.optimizer.unet_lr is None and "Frobnicate" in why(found, "unet_lr")
    assert found.config.optimizer.args == "" and "Frobnicate" in why(found, "optimizer_type")


def test_an_optimizer_comes_with_its_rates_and_its_arguments():
    found = import_file(HERE / "lora_scripts.toml")
    assert found.config.optimizer.type == "Lion" and found.config.optimizer.unet_lr == 1e-4
    text = 'network_module = "networks.lora"\noptimizer_type = "dadaptadampreprint"\noptimizer_args = ["decouple=True", "betas=.9,.99"]\n'
    config = import_text(text).config
    assert config.optimizer.type == "DAdaptation"
    assert effective.optimizer_args(config) == {"decouple": True, "betas": (0.9, 0.99)}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("use_8bit_adam = true", "AdamW8bit"),
        ("use_lion_optimizer = true", "Lion"),
        ("use_8bit_adam = false", "AdamW"),
        ('use_8bit_adam = true\noptimizer_type = "Prodigy"', "Prodigy"),
        ('optimizer_type = "RMSprop"', "torch.optim.RMSprop"),
        ('optimizer_type = "bitsandbytes.optim.lamb.LAMB"', "bitsandbytes.optim.lamb.LAMB"),
        ('optimizer_type = "prodigyplus.ProdigyPlusScheduleFree"', "ProdigyPlus"),
        ('optimizer_type = "PagedAdamW32bit"', "PagedAdamW"),
        ('optimizer_type = "adafactor"', "AdaFactor"),
    ],
)
def test_every_way_to_name_an_optimizer_there_is_understood(text: str, name: str):
    assert import_text(f'network_module = "networks.lora"\n{text}\n').config.optimizer.type == name


def test_a_schedule_comes_with_its_numbers():
    text = """network_module = "networks.lora"
lr_scheduler = "warmup_stable_decay"
lr_warmup_steps = 0.05
lr_decay_steps = 0.3
lr_scheduler_min_lr_ratio = 0.1
"""
    schedule = import_text(text).config.schedule
    assert (schedule.type, schedule.warmup_steps, schedule.decay_steps) == ("warmup_stable_decay", "5%", "30%")
    assert schedule.min_lr_ratio == 0.1
    text = 'network_module = "networks.lora"\nlr_scheduler = "cosine_with_restarts"\nlr_scheduler_num_cycles = 4\n'
    assert (import_text(text).config.schedule.type, import_text(text).config.schedule.num_cycles) == ("cosine_with_restarts", 4.0)
    text = 'network_module = "networks.lora"\nlr_scheduler = "polynomial"\nlr_scheduler_power = 2\n'
    assert (import_text(text).config.schedule.type, import_text(text).config.schedule.power) == ("polynomial", 2.0)


def test_a_schedule_that_is_a_class_wins_over_the_name_beside_it():
    text = """network_module = "networks.lora"
lr_scheduler = "cosine"
lr_scheduler_type = "CosineAnnealingLR"
lr_scheduler_args = ["T_max=100", "eta_min=1e-6"]
"""
    found = import_text(text)
    assert found.config.schedule.type == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert arguments.parse_args(found.config.schedule.args) == {"T_max": 100, "eta_min": 1e-6}
    assert why(found, "lr_scheduler") == "lr_scheduler_type wins."


def test_rates_per_encoder_and_lora_plus_come_along():
    text = """network_module = "networks.lora"
text_encoder_lr = [1e-5, 5e-6]
network_args = ["loraplus_unet_lr_ratio=16"]
"""
    config = import_text(text).config
    assert config.optimizer.text_encoder_lr == (1e-5, 5e-6) and config.optimizer.loraplus_unet_lr_ratio == 16
    assert effective.learning_rates(config)["unet plus"] == pytest.approx(16 * effective.learning_rates(config)["unet"])


def test_previews_that_a_page_keeps_in_eight_keys_become_one_line():
    found = import_file(HERE / "lora_scripts_page.toml")
    config = found.config
    assert {taken.key for taken in found.taken if taken.paths == ("sample.prompts",)} >= {"negative_prompts", "sample_seed", "sample_cfg"}
    assert config.sample.prompts == ("1girl, aki --n blurry --w 512 --h 768 --l 7 --d 2333 --s 24",)
    assert config.optimizer.args == "weight_decay=0.02" and config.optimizer.unet_lr == 1e-4


def test_concepts_become_folders_with_their_class_pictures():
    found = import_file(HERE / "concepts.json")
    folders = [dict(subset.values) for subset in found.config.data.subsets]
    assert [folder["image_dir"] for folder in folders] == ["/data/mika", "/data/girls", "/data/dog"]
    assert folders[0]["caption_prefix"] == "photo of sks girl,"
    assert folders[1]["is_reg"] is True and folders[1]["class_tokens"] == "photo of a girl"
    assert folders[2]["class_tokens"] == "a zwx dog"
    assert found.config.sample.prompts == ("photo of sks girl at the sea --n blurry --d 42 --l 7.5 --s 20",)
    assert "no folder of pictures" in why(found, "[2].instance_prompt")


def test_a_single_concept_is_a_plain_folder_with_trigger_and_class():
    text = '[{"instance_data_dir": "/data/mika", "instance_prompt": "sks girl", "instance_token": "sks", "class_token": "girl"}]'
    config = import_text(text).config
    assert (config.data.train_data_dir, config.data.trigger_word, config.data.class_tokens) == ("/data/mika", "sks", "girl")
    assert config.data.subsets == ()


def test_a_value_that_is_not_possible_is_left_and_the_rest_is_taken():
    found = import_text('{"LoRA_type": "Standard", "network_dim": 4096, "network_alpha": 1, "max_resolution": "512,650", "epoch": "many"}')
    assert found.config.network.alpha == 1 and found.config.network.dim == build({}).network.dim
    assert "too large" in why(found, "network_dim") and "multiple of 8" in why(found, "max_resolution")
    assert "whole number" in why(found, "epoch")


def test_two_values_that_exclude_each_other_do_not_stop_the_import():
    found = import_text('unet_lr = 0\ntext_encoder_lr = 0\nnetwork_module = "networks.lora"\nv2 = false\n')
    assert found.keys == 4 and len(found.left) >= 2
    assert build(found.values) == found.config


def test_epochs_of_a_kohya_file_that_counts_steps_do_not_win():
    found = import_text('{"LoRA_type": "Standard", "epoch": 1, "max_train_steps": 900, "max_train_epochs": 0}')
    assert (found.config.steps.max_train_epochs, found.config.steps.max_train_steps) == (0, 900)
    assert why(found, "epoch") == "max_train_steps wins."


def test_rates_of_zero_in_kohya_ss_mean_the_learning_rate_when_both_are_and_untrained_when_one_is():
    both = import_text('{"LoRA_type": "Standard", "learning_rate": 2e-4, "unet_lr": 0, "text_encoder_lr": 0}').config
    assert (both.optimizer.learning_rate, both.optimizer.unet_lr, both.optimizer.text_encoder_lr) == (2e-4, None, None)
    one = import_text('{"LoRA_type": "Standard", "unet_lr": 1e-4, "text_encoder_lr": 0}').config
    assert one.optimizer.text_encoder_lr == 0


def test_our_own_config_is_recognised_and_its_mistakes_are_still_named():
    assert import_text('[data]\ntrain_data_dir = "x"\n[network]\ndim = 8\n').kind == "own"
    with pytest.raises(ConfigError, match=r"network\.dim"):
        _ = import_text("[network]\ndim = 0\n").config


def test_a_dataset_toml_is_named_by_the_config(tmp_path: Path):
    file = tmp_path / "data.toml"
    file.write_text('[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "x"\n', encoding="utf-8")
    assert import_file(file).config.data.dataset_config == str(file)


def test_a_file_that_a_text_names_is_not_opened_unless_the_caller_allows_it(tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("my password", encoding="utf-8")
    found = import_text(f'network_module = "networks.lora"\nxformers = true\nsample_prompts = "{secret.as_posix()}"\n')
    assert found.config.sample.prompts == () and "cannot be read" in why(found, "sample_prompts")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": ', "not valid JSON"),
        ("x = = 1", "not valid TOML"),
        ("[1, 2]", "not a settings file"),
        ('{"frob": 1}', "not a settings file"),
        ('"text"', "not valid TOML"),
    ],
)
def test_what_is_no_settings_file_is_refused_with_the_reason(text: str, told: str):
    with pytest.raises(ConfigError, match=told):
        import_text(text)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path):
    binary = tmp_path / "model.json"
    binary.write_bytes(b"\x80\x81\xff")
    for path in (tmp_path / "none.json", binary, tmp_path):
        with pytest.raises(ConfigError, match=re.escape(path.name)):
            import_file(path)


def test_no_reason_is_written_for_a_key_that_is_an_option_here_under_the_same_name():
    """But for those that sd-scripts reads for other model families only, and for rectified flow."""
    both = {name for name in REASONS if name in paths_by_name() or name in SPECIAL}
    flow = {"discrete_flow_shift", "sigmoid_scale", "training_shift"}
    assert both == {"timestep_sampling", "logit_mean", "logit_std", "mode_scale"} | flow
    found = import_text('network_module = "networks.lora"\nprior_loss_weight = 0.5\n')
    assert found.config.loss.prior_loss_weight == 0.5


def test_a_folder_of_masks_is_used_only_where_sd_scripts_uses_it():
    text = 'network_module = "networks.lora"\nconditioning_data_dir = "masks"\n'
    assert import_text(text).config.data.mask_dir == "" and "masked_loss" in why(import_text(text), "conditioning_data_dir")
    assert import_text(text + "masked_loss = true\n").config.data.mask_dir == "masks"


def test_a_part_that_is_not_trained_wins_over_its_rate():
    found = import_text('network_module = "networks.lora"\ntext_encoder_lr = 1e-5\nnetwork_train_unet_only = true\n')
    assert found.config.optimizer.text_encoder_lr == 0
    assert why(found, "text_encoder_lr") == "Another key of the file decides it." and found.keys == 3


def test_a_file_of_the_dreambooth_extension_holds_its_concepts_in_a_list():
    text = '{"concepts_list": [{"instance_data_dir": "/data/mika", "instance_prompt": "sks girl"}], "num_train_epochs": 100}'
    found = import_text(text)
    assert found.config.data.train_data_dir == "/data/mika" and found.keys == 3
    assert "Only the concepts" in why(found, "num_train_epochs")


def test_a_preset_of_lora_scripts_says_only_what_it_changes():
    text = '[metadata]\nname = "768"\nversion = "0.1"\n[data]\nresolution = "768,768"\nbucket_no_upscale = true\n'
    found = import_text(text)
    assert found.kind == "lora-scripts" and found.config.data.resolution == (768, 768) and found.config.data.bucket_no_upscale
    assert why(found, "metadata.name") == "Belongs to the other program's user interface." and found.keys == 4
    assert found.filled == ()


def test_arguments_of_the_optimizer_may_stand_between_quotes():
    text = '{"LoRA_type": "Standard", "optimizer": "AdamW", "optimizer_args": "\\"betas=0.9,0.99\\" weight_decay=0.1"}'
    assert import_text(text).config.optimizer.args == "betas=0.9,0.99 weight_decay=0.1"


def test_a_step_between_sizes_that_is_finer_than_a_latent_becomes_the_finest_and_that_is_said():
    found = import_text('{"LoRA_type": "Standard", "bucket_reso_steps": 1}')
    assert found.config.data.bucket_reso_steps == 8 and "8 pixels" in found.notes[0].text()
    assert import_text('{"LoRA_type": "Standard", "bucket_reso_steps": 32}').notes == ()


def test_prodigys_own_keys_are_said_as_arguments():
    text = 'model_train_type = "sd-lora"\noptimizer_type = "Prodigy"\nprodigy_d_coef = "2.0"\nnetwork_module = "networks.lora"\n'
    assert "d_coef=2.0" in why(import_text(text), "prodigy_d_coef")


@pytest.mark.parametrize(
    ("lines", "attention"),
    [("sdpa = true", "sdpa"), ("xformers = true\nsdpa = true", "xformers"), ("mem_eff_attn = true\nxformers = true", "sliced")],
)
def test_the_ways_of_attention_and_a_whole_vae_are_taken(lines, attention):
    found = import_text(f'network_module = "networks.lora"\n{lines}\nno_half_vae = true\n')
    assert found.config.memory.attention == attention and found.config.memory.vae_precision == "fp32"


@pytest.mark.parametrize(
    ("line", "unet", "encoder"),
    [("unet_lr = 4e-4", 4e-4, 2e-6), ("text_encoder_lr = 5e-5", 2e-6, 5e-5), ("unet_lr = 4e-4\nnetwork_train_unet_only = true", 4e-4, 0.0)],
)
def test_the_part_without_a_rate_learns_at_the_rate_that_sd_scripts_gives_it(line: str, unet: float, encoder: float):
    found = import_text(f'network_module = "networks.lora"\n{line}\n')
    rates = effective.learning_rates(found.config)
    assert (rates["unet"], rates.get("text_encoder", 0.0)) == (unet, encoder)
    assert ("optimizer.learning_rate" in {filled.path for filled in found.filled}) == ("only" not in line)


def test_rates_that_training_a_lora_does_not_read_are_left_for_that_reason():
    text = (
        'network_module = "networks.lora"\nunet_lr = 2e-4\nlearning_rate_te1 = 4e-5\nlearning_rate_te2 = 0.0\ntrain_text_encoder = true\n'
    )
    found = import_text(text)
    assert all("does not read it" in why(found, key) for key in ("learning_rate_te1", "learning_rate_te2", "train_text_encoder"))


@pytest.mark.parametrize(("is_xl", "rate", "taken"), [(True, (6e-4, 1e-4), True), (False, 6e-4, False)])
def test_the_second_text_rate_of_kohya_ss_is_that_of_sdxls_second_encoder(is_xl: bool, rate: object, taken: bool):
    found = import_text(json.dumps({"LoRA_type": "Standard", "sdxl": is_xl, "unet_lr": 3e-4, "text_encoder_lr": 6e-4, "t5xxl_lr": 1e-4}))
    assert found.config.optimizer.text_encoder_lr == rate
    assert ("t5xxl_lr" in {one.key for one in found.taken}) is taken and found.keys == 5


def test_a_row_of_a_prompt_file_that_cannot_be_read_is_named_and_the_others_are_taken(tmp_path: Path):
    rows = [{"prompt": "a vase", "negative_prompt": None, "seed": 3}, {"prompt": ["x", "y"]}, {"prompt": "b", "width": True}]
    (tmp_path / "p.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "in.toml").write_text('network_module = "networks.lora"\nsample_prompts = "p.json"\n', encoding="utf-8")
    found = import_file(tmp_path / "in.toml")
    assert found.config.sample.prompts == ("a vase --d 3",)
    assert [note.text().partition(" is not drawn")[0] for note in found.notes] == ["p.json, line 1, row 2", "p.json, line 1, row 3"]
    assert '["x", "y"]' in found.notes[0].text()


def test_of_several_files_only_the_one_whose_name_is_impossible_is_left():
    found = import_text(json.dumps({"LoRA_type": "Standard", "base_weights": ["a.safetensors", "b\x07.safetensors"]}))
    assert found.config.network.base_weights == ("a.safetensors",) and any("base_weights[1]" in note.text() for note in found.notes)


def test_a_concept_with_one_wrong_value_keeps_its_others():
    text = '[{"instance_data_dir": "/data/mika", "instance_prompt": "sks girl", "instance_token": "s\\u0000ks"}]'
    found = import_text(text)
    assert found.config.data.train_data_dir == "/data/mika" and found.config.data.trigger_word == ""
    assert any("trigger_word" in note.text() for note in found.notes)


def test_null_within_lists_and_concepts_is_never_the_word_none():
    given = {"LoRA_type": "Standard", "sample_prompts": [None, "a vase"], "base_weights": [None, "a.safetensors"], "optimizer_args": [None]}
    found = import_text(json.dumps({**given, "network_args": [None, "rank_dropout=0.1"], "exclude_patterns": ["ff", None]}))
    network = found.config.network
    assert (network.base_weights, network.rank_dropout, network.exclude) == (("a.safetensors",), 0.1, ("ff",))
    assert found.config.sample.prompts == ("a vase",) and "None" not in config_text(found.config)
    concept = {"instance_data_dir": "/a", "instance_prompt": ["x"], "save_sample_prompt": "b", "save_sample_negative_prompt": None}
    found = import_text(json.dumps([{**concept, "instance_token": True, "sample_seed": None}]))
    assert found.config.sample.prompts == ("b",) and (found.config.data.class_tokens, found.config.data.trigger_word) == ("", "")
    assert "text or a number" in why(found, "[0].instance_prompt") and found.keys == 6


def test_a_file_of_another_program_that_shares_a_few_names_is_not_taken_for_kohya_ss():
    with pytest.raises(ConfigError, match="known kind"):
        import_text(json.dumps({"learning_rate": 1e-4, "seed": 3, "num_frames": 16, "text_model": "t5", "ckpt": "x", "world": 2}))


def test_a_file_of_powershells_own_encoding_is_read(tmp_path: Path):
    file = tmp_path / "in.toml"
    file.write_bytes('network_module = "networks.lora"\noutput_name = "图片"\n'.encode("utf-16"))
    assert import_file(file).config.save.output_name == "图片"


def test_settings_of_rectified_flow_are_taken_where_the_file_trains_it_and_not_from_other_families():
    ours = {"flow_model": True, "discrete_flow_shift": 2.5, "timestep_sampling": "mode", "mode_scale": 0.5}
    theirs = {
        "flow_model": True,
        "flow_timestep_distribution": "logit_normal",
        "flow_logit_mean": -0.2,
        "flow_logit_std": 1.5,
        "flow_uniform_static_ratio": 3.0,
        "flow_use_ot": True,
    }
    head = {"network_module": "networks.lora"}
    config = import_text(tomlkit.dumps(head | ours)).config
    loss = config.loss
    assert config.model.prediction == "flow"
    assert (loss.discrete_flow_shift, loss.timestep_sampling, loss.mode_scale) == (2.5, "mode", 0.5)
    found = import_text(tomlkit.dumps(head | theirs))
    loss = found.config.loss
    assert found.config.model.prediction == "flow"
    assert (loss.timestep_sampling, loss.logit_mean, loss.logit_std, loss.discrete_flow_shift) == ("logit_normal", -0.2, 1.5, 3.0)
    assert {left.key for left in found.left} == {"flow_use_ot"}
    flux = import_text(tomlkit.dumps(head | {"discrete_flow_shift": 3.1, "timestep_sampling": "sigmoid", "sigmoid_scale": 1.0}))
    assert {left.key for left in flux.left} == {"discrete_flow_shift", "timestep_sampling", "sigmoid_scale"}
    assert flux.config.model.prediction == "auto" and flux.config.loss.discrete_flow_shift == 1.0
