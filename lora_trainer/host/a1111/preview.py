"""Previews as txt2img would draw them, without leaving a trace in the host."""

from __future__ import annotations

import gc
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lora_trainer.config.choices.samplers import webui_names
from lora_trainer.errors import TrainerError
from lora_trainer.host.a1111 import model as host_model
from lora_trainer.host.base import PictureRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_trainer.control import Control

PREFIX = "lora_trainer_preview_"
JOB = "LoRA Trainer preview"


class Drawing:
    """How the host generates an image with the lent model, and how the network is removed afterwards."""

    def option_overrides(self, pin: host_model.Pin) -> dict[str, Any]:
        """Options that pin the lent checkpoint, its U-Net and its number format during the generation."""
        from modules import shared

        pinned = {"sd_unet": "None"} | ({} if pin.fp8 is None else {"fp8_storage": pin.fp8})
        changed = {key: value for key, value in pinned.items() if getattr(shared.opts, key, value) != value}
        return {"sd_model_checkpoint": _alias(pin.checkpoint)} | changed

    def draw(self, pin: host_model.Pin, p: Any) -> list[Image]:
        """Runs a prepared request; returns its images."""
        from modules import processing

        return list(processing.process_images(p).images)

    def remove_network(self) -> None:
        """Removes the network from the model, and its tensors from memory: they keep its file open."""
        from modules import sd_models

        host_model.unmerge_networks(sd_models.model_data.sd_model)


def draw_preview(
    drawing: Drawing,
    pin: host_model.Pin,
    request: PictureRequest,
    write_weights: Callable[[Path], None] | None,
    weight: float,
    control: Control,
) -> Image | None:
    """The image, or None when the user interrupted it. Raises TrainerError when the host cannot draw it.

    To be called while holding the queue. Leaves networks on the weights: the lease cleans them.
    """
    with _preserved_rng(), _temporary_network(write_weights, drawing) as path:
        prompt = f"{request.prompt}<lora:{path.stem}:{weight:g}>" if path else request.prompt
        try:
            for _ in range(2):  # "refresh" clicked at the wrong moment makes the host forget the name: try again
                _register(path)
                picture = _process(drawing, pin, request, prompt, control)
                if picture is None or path is None or _was_used(path.stem):
                    return picture
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise TrainerError(
                "the WebUI could not draw the preview ({reason}).", reason=reason, fix="The WebUI's console says more."
            ) from error
    raise TrainerError("the WebUI did not find the preview's network.", fix="Check that its Lora extension is enabled.")


def _process(drawing: Drawing, pin: host_model.Pin, request: PictureRequest, prompt: str, control: Control) -> Image | None:
    from modules import processing, scripts, shared

    settings = {
        "prompt": prompt,
        "negative_prompt": request.negative,
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
        "subseed": 0,  # -1 would use Python's global random generator
        "cfg_scale": request.cfg,
        "steps": request.steps,
        "sampler_name": _sampler(request.sampler),
        "scheduler": "Automatic",
        "do_not_save_samples": True,
        "do_not_save_grid": True,
    }
    overrides = {**drawing.option_overrides(pin), "CLIP_stop_at_last_layers": request.clip_skip or pin.clip_skip}
    with (
        _host_job(control),
        _temporary_options(overrides),
        closing(processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, **settings)) as p,
    ):
        p.distilled_cfg_scale = request.flow_shift  # Forge Neo's shift of rectified flow; other models and hosts do not read it
        p.override_settings, p.override_settings_restore_afterwards = overrides, False
        p.scripts, p.script_args = scripts.ScriptRunner(), ()
        images = drawing.draw(pin, p)
        is_broken = shared.state.interrupted or shared.state.skipped or not images
        return None if is_broken else _without_infotext(images[0])


def _sampler(name: str) -> str:
    """The host's name of a sampler: the first of the possible names that this version has."""
    from modules import sd_samplers

    names = webui_names(name)
    return next((candidate for candidate in names if candidate in sd_samplers.all_samplers_map), names[0])


def _alias(checkpoint: Any) -> str:
    """A name under which the host finds the checkpoint, even after its list was refreshed without the file.

    For an unknown name process_images loads the user's choice, into the memory that is lent.
    """
    from modules import sd_models

    entry = sd_models.checkpoint_aliases.get(checkpoint.title)
    if entry is None or entry.filename != checkpoint.filename:
        sd_models.checkpoint_aliases[checkpoint.title] = checkpoint
    return str(checkpoint.title)


