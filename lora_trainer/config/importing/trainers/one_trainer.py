"""OneTrainer's settings: the JSON that it saves, of all its versions, and its record in a trained file's header."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_trainer.config.importing.arguments import Key
from lora_trainer.config.importing.learning import Options, ReadText, find_optimizer
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, NOT_YET, OFF, ONLY_STABLE_DIFFUSION, RESUMED, START, WINDOW
from lora_trainer.config.importing.tables import (
    CHOOSE_PICTURES,
    TRAINED,
    folder_options,
    is_on,
    largest_size,
    one_size_note,
    optimizer_args,
    output_options,
    prompt_line,
)
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import ProgramKeys
from lora_trainer.config.importing.values import flatten, is_empty, to_number
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_json

NOT_READ = say("OneTrainer's own setting, which has no counterpart here.")
WHOLE = ("concepts", "samples", "embeddings", "additional_embeddings", "scheduler_params")
"""Lists that are one key."""
NAMES = {
    "base_model_name": "pretrained_model_name_or_path",
    "vae.model_name": "vae",
    "learning_rate": "learning_rate",
    "learning_rate_cycles": "lr_scheduler_num_cycles",
    "learning_rate_min_factor": "lr_scheduler_min_lr_ratio",
    "epochs": "max_train_epochs",
    "batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "lora_rank": "network_dim",
    "lora_alpha": "network_alpha",
    "lora_decompose": "dora_wd",
    "lora_model_name": "network_weights",
    "lokr_dim": "network_dim",
    "lokr_decompose_both": "decompose_both",
    "lokr_decompose_factor": "factor",
    "lokr_use_tucker": "use_tucker",
    "lokr_full_matrix": "full_matrix",
    "lokr_weight_decompose": "dora_wd",
    "seed": "seed",
    "clip_grad_norm": "max_grad_norm",
    "offset_noise_weight": "noise_offset",
    "perturbation_noise_weight": "ip_noise_gamma",
    "dropout_probability": "network_dropout",
    "aspect_ratio_bucketing": "enable_bucket",
    "latent_caching": "cache_latents",
    "image_caching": "cache_latents",
    "rescale_noise_scheduler_to_zero_terminal_snr": "zero_terminal_snr",
    "force_v_prediction": "v_parameterization",
    "min_snr_gamma": "min_snr_gamma",
    "masked_training": "data.masks_beside",
    "compile": "torch_compile",
}
VALUES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "learning_rate_scheduler": (
        "lr_scheduler",
        {
            "CONSTANT": "constant_with_warmup",
            "COSINE": "cosine",
            "LINEAR": "linear",
            "COSINE_WITH_RESTARTS": "cosine_annealing",
            "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
            "REX": "rex",
            "ADAFACTOR": "adafactor",
        },
    ),
    "train_dtype": ("mixed_precision", {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "no", "TFLOAT_32": "no"}),
    "output_dtype": ("save_precision", {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "float"}),
    "attention_mechanism": ("memory.attention", {"SDP": "sdpa", "XFORMERS": "xformers", "DEFAULT": "auto"}),
    "peft_type": ("network_module", {"LORA": "lora", "LOHA": "networks.loha", "LOKR": "networks.lokr"}),
    "layer_filter_preset": ("network.preset", {"attn-mlp": "attn-mlp", "attn-only": "attn-only", "full": "full"}),
    "lora_layer_preset": ("network.preset", {"attn-mlp": "attn-mlp", "attn-only": "attn-only", "full": "full"}),
    "learning_rate_scaler": ("optimizer.scale_lr", {"NONE": "none", "BATCH": "linear", "SQRT_BATCH": "sqrt"}),
}
"""Key -> sd-scripts' name or our option, and the values that have a counterpart."""
OPTIMIZERS = {
    "ADAMW": "AdamW",
    "ADAMW_8BIT": "AdamW8bit",
    "ADAM": "Adam",
    "ADAM_8BIT": "bitsandbytes.optim.Adam8bit",
    "ADAFACTOR": "AdaFactor",
    "PRODIGY": "Prodigy",
    "PRODIGY_PLUS_SCHEDULE_FREE": "ProdigyPlus",
    "LION": "Lion",
    "LION_8BIT": "Lion8bit",
    "SGD": "SGD",
    "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree",
    "SCHEDULE_FREE_SGD": "SGDScheduleFree",
    "DADAPT_ADA_GRAD": "DAdaptAdaGrad",
    "DADAPT_ADAM": "DAdaptAdam",
    "DADAPT_ADAN": "DAdaptAdan",
    "DADAPT_LION": "DAdaptLion",
    "DADAPT_SGD": "DAdaptSGD",
    "CAME": "CAME",
    "LAMB": "LAMB",
    "ADAGRAD": "Adagrad",
    "RMSPROP": "RMSprop",
}
_BETAS = ("beta1", "beta2")
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "ADAMW": (*_BETAS, "weight_decay", "eps"),
    "ADAMW_8BIT": (*_BETAS, "weight_decay", "eps"),
    "ADAM": (*_BETAS, "weight_decay", "eps"),
    "ADAM_8BIT": (*_BETAS, "weight_decay", "eps"),
    "LION": (*_BETAS, "weight_decay"),
    "LION_8BIT": (*_BETAS, "weight_decay"),
    "SGD": ("momentum", "weight_decay"),
    "ADAFACTOR": ("weight_decay", "clip_threshold", "decay_rate", "scale_parameter", "relative_step", "warmup_init"),
    "PRODIGY": (*_BETAS, "weight_decay", "eps", "d0", "d_coef", "decouple", "use_bias_correction", "safeguard_warmup"),
    "SCHEDULE_FREE_ADAMW": (*_BETAS, "weight_decay", "eps"),
    "SCHEDULE_FREE_SGD": ("momentum", "weight_decay"),
    "DADAPT_ADAM": (*_BETAS, "weight_decay", "eps", "d0", "decouple", "use_bias_correction"),
    "DADAPT_LION": (*_BETAS, "weight_decay", "d0"),
    "CAME": ("weight_decay",),
}
"""What each optimizer is told; the others' settings stand beside it in the file."""
OLD_NAMES = {
    "train_unet": "unet.train",
    "unet_learning_rate": "unet.learning_rate",
    "train_text_encoder": "text_encoder.train",
    "text_encoder_learning_rate": "text_encoder.learning_rate",
    "train_text_encoder_2": "text_encoder_2.train",
    "text_encoder_2_learning_rate": "text_encoder_2.learning_rate",
    "vae_model_name": "vae.model_name",
    "optimizer": "optimizer.optimizer",
    "weight_decay": "optimizer.weight_decay",
    "save_after": "save_every",
    "save_after_unit": "save_every_unit",
}
"""Keys of its first versions -> where they stand today."""
REASONS: Mapping[Message, str] = {
    START: """workspace_dir cache_dir debug_mode debug_dir train_device temp_device dataloader_threads caching_threads prefetch_next_batch
        multi_gpu device_indexes gradient_reduce_precision fused_gradient_reduce async_gradient_reduce async_gradient_reduce_buffer
        enable_autocast_cache only_cache clear_cache_before_training enable_async_offloading enable_activation_offloading async_offloading
        layer_offload_fraction latent_caching_epochs include_train_config cloud secrets""",
    WINDOW: """__version tensorboard tensorboard_expose tensorboard_always_on tensorboard_port optimizer_defaults sample_image_format
        sample_video_format sample_audio_format samples_to_tensorboard save_filename_prefix prevent_overwrites""",
    RESUMED: """continue_last_backup backup_after backup_after_unit rolling_backup rolling_backup_count backup_before_save""",
    ITSELF: """model_type weight_dtype fallback_train_dtype output_model_format lora_weight_dtype force_epsilon_prediction text_caching
        text_encoder_2_sequence_length weight_dtypes""",
    ONLY_STABLE_DIFFUSION: """prior transformer unconditional_transformer text_encoder_3 text_encoder_4 effnet_encoder decoder
        decoder_text_encoder decoder_vqgan timestep_shift dynamic_timestep_shifting frames quantization vb_loss_strength
        text_encoder_3_layer_skip text_encoder_4_layer_skip extra_model_name guidance_scale effnet_encoder_model_name
        prior_model_name decoder_model_name oft_block_share""",
    NOT_YET: """embedding embeddings additional_embeddings embedding_learning_rate preserve_embedding_norm embedding_weight_dtype
        bundle_additional_embeddings token_count initial_embedding_text embedding_model_names custom_conditioning_image
        force_circular_padding generalized_offset_noise""",
}
_REASON = {name: why for why, names in REASONS.items() for name in names.split()}


