"""SimpleTuner's config.json, in which keys may begin with --, and its list of data backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.config.importing.arguments import Key, translate_keys
from lora_trainer.config.importing.learning import Options, ReadText, find_optimizer
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, LOG, NOT_YET, OFF, ONLY_STABLE_DIFFUSION, RESUMED, START
from lora_trainer.config.importing.tables import CHOOSE_PICTURES, TRAINED, folder_options, is_on, prompt_line
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import ProgramKeys
from lora_trainer.config.importing.trainers.lycoris import lycoris_keys
from lora_trainer.config.importing.values import is_empty, to_number
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_json

NOT_READ = say("SimpleTuner's own setting, which has no counterpart here.")
DEFAULTS: Mapping[str, Any] = {"optimizer.text_encoder_lr": 0.0, "network.dim": 16, "network.alpha": 16.0}
"""What SimpleTuner does without being told: text encoders of SDXL are not trained, alpha is the rank."""
NAMES = {
    "pretrained_model_name_or_path": "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path": "vae",
    "output_dir": "output_dir",
    "train_batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
    "learning_rate": "learning_rate",
    "text_encoder_lr": "text_encoder_lr",
    "lr_scheduler": "lr_scheduler",
    "lr_warmup_steps": "lr_warmup_steps",
    "lr_num_cycles": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "max_train_steps": "max_train_steps",
    "num_train_epochs": "max_train_epochs",
    "mixed_precision": "mixed_precision",
    "lora_rank": "network_dim",
    "lora_alpha": "network_alpha",
    "lora_dropout": "network_dropout",
    "use_dora": "dora_wd",
    "init_lora": "network_weights",
    "seed": "seed",
    "max_grad_norm": "max_grad_norm",
    "snr_gamma": "min_snr_gamma",
    "noise_offset": "noise_offset",
    "input_perturbation": "ip_noise_gamma",
    "caption_dropout_probability": "caption_dropout_rate",
    "vae_batch_size": "vae_batch_size",
    "instance_data_dir": "train_data_dir",
    "instance_prompt": "class_tokens",
    "loss_type": "loss_type",
    "huber_schedule": "huber_schedule",
    "huber_c": "huber_c",
    "rescale_betas_zero_snr": "zero_terminal_snr",
    "checkpointing_steps": "save_every_n_steps",
    "checkpoint_step_interval": "save_every_n_steps",
    "checkpoint_epoch_interval": "save_every_n_epochs",
    "validation_steps": "sample_every_n_steps",
    "validation_step_interval": "sample_every_n_steps",
    "validation_epoch_interval": "sample_every_n_epochs",
    "tracker_run_name": "log_tracker_name",
    "report_to": "log_with",
    "clip_skip": "clip_skip",
}
OPTIMIZERS = {
    "adamw_bf16": "AdamW",
    "adamw": "AdamW",
    "optimi-adamw": "AdamW",
    "optimi-stableadamw": "AdamW",
    "optimi-lion": "Lion",
    "optimi-sgd": "SGD",
    "torch-adamw": "AdamW",
    "ao-adamw8bit": "AdamW8bit",
    "bnb-adamw8bit": "AdamW8bit",
    "adamw8bit": "AdamW8bit",
    "adamw-8bit": "AdamW8bit",
    "bnb-adamw": "AdamW",
    "bnb-adamw-paged": "PagedAdamW",
    "bnb-adamw8bit-paged": "PagedAdamW8bit",
    "bnb-lion8bit": "Lion8bit",
    "bnb-lion8bit-paged": "PagedLion8bit",
    "bnb-lion": "Lion",
    "bnb-lion-paged": "Lion",
    "prodigy": "Prodigy",
    "adafactor": "AdaFactor",
    "dadaptation": "DAdaptAdam",
    "adamw_schedulefree": "AdamWScheduleFree",
    "adamw-schedulefree": "AdamWScheduleFree",
}
PREVIEW = {
    "validation_negative_prompt": "n",
    "validation_resolution": "",
    "validation_seed": "d",
    "validation_guidance": "l",
    "validation_num_inference_steps": "s",
}
SWITCHED = {"noise_offset": "offset_noise", "use_dora": "", "input_perturbation": "", "snr_gamma": ""}
"""Numbers of which 0 means off, and the switch that they need."""
_REASONS: Mapping[Message, str] = {
    START: """disable_benchmark num_workers dataloader_prefetch attention_mechanism allow_tf32 base_model_precision base_model_default_dtype
        disable_bucket_pruning cache_dir cache_dir_text cache_dir_vae metadata_update_interval delete_unwanted_images
        delete_problematic_images skip_file_discovery compress_disk_cache write_batch_size read_batch_size torch_num_threads
        enable_xformers_memory_efficient_attention validation_torch_compile quantize_via accelerate_extra_args num_processes
        num_machines main_process_port override_dataset_config aspect_bucket_worker_count disable_tf32""",
    RESUMED: """resume_from_checkpoint checkpoints_total_limit""",
    LOG: """tracker_project_name logging_dir""",
    NOT_YET: """push_to_hub push_checkpoints_to_hub hub_model_id hf_token validation_guidance_rescale user_prompt_library
        validation_prompt_library validation_noise_scheduler num_eval_images lr_end optimizer_config""",
    ITSELF: """model_family minimum_image_size aspect_bucket_rounding aspect_bucket_alignment resolution_type vae_dtype
        training_scheduler_timestep_spacing inference_scheduler_timestep_spacing crop""",
    ONLY_STABLE_DIFFUSION: """flux_lora_target flux_schedule_shift flow_schedule_shift flow_sigmoid_scale flux_guidance_mode
        flux_guidance_value flux_guidance_min flux_guidance_max flux_attention_masked_training tokenizer_max_length""",
}
REASONS = {name: why for why, names in _REASONS.items() for name in names.split()}


def simple_tuner_keys(values: Any, read: ReadText) -> ProgramKeys:
    """Every key of a config, or of a list of data backends."""
    if isinstance(values, list):
        return _backend_keys(values)
    flat = {key.removeprefix("--").replace("-", "_"): value for key, value in values.items()}
    network = _lycoris_file(flat, read)
    keys = tuple(_key(key, key.removeprefix("--").replace("-", "_"), value, flat, network) for key, value in values.items())
    notes = network.notes if network else ()
    return ProgramKeys(keys, {} if network else _defaults(flat), notes)


def _defaults(flat: Mapping[str, Any]) -> dict[str, Any]:
    defaults = dict(DEFAULTS)
    if not is_empty(flat.get("lora_rank")):
        defaults["network.alpha"] = to_number(flat["lora_rank"])
    if is_on(flat.get("train_text_encoder")):
        del defaults["optimizer.text_encoder_lr"]
    return defaults


class _Network:
    """The network of the file that `lycoris_config` names."""

    def __init__(self, options: Options, notes: tuple[Message, ...]) -> None:
        self.options, self.notes = options, notes


def _lycoris_file(flat: Mapping[str, Any], read: ReadText) -> _Network | None:
    """None if the network is not LyCORIS', or its file cannot be read."""
    name = flat.get("lycoris_config")
    if flat.get("lora_type") != "lycoris" or is_empty(name) or (text := read(str(name))) is None:
        return None
    try:
        values = parse_json(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    program = lycoris_keys(values, read)
    translated = translate_keys(program.keys, read, program.defaults, program.context)
    options = [(f"network.{option}", value) for option, value in translated.values.get("network", {}).items()]
    notes = tuple(
        say("{key}: {name}={value} was not taken. {why}", key="lycoris_config", name=left.key, value=left.value, why=left.why)
        for left in translated.left
    )
    return _Network(options, notes) if options else None


def _key(key: str, name: str, value: Any, flat: Mapping[str, Any], network: _Network | None) -> Key:
    translated = _translate(name, value, flat, network)
    if isinstance(translated, Message):
        return Key(key, name, value, why=translated)
    if isinstance(translated, Key):
        return Key(key, translated.name, translated.value, shown=value, merged_into=translated.merged_into)
    return Key(key, name, value, options=translated)


def _translate(name: str, value: Any, flat: Mapping[str, Any], network: _Network | None) -> Options | Message | Key:
    if is_empty(value):
        return EMPTY
    if name == "model_type":
        return ITSELF if "lora" in str(value) else say("{value}: a LoRA is trained here, not that.", value=value)
    if name == "lora_type":
        return _network_type(value, network)
    if name == "lycoris_config":
        return network.options if network else say("{file} cannot be read from here: import it by itself for the network.", file=value)
    if name in ("lora_rank", "lora_alpha", "lora_dropout") and network:
        return say("{key} wins.", key="lycoris_config")
    if name == "resolution":
        return _resolution(value, flat)
    if name == "optimizer":
        return _optimizer(value)
    if name == "train_text_encoder":
        return TRAINED if is_on(value) else [("optimizer.text_encoder_lr", 0.0)]
    if name == "data_backend_config":
        return CHOOSE_PICTURES
    if name == "prediction_type":
        if value in ("flow_matching", "flow-matching", "flow_prediction"):
            return Key("", "flow_model", True)
        return Key("", "v_parameterization", True) if value in ("v_prediction", "v-prediction") else ITSELF
    if name in ("use_ema", "ema_decay"):
        return [("save.ema_decay", flat.get("ema_decay", 0.995))] if is_on(flat.get("use_ema")) else OFF
    if name == "validation_prompt" or name in PREVIEW:
        return _preview(name, value, flat)
    if name in ("max_train_steps", "num_train_epochs") and not to_number(value):
        return OFF
    if name in SWITCHED and (not to_number(value) or (SWITCHED[name] and SWITCHED[name] in flat and not is_on(flat[SWITCHED[name]]))):
        return OFF
    if name in NAMES:
        return Key("", NAMES[name], value)
    return REASONS.get(name) or (OFF if value is False else NOT_READ)


def _network_type(value: Any, network: _Network | None) -> Options | Message:
    if value == "standard":
        return [("network.type", "lora")]
    if network:
        return ITSELF
    return say("The network {name} is not supported yet: a plain LoRA takes its place.", name=value)


def _resolution(value: Any, flat: Mapping[str, Any]) -> Options:
    """Pixels of an edge; with resolution_type area, millions of pixels."""
    number = to_number(value)
    if flat.get("resolution_type") == "area" or 0 < number < 16:
        return [("data.resolution", max(64, round((number * 1024 * 1024) ** 0.5 / 64) * 64))]
    return [("data.resolution", int(number) if number.is_integer() else value)]


def _optimizer(value: Any) -> Options | Message:
    name = OPTIMIZERS.get(str(value).lower()) or find_optimizer(str(value))
    if name is None:
        return say("{name} is not supported yet: AdamW takes its place, at its own rates.", name=value)
    return [("optimizer.type", name)]


def _preview(name: str, value: Any, flat: Mapping[str, Any]) -> Options | Message | Key:
    prompt = flat.get("validation_prompt")
    if is_empty(prompt):
        return say("There is no preview prompt.")
    if name != "validation_prompt":
        return Key("", "", value, merged_into="sample.prompts")
    width, _, height = str(flat.get("validation_resolution") or "").partition(",")[0].lower().partition("x")
    options = {letter: flat.get(key) for key, letter in PREVIEW.items() if letter}
    size = {"w": int(to_number(width)), "h": int(to_number(height or width))} if to_number(width) >= 64 else {}
    return [("sample.prompts", [prompt_line(str(prompt), {"n": options.pop("n"), **size, **options})])]


def _backend_keys(entries: list[Any]) -> ProgramKeys:
    """A list of data backends: those of pictures are folders."""
    folders, keys = [], []
    for number, entry in enumerate(entries):
        is_pictures = isinstance(entry, Mapping) and entry.get("dataset_type", "image") == "image" and not is_on(entry.get("disabled"))
        if is_pictures and not is_empty(entry.get("instance_data_dir")):
            folders.append({"image_dir": str(entry["instance_data_dir"]), "num_repeats": int(to_number(entry.get("repeats"))) + 1})
        for name, value in entry.items() if isinstance(entry, Mapping) else ():
            keys.append((f"[{number}].{name}", name, value, is_pictures))
    options = folder_options(folders)
    first = next((key for key, name, _, usable in keys if usable and name == "instance_data_dir"), "")
    return ProgramKeys(tuple(_backend_key(*one, options if one[0] == first else None, [path for path, _ in options]) for one in keys))


def _backend_key(key: str, name: str, value: Any, usable: bool, options: Options | None, paths: list[str]) -> Key:
    if options is not None:
        return Key(key, name, value, options=options)
    if usable and name in ("instance_data_dir", "repeats") and paths:
        into = "data.num_repeats" if name == "repeats" and "data.num_repeats" in paths else paths[0]
        return Key(key, name, value, merged_into=into)
    return Key(key, name, value, why=EMPTY if is_empty(value) else OFF if value is False else NOT_READ)