def _without_infotext(picture: Image) -> Image:
    """The image without the host's infotext, which names the temporary network."""
    picture.info.clear()
    return picture


@contextmanager
def _temporary_options(overrides: dict[str, Any]) -> Iterator[None]:
    """Sets options for the duration of a generation and restores the user's, including changes made meanwhile.

    The host's own override mechanism fails under --freeze-settings, and its restoring overwrites such changes and loads the VAE
    that belongs to the old values. So the overrides are written to the options directly, the VAE is not among them (nothing loads
    another one while we hold the queue), and each is restored only where it still has our value.
    """
    from modules import shared

    data, options = shared.opts.data, shared.cmd_opts
    before = {key: data[key] for key in overrides if key in data}  # the others have their defaults
    no_history, options.no_prompt_history = options.no_prompt_history, True  # params.txt is the user's last prompt
    data.update(overrides)
    try:
        yield
    finally:
        options.no_prompt_history = no_history
        for key, value in overrides.items():
            if data.get(key) == value and key in before:
                data[key] = before[key]
            elif data.get(key) == value:
                del data[key]


@contextmanager
def _host_job(control: Control) -> Iterator[None]:
    """Marks the host's state as generating, and interrupts the generation when our run is stopped, as the user's button would."""
    from modules import shared

    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.1):
            if control.stopping:
                shared.state.interrupt()
                return

    shared.state.begin(job=JOB)
    watcher = threading.Thread(target=watch, name=JOB, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        shared.state.end()
        shared.state.interrupted = shared.state.skipped = shared.state.stopping_generation = False
        shared.total_tqdm.clear()


@contextmanager
def _preserved_rng() -> Iterator[None]:
    """Restores the global random generators, which the host seeds: a run with previews must equal one without."""
    from modules import devices

    device = torch.device(devices.device)
    states = (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _temporary_network(write_weights: Callable[[Path], None] | None, drawing: Drawing) -> Iterator[Path | None]:
    """Writes the network to a new file in our own folder, and removes it afterwards; None when there is no network.

    Not in the LoRA folder: it must not show up among the user's files, nor be left there by a crash.
    """
    if write_weights is None:
        yield None
        return
    path = previews_folder() / f"{PREFIX}{os.getpid()}_{secrets.token_hex(6)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_weights(path)
        yield path
    finally:
        drawing.remove_network()
        _unregister(path.stem)
        _delete(path)


def _register(path: Path | None) -> None:
    """Adds the network to the host's lists under its name."""
    if path is not None:
        networks = host_model.networks_module()
        entry = networks.network.NetworkOnDisk(path.stem, str(path))
        networks.available_networks[path.stem] = networks.available_network_aliases[path.stem] = entry


def _was_used(name: str) -> bool:
    return any(network.name == name for network in host_model.networks_module().loaded_networks)


def _unregister(name: str) -> None:
    """Removes the name from all of the host's lists, and the tensors, which keep the file open."""
    from modules import cache

    networks = host_model.networks_module()
    getattr(networks, "networks_in_memory", {}).pop(name, None)  # Forge Neo keeps none
    for table in (networks.available_networks, networks.available_network_aliases, networks.available_network_hash_lookup):
        for key in [key for key, entry in table.items() if entry.name == name]:
            del table[key]
    for section in ("safetensors-metadata", "hashes-addnet"):
        cache.cache(section).pop(f"lora/{name}", None)
    gc.collect()


def _delete(path: Path) -> None:
    """Deletes the file; on Windows a reader may keep it open for a moment. A file that remains is removed at the next start."""
    end = time.monotonic() + 2.0
    while True:
        try:
            path.unlink(missing_ok=True)
            return
        except PermissionError:
            if time.monotonic() > end:
                return
            time.sleep(0.05)


def previews_folder() -> Path:
    """The folder of the temporary networks."""
    from modules import paths

    return Path(paths.data_path) / "lora_trainer" / "previews"


def remove_leftovers() -> None:
    """Deletes files left by a crash; those of another running WebUI on the same folder stay."""
    import psutil

    for path in previews_folder().glob(f"*{PREFIX}*"):
        owner = path.name.partition(PREFIX)[2].partition("_")[0]
        if not owner.isdigit() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            path.unlink(missing_ok=True)
