"""Previews: as txt2img draws them, and without a trace."""

import os
import random
import threading
import time
from pathlib import Path

import attrs
import numpy as np
import torch

from lora_trainer.config.choices.samplers import CHOICES
from lora_trainer.control import Control
from lora_trainer.errors import TrainerError
from lora_trainer.host.a1111 import preview
from tests.host.contract import REQUEST, check, raises, untouched, weights, write_lora


@check
def preview_leaves_no_trace(world):
    history = Path(world.host.paths().data_path) / "params.txt"  # what the button under Generate brings back
    world.generate("what the user drew last")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with untouched(world), world.lend() as lease:
        source = lease.source
        assert lease.preview(REQUEST, weights(5), 1.0, Control()) is not None
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled()
        assert lease.source is source
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert "what the user drew last" in history.read_text(encoding="utf-8")


@check
def preview_equals_what_the_host_draws(world):
    write_lora(world.loras / "saved.safetensors", 7)
    plain, with_network = world.generate("a red circle"), world.generate("a red circle<lora:saved:0.7>")
    assert plain != with_network
    with world.lend() as lease:
        assert lease.preview(REQUEST, None, 1.0, Control()).tobytes() == plain
        assert lease.preview(REQUEST, weights(7), 0.7, Control()).tobytes() == with_network
        assert lease.preview(REQUEST, weights(8), 0.7, Control()).tobytes() != with_network
        assert lease.preview(REQUEST, None, 1.0, Control()).tobytes() == plain
    assert world.generate("a red circle<lora:saved:0.7>") == with_network
    (world.loras / "saved.safetensors").unlink()


@check
def clip_skip_of_the_request_is_drawn_with(world):
    with untouched(world), world.lend() as lease:
        first = lease.preview(REQUEST, None, 1.0, Control()).tobytes()
        other = 1 if world.host.clip_skip() == 2 else 2
        assert lease.preview(attrs.evolve(REQUEST, clip_skip=other), None, 1.0, Control()).tobytes() != first


@check
def every_sampler_has_a_name_in_the_host(world):
    with world.lend() as lease:
        drawn = {
            name: lease.preview(attrs.evolve(REQUEST, sampler=name), None, 1.0, Control()).tobytes()
            for name in CHOICES  # raises where the host does not know the name
        }
    assert drawn["euler"] != drawn["euler_a"] != drawn["ddim"] and drawn["lms"] != drawn["heun"] != drawn["dpm_2"]
    assert drawn["dpmsolver"] == drawn["dpmsolver++"] == drawn["dpmsingle"]


@check
def crash_of_the_preview_changes_nothing(world):
    m, drawn = world.modules, []
    txt2img = m.processing.StableDiffusionProcessingTxt2Img
    original = txt2img.sample

    def crash(p, *args, **kwargs):
        original(p, *args, **kwargs)
        drawn.append(world.hashes())
        raise ValueError("the card fell out")

    def unwritable(path):
        raise OSError("disk full")

    with untouched(world), world.lend() as lease:
        clean, source = world.hashes(), lease.source
        txt2img.sample = crash
        try:
            raises(TrainerError, lambda: lease.preview(REQUEST, weights(5), 1.0, Control()), "the card fell out")
        finally:
            txt2img.sample = original
        assert drawn[0] != clean, "the crash came before the network was baked: this check proves nothing"
        assert world.hashes() == clean
        raises(OSError, lambda: lease.preview(REQUEST, unwritable, 1.0, Control()))
        assert lease.source is source
        assert lease.preview(REQUEST, weights(5), 1.0, Control()) is not None


@check
def interrupted_preview_is_thrown_away(world):
    long = attrs.evolve(REQUEST, steps=1500)
    with untouched(world), world.lend() as lease:
        for stop in (lambda control: control.command("stop"), lambda control: world.modules.shared.state.interrupt()):
            control = Control()
            timer = threading.Timer(0.5, stop, [control])
            timer.start()
            begin = time.monotonic()
            assert lease.preview(long, weights(5), 1.0, control) is None
            assert time.monotonic() - begin < 20
        assert lease.preview(REQUEST, None, 1.0, Control()) is not None


@check
def choice_made_while_a_preview_is_drawn_survives_it(world):
    m = world.modules
    chosen, threads = m.shared.opts.data["sd_model_checkpoint"], []
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            timer = threading.Timer(0.3, lambda: threads.append(world.choose("sd_model_checkpoint", world.other)))
            timer.start()
            lease.preview(attrs.evolve(REQUEST, steps=120), weights(5), 1.0, Control())
            assert threads, "the picture was done before anybody chose: this check proves nothing"
            assert m.shared.opts.data["sd_model_checkpoint"] == world.other
            assert world.hashes() == clean
        threads[0].join(60)
        assert world.loaded().sd_checkpoint_info.title == world.other
        world.choose("sd_model_checkpoint", chosen).join(60)


@check
def leftovers_of_a_crash_are_removed(world):
    folder = preview.previews_folder()
    folder.mkdir(parents=True, exist_ok=True)
    names = [
        f"{preview.PREFIX}{os.getpid()}_ab.safetensors",
        f"{preview.PREFIX}999999999_ab.safetensors",
        f".{preview.PREFIX}999999999_ab.x.part",
    ]
    alive = folder / f"{preview.PREFIX}{os.getppid()}_ab.safetensors"
    for name in [*names, alive.name]:
        (folder / name).write_bytes(b"x")
    preview.remove_leftovers()
    assert sorted(path.name for path in folder.iterdir()) == [alive.name]
    alive.unlink()


@check
def preview_file_is_not_held_open(world):
    maps = Path("/proc/self/maps")
    with world.lend() as lease:
        lease.preview(REQUEST, weights(5), 1.0, Control())
        if maps.exists():
            assert preview.PREFIX not in maps.read_text(encoding="utf-8", errors="replace")