def one_trainer_keys(values: Any, read: ReadText) -> ProgramKeys:
    """Every key of a file; a list is a file of concepts alone."""
    if isinstance(values, list):
        values = {"concepts": values}
    flat = dict(_flatten(values))
    reader = _Reader({OLD_NAMES.get(key, key): value for key, value in flat.items()}, read)
    keys = tuple(reader.key(key, OLD_NAMES.get(key, key), value) for key, value in flat.items())
    return ProgramKeys(keys, notes=tuple(reader.notes))


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key not in WHOLE:
            yield from flatten({key: value})
        else:
            yield key, value


class _Reader:
    """Translates each key, with a look at the others (`flat`)."""

    def __init__(self, flat: Mapping[str, Any], read: ReadText) -> None:
        self.flat, self.read = flat, read
        self.notes: list[Message] = []
        self.special: Mapping[str, Callable[[Any], Options | Message]] = {
            "training_method": self._method,
            "output_model_destination": lambda value: output_options(str(value)),
            "resolution": self._resolution,
            "learning_rate_warmup_steps": self._warmup,
            "gradient_checkpointing": lambda value: [("memory.gradient_checkpointing", value not in (False, "OFF", "False"))],
            "unet.gradient_checkpointing": lambda value: [("memory.gradient_checkpointing", bool(value))],
            "unet.train": lambda value: TRAINED if value is not False else [("optimizer.unet_lr", 0.0)],
            "unet.learning_rate": lambda value: self._unless_frozen("unet", [("optimizer.unet_lr", value)]),
            "text_encoder.train": lambda value: self._text_encoder(),
            "text_encoder.learning_rate": lambda value: self._text_encoder(),
            "text_encoder_2.train": lambda value: self._text_encoder(second=True),
            "text_encoder_2.learning_rate": lambda value: self._text_encoder(second=True),
            "text_encoder_layer_skip": lambda value: [("model.clip_skip", int(to_number(value)) + 1)],
            "optimizer.optimizer": self._optimizer,
            "clip_grad_norm": lambda value: [("optimizer.max_grad_norm", to_number(value))],
            "loss_weight_fn": self._loss_weight,
            "loss_weight_strength": lambda value: OFF if self.flat.get("loss_weight_fn") != "MIN_SNR_GAMMA" else self._loss_weight(""),
            "huber_delta": lambda value: OFF,
            "ema": self._ema,
            "ema_decay": lambda value: self._ema(self.flat.get("ema")),
            "ema_update_step_interval": lambda value: OFF if self.flat.get("ema", "OFF") == "OFF" else NOT_READ,
            "min_noising_strength": lambda value: [("loss.min_timestep", int(to_number(value) * 1000))],
            "max_noising_strength": lambda value: [("loss.max_timestep", int(to_number(value) * 1000))],
            "timestep_distribution": self._timesteps,
            "noising_bias": lambda value: self._timestep_number("loss.logit_mean", to_number(value)),
            "noising_weight": lambda value: self._timestep_number("loss.logit_std", to_number(value) + 1.0),
            "unmasked_weight": lambda value: [("data.mask_min_value", value)] if is_on(self.flat.get("masked_training")) else OFF,
            "lora_decompose_output_axis": lambda value: [("network.dora_axis", "out" if value else "in")],
            "save_every": lambda value: self._every("save", value, self.flat.get("save_every_unit")),
            "save_every_unit": lambda value: self._every("save", self.flat.get("save_every"), value),
            "sample_after": lambda value: self._every("sample", value, self.flat.get("sample_after_unit")),
            "sample_after_unit": lambda value: self._every("sample", self.flat.get("sample_after"), value),
            "concepts": self._concepts,
            "samples": self._samples,
            "concept_file_name": self._concept_file,
            "sample_definition_file_name": self._sample_file,
        }

    def key(self, key: str, name: str, value: Any) -> Key:
        """One key; `name` is its place in today's files."""
        translated = self._translate(name, value)
        if isinstance(translated, Message):
            return Key(key, name, value, why=translated)
        if isinstance(translated, Key):
            return Key(key, translated.name, translated.value, shown=value, merged_into=translated.merged_into)
        return Key(key, name, value, options=translated)

    def _translate(self, name: str, value: Any) -> Options | Message | Key:
        is_argument = name.startswith("optimizer.") and name != "optimizer.optimizer"
        if value is None and name == "clip_grad_norm":
            return [("optimizer.max_grad_norm", 0.0)]
        if is_empty(value):
            return EMPTY
        if name in self.special:
            return self.special[name](value)
        if is_argument:
            return self._argument(name.removeprefix("optimizer."), value)
        if name in VALUES:
            path, choices = VALUES[name]
            return Key(name, path, choices[value]) if value in choices else say("{value} has no counterpart here.", value=value)
        if name in NAMES:
            return self._named(name, value)
        if (why := _REASON.get(name) or _REASON.get(name.partition(".")[0])) is not None:
            return why
        return self._loss_strength(name, value) if name.endswith("_strength") else OFF if value is False else NOT_READ

    def _named(self, name: str, value: Any) -> Options | Message | Key:
        network = self.flat.get("peft_type", "LORA")
        if name.startswith("lokr_") and network != "LOKR":
            return say("Only other kinds of networks use it, there too.")
        if name == "lora_rank" and network == "LOKR" and not is_empty(self.flat.get("lokr_dim")):
            return say("{key} wins.", key="lokr_dim")
        if name == "lora_decompose" and network == "LOKR":
            return say("Only other kinds of networks use it, there too.")
        if name in ("min_snr_gamma", "noise_offset") and not to_number(value):
            return OFF
        return Key(name, NAMES[name], value)

    def _method(self, value: Any) -> Options | Message:
        if value == "LORA":
            return ITSELF
        return say("{value}: a LoRA is trained here, not that.", value=value)

    def _resolution(self, value: Any) -> Options | Message:
        size, is_one_of_several = largest_size(value)
        if is_one_of_several:
            self.notes.append(one_size_note("resolution", value))
        return [("data.resolution", int(size) if str(size).isdecimal() else size)]

    def _warmup(self, value: Any) -> Options | Message:
        steps = to_number(value)
        return [("schedule.warmup_steps", f"{steps * 100:g}%" if 0 < steps <= 1 else int(steps))]

    def _unless_frozen(self, part: str, options: Options) -> Options | Message:
        return say("The part is not trained there.") if self.flat.get(f"{part}.train") is False else options

    def _text_encoder(self, *, second: bool = False) -> Options | Message:
        """Both encoders' rates: one number where they are the same; None is the learning rate."""
        parts = ["text_encoder", "text_encoder_2"] if "XL" in str(self.flat.get("model_type")) and self._has_second() else ["text_encoder"]
        if second and len(parts) == 1:
            return ONLY_STABLE_DIFFUSION
        rates = [0.0 if self.flat.get(f"{part}.train") is False else self.flat.get(f"{part}.learning_rate") for part in parts]
        if all(rate is None for rate in rates):
            return TRAINED
        if len(set(map(str, rates))) == 1:
            return [("optimizer.text_encoder_lr", rates[0])]
        return [("optimizer.text_encoder_lr", [self.flat.get("learning_rate") if rate is None else rate for rate in rates])]

    def _has_second(self) -> bool:
        return any(name in self.flat for name in ("text_encoder_2.train", "text_encoder_2.learning_rate"))

    def _optimizer(self, value: Any) -> Options | Message:
        name = find_optimizer(OPTIMIZERS.get(str(value), ""))
        if name is None:
            return say("{name} is not supported yet: AdamW takes its place, at its own rates.", name=value)
        return [("optimizer.type", name)]

    def _argument(self, name: str, value: Any) -> Options | Message | Key:
        optimizer = str(self.flat.get("optimizer.optimizer", "ADAMW"))
        known = ARGUMENTS.get(optimizer, ())
        if name == "__version":
            return WINDOW
        if name not in known:
            return OFF if value is False else say("The optimizer is not told it here: add it to optimizer.args if it reads it.")
        values = {argument: self.flat.get(f"optimizer.{argument}") for argument in known}
        first = next(argument for argument in known if not is_empty(values[argument]))
        if name == first:
            return [("optimizer.args", optimizer_args(values))]
        return Key("", "", value, merged_into="optimizer.args")

    def _loss_weight(self, value: Any) -> Options | Message:
        function, strength = self.flat.get("loss_weight_fn"), self.flat.get("loss_weight_strength", 5.0)
        if function == "CONSTANT":
            return OFF
        if function == "MIN_SNR_GAMMA":
            return [("loss.min_snr_gamma", strength)]
        if function == "DEBIASED_ESTIMATION":
            return [("loss.debiased_estimation_loss", True)]
        return say("{value} has no counterpart here.", value=function)

    def _loss_strength(self, name: str, value: Any) -> Options | Message:
        strengths = {
            loss: to_number(self.flat.get(f"{loss}_strength", 1.0 if loss == "mse" else 0.0))
            for loss in ("mse", "mae", "log_cosh", "huber")
        }
        used = [loss for loss, strength in strengths.items() if strength]
        types = {"mse": "l2", "mae": "l1", "huber": "huber"}
        if name.removesuffix("_strength") not in strengths:
            return NOT_READ if to_number(value) else OFF
        if not to_number(value):
            return OFF
        if len(used) == 1 and used[0] in types:
            return [("loss.loss_type", types[used[0]])]
        return say("One kind of loss is used here, not a mixture.")

    def _ema(self, value: Any) -> Options | Message:
        return OFF if value in ("OFF", None, False) else [("save.ema_decay", self.flat.get("ema_decay", 0.999))]

    def _timesteps(self, value: Any) -> Options | Message:
        names = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal"}
        return [("loss.timestep_sampling", names[value])] if value in names else say("{value} has no counterpart here.", value=value)

    def _timestep_number(self, path: str, value: float) -> Options | Message:
        if self.flat.get("timestep_distribution") != "LOGIT_NORMAL":
            return OFF
        return [(path, value)]

    def _every(self, section: str, value: Any, unit: Any) -> Options | Message:
        count = int(to_number(value))
        if unit == "NEVER" or (unit in ("EPOCH", "STEP") and not count):
            return [(f"{section}.every_n_epochs", 0)]
        if unit == "EPOCH":
            return [(f"{section}.every_n_epochs", count)]
        if unit == "STEP":
            return [(f"{section}.every_n_steps", count)]
        return say("Here it is counted in epochs or steps, not in {unit}.", unit=unit)

    def _concepts(self, value: Any) -> Options | Message:
        folders = [_folder(concept) for concept in value if isinstance(concept, Mapping) and concept.get("enabled", True)]
        options = folder_options(folders)
        for number, concept in enumerate(value):
            self.notes += _concept_notes(number, concept)
        return options or say("The concept has no folder of pictures.")

    def _concept_file(self, value: Any) -> Options | Message:
        if not is_empty(self.flat.get("concepts")):
            return say("{key} wins.", key="concepts")
        concepts = _read_json_list(self.read(str(value)))
        return CHOOSE_PICTURES if concepts is None else self._concepts(concepts)

    def _samples(self, value: Any) -> Options | Message:
        lines = [_sample_line(sample) for sample in value if isinstance(sample, Mapping) and sample.get("enabled", True)]
        return [("sample.prompts", [line for line in lines if line])] if any(lines) else EMPTY

    def _sample_file(self, value: Any) -> Options | Message:
        if not is_empty(self.flat.get("samples")):
            return say("{key} wins.", key="samples")
        samples = _read_json_list(self.read(str(value)))
        if samples is None:
            return say("The prompt file {file} cannot be read from here: write its prompts into sample.prompts.", file=value)
        return self._samples(samples)


