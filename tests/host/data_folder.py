"""A WebUI's data folder with the small model, another checkpoint of the same build, and a VAE."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from lora_trainer import assets

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
