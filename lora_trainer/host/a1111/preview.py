"""A preview as txt2img would draw it, and no trace of it in the host."""

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
from lora_trainer.host.a1111 import model as held
from lora_trainer.host.base import PictureRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_trainer.control import Control

PREFIX = "lora_trainer_preview_"
JOB = "LoRA Trainer preview"


class Drawing:
    """How the host is asked for a picture on the lent model, and how it forgets the network afterwards."""

    def overrides(self, pin: held.Pin) -> dict[str, Any]:
        """Options that pin the lent checkpoint while the picture is drawn, and keep its U-Net and number format as they are lent."""
        from modules import shared

        kept = {"sd_unet": "None"} | ({} if pin.fp8 is None else {"fp8_storage": pin.fp8})
        changed = {key: value for key, value in kept.items() if getattr(shared.opts, key, value) != value}
        return {"sd_model_checkpoint": _alias(pin.checkpoint)} | changed

    def images(self, pin: held.Pin, p: Any) -> list[Image]:
        """The pictures of a request that is ready."""
        from modules import processing

        return list(processing.process_images(p).images)

    def take_off(self) -> None:
        """No network on the model, none of its tensors in memory: they hold its file open."""
        from modules import sd_models

        held.restore_networks(sd_models.model_data.sd_model)


def draw_preview(
    drawing: Drawing,
    pin: held.Pin,
    request: PictureRequest,
    write_weights: Callable[[Path], None] | None,
    weight: float,
    control: Control,
) -> Image | None:
    """The picture, or None when the user interrupted it. Raises TrainerError when the host could not draw it.

    To be called with the queue in hand. It leaves the weights dirty: the lease wipes them.
    """
    with _untouched_randomness(), _temporary_network(write_weights, drawing) as path:
        prompt = f"{request.prompt}<lora:{path.stem}:{weight:g}>" if path else request.prompt
        try:
            for _ in range(2):  # a click on "refresh" at the wrong moment makes the host forget the name: once more
                _introduce(path)
                picture = _process(drawing, pin, request, prompt, control)
                if picture is None or path is None or _was_used(path.stem):
                    return picture
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise TrainerError(
                "the WebUI could not draw the preview ({reason}).", reason=reason, fix="The WebUI's console says more."
            ) from error
    raise TrainerError("the WebUI did not find the preview's network.", fix="Check that its Lora extension is enabled.")


def _process(drawing: Drawing, pin: held.Pin, request: PictureRequest, prompt: str, control: Control) -> Image | None:
    from modules import processing, scripts, shared

    settings = {
        "prompt": prompt,
        "negative_prompt": request.negative,
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
        "subseed": 0,  # -1 would draw from Python's own random numbers
        "cfg_scale": request.cfg,
        "steps": request.steps,
        "sampler_name": _sampler(request.sampler),
        "scheduler": "Automatic",
        "do_not_save_samples": True,
        "do_not_save_grid": True,
    }
    overrides = {**drawing.overrides(pin), "CLIP_stop_at_last_layers": request.clip_skip or pin.clip_skip}
    with (
        _job(control),
        _options_kept(overrides),
        closing(processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, **settings)) as p,
    ):
        p.override_settings, p.override_settings_restore_afterwards = overrides, False
        p.scripts, p.script_args = scripts.ScriptRunner(), ()
        images = drawing.images(pin, p)
        broken = shared.state.interrupted or shared.state.skipped or not images
        return None if broken else _bare(images[0])


def _sampler(name: str) -> str:
    """What the host calls a sampler: the best of its names that this version has."""
    from modules import sd_samplers

    wanted = webui_names(name)
    return next((one for one in wanted if one in sd_samplers.all_samplers_map), wanted[0])


def _alias(checkpoint: Any) -> str:
    """A name under which the host finds the checkpoint, even after its list was read anew without the file.

    For a name that it does not know, process_images loads the user's choice: into the storages that are lent.
    """
    from modules import sd_models

    known = sd_models.checkpoint_aliases.get(checkpoint.title)
    if known is None or known.filename != checkpoint.filename:
        sd_models.checkpoint_aliases[checkpoint.title] = checkpoint
    return str(checkpoint.title)


def _bare(picture: Image) -> Image:
    """Without the host's text: it names the temporary network."""
    picture.info.clear()
    return picture


@contextmanager
def _options_kept(overrides: dict[str, Any]) -> Iterator[None]:
    """The user's options afterwards, those included that were chosen while the picture was drawn.

    The host's own setting fails under --freeze-settings; its restoring writes the old values over such a choice and loads the
    VAE that belongs to them. So the overrides stand in the options before it looks, the VAE is not among them (nothing loads
    another one while the queue is ours), and each is put back only where it still is what we put there.
    """
    from modules import shared

    data, options = shared.opts.data, shared.cmd_opts
    before = {key: data[key] for key in overrides if key in data}  # the others stand at their default
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
def _job(control: Control) -> Iterator[None]:
    """The host's state says that somebody draws, and a Stop of ours interrupts it like the user's own button."""
    from modules import shared

    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if control.stopping:
                shared.state.interrupt()
                return

    shared.state.begin(job=JOB)
    watcher = threading.Thread(target=watch, name=JOB, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        shared.state.end()
        shared.state.interrupted = shared.state.skipped = shared.state.stopping_generation = False
        shared.total_tqdm.clear()


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """The host seeds the process's random numbers; a run with previews must draw the same ones as a run without."""
    from modules import devices

    device = torch.device(devices.device)
    mine = (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(mine[0])
        np.random.set_state(mine[1])


@contextmanager
def _temporary_network(write_weights: Callable[[Path], None] | None, drawing: Drawing) -> Iterator[Path | None]:
    """A file under a name never used before, in a folder of ours; None when there is no network.

    Not in the LoRA folder: nobody shall see it among his own, and no broken-off run shall leave it there.
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
        drawing.take_off()
        _forget(path.stem)
        _remove(path)


def _introduce(path: Path | None) -> None:
    """Makes the host know the network by its name."""
    if path is not None:
        networks = held.loaded_networks()
        entry = networks.network.NetworkOnDisk(path.stem, str(path))
        networks.available_networks[path.stem] = networks.available_network_aliases[path.stem] = entry


def _was_used(name: str) -> bool:
    return any(network.name == name for network in held.loaded_networks().loaded_networks)


def _forget(name: str) -> None:
    """Takes the name out of every list of the host's, the tensors with it: they hold the file open."""
    from modules import cache

    networks = held.loaded_networks()
    networks.networks_in_memory.pop(name, None)
    for table in (networks.available_networks, networks.available_network_aliases, networks.available_network_hash_lookup):
        for key in [key for key, entry in table.items() if entry.name == name]:
            del table[key]
    for section in ("safetensors-metadata", "hashes-addnet"):
        cache.cache(section).pop(f"lora/{name}", None)
    gc.collect()


def _remove(path: Path) -> None:
    """Deletes the file; on Windows a reader may hold it for a moment. What stays is removed at the next start."""
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
    """Where the networks of previews live for the time of one picture."""
    from modules import paths

    return Path(paths.data_path) / "lora_trainer" / "previews"


def remove_leftovers() -> None:
    """Deletes what a crash left behind; files of another WebUI that runs on the same folder stay."""
    import psutil

    for path in previews_folder().glob(f"*{PREFIX}*"):
        owner = path.name.partition(PREFIX)[2].partition("_")[0]
        if not owner.isdigit() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            path.unlink(missing_ok=True)
