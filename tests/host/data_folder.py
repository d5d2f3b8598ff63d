"""A WebUI's data folder with the small model, another checkpoint of the same build, and a VAE."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from safetensors.torch import load_file, save_file
from torch import nn

from lora_trainer import assets
from lora_trainer.models.load import clip_tokenizer

PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
TEXT_ENCODER = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05,
}


def make_data(data: Path) -> Path:
    """Checkpoints toy (the first in the list) and zz-other, VAE plain."""
    toy, checkpoints, vaes = assets.toy_checkpoint(), data / "models" / "Stable-diffusion", data / "models" / "VAE"
    for folder in (checkpoints, vaes, data / "models" / "Lora", data / "extensions"):
        folder.mkdir(parents=True, exist_ok=True)
    described = toy.with_suffix(".yaml").read_text(encoding="utf-8").replace("./clip", clip_folder(data).as_posix())
    for name in ("toy", "zz-other"):
        (checkpoints / f"{name}.yaml").write_text(described, encoding="utf-8")
    shutil.copy(toy, checkpoints / "toy.safetensors")
    state = load_file(toy)
    save_file({key: _moved(tensor) for key, tensor in state.items()}, checkpoints / "zz-other.safetensors")
    prefix = "first_stage_model."
    save_file(
        {key.removeprefix(prefix): _moved(tensor) for key, tensor in state.items() if key.startswith(prefix)}, vaes / "plain.safetensors"
    )
    return data


def _moved(tensor):
    return (tensor * 0.99).contiguous() if tensor.is_floating_point() else tensor


def clip_folder(data: Path) -> Path:
    """CLIP's vocabulary and the small text encoder's shape, as the host's own text encoder wants them."""
    folder = data / "clip"
    if not folder.exists():
        shutil.copytree(assets.clip_vocabulary(), folder)
        (folder / "config.json").write_text(json.dumps(TEXT_ENCODER), encoding="utf-8")
    return folder


def tree(state):
    """Modules named as the keys say, holding those tensors."""
    root = nn.Module()
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        place = root
        for part in path:
            place = place._modules.setdefault(part, nn.Module())
        place.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def tensors_of(file, prefix):
    state = {key.removeprefix(prefix): tensor.float() for key, tensor in load_file(file).items() if key.startswith(prefix)}
    return {key.replace("token_embedding.", "token_embedding.wrapped."): tensor for key, tensor in state.items()}


def model_of(file):
    """A model with a host's attributes and the tensors of a checkpoint file."""
    unet, vae, text = (tree(tensors_of(file, prefix)) for prefix in PREFIXES)
    unet.__dict__.update(in_channels=4, num_heads=8)
    text.config = SimpleNamespace(num_attention_heads=4, hidden_size=64, num_hidden_layers=4)
    held = nn.Module()
    held.first_stage_model, held.model, held.cond_stage_model = vae, nn.Module(), nn.Module()
    held.model.diffusion_model, held.cond_stage_model.wrapped, held.cond_stage_model.tokenizer = unet, nn.Module(), clip_tokenizer()
    held.cond_stage_model.wrapped.transformer = text
    return held


def info_of(file):
    """A host's entry of a checkpoint."""
    return SimpleNamespace(filename=str(file), title=file.name, sha256=None, model_name=file.stem, name_for_extra=file.stem)
