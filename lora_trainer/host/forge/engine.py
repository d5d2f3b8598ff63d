"""How Forge loads, moves and cleans models.

A choice on its page loads nothing: it is stored as `forge_loading_parameters`, which the next generation loads.
Loading and moving happen in Forge's main thread, one task at a time; callers must hold the queue.
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
from lora_trainer.host.a1111.model import clear_prompt_cache, networks_module
from lora_trainer.host.forge import capabilities

T = TypeVar("T")
Parameters = dict[str, Any]
NO_NETWORKS = str([])


def on_main_thread(work: Callable[[], T]) -> T:
    """Runs `work` in the host's main thread and returns or raises its result, which the host would swallow.

    Never to be called in the main thread.
    """
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


def loaded_model() -> Any:
    """The loaded model; None before the first generation, when the host has a placeholder without weights."""
    from modules import sd_models

    sd_model = sd_models.model_data.sd_model
    return sd_model if getattr(sd_model, "forge_objects_original", None) is not None else None


def chosen_parameters() -> Parameters:
    """The parameters that the next generation loads: the user's checkpoint, additional modules and number format."""
    from modules import sd_models
    from modules_forge import main_entry

    if not sd_models.model_data.forge_loading_parameters:
        main_entry.refresh_model_loading_parameters()
    return dict(sd_models.model_data.forge_loading_parameters)


def is_loaded(parameters: Parameters) -> bool:
    """Whether the model of exactly these parameters is loaded."""
    from modules import sd_models

    return loaded_model() is not None and bool(sd_models.model_data.forge_hash == str(parameters))


@contextmanager
def pinned(parameters: Parameters) -> Iterator[None]:
    """Sets the host's loading parameters inside the block. Restores the user's choice afterwards, or leaves one made meanwhile."""
    from modules import sd_models

    data = sd_models.model_data
    before = data.forge_loading_parameters
    data.forge_loading_parameters = parameters
    try:
        yield
    finally:
        if data.forge_loading_parameters is parameters:
            data.forge_loading_parameters = before


def load(parameters: Parameters, *, force: bool = False) -> None:
    """Loads the model unless it is loaded (`force`: in any case). Raises ModelError; the next generation then loads the user's choice.

    Forge drops its old model before it opens the new file, so the file is checked first.
    """
    from modules import sd_models

    if is_loaded(parameters) and not force:
        return
    data, info = sd_models.model_data, parameters["checkpoint_info"]
    try:
        for file in (info.filename, *parameters["additional_modules"]):
            Path(file).stat()
        data.forge_hash = ""  # else a failure would leave the hash of a model that is gone
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
    """Removes everything that generations leave on a model: merged networks, cached networks and prompts.

    Only loading the patchers without patches both restores the file's weights and has the next generation's networks merged again.
    The weights are on the host's device afterwards.
    """
    networks, original = networks_module(), sd_model.forge_objects_original
    if networks is not None:
        capabilities.forget_network_files(networks)
        networks.loaded_networks.clear()
    sd_model.current_lora_hash = NO_NETWORKS
    sd_model.forge_objects = original.shallow_copy()
    sd_model.forge_objects_after_applying_lora = original.shallow_copy()
    on_main_thread(lambda: _load_unpatched([original.unet, original.clip.patcher]))
    clear_prompt_cache()


@torch.inference_mode()
def _load_unpatched(patchers: list[Any]) -> None:
    memory_management().load_models_gpu(patchers)


def memory_management() -> Any:
    """The host's memory management module: the same functions under different module names in Forge and reForge."""
    forge = "modules_forge.main_entry" in sys.modules
    return importlib.import_module("backend.memory_management" if forge else "ldm_patched.modules.model_management")


def unload() -> None:
    """Moves the model off the GPU; the host moves it back when it generates."""
    on_main_thread(memory_management().unload_all_models)


def with_vae(parameters: Parameters, vae_file: str | None) -> Parameters:
    """The parameters with this VAE in place of the user's; None keeps the user's."""
    others = [module for module in parameters["additional_modules"] if module not in vae_files().values()]
    return parameters if vae_file is None else parameters | {"additional_modules": [*others, vae_file]}


def vae_file_in(parameters: Parameters) -> str | None:
    """The path of the VAE among the additional modules; None: the checkpoint's own."""
    vaes = set(vae_files().values())
    return next((module for module in parameters["additional_modules"] if module in vaes), None)


def vae_files() -> Mapping[str, str]:
    """Name -> path of the additional modules that lie in the host's VAE folders."""
    from modules import paths
    from modules_forge import main_entry

    vae_folders = [Path(paths.models_path).absolute() / "VAE", *capabilities.folders("vae_dir")]
    return {
        name: path
        for name, path in main_entry.module_list.items()
        if any(folder in Path(path).absolute().parents for folder in vae_folders)
    }
