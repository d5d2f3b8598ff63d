"""Test extension: Forge knows a Stable Diffusion 1.x model by its widths; this adds a kind of the small model's widths."""

import importlib.util
import json
import shutil
from pathlib import Path

from modules import scripts

NARROW = {
    "text_encoder": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "projection_dim": 64,
    },
    "vae": {"block_out_channels": [128, 256, 256, 256], "layers_per_block": 1, "sample_size": 64},
}


def add_narrow_kind():
    from backend import loader
    from huggingface_guess import model_list

    described = Path(scripts.basedir()) / "narrow"
    shutil.copytree(Path(loader.dir_path) / "huggingface" / model_list.SD15.huggingface_repo, described, dirs_exist_ok=True)
    for part, sizes in NARROW.items():
        config = described / part / "config.json"
        known = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(known | sizes), encoding="utf-8")
    widths = {"context_dim": 64, "model_channels": 64}
    kind = type("Narrow", (model_list.SD15,), {"huggingface_repo": str(described), "unet_config": model_list.SD15.unet_config | widths})
    if not any(known.__name__ == kind.__name__ for known in model_list.models):
        model_list.models.append(kind)


if importlib.util.find_spec("huggingface_guess"):
    add_narrow_kind()
