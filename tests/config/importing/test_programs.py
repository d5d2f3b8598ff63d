"""Files of other programs are told by marks of their own; every key of them is taken, or left with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.files import config_text, read_config
from lora_trainer.config.importing import Imported, import_file, import_metadata, import_text
from lora_trainer.config.importing.tables import leaves
from lora_trainer.config.importing.values import flatten
from lora_trainer.errors import ConfigError

ONE_TRAINER: dict[str, Any] = {
    "__version": 6, "training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "workspace_dir": "C:/w",
    "base_model_name": "C:/m/base.safetensors", "output_model_destination": "C:/w/vase.safetensors", "output_dtype": "BFLOAT_16",
    "gradient_checkpointing": "ON", "concept_file_name": "c.json", "resolution": "768,1024", "learning_rate": 3e-4,
    "concepts": [{"image": {"enable_random_flip": True}, "path": "C:/img", "name": "a", "balancing": 2.0, "loss_weight": 0.5}],
    "learning_rate_scheduler": "COSINE_WITH_RESTARTS", "learning_rate_cycles": 4.0, "learning_rate_warmup_steps": 0.05,
    "epochs": 20, "batch_size": 2, "gradient_accumulation_steps": 1, "lora_rank": 16, "lora_alpha": 1.0, "peft_type": "LORA",
    "optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.99, "d_coef": 0.8, "nesterov": False, "eps": None},
    "unet": {"train": True, "learning_rate": None}, "text_encoder": {"train": False, "learning_rate": None},
    "text_encoder_2": {"train": True, "learning_rate": 1e-5}, "train_dtype": "BFLOAT_16", "seed": None, "ema": "OFF",
    "clip_grad_norm": None, "masked_training": False, "save_every": 2, "save_every_unit": "EPOCH", "sample_after": 5,
    "sample_after_unit": "MINUTE", "timestep_distribution": "LOGIT_NORMAL", "noising_bias": 0.1, "noising_weight": 0.5,
    "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 5.0, "mse_strength": 1.0, "mae_strength": 0.0,
    "samples": [{"prompt": "a vase", "negative_prompt": "", "seed": 42, "random_seed": False, "width": 512, "height": 768, "cfg_scale": 7}],
    "optimizer_defaults": {"ADAMW": {"beta1": 0.9}}, "validation": False, "secrets": {"huggingface_token": "hf_abc"},
}  # fmt: skip
SIMPLE_TUNER: dict[str, Any] = {
    "--model_family": "sdxl", "--model_type": "lora", "--lora_type": "standard", "--lora_rank": 12, "--lora_alpha": 6,
    "--pretrained_model_name_or_path": "base.safetensors", "--output_dir": "out", "--resolution": 1.0, "--resolution_type": "area",
    "--train_batch_size": 2, "--learning_rate": 9e-5, "--lr_scheduler": "polynomial", "--lr_warmup_steps": 50, "--max_train_steps": 700,
    "--num_train_epochs": 0, "--optimizer": "adamw_bf16", "--mixed_precision": "bf16", "--seed": 9, "--gradient_checkpointing": "true",
    "--validation_prompt": "a vase", "--validation_negative_prompt": "blurry", "--validation_resolution": "512x768",
    "--validation_seed": 4, "--validation_steps": 100, "--checkpointing_steps": 100, "--use_ema": False, "--ema_decay": 0.99,
    "--instance_prompt": "vase", "--data_backend_config": "data.json", "--push_to_hub": False, "--hub_model_id": None,
}  # fmt: skip
AI_TOOLKIT = """---
job: extension
config:
  name: "vase_v1"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "p3r5on"
      network: {type: lora, linear: 16, linear_alpha: 8, conv: 4}
      save: {dtype: float16, save_every: 250, push_to_hub: false}
      datasets:
        - folder_path: "C:\\\\pics\\\\one"
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [ 512, 768 ]
          num_repeats: 3
          controls: []
      train:
        batch_size: 2
        steps: 2000
        train_unet: true
        train_text_encoder: false
        optimizer: "adamw8bit"
        optimizer_params: {weight_decay: 1e-4}
        lr: 1e-4
        ema_config: {use_ema: true, ema_decay: 0.99}
        dtype: bf16
        skip_first_sample: true
        disable_sampling: false
        noise_scheduler: ddpm
      model: {name_or_path: base.safetensors, is_xl: true, quantize: false, vae_path: null}
      sample:
        sampler: "ddpm"
        sample_every: 250
        width: 1024
        height: 1024
        prompts: ["[trigger] playing chess", "a dog"]
        neg: ""
        seed: 42
        guidance_scale: 4
        sample_steps: 20
