"""Run by a WebUI's own Python: its own loader puts files on the layers of a checkpoint; what comes of each weight is compared.

network_loader.py a1111|forge|neo|reforge TREE CHECKPOINT FILE...    beside each FILE lies FILE.expected: the weights that it should give.
Prints one line of JSON: {file: {"wrong": {key: largest difference}, "untouched": [...], "left": [...], "restored": true}}
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from safetensors.torch import load_file

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
CLOSE = 1e-4
CONFIG = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}


class A1111:
    """Its networks.py on modules in its own layout; only what surrounds it (options, the loaded model) is made up."""

    def __init__(self, tree: Path, state: dict) -> None:
        self.state = state
        shared = types.SimpleNamespace(
            opts=types.SimpleNamespace(lora_functional=False, lora_in_memory_limit=0, lora_bundled_ti_to_infotext=True),
            cmd_opts=types.SimpleNamespace(lora_dir=tempfile.mkdtemp(), lyco_dir_backcompat=""),
            walk_files=lambda *words, **options: [],
        )
        stubs = {
            "shared": shared,
            "devices": types.SimpleNamespace(cpu=torch.device("cpu"), device=torch.device("cpu"), dtype=torch.float32),
            "sd_models": types.SimpleNamespace(
                read_state_dict=lambda path: load_file(path), read_metadata_from_safetensors=lambda path: {}
            ),
            "cache": types.SimpleNamespace(cached_data_for_file=lambda name, key, path, make: make()),
            "errors": types.SimpleNamespace(display=print),
            "hashes": types.SimpleNamespace(),
            "scripts": types.SimpleNamespace(),
            "sd_hijack": types.SimpleNamespace(),
            "textual_inversion": types.SimpleNamespace(textual_inversion=types.SimpleNamespace()),
        }
        package = types.ModuleType("modules")
        package.__path__ = [str(tree / "modules")]
        sys.modules["modules"] = package
        for name, stub in stubs.items():
            module = types.ModuleType(f"modules.{name}")
            module.__dict__.update(vars(stub))
            setattr(package, name, module)
            sys.modules[module.__name__] = module
        inner = types.ModuleType("modules.textual_inversion.textual_inversion")
        package.textual_inversion.textual_inversion = inner
        sys.modules[inner.__name__] = inner
        sys.modules["gradio"] = types.ModuleType("gradio")
        sys.path[:0] = [str(tree), str(tree / "extensions-builtin" / "Lora")]
        self.model = types.SimpleNamespace(
            is_sdxl=False,
            cond_stage_model=types.SimpleNamespace(wrapped=modules_of(state, "cond_stage_model.")),
            model=modules_of(state, "model."),
        )
        package.shared.sd_model = self.model
        import networks

        self.networks = networks
        networks.originals = types.SimpleNamespace()
        networks.assign_network_names_to_compvis_modules(self.model)

    def merged(self, file: Path) -> tuple[dict, list]:
        """Weights after the file was put on at strength 1, by their names in the checkpoint; and keys that were left."""
        networks = self.networks
        on_disk = types.SimpleNamespace(filename=str(file), name=file.stem)
        net = networks.load_network(file.stem, on_disk)
        net.te_multiplier = net.unet_multiplier = 1.0
        net.dyn_dim = None
        networks.loaded_networks[:] = [net]
        self.apply()
        found = self.weights()
        networks.loaded_networks.clear()
        self.apply()
        again = self.weights()
        self.restored = all(torch.equal(again[key], self.state[key]) for key in found)
        names = {self.networks.convert_diffusers_name_to_compvis(key.partition(".")[0], False) for key in load_file(str(file))}
        return found, sorted(names - set(net.modules))

    def apply(self) -> None:
        """The host does so when a layer is called."""
        for root in (self.model.model, self.model.cond_stage_model.wrapped):
            for module in root.modules():
                if getattr(module, "weight", None) is not None:
                    self.networks.network_apply_weights(module)

    def weights(self) -> dict:
        """By names in the checkpoint."""
        pairs = (("model.", self.model.model), ("cond_stage_model.", self.model.cond_stage_model.wrapped))
        return {f"{prefix}{name}": tensor.detach().clone() for prefix, root in pairs for name, tensor in root.state_dict().items()}


class Forge:
    """backend/patcher/lora.py, as it is."""

    flags = ("--always-cpu",)

    def __init__(self, tree: Path, state: dict) -> None:
        sys.argv = [sys.argv[0], *self.flags]
        sys.path[:0] = [str(tree), str(tree / "packages_3rdparty"), str(tree / "modules_forge" / "packages")]
        self.state = state
        self.restored = True
        self.unet = types.SimpleNamespace(
            state_dict=lambda: {key.removeprefix("model."): 0 for key in state if key.startswith(UNET)},
            diffusion_model=types.SimpleNamespace(config=CONFIG),
            model_config=types.SimpleNamespace(unet_config=CONFIG),
            config=types.SimpleNamespace(huggingface_repo="", unet_config=CONFIG),
        )
        clip = {key.replace(TEXT, "clip_l.transformer."): 0 for key in state if key.startswith(TEXT)}
        self.clip = types.SimpleNamespace(state_dict=lambda: clip)
        self.load()

    def load(self) -> None:
        """Imports the host's functions."""
        from backend.patcher import lora

        self.lora = lora
        self.calculate = lambda patches, weight, key: lora.merge_lora_to_weight(patches, weight.clone(), key)

    def patches(self, file: Path) -> tuple[dict, list]:
        """Key of the model -> patch, and keys of the file that are left."""
        unet_keys, clip_keys = self.lora.model_lora_keys_unet(self.unet, {}), self.lora.model_lora_keys_clip(self.clip, {})
        unet, left = self.lora.load_lora(load_file(str(file)), unet_keys)
        clip, left = self.lora.load_lora(left, clip_keys)
        return {**unet, **clip}, sorted(left)

    def is_refused(self, file: Path, left: list) -> bool:
        """A file of which more than 12 keys are left is refused as a whole."""
        return len(left) > 12

    def merged(self, file: Path) -> tuple[dict, list]:
        """As the host loads it."""
        patches, left = self.patches(file)
        found = dict(self.state)
        if self.is_refused(file, left):
            return found, left
        for key, patch in patches.items():
            ours = TEXT + key.removeprefix("clip_l.transformer.") if key.startswith("clip_l.") else f"model.{key}"
            if ours in found:
                found[ours] = self.calculate([(1.0, patch, 1.0, None, None)], found[ours].clone(), key)
        return found, left


