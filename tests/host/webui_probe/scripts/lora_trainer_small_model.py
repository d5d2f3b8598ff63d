"""Test extension: Forge and reForge know a model by its widths; this adds kinds as wide as the tests' models: Stable Diffusion 1's small
one, and those that `benchmarks/random_checkpoint.py --tiny` writes. Everything else is the host's own code."""

import functools
import importlib.util
import json
import shutil
import unittest.mock
from pathlib import Path

from modules import scripts


def encoder(width):
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 16,
        "num_hidden_layers": 4,
        "projection_dim": width,
    }


KINDS = {
    "SD15": {
        "unet": {"context_dim": 64, "model_channels": 64},
        "text_encoder": encoder(64),
        "vae": {"block_out_channels": [128, 256, 256, 256], "layers_per_block": 1, "sample_size": 64},
    },
    "SD20": {
        "unet": {"context_dim": 64, "model_channels": 64},
        "text_encoder": encoder(64),
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 2, "sample_size": 64},
    },
    "SDXL": {
        "unet": {"context_dim": 96, "model_channels": 32, "adm_in_channels": 64 + 6 * 256},
        "text_encoder": encoder(32),
        "text_encoder_2": encoder(64),
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 2, "sample_size": 64},
    },
}


def small(name):
    return f"Small{name}"


def add_to_forge(name, sizes):
    from backend import loader
    from huggingface_guess import model_list

    whole = getattr(model_list, name, None)
    if whole is None:  # Forge Neo has no Stable Diffusion 2
        return
    described = Path(scripts.basedir()) / small(name)
    shutil.copytree(Path(loader.__file__).parent / "huggingface" / whole.huggingface_repo, described, dirs_exist_ok=True)
    for part in sizes.keys() - {"unet"}:
        config = described / part / "config.json"
        known = json.loads(config.read_text(encoding="utf-8"))
        fewer = {"num_hidden_layers": sizes[part]["num_hidden_layers"] - 1} if name == "SD20" and part == "text_encoder" else {}
        config.write_text(json.dumps(known | sizes[part] | fewer), encoding="utf-8")  # 23 of Stable Diffusion 2's 24: the last is unread
    kind = type(small(name), (whole,), {"huggingface_repo": str(described), "unet_config": whole.unet_config | sizes["unet"]})
    model_list.models[:] = [known for known in model_list.models if known.__name__ != kind.__name__] + [kind]
    for engine in loader.possible_models:  # Forge takes a subclass, Neo exactly the classes of its list
        if whole in engine.matched_guesses:
            engine.matched_guesses[:] = [known for known in engine.matched_guesses if known.__name__ != kind.__name__] + [kind]


def add_to_reforge(name, sizes):
    from ldm_patched.modules import sd1_clip, sdxl_clip, supported_models, supported_models_base
    from ldm_patched.modules.text_encoders import sd2_clip

    any_encoder = sd1_clip.SDClipModel

    open_clip = {"special_tokens": {"start": 49406, "end": 49407, "pad": 0}, "layer": "hidden", "layer_idx": -2}

    def encoder_of(part, file, **more):
        whole = json.loads((Path(sd1_clip.__file__).parent / file).read_text(encoding="utf-8"))
        return functools.partial(any_encoder, textmodel_json_config=whole | sizes[part], **more)

    class SmallSD1Encoder(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            encoder = encoder_of("text_encoder", "sd1_clip_config.json", return_projected_pooled=False)
            super().__init__(device, dtype, model_options or {}, clip_model=encoder)

    class SmallSD2Encoder(sd2_clip.SD2ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            encoder = encoder_of("text_encoder", "text_encoders/sd2_clip_config.json", **open_clip)
            with unittest.mock.patch.object(sd2_clip, "SD2ClipHModel", encoder):
                super().__init__(device, dtype, model_options or {})

    class SmallSDXLEncoders(sdxl_clip.SDXLClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            narrow = encoder_of("text_encoder", "sd1_clip_config.json")
            wide = encoder_of("text_encoder_2", "clip_config_bigg.json", layer_norm_hidden_state=False, **open_clip)
            with (
                unittest.mock.patch.object(sd1_clip, "SDClipModel", narrow),
                unittest.mock.patch.object(sdxl_clip, "SDXLClipG", wide),
            ):
                super().__init__(device, dtype, model_options or {})

    whole = getattr(supported_models, name)
    tokens, encoders = {
        "SD15": (sd1_clip.SD1Tokenizer, SmallSD1Encoder),
        "SD20": (sd2_clip.SD2Tokenizer, SmallSD2Encoder),
        "SDXL": (sdxl_clip.SDXLTokenizer, SmallSDXLEncoders),
    }[name]
    target = lambda self, state_dict=None: supported_models_base.ClipTarget(tokens, encoders)  # noqa: E731
    kind = type(small(name), (whole,), {"unet_config": whole.unet_config | sizes["unet"], "clip_target": target})
    supported_models.models[:] = [known for known in supported_models.models if known.__name__ != kind.__name__] + [kind]


def read_widths_of_vaes_in_reforge():
    """It knows the released VAE's widths only; here they are read off the tensors."""
    from ldm_patched.modules import sd as host
    from modules_forge import forge_loader

    whole = host.AutoencoderKL

    class VAE(host.VAE):
        of_any_width = True

        def __init__(self, sd=None, **more):
            made = lambda ddconfig, **rest: whole(ddconfig=ddconfig | widths_of(sd or {}), **rest)  # noqa: E731
            with unittest.mock.patch.object(host, "AutoencoderKL", made):
                super().__init__(sd=sd, **more)

    if not hasattr(host.VAE, "of_any_width"):  # "Reload UI" executes this anew
        host.VAE = forge_loader.VAE = VAE


def widths_of(state):
    levels = [key for key in (f"encoder.down.{level}.block.0.conv2.weight" for level in range(4)) if key in state]
    widths = [state[key].shape[0] for key in levels]
    blocks = sum(f"encoder.down.0.block.{number}.conv2.weight" in state for number in range(4))
    return {"ch": widths[0], "ch_mult": [width // widths[0] for width in widths], "num_res_blocks": blocks} if widths else {}


if importlib.util.find_spec("huggingface_guess"):
    for known, widths in KINDS.items():
        add_to_forge(known, widths)
elif importlib.util.find_spec("ldm_patched"):
    for known, widths in KINDS.items():
        add_to_reforge(known, widths)
    read_widths_of_vaes_in_reforge()