FOLDER_NAMES = {
    "path": "image_dir",
    "image.enable_random_flip": "flip_aug",
    "text.enable_tag_shuffling": "shuffle_caption",
    "text.keep_tags_count": "keep_tokens",
    "text.tag_delimiter": "caption_separator",
}
NEUTRAL = {
    "enabled": True,
    "validation_concept": False,
    "image_variations": 1,
    "text_variations": 1,
    "loss_weight": 1.0,
    "balancing_strategy": "REPEATS",
    "text.prompt_source": "sample",
    "image.resolution_override": "512",
    "image.enable_crop_jitter": True,
}
IRRELEVANT = ("name", "seed", "__version", "image.__version", "text.__version", "concept_stats", "type")


def _folder(concept: Mapping[str, Any]) -> dict[str, Any]:
    """A concept under the names of a table of data.subsets."""
    flat = dict(flatten(concept))
    folder = {ours: flat[theirs] for theirs, ours in FOLDER_NAMES.items() if not is_empty(flat.get(theirs))}
    if not folder.get("shuffle_caption"):
        folder = {name: value for name, value in folder.items() if name not in ("keep_tokens", "caption_separator")}
    repeats = to_number(flat.get("balancing", flat.get("repeats", 1)))
    if flat.get("balancing_strategy", "REPEATS") == "REPEATS" and repeats >= 1 and repeats.is_integer():
        folder["num_repeats"] = int(repeats)
    return folder


