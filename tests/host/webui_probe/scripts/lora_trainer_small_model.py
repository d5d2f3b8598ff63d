"""Test extension: Forge and reForge know a Stable Diffusion 1.x model by its widths; this adds a kind of the small model's."""

import contextlib
import functools
import importlib.util
import json
import shutil
import unittest.mock
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


def add_narrow_kind_to_reforge():
    from ldm_patched.modules import sd, sd1_clip, supported_models, supported_models_base

    class NarrowEncoder(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            whole = json.loads((Path(sd1_clip.__file__).parent / "sd1_clip_config.json").read_text(encoding="utf-8"))
            encoder = functools.partial(
                sd1_clip.SDClipModel, return_projected_pooled=False, textmodel_json_config=whole | NARROW["text_encoder"]
            )
            super().__init__(device, dtype, model_options or {}, clip_model=encoder)

    class Narrow(supported_models.SD15):
        unet_config = supported_models.SD15.unet_config | {"context_dim": 64, "model_channels": 64}

        def clip_target(self, state_dict=None):
            return supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, NarrowEncoder)

    class VAE(sd.VAE):
        def __init__(self, sd=None, **more):
            narrow = sd is not None and "decoder.up.0.block.1.conv1.weight" in sd and "decoder.up.0.block.2.conv1.weight" not in sd
            with unittest.mock.patch(f"{VAE.__mro__[1].__module__}.AutoencoderKL", narrow_vae) if narrow else contextlib.nullcontext():
                super().__init__(sd=sd, **more)

    whole_vae = sd.AutoencoderKL
    narrow_vae = lambda ddconfig, **more: whole_vae(ddconfig=ddconfig | {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 1}, **more)  # noqa: E731
    if not any(known.__name__ == "Narrow" for known in supported_models.models):
        supported_models.models.append(Narrow)
        sd.VAE = VAE
        from modules_forge import forge_loader

        if hasattr(forge_loader, "VAE"):
            forge_loader.VAE = VAE


if importlib.util.find_spec("huggingface_guess"):
    add_narrow_kind()
elif importlib.util.find_spec("ldm_patched"):
    add_narrow_kind_to_reforge()
