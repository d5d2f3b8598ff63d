"""ai-toolkit's configs (YAML or JSON): one process of a job, with its data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_trainer.config.choices.samplers import find_sampler
from lora_trainer.config.importing.arguments import Key
from lora_trainer.config.importing.learning import Options, ReadText, find_optimizer
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, LOG, NOT_YET, OFF, ONLY_STABLE_DIFFUSION, SAFETENSORS, START, WINDOW
from lora_trainer.config.importing.tables import (
    TRAINED,
    folder_options,
    is_on,
    largest_size,
    leaves,
    one_size_note,
    optimizer_args,
    prompt_line,
)
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import ProgramKeys
from lora_trainer.config.importing.values import is_empty, to_number
from lora_trainer.messages import Message, say

NOT_READ = say("ai-toolkit's own setting, which has no counterpart here.")
PROCESS = "config.process[0]."
DEFAULTS: Mapping[str, Any] = {
    "steps.max_train_steps": 1000,
    "optimizer.learning_rate": 1e-6,
    "schedule.type": "constant",
    "network.alpha": 1.0,
    "save.every_n_steps": 1000,
    "sample.every_n_steps": 100,
}
"""ai-toolkit's defaults where they differ from ours."""
NAMES = {
    "training_folder": "output_dir",
    "trigger_word": "trigger_word",
    "network.linear": "network_dim",
    "network.rank": "network_dim",
    "network.linear_alpha": "network_alpha",
    "network.alpha": "network_alpha",
    "network.conv": "network.conv_dim",
    "network.conv_alpha": "network.conv_alpha",
    "network.dropout": "network_dropout",
    "network.lokr_full_rank": "network.full_matrix",
    "network.lokr_factor": "network.factor",
    "network.network_kwargs.ignore_if_contains": "network.exclude",
    "network.network_kwargs.only_if_contains": "network.include",
    "network.pretrained_lora_path": "network_weights",
    "save.save_every": "save_every_n_steps",
    "train.batch_size": "train_batch_size",
    "train.steps": "max_train_steps",
    "train.gradient_accumulation_steps": "gradient_accumulation_steps",
    "train.gradient_accumulation": "gradient_accumulation_steps",
    "train.gradient_checkpointing": "gradient_checkpointing",
    "train.lr": "learning_rate",
    "train.lr_scheduler": "lr_scheduler",
    "train.noise_offset": "noise_offset",
    "train.min_snr_gamma": "min_snr_gamma",
    "train.max_grad_norm": "max_grad_norm",
    "train.min_denoising_steps": "min_timestep",
    "train.max_denoising_steps": "max_timestep",
    "train.seed": "seed",
    "train.prior_loss_weight": "prior_loss_weight",
    "train.reg_weight": "prior_loss_weight",
    "model.name_or_path": "pretrained_model_name_or_path",
    "model.vae_path": "vae",
    "model.lora_path": "network.base_weights",
    "model.assistant_lora_path": "network.base_weights",
    "sample.sample_every": "sample_every_n_steps",
}
DATASET_NAMES = {
    "folder_path": "image_dir",
    "dataset_path": "image_dir",
    "caption_ext": "caption_extension",
    "caption_dropout_rate": "caption_dropout_rate",
    "token_dropout_rate": "caption_tag_dropout_rate",
    "shuffle_tokens": "shuffle_caption",
    "keep_tokens": "keep_tokens",
    "num_repeats": "num_repeats",
    "flip_x": "flip_aug",
    "random_crop": "random_crop",
    "is_reg": "is_reg",
    "alpha_mask": "alpha_mask",
    "mask_path": "mask_dir",
    "default_caption": "class_tokens",
    "trigger_word": "trigger_word",
    "resolution": "resolution",
}
"""A data set's key -> its name in a table of data.subsets."""
FOR_ALL = {
    "cache_latents": "data.cache_latents",
    "cache_latents_to_disk": "data.cache_latents_to_disk",
    "buckets": "data.enable_bucket",
    "bucket_tolerance": "data.bucket_reso_steps",
    "mask_min_value": "data.mask_min_value",
    "caption_type": "data.caption_extension",
}
"""A data set's key -> our option for all pictures."""
SAMPLE_NAMES = {"neg": "n", "width": "w", "height": "h", "seed": "d", "guidance_scale": "l", "sample_steps": "s"}
DTYPES = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "fp32": "float", "float32": "float", "float": "float"}
NETWORKS = {"lora": "lora", "locon": "locon", "lokr": "lokr", "dora": "dora"}
FLAGS = {"is_v2": "v2", "is_v_pred": "v_parameterization"}
_REASONS: Mapping[Message, str] = {
    START: """device performance_log_every sqlite_db_path train.dataloader_workers monitoring model.low_vram model.device
        model.layer_offloading model.auto_memory train.auto_scale_batch_size model.compile""",
    ITSELF: """type model.is_xl model.arch model.dtype train.noise_scheduler train.content_or_style train.force_first_sample""",
    LOG: """logging""",
    WINDOW: """meta""",
    SAFETENSORS: """save.save_format""",
    NOT_YET: """save.max_step_saves_to_keep save.push_to_hub save.hf_repo_id save.hf_private model.quantize model.quantize_te model.qtype
        model.qtype_te train.diff_output_preservation train.diff_output_preservation_multiplier train.diff_output_preservation_class
        sample.walk_seed sample.network_multiplier sample.guidance_rescale slider embedding adapter""",
    ONLY_STABLE_DIFFUSION: """model.is_flux model.is_v3 model.is_pixart model.is_auraflow model.is_lumina2 train.timestep_type
        train.linear_timesteps train.bypass_guidance_embedding train.linear_timesteps2 train.switch_boundary_every sample.num_frames
        sample.fps model.model_kwargs train.unload_text_encoder train.cache_text_embeddings model.is_flex2 network.transformer_only""",
}
REASONS = {name: why for why, names in _REASONS.items() for name in names.split()}


