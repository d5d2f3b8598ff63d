"""How Forge loads, moves and cleans models.

A choice on its page loads nothing: it is written down as `forge_loading_parameters`, and the next generation loads what stands there.
Loading and moving happen in Forge's main thread, one piece of work at a time; the queue is to be held by whoever asks for them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from lora_trainer.errors import ModelError
from lora_trainer.host.a1111.model import forget_conditionings, loaded_networks

T = TypeVar("T")
Parameters = dict[str, Any]
NO_NETWORKS = str([])


def on_main_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises there: the host itself swallows exceptions. Never to be called in the main thread."""
    from modules_forge import main_thread

    results: list[T] = []
    errors: list[Exception] = []

    def kept() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)
            raise  # the host prints it and goes on

    main_thread.run_and_wait_result(kept)
    if errors:
        raise errors[0]
    return results[0]


def loaded() -> Any:
    """The loaded model; None before the first generation, when a stand-in without weights is in its place."""
    from modules import sd_models

    held = sd_models.model_data.sd_model
    return held if getattr(held, "forge_objects_original", None) is not None else None


def choice() -> Parameters:
    """What the next generation loads: the user's checkpoint, further files and number format."""
    from modules import sd_models
    from modules_forge import main_entry

    if not sd_models.model_data.forge_loading_parameters:
        main_entry.refresh_model_loading_parameters()
    return dict(sd_models.model_data.forge_loading_parameters)


def is_loaded(parameters: Parameters) -> bool:
    """Whether exactly that is in memory."""
    from modules import sd_models

    return loaded() is not None and bool(sd_models.model_data.forge_hash == str(parameters))


@contextmanager
def pinned(parameters: Parameters) -> Iterator[None]:
    """Inside, the host loads this. Afterwards the user's choice stands there again, a new one that was made meanwhile included."""
    from modules import sd_models

    data = sd_models.model_data
    before = data.forge_loading_parameters
    data.forge_loading_parameters = parameters
    try:
        yield
    finally:
        if data.forge_loading_parameters is parameters:
            data.forge_loading_parameters = before


def load(parameters: Parameters, *, anew: bool = False) -> None:
    """Loads it unless it is loaded. Raises ModelError; the host then loads the user's choice at the next generation.

    Forge gives its old model up before it looks for the new one's file, so that is looked for first.
    """
    from modules import sd_models

    if is_loaded(parameters) and not anew:
        return
    data, info = sd_models.model_data, parameters["checkpoint_info"]
    try:
        for file in (info.filename, *parameters["additional_modules"]):
            Path(file).stat()
        data.forge_hash = ""  # else a failure would leave the mark of a model that is gone
        with pinned(parameters):
            on_main_thread(sd_models.forge_model_reload)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ModelError(
            "the WebUI could not load {name} ({reason}).", name=info.model_name, reason=reason, fix="Choose another one."
        ) from error
    if not is_loaded(parameters):
        raise ModelError(
            "the WebUI could not load {name} ({reason}).",
            name=info.model_name,
            reason="another one was chosen meanwhile",
            fix="Choose another one.",
        )


def clean(sd_model: Any) -> None:
    """Takes everything off that generations leave on a model: merged networks, remembered networks and prompts.

    Loading the patchers without patches is the only way after which the weights are those of the file and the next generation's
    networks are merged again. The weights are where the host calculates afterwards.
    """
    networks, original = loaded_networks(), sd_model.forge_objects_original
    if networks is not None:
        networks.load_lora_state_dict.cache_clear()  # it knows a file by its name, and does not notice when it is written anew
        networks.loaded_networks.clear()
    sd_model.current_lora_hash = NO_NETWORKS
    sd_model.forge_objects = original.shallow_copy()
    sd_model.forge_objects_after_applying_lora = original.shallow_copy()
    on_main_thread(lambda: _load_unpatched([original.unet, original.clip.patcher]))
    forget_conditionings()


@torch.inference_mode()
def _load_unpatched(patchers: list[Any]) -> None:
    memory_management().load_models_gpu(patchers)


def memory_management() -> Any:
    """The host's module of this subject: Forge and reForge have the same functions in it under different names."""
    forge = "modules_forge.main_entry" in sys.modules
    return importlib.import_module("backend.memory_management" if forge else "ldm_patched.modules.model_management")


def unload() -> None:
    """Gives the GPU's memory back; the host moves its model there again when it draws."""
    on_main_thread(memory_management().unload_all_models)


def with_vae(parameters: Parameters, file: str | None) -> Parameters:
    """The same with that VAE in place of the user's; None leaves his."""
    others = [module for module in parameters["additional_modules"] if module not in vae_files().values()]
    return parameters if file is None else parameters | {"additional_modules": [*others, file]}


def vae_of(parameters: Parameters) -> str | None:
    """The file of the VAE among the further files; None: the checkpoint's own."""
    known = set(vae_files().values())
    return next((module for module in parameters["additional_modules"] if module in known), None)


def vae_files() -> Mapping[str, str]:
    """Name -> path of the VAE files that the host knows: those of its folders of VAEs."""
    from modules import paths, shared
    from modules_forge import main_entry

    folders = [Path(paths.models_path) / "VAE", *([Path(shared.cmd_opts.vae_dir)] if shared.cmd_opts.vae_dir else [])]
    real = [folder.absolute() for folder in folders]
    return {name: path for name, path in main_entry.module_list.items() if any(folder in Path(path).absolute().parents for folder in real)}