def _concept_notes(number: int, concept: Any) -> Iterator[Message]:
    """A note for each value of a concept that was not taken and is not what holds without it."""
    flat = dict(flatten(concept)) if isinstance(concept, Mapping) else {}
    shuffles = is_on(flat.get("text.enable_tag_shuffling"))
    for name, value in flat.items():
        repeats = name in ("balancing", "repeats") and "num_repeats" in _folder(concept)
        if name in FOLDER_NAMES or name in IRRELEVANT or repeats or is_empty(value) or value is False:
            continue
        if NEUTRAL.get(name) == value or name.endswith(("_max_angle", "_max_strength")) or name.startswith("text.caps_"):
            continue
        if name.startswith("text.tag_dropout") and not is_on(flat.get("text.tag_dropout_enable")):
            continue
        if not shuffles and name in ("text.keep_tags_count", "text.tag_delimiter"):
            continue
        yield say("{key}: {name}={value} was not taken. {why}", key=f"concepts[{number}]", name=name, value=value, why=NOT_READ)


def _sample_line(sample: Mapping[str, Any]) -> str:
    if is_empty(sample.get("prompt")):
        return ""
    seed = -1 if is_on(sample.get("random_seed")) else sample.get("seed")
    return prompt_line(
        sample["prompt"],
        {
            "n": sample.get("negative_prompt"),
            "w": sample.get("width"),
            "h": sample.get("height"),
            "d": seed,
            "l": sample.get("cfg_scale"),
            "s": sample.get("diffusion_steps"),
        },
    )


def _read_json_list(text: str | None) -> list[Any] | None:
    try:
        content = parse_json(text or "null")
    except ValueError:
        return None
    return content if isinstance(content, list) else None
