"""Forge and reForge as the contract's world: what only differs from A1111's is how its model is read and when a choice is loaded."""

import contextlib
import inspect
import threading
from pathlib import Path

from safetensors import safe_open

from lora_trainer.host.forge import ForgeHost, ReForgeHost, engine, model
from tests.host import contract


def held_by(checkpoint):
    """Names of the first text encoder's tensors in a checkpoint's file."""
    prefixes = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
    with safe_open(checkpoint, "pt") as file:
        return {key.removeprefix(prefix) for key in file.keys() for prefix in prefixes if key.startswith(prefix)}  # noqa: SIM118


class ForgeWorld(contract.World):
    """A choice is loaded by the picture that follows it, so `choose` asks for one: it waits for its turn as A1111's loading does."""

    Host = ForgeHost
    weight_fingerprints = "lora_trainer.host.forge.model.weight_fingerprints"

    def __init__(self, *names):
        super().__init__(*names)
        self.generate("what loads the checkpoint", steps=1)

    def loaded(self):
        return engine.loaded_model()

    def state(self):
        original = self.loaded().forge_objects_original
        parts = {"unet": original.unet.model.diffusion_model, "vae": original.vae.first_stage_model}
        parts |= {name: getattr(original.clip.cond_stage_model, name, None) for name in ("clip_l", "clip_g", "clip_h")}
        state = {f"{part}.{name}": tensor for part, module in parts.items() if module for name, tensor in module.state_dict().items()}
        if "text_projection.weight" not in held_by(self.loaded().sd_checkpoint_info.filename):
            state.pop("clip_l.transformer.text_projection.weight", None)  # no file fills it: Forge Neo leaves whatever is in that memory
        wide = [name for name in state if name.endswith(("_embedding.wrapped.weight", "_embedding.weight"))]
        return state | {name: state[name].float() for name in wide}  # Forge widens them itself, at the first prompt

    def described(self, family):
        """The yaml file that the host wants beside a small model; "": none."""
        return ""

    def patched(self):
        """Names of the tensors that networks of the last picture were put on."""
        drawn = self.loaded().forge_objects_after_applying_lora
        patchers = (drawn.unet, drawn.clip.patcher)
        tables = [list(patcher.lora_patches.values()) if hasattr(patcher, "lora_patches") else [patcher.patches] for patcher in patchers]
        return [key for of_patcher in tables for table in of_patcher for key in table]

    def hung(self):
        """How many layers of the U-Net have networks that are added while drawing."""
        layers = self.loaded().forge_objects_original.unet.model.modules()
        return sum(bool(hasattr(layer, "forge_online_loras") or getattr(layer, "weight_function", ())) for layer in layers)

    @contextlib.contextmanager
    def chosen_but_not_loaded(self, title):
        """The page's choice, before anybody draws."""
        data = self.modules.sd_models.model_data
        before = data.forge_loading_parameters
        data.forge_loading_parameters = before | {"checkpoint_info": self.modules.sd_models.checkpoint_aliases[title]}
        try:
            yield
        finally:
            data.forge_loading_parameters = before

    def wipe(self):
        engine.clean(self.loaded())

    def same_storages(self, source):
        return model.shares_memory(source, self.loaded())

    def choose(self, key, value):
        from modules_forge import main_entry

        assert key == "sd_model_checkpoint"
        preset = {"preset": None} if "preset" in inspect.signature(main_entry.checkpoint_change).parameters else {}
        main_entry.checkpoint_change(value, save=False, **preset)
        thread = threading.Thread(target=self.generate, args=("what the new checkpoint draws",), kwargs={"steps": 1})
        thread.start()
        return thread


class ReForgeWorld(ForgeWorld):
    """A choice is loaded as in A1111."""

    Host = ReForgeHost
    weight_fingerprints = "lora_trainer.host.forge.reforge.weight_fingerprints"
    choose = contract.World.choose

    def described(self, family):
        """Its own, which says how many layers SDXL's first text encoder has, and knows Stable Diffusion 2 by its width otherwise."""
        from modules import sd_models_config

        file = {"sd2": sd_models_config.config_sd2, "sdxl": sd_models_config.config_sdxl}[family]
        return Path(file).read_text(encoding="utf-8").replace("layer_idx: 11", "layer_idx: 3")

    def patched(self):
        drawn = self.loaded().forge_objects_after_applying_lora
        return [key for patcher in (drawn.unet, drawn.clip.patcher) for key in patcher.patches]

    def __init__(self, *names):
        super().__init__(*names)
        if not self.modules.shared.opts.sd_model_checkpoint:
            self.modules.shared.opts.data["sd_model_checkpoint"] = self.loaded().sd_checkpoint_info.title