meta: {name: "[name]", date: 2024-01-01}
"""

REPEATING_YAML = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


def reason(found: Imported, key: str) -> str:
    """The reason for which the key was left; "" where it was taken."""
    return next((left.why.text() for left in found.left if left.key == key), "")


def told(found: Imported) -> list[str]:
    """Every key that the import tells, once for each time."""
    return sorted([one.key for one in found.taken] + [one.key for one in found.left])


def test_every_key_of_onetrainer_is_told_and_so_are_false_and_null():
    found = import_text(json.dumps(ONE_TRAINER))
    assert found.kind == "onetrainer"
    assert told(found) == sorted(key for key, _ in flatten(ONE_TRAINER))
    assert {"seed", "unet.learning_rate", "text_encoder.train", "optimizer.nesterov", "validation"} <= set(told(found))
    assert "hf_abc" not in json.dumps(found.to_json())


def test_settings_of_onetrainer_keep_their_meaning():
    config = import_text(json.dumps(ONE_TRAINER)).config
    assert (config.model.pretrained_model_name_or_path, config.save.output_dir, config.save.output_name) == (
        "C:/m/base.safetensors",
        "C:/w",
        "vase",
    )
    assert (config.data.train_data_dir, config.data.flip_aug, config.data.num_repeats, config.data.resolution) == ("C:/img", True, 2, 1024)
    assert (config.optimizer.type, config.optimizer.args) == ("Prodigy", "weight_decay=0.01 d_coef=0.8 betas=0.9,0.99")
    assert (config.optimizer.learning_rate, config.optimizer.text_encoder_lr, config.optimizer.max_grad_norm) == (3e-4, (0.0, 1e-5), 0.0)
    assert (config.schedule.type, config.schedule.num_cycles, config.schedule.warmup_steps) == ("cosine_annealing", 4.0, "5%")
    assert (config.memory.gradient_checkpointing, config.memory.mixed_precision, config.save.precision) == (True, "bf16", "bf16")
    assert (config.save.every_n_epochs, config.loss.min_snr_gamma, config.network.dim, config.network.alpha) == (2, 5.0, 16, 1.0)
    assert (config.loss.timestep_sampling, config.loss.logit_mean, config.loss.logit_std) == ("logit_normal", 0.1, 1.5)
    assert config.sample.prompts == ("a vase --w 512 --h 768 --d 42 --l 7",)


def test_what_a_concept_of_onetrainer_holds_besides_is_told():
    notes = [note.text() for note in import_text(json.dumps(ONE_TRAINER)).notes]
    assert any("concepts[0]: loss_weight=0.5 was not taken" in note for note in notes)
    assert any("768,1024" in note and "largest" in note for note in notes)
    assert not any("balancing" in note or "name=a" in note for note in notes)


def test_a_file_of_onetrainer_and_the_header_of_its_result_say_the_same():
    file, header = import_text(json.dumps(ONE_TRAINER)), import_metadata({"ot_config": json.dumps(ONE_TRAINER)})
    assert (file.config, file.taken, file.left) == (header.config, header.taken, header.left)


@pytest.mark.parametrize(
    ("first", "second", "rate"),
    [({"train": False}, None, 0.0), ({"train": True, "learning_rate": 2e-5}, None, 2e-5), ({"train": True}, None, None),
     ({"train": False}, {"train": False}, 0.0), ({"train": True}, {"train": False}, (3e-4, 0.0))],
)  # fmt: skip
def test_parts_that_onetrainer_does_not_train_have_rate_0(first: dict[str, Any], second: dict[str, Any] | None, rate: Any):
    values = {**ONE_TRAINER, "text_encoder": first, "text_encoder_2": second}
    assert (
        import_text(json.dumps({key: value for key, value in values.items() if value is not None})).config.optimizer.text_encoder_lr == rate
    )


def test_the_flat_files_of_the_first_onetrainer_are_read():
    old = {"training_method": "LORA", "base_model_name": "m.safetensors", "optimizer": "ADAMW_8BIT", "weight_decay": 0.02,
           "train_unet": False,
           "text_encoder_learning_rate": 1e-5, "train_text_encoder": True, "lora_rank": 8, "learning_rate": 1e-4, "save_after": 3,
           "save_after_unit": "EPOCH", "min_snr_gamma": 5.0, "text_encoder_layer_skip": 1}  # fmt: skip
    found = import_text(json.dumps(old))
    config = found.config
    assert (config.optimizer.type, config.optimizer.args, config.optimizer.unet_lr) == ("AdamW8bit", "weight_decay=0.02", 0.0)
    assert (config.optimizer.text_encoder_lr, config.save.every_n_epochs, config.loss.min_snr_gamma, config.model.clip_skip) == (
        1e-5,
        3,
        5.0,
        2,
    )
    assert told(found) == sorted(old)


def test_concepts_of_onetrainer_that_lie_beside_the_file_are_read_with_it(tmp_path: Path):
    (tmp_path / "c.json").write_text(
        json.dumps([{"path": "/a", "image": {}}, {"path": "/b", "image": {}, "balancing": 3}]), encoding="utf-8"
    )
    file = tmp_path / "in.json"
    file.write_text(json.dumps({key: value for key, value in ONE_TRAINER.items() if key != "concepts"}), encoding="utf-8")
    assert [subset.get("num_repeats") for subset in import_file(file).config.data.subsets] == [1, 3]
    assert "another file" in reason(import_text(file.read_text(encoding="utf-8")), "concept_file_name")


def test_every_key_of_simpletuner_is_told_and_keeps_its_meaning():
    found = import_text(json.dumps(SIMPLE_TUNER))
    config = found.config
    assert found.kind == "simpletuner" and told(found) == sorted(SIMPLE_TUNER)
    assert (config.network.type, config.network.dim, config.network.alpha, config.data.resolution) == ("lora", 12, 6.0, 1024)
    assert (config.optimizer.type, config.optimizer.learning_rate, config.optimizer.text_encoder_lr) == ("AdamW", 9e-5, 0.0)
    assert (config.schedule.type, config.schedule.warmup_steps, config.steps.max_train_steps) == ("polynomial", 50, 700)
    assert config.sample.prompts == ("a vase --n blurry --w 512 --h 768 --d 4",) and config.sample.every_n_steps == 100
    assert (config.save.every_n_steps, config.save.ema_decay, config.data.class_tokens) == (100, 0.0, "vase")


def test_the_network_of_simpletuner_is_read_from_the_file_that_it_names(tmp_path: Path):
    lycoris = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 8192, "linear_alpha": 1, "factor": 24,
               "apply_preset": {"target_module": ["Attention", "FeedForward"],
               "module_algo_map": {"FeedForward": {"factor": 12}}}}  # fmt: skip
    (tmp_path / "lycoris_config.json").write_text(json.dumps(lycoris), encoding="utf-8")
    values = {**SIMPLE_TUNER, "--lora_type": "lycoris", "--lycoris_config": "lycoris_config.json"}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    found = import_file(tmp_path / "config.json")
    network = found.config.network
    assert (network.type, network.full_matrix, network.factor, network.preset) == ("lokr", True, 24, "attn-mlp")
    assert reason(found, "--lora_rank") == "lycoris_config wins." and told(found) == sorted(values)
    assert any("FeedForward.factor=12" in note.text() for note in found.notes)
    alone = import_file(tmp_path / "lycoris_config.json")
    assert alone.kind == "lycoris" and alone.config.network == network
    assert told(alone) == sorted(key for key, _ in flatten(lycoris))
    assert "by itself" in reason(import_text(json.dumps(values)), "--lycoris_config")


def test_a_list_of_simpletuners_data_is_not_taken_for_dreambooth_concepts():
    backends = [{"id": "a", "type": "local", "instance_data_dir": "/a", "repeats": 2, "crop": False},
                {"id": "t", "type": "local", "dataset_type": "text_embeds", "cache_dir": "x", "default": True}]  # fmt: skip
    found = import_text(json.dumps(backends))
    assert found.kind == "simpletuner" and (found.config.data.train_data_dir, found.config.data.num_repeats) == ("/a", 3)
    assert found.keys == 10


def test_every_key_of_ai_toolkit_is_told_and_keeps_its_meaning(tmp_path: Path):
    import yaml

    file = tmp_path / "vase.yaml"
    file.write_text(AI_TOOLKIT, encoding="utf-8")
    found = import_file(file)
    config = found.config
    assert found.kind == "ai-toolkit" and told(found) == sorted(key for key, _ in leaves(yaml.safe_load(AI_TOOLKIT)))
    assert (config.network.dim, config.network.alpha, config.network.conv_dim, config.network.conv_alpha) == (16, 8.0, 4, 4.0)
    assert (config.data.train_data_dir, config.data.num_repeats, config.data.resolution) == ("C:\\pics\\one", 3, 768)
    assert (config.data.caption_extension, config.data.trigger_word, config.save.output_name) == (".txt", "p3r5on", "vase_v1")
    assert (config.optimizer.type, config.optimizer.args, config.optimizer.learning_rate) == ("AdamW8bit", "weight_decay=1e-4", 1e-4)
    assert (config.optimizer.text_encoder_lr, config.schedule.type, config.save.ema_decay, config.save.precision) == (
        0.0,
        "constant",
        0.99,
        "fp16",
    )
    assert config.sample.prompts[0] == "p3r5on playing chess --w 1024 --h 1024 --d 42 --l 4 --s 20" and len(config.sample.prompts) == 2
    assert any("[512, 768]" in note.text() for note in found.notes)
    assert import_text(AI_TOOLKIT).config == import_text(json.dumps(yaml.safe_load(AI_TOOLKIT), default=str)).config == config


def test_several_folders_of_ai_toolkit_become_tables():
    text = AI_TOOLKIT.replace("      train:\n", "        - folder_path: /pics/two\n          is_reg: true\n      train:\n")
    tables = [dict(subset.values) for subset in import_text(text).config.data.subsets]
    assert [table["image_dir"] for table in tables] == ["C:\\pics\\one", "/pics/two"] and tables[1]["is_reg"] is True


@pytest.mark.parametrize("text", [json.dumps(ONE_TRAINER), json.dumps(SIMPLE_TUNER), AI_TOOLKIT])
def test_what_is_imported_is_written_and_read_back(text: str, tmp_path: Path):
    found = import_text(text)
    (tmp_path / "a.toml").write_text(config_text(found.config, changed_only=True), encoding="utf-8")
    assert read_config(tmp_path / "a.toml") == found.config
    json.dumps(found.to_json("zh_CN"))


@pytest.mark.parametrize("form", ["toml", "json"])
def test_a_lycoris_preset_is_told_as_what_it_is(form: str):
    toml = 'enable_conv = true\nunet_target_module = ["ResnetBlock2D"]\n[module_algo_map.ResnetBlock2D]\nalgo = "lokr"\nfactor = 16\n'
    values = {"enable_conv": True, "unet_target_module": ["ResnetBlock2D"], "module_algo_map": {"ResnetBlock2D": {"factor": 16}}}
    with pytest.raises(ConfigError, match="LyCORIS preset"):
        import_text(toml if form == "toml" else json.dumps(values))


def test_keys_within_tables_of_tables_are_not_taken_for_settings_of_the_run():
    found = import_text('network_module = "networks.lora"\n[a.b]\nnetwork_dim = 7\n[c]\nnetwork_alpha = 3\n')
    assert (found.config.network.dim, found.config.network.alpha) == (4, 3.0)
    assert "Known neither" in reason(found, "a.b.network_dim")


def test_a_file_of_which_nothing_is_taken_is_refused_with_the_first_reason():
    with pytest.raises(ConfigError, match=r"none of its 2 keys.*sdxl.*finds this out"):
        import_text('{"sdxl": true, "LyCORIS_preset": "full"}')


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 5000 + "]" * 5000, "JSON|nested"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
        ("job: x\nconfig: {process: [*a]}\n", "not valid YAML"),
        (REPEATING_YAML, "too many values"),
        ("job: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("x: 1\n", "known kind"),
        ("# " + "x" * (3 << 20), "too large"),
        ('{"train_data_dir": "C:\\models"}', r"write \\\\ or /"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_settings_are_refused_and_nothing_is_made_of_them(text: str, match: str):
    with pytest.raises(ConfigError, match=match):
        import_text(text)


def test_a_backslash_in_toml_is_told_with_the_line_and_the_remedy():
    with pytest.raises(ConfigError, match=r"line 2 is not valid TOML.*single quotes"):
        import_text('network_dim = 4\ntrain_data_dir = "R:\\img\\new"\n')


def test_flow_matching_of_simpletuner_is_rectified_flow_here():
    assert import_text(json.dumps({**SIMPLE_TUNER, "--prediction_type": "flow_matching"})).config.model.prediction == "flow"