def ai_toolkit_keys(values: Mapping[str, Any], read: ReadText) -> ProgramKeys:
    """Every key of the job; of several processes the first one counts."""
    reader = _Reader(values)
    keys = [reader.key(key, value) for key, value in leaves(values)]
    return ProgramKeys(tuple(keys), reader.defaults(), tuple(reader.notes))


class _Reader:
    def __init__(self, values: Mapping[str, Any]) -> None:
        process = values["config"]["process"][0] if values["config"]["process"] else {}
        self.process: Mapping[str, Any] = process if isinstance(process, Mapping) else {}
        self.flat = {key.removeprefix(PROCESS): value for key, value in leaves(values)}
        self.datasets = [entry for entry in self.process.get("datasets") or () if isinstance(entry, Mapping)]
        self.notes: list[Message] = []
        self.special: Mapping[str, Callable[[Any], Options | Message | Key]] = {
            "config.name": lambda value: Key("", "save.output_name", str(value)),
            "job": lambda value: ITSELF,
            "network.type": self._network,
            "save.dtype": lambda value: self._dtype("save.precision", value),
            "train.dtype": lambda value: self._precision(value),
            "train.train_unet": lambda value: [("optimizer.unet_lr", 0.0)] if value is False else TRAINED,
            "train.train_text_encoder": lambda value: [("optimizer.text_encoder_lr", 0.0)] if value is False else TRAINED,
            "train.unet_lr": lambda value: self._rate("train_unet", "optimizer.unet_lr", value),
            "train.text_encoder_lr": lambda value: self._rate("train_text_encoder", "optimizer.text_encoder_lr", value),
            "train.optimizer": self._optimizer,
            "train.loss_type": self._loss_type,
            "train.xformers": lambda value: [("memory.attention", "xformers")] if is_on(value) else OFF,
            "train.sdp": lambda value: [("memory.attention", "sdpa")] if is_on(value) else OFF,
            "train.skip_first_sample": lambda value: [("sample.at_first", not is_on(value))],
            "train.disable_sampling": lambda value: [("sample.every_n_steps", 0), ("sample.every_n_epochs", 0)] if is_on(value) else OFF,
            "sample.sampler": self._sampler,
            "sample.prompts": lambda value: self._prompts(),
        }

    def defaults(self) -> dict[str, Any]:
        """ai-toolkit's defaults, without those that another key overrides."""
        defaults = dict(DEFAULTS)
        if is_on(self.flat.get("train.disable_sampling")):
            del defaults["sample.every_n_steps"]
        if not is_empty(self.flat.get("network.conv")):
            defaults["network.conv_alpha"] = to_number(self.flat["network.conv"])
        return defaults

    def key(self, key: str, value: Any) -> Key:
        """One key of the file."""
        name = key.removeprefix(PROCESS)
        translated = EMPTY if is_empty(value) else self._translate(key, name, value)
        if isinstance(translated, Message):
            return Key(key, name, value, why=translated)
        if isinstance(translated, Key):
            return Key(key, translated.name, translated.value, shown=value, merged_into=translated.merged_into)
        return Key(key, name, value, options=translated)

    def _translate(self, key: str, name: str, value: Any) -> Options | Message | Key:
        if name in self.special:
            return self.special[name](value)
        if name.startswith("config.process["):
            return say("The file holds several processes; the first was read.")
        if (match := re.fullmatch(r"datasets\[(\d+)\]\.([\w.]+).*", name)) is not None:
            return self._dataset(int(match.group(1)), match.group(2), value)
        if name.startswith("sample.samples[") or (name.removeprefix("sample.") in SAMPLE_NAMES and name.startswith("sample.")):
            return self._sample(name)
        if name.startswith("train.ema_config."):
            use_ema = is_on(self.flat.get("train.ema_config.use_ema"))
            return [("save.ema_decay", self.flat.get("train.ema_config.ema_decay", 0.999))] if use_ema else OFF
        if name.startswith("train.optimizer_params."):
            return self._argument("train.optimizer_params.", "optimizer.args", name)
        if name.startswith("train.lr_scheduler_params."):
            return say("Write {text} into the schedule's arguments.", text=f"{name.rpartition('.')[2]}={value}")
        if name.startswith("network.lokr_") and self.flat.get("network.type") != "lokr":
            return say("Only other kinds of networks use it, there too.")
        if name.removeprefix("model.") in FLAGS and name.startswith("model."):
            return Key("", FLAGS[name.removeprefix("model.")], value)
        if name in NAMES:
            return Key("", NAMES[name], value)
        if (why := REASONS.get(name) or REASONS.get(name.partition(".")[0])) is not None:
            return OFF if value is False and why in (NOT_YET, ONLY_STABLE_DIFFUSION) else why
        return OFF if value is False else NOT_READ

    def _network(self, value: Any) -> Options | Message:
        name = NETWORKS.get(str(value).lower())
        if name is None:
            return say("The network {name} is not supported yet: a plain LoRA takes its place.", name=value)
        return [("network.type", name)]

    def _dtype(self, path: str, value: Any) -> Options | Message:
        name = DTYPES.get(str(value).lower())
        return say("{value} has no counterpart here.", value=value) if name is None else [(path, name)]

    def _precision(self, value: Any) -> Options | Message:
        found = self._dtype("memory.mixed_precision", value)
        return found if isinstance(found, Message) else [("memory.mixed_precision", "no" if found[0][1] == "float" else found[0][1])]

    def _rate(self, switch: str, path: str, value: Any) -> Options | Message:
        if self.flat.get(f"train.{switch}") is False:
            return say("The part is not trained there.")
        return [(path, to_number(value))]

    def _optimizer(self, value: Any) -> Options | Message:
        name = find_optimizer(str(value).replace("_", ""))
        if name is None:
            return say("{name} is not supported yet: AdamW takes its place, at its own rates.", name=value)
        return [("optimizer.type", name)]

    def _argument(self, prefix: str, path: str, name: str) -> Options | Key:
        values = {key.removeprefix(prefix): value for key, value in self.flat.items() if key.startswith(prefix) and not is_empty(value)}
        if name.removeprefix(prefix) == next(iter(values)):
            return [(path, optimizer_args(values))]
        return Key("", "", None, merged_into=path)

    def _loss_type(self, value: Any) -> Options | Message:
        names = {"mse": "l2", "mae": "l1", "huber": "huber"}
        return [("loss.loss_type", names[value])] if value in names else say("{value} has no counterpart here.", value=value)

    def _sampler(self, value: Any) -> Options | Message:
        name = find_sampler(str(value))
        if name is None:
            return say("The sampler {name} is not supported: previews are drawn with {default}.", name=value, default="ddim")
        return [("sample.sampler", name)]

    # --- data sets ---

    def _dataset(self, number: int, name: str, value: Any) -> Options | Message | Key:
        if name in FOR_ALL:
            values = [to_number(entry.get(name)) for entry in self.datasets if name in entry]
            if name in ("bucket_tolerance", "mask_min_value") or len(set(values)) == 1:
                return [(FOR_ALL[name], value)]
            return say("The folders differ in it; here it holds for all.")
        if name not in DATASET_NAMES:
            return OFF if value is False else NOT_READ
        options = folder_options(self._folder(entry) for entry in self.datasets)
        first = next((key for key in self.datasets[number] if DATASET_NAMES.get(key) == "image_dir"), None)
        if not options or first is None:
            return say("The concept has no folder of pictures.")
        if name == "resolution" and largest_size(value)[1]:
            self.notes.append(one_size_note(f"datasets[{number}].resolution", value))
        if name == first and number == 0:
            return options
        paths = [path for path, _ in options]
        single = "data.train_data_dir" if DATASET_NAMES[name] == "image_dir" else f"data.{DATASET_NAMES[name]}"
        return Key("", "", value, merged_into=single if single in paths else paths[0])

    def _folder(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        folder = {DATASET_NAMES[key]: value for key, value in entry.items() if key in DATASET_NAMES and not is_empty(value)}
        if "resolution" in folder:
            size, _ = largest_size(folder["resolution"])
            folder["resolution"] = int(size) if str(size).isdecimal() else size
        if "caption_extension" in folder:
            folder["caption_extension"] = "." + str(folder["caption_extension"]).lstrip(".")
        if not folder.get("is_reg"):
            folder.pop("is_reg", None)
        return folder

    # --- previews ---

    def _sample(self, name: str) -> Options | Message | Key:
        if not self._lines():
            return say("There is no preview prompt.")
        has_list = not is_empty(self.flat.get("sample.prompts"))
        first = next((key for key in self.flat if key.startswith("sample.samples[")), "")
        if has_list and name.startswith("sample.samples["):
            return say("{key} wins.", key="sample.prompts")
        if not has_list and name == first:
            return self._prompts()
        return Key("", "", None, merged_into="sample.prompts")

    def _prompts(self) -> Options | Message:
        lines = self._lines()
        return [("sample.prompts", lines)] if lines else EMPTY

    def _lines(self) -> list[str]:
        sample = self.process.get("sample")
        sample = sample if isinstance(sample, Mapping) else {}
        shared = {letter: sample.get(key) for key, letter in SAMPLE_NAMES.items()}
        rows = sample.get("prompts") or sample.get("samples") or ()
        lines = []
        for row in rows if isinstance(rows, list) else ():
            own = row if isinstance(row, Mapping) else {"prompt": row}
            if is_empty(own.get("prompt")):
                continue
            values = {letter: own.get(key, shared[letter]) for key, letter in SAMPLE_NAMES.items()}
            prompt = str(own["prompt"]).replace("[trigger]", str(self.process.get("trigger_word") or "")).strip()
            lines.append(prompt_line(prompt, values))
        return lines