class Neo(Forge):
    """Forge Neo's copy of ComfyUI's loader, as it is."""

    flags = ("--cpu",)

    def is_refused(self, file: Path, left: list) -> bool:
        """A file of which more than half of the keys are left is refused as a whole."""
        return len(left) / len(load_file(str(file))) > 0.5


class ReForge(Forge):
    """ldm_patched/modules/lora.py, as it is; it takes what it knows of a file, whatever is left."""

    def load(self) -> None:
        """Imports the host's functions."""
        from ldm_patched.modules import args_parser

        args_parser.args, _ = args_parser.parser.parse_known_args()  # as its start does before anything else is imported
        from ldm_patched.modules import lora

        self.lora = lora
        self.calculate = lambda patches, weight, key: lora.calculate_weight(patches, weight.clone(), key)

    def patches(self, file: Path) -> tuple[dict, list]:
        """Key of the model -> patch, and keys of the file that are left."""
        keys = self.lora.model_lora_keys_clip(self.clip, self.lora.model_lora_keys_unet(self.unet, {}))
        held = load_file(str(file))
        return self.lora.load_lora(held, keys, log_missing=False), sorted({key for key in held if key.partition(".")[0] not in keys})

    def merged(self, file: Path) -> tuple[dict, list]:
        """Whatever is left."""
        found, left = dict(self.state), self.patches(file)[1]
        for key, patch in self.patches(file)[0].items():
            ours = TEXT + key.removeprefix("clip_l.transformer.") if key.startswith("clip_l.") else f"model.{key}"
            if ours in found:
                found[ours] = self.calculate([(1.0, patch, 1.0, None, None)], found[ours].clone(), key)
        return found, left


def modules_of(state: dict, prefix: str) -> torch.nn.Module:
    """torch's layers for the weights below a prefix, by their names."""
    root = torch.nn.Module()
    for key, weight in state.items():
        path, _, kind = key.removeprefix(prefix).rpartition(".")
        if not key.startswith(prefix) or kind != "weight" or "embedding" in key:
            continue
        bias = f"{key.removesuffix('weight')}bias" in state
        owner = root
        *parents, name = path.split(".")
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, torch.nn.Module())
            owner = owner._modules[parent]
        owner.add_module(name, layer_of(path, weight, bias))
    root.load_state_dict({name: state[prefix + name] for name in root.state_dict()})
    return root.requires_grad_(False)


def layer_of(path: str, weight: torch.Tensor, bias: bool) -> torch.nn.Module:
    """The layer that has such a weight."""
    if weight.ndim == 1:
        grouped = "transformer_blocks" not in path and "text_model" not in path
        return torch.nn.GroupNorm(1, len(weight)) if grouped else torch.nn.LayerNorm(len(weight))
    if weight.ndim == 2:
        return torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    return torch.nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), padding=weight.shape[2] // 2, bias=bias)


def main() -> None:
    host, tree, checkpoint, *files = sys.argv[1:]
    state = {key: tensor.float() for key, tensor in load_file(checkpoint).items() if key.startswith((UNET, TEXT)) and tensor.ndim}
    loader = {"a1111": A1111, "forge": Forge, "neo": Neo, "reforge": ReForge}[host](Path(tree), state)
    told = {}
    for name in files:
        expected = load_file(f"{name}.expected")
        try:
            merged, left = loader.merged(Path(name))
        except Exception as error:  # the host's own: what it says is the result
            told[name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        differences = {key: float((merged[key] - tensor).abs().max()) for key, tensor in expected.items()}
        untouched = sorted(key for key in expected if torch.equal(merged[key], state[key]) and differences[key] > CLOSE)
        wrong = {key: value for key, value in differences.items() if not value <= CLOSE and key not in untouched}
        told[name] = {"weights": len(expected), "wrong": wrong, "untouched": untouched, "left": left, "restored": loader.restored}
    sys.stdout.write(f"RESULT {json.dumps(told)}\n")


if __name__ == "__main__":
    main()
