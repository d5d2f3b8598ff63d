"""Run by a WebUI's own Python: by which names its own code finds the layers of a model, without any weights.

layer_loader.py a1111|forge|neo|reforge TREE NAMES        NAMES: {family: {"keys": [checkpoint's keys], "names": [layers' names in files]}}
Prints one line of JSON: {family: [names that it finds]}
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from network_loader import A1111, CONFIG, UNET, Forge, Neo, ReForge

XL_CONFIG = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
CONDITIONER = "conditioner.embedders."


def empty_modules(keys: list[str], prefix: str) -> torch.nn.Module:
    """A tree of empty modules with the names of a checkpoint's keys below a prefix."""
    root = torch.nn.Module()
    for key in keys:
        if key.startswith(prefix):
            owner = root
            for name in key.removeprefix(prefix).split(".")[:-1]:
                if name not in owner._modules:
                    owner.add_module(name, torch.nn.Module())
                owner = owner._modules[name]
    return root


class Found:
    """Takes any layer's tensors, and keeps the first key."""

    def create_module(self, net: object, weights: types.SimpleNamespace) -> types.SimpleNamespace:
        return types.SimpleNamespace(network_key=weights.network_key)


def by_a1111(tree: Path, keys: list[str], names: list[str], family: str) -> list[str]:
    """networks.load_network with layers that hold nothing."""
    host = by_a1111.host = getattr(by_a1111, "host", None) or A1111(tree, {})
    model, networks = host.model, host.networks
    model.is_sdxl = family == "sdxl"
    model.model = empty_modules(keys, "model.")
    model.cond_stage_model.wrapped = empty_modules(keys, "cond_stage_model.")
    embedders = [empty_modules(keys, f"{CONDITIONER}{number}.") for number in (0, 1)]
    model.conditioner = types.SimpleNamespace(embedders=[types.SimpleNamespace(wrapped=root) for root in embedders])
    networks.assign_network_names_to_compvis_modules(model)
    networks.module_types = [Found()]
    networks.network = types.SimpleNamespace(
        Network=lambda name, on_disk: types.SimpleNamespace(modules={}), NetworkWeights=networks.network.NetworkWeights
    )
    found = []
    for name in names:  # one by one: of several names for one layer, a file has one
        networks.sd_models = types.SimpleNamespace(read_state_dict=lambda path, name=name: {f"{name}.lora_up.weight": 0})
        if networks.load_network("x", types.SimpleNamespace(filename=__file__, name="x")).modules:
            found.append(name)
    return found


def by_forge(kind: type[Forge], tree: Path, keys: list[str], names: list[str], family: str) -> list[str]:
    """Its tables of names for a model's keys."""
    loader = by_forge.loader = getattr(by_forge, "loader", None) or kind(tree, {})
    config = XL_CONFIG if family == "sdxl" else CONFIG
    loader.unet = types.SimpleNamespace(
        state_dict=lambda: {key.removeprefix("model."): 0 for key in keys if key.startswith(UNET)},
        diffusion_model=types.SimpleNamespace(config=config),
        model_config=types.SimpleNamespace(unet_config=config),
        config=types.SimpleNamespace(huggingface_repo="", unet_config=config),
    )
    clip = dict.fromkeys(key for key in keys if key.startswith("clip_"))  # its own names of the text encoders
    own = types.SimpleNamespace(state_dict=lambda: clip)
    unet = loader.lora.model_lora_keys_unet(loader.unet, {})
    unet = unet if isinstance(unet, dict) else unet[1]
    text = loader.lora.model_lora_keys_clip(own, {})
    text = text if isinstance(text, dict) else text[1]
    return sorted(name for name in names if name in unet or name in text)


def main() -> None:
    host, tree, names = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    found = {}
    for family, entry in names.items():
        if host == "a1111":
            found[family] = by_a1111(tree, entry["keys"], entry["names"], family)
        else:
            found[family] = by_forge({"forge": Forge, "neo": Neo, "reforge": ReForge}[host], tree, entry["keys"], entry["names"], family)
    sys.stdout.write(f"RESULT {json.dumps(found)}\n")


if __name__ == "__main__":
    main()
