"""What every host promises, as checks that run inside of it: in the fake one, and in a real WebUI through the probe extension.

A check is a function of the world around it; it raises AssertionError. Nothing here knows which host it is.
"""

import contextlib
import hashlib
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from lora_trainer.config.schema import ModelConfig
from lora_trainer.control import Control
from lora_trainer.errors import HostBusy, ModelError, TrainerError
from lora_trainer.host.a1111 import LET_THROUGH, A1111Host, model, preview
from lora_trainer.models.source import LiveSource
from lora_trainer.train.prompts import SampleRequest

CHECKS = {}
REQUEST = SampleRequest("a red circle", width=64, height=64, seed=3, cfg=5, steps=6, sampler="euler")


def check(function):
    CHECKS[function.__name__] = function
    return function


class World:
    """A host with two checkpoints (the first chosen), a VAE, and a LoRA called "mark"."""

    def __init__(self, loras, other_checkpoint, vae):
        self.host, self.loras, self.vae = A1111Host(), Path(loras), vae
        other = self.modules.sd_models.checkpoint_aliases[other_checkpoint]
        getattr(other, "calculate_shorthash", lambda: None)()  # the host's title of a checkpoint holds its hash once it is known
        self.other = other.title
        write_lora(self.loras / "mark.safetensors", 1)
        self.host.refresh_networks()

    @property
    def modules(self):
        from modules import call_queue, processing, scripts, sd_models, sd_vae, shared

        return SimpleNamespace(
            call_queue=call_queue, processing=processing, scripts=scripts, sd_models=sd_models, sd_vae=sd_vae, shared=shared
        )

    def loaded(self):
        return self.modules.sd_models.model_data.sd_model

    def hashes(self):
        """sha256 of every tensor of the model, as a program reads them that knows nothing of the trainer."""
        tensors = self.loaded().state_dict()
        return {
            name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            for name, tensor in tensors.items()
            if tensor.ndim
        }

    def generate(self, prompt, seed=3, **more):
        """A picture by the host's own hands, in the queue as every user's."""
        m = self.modules
        settings = {
            "width": 64,
            "height": 64,
            "seed": seed,
            "subseed": 0,
            "cfg_scale": 5,
            "steps": 6,
            "sampler_name": "Euler",
            "scheduler": "Automatic",
        }
        with m.call_queue.queue_lock:
            p = m.processing.StableDiffusionProcessingTxt2Img(
                sd_model=m.shared.sd_model, prompt=prompt, do_not_save_samples=True, do_not_save_grid=True, **settings | more
            )
            p.scripts, p.script_args = m.scripts.ScriptRunner(), ()
            m.shared.state.begin(job="somebody's picture")
            try:
                return m.processing.process_images(p).images[0].tobytes()
            finally:
                m.shared.state.end()

    def choose(self, key, value):
        """As the page's dropdown: the option is stored at once, the model waits for its turn. Returns the waiting thread."""
        thread = threading.Thread(target=self.modules.shared.opts.set, args=(key, value))
        thread.start()
        wait_for(lambda: self.modules.shared.opts.data[key] == value)
        return thread

    def lend(self, **config):
        return self.host.lease(ModelConfig(**config))

    def queue_is_free(self):
        lock = self.modules.call_queue.queue_lock
        free = lock.acquire(blocking=False)
        if free:
            lock.release()
        return free


def write_lora(path, seed):
    """A small LoRA on layers that every Stable Diffusion 1.x model has in this size."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, (rows, columns) in {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (64, 64),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (64, 64),
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (64, 64),
    }.items():
        state |= {
            f"{name}.lora_up.weight": torch.randn(rows, 4, generator=draw),
            f"{name}.lora_down.weight": torch.randn(4, columns, generator=draw),
        }
        state |= {f"{name}.alpha": torch.tensor(4.0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(path), {"ss_output_name": "mark", "sshs_model_hash": hashlib.sha256(str(seed).encode()).hexdigest()})


def weights(seed):
    return lambda path: write_lora(path, seed)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def untouched(world, *, but=()):
    """The host is the same afterwards: every weight, option and list, the queue free, nobody's job open, no file left."""
    m = world.modules
    networks = model.loaded_networks()

    def seen():
        return {
            "weights": world.hashes(),
            "options": {key: value for key, value in m.shared.opts.data.items() if key not in but},
            "checkpoint": world.loaded().sd_checkpoint_info.filename,
            "vae": m.sd_vae.loaded_vae_file,
            "networks": {
                name: sorted(getattr(networks, name)) for name in ("available_networks", "available_network_aliases", "networks_in_memory")
            },
            "files": sorted(
                str(path) for folder in (world.loras, preview.previews_folder()) for path in folder.rglob("*") if path.is_file()
            ),
            "job": (m.shared.state.job, m.shared.state.interrupted, m.shared.state.skipped),
        }

    model.wipe(world.loaded())
    networks.networks_in_memory.clear()
    before = seen()
    yield
    model.loaded_networks().networks_in_memory.clear()
    after = seen()
    for key, value in before.items():
        if key not in but:
            assert after[key] == value, f"{key}: {_difference(value, after[key])}"
    assert world.queue_is_free(), "the queue is still taken"


def _difference(old, new):
    if isinstance(old, dict):
        return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
    return (old, new)


def raises(kind, action, *parts):
    try:
        action()
    except kind as error:
        missing = [part for part in parts if part not in str(error)]
        assert not missing, f"{error} does not say {missing}"
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def lending_copies_nothing_and_changes_nothing(world):
    with untouched(world), world.lend() as lease:
        own = {tensor.untyped_storage().data_ptr() for tensor in world.loaded().state_dict().values()}
        source = lease.source
        lent = [tensor for state in (source.unet_state, source.vae_state, source.text_state) for tensor in state.values()]
        copied = [tensor for tensor in lent if tensor.untyped_storage().data_ptr() not in own]
        assert len(lent) > 500
        assert not copied, f"{len(copied)} of {len(lent)} storages are copies"
        assert "text_model.embeddings.token_embedding.weight" in source.text_state
        assert not world.queue_is_free()
        assert len(lease.sha256) == 64
        assert lease.facts.family == "sd1" and lease.facts.native_size == 64


@check
def bundle_on_a_lent_model_copies_nothing(world):
    from lora_trainer.models.load import load

    with untouched(world), world.lend() as lease:
        own = {tensor.untyped_storage().data_ptr() for tensor in world.loaded().state_dict().values()}
        bundle = load(lease.source, lease.device)
        parameters = [parameter for part in bundle.modules() for parameter in part.parameters()]
        copied = [parameter for parameter in parameters if parameter.untyped_storage().data_ptr() not in own]
        assert len(parameters) > 900
        assert not copied, f"{len(copied)} of {len(parameters)} parameters are copies"


@check
def half_precision_model_is_lent_without_a_copy(world):
    with untouched(world):
        held = world.loaded()
        parts = (held.model.diffusion_model, held.cond_stage_model, held.first_stage_model)
        for part in parts:
            part.half()
        try:
            lending_copies_nothing_and_changes_nothing(world)
            bundle_on_a_lent_model_copies_nothing(world)
        finally:
            for part in parts:
                part.float()


@check
def everything_comes_back_when_the_work_raises(world):
    with untouched(world):

        def work():
            with world.lend() as lease:
                lease.preview(REQUEST, weights(5), 1.0, Control())
                raise ZeroDivisionError

        raises(ZeroDivisionError, work)


@check
def baked_network_is_off_what_is_lent(world):
    clean = world.hashes()
    world.generate("a red circle <lora:mark:1>")
    dirty = world.hashes()
    assert dirty != clean, "the host did not bake the network: this check proves nothing"
    with world.lend():
        assert world.hashes() == clean
    assert world.hashes() == clean


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
    import attrs

    with untouched(world), world.lend() as lease:
        first = lease.preview(REQUEST, None, 1.0, Control()).tobytes()
        assert lease.preview(attrs.evolve(REQUEST, clip_skip=2), None, 1.0, Control()).tobytes() != first


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
def broken_off_layer_is_restored_from_its_backup(world):
    """A generation that dies inside a layer has changed its weight and not yet said so."""
    with untouched(world), world.lend() as lease:
        lease.preview(REQUEST, weights(5), 1.0, Control())
        layer = next(layer for layer in world.loaded().modules() if getattr(layer, "network_weights_backup", None) is not None)
        layer.weight.data.add_(1)
        lease.pause()
        assert lease.resume() is lease.source


@check
def changed_weight_is_read_from_the_file_again(world):
    with untouched(world), world.lend() as lease:
        world.loaded().model.diffusion_model.state_dict()["input_blocks.0.0.bias"].add_(1)
        lease.pause()
        lease.resume()


@check
def interrupted_preview_is_thrown_away(world):
    import attrs

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
def another_checkpoint_chosen_during_the_loan_waits_until_it_ends(world):
    m = world.modules
    chosen = m.shared.opts.data["sd_model_checkpoint"]
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            before = lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes()
            choosing = world.choose("sd_model_checkpoint", world.other)
            for _ in range(2):
                assert lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes() == before
                assert m.shared.opts.data["sd_model_checkpoint"] == world.other
            assert not lease.breathe(), "let through what would load another model"
            assert world.hashes() == clean
            assert choosing.is_alive()
        choosing.join(60)
        assert world.loaded().sd_checkpoint_info.title == world.other
        assert world.hashes() != clean
        world.choose("sd_model_checkpoint", chosen).join(60)


@check
def choice_made_while_a_preview_is_drawn_survives_it(world):
    import attrs

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
def another_vae_chosen_during_the_loan_waits_until_it_ends(world):
    m = world.modules
    chosen, stored = m.shared.opts.sd_vae, "sd_vae" in m.shared.opts.data
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            choosing = world.choose("sd_vae", world.vae)
            lease.preview(REQUEST, weights(5), 1.0, Control())
            assert world.hashes() == clean
            assert m.shared.opts.data["sd_vae"] == world.vae
        choosing.join(60)
        assert Path(m.sd_vae.loaded_vae_file).name == world.vae
        assert world.hashes() != clean
        world.choose("sd_vae", chosen).join(60)
        m.shared.opts.data.pop("sd_vae") if not stored else None


@check
def pause_gives_the_host_to_the_user_and_resume_takes_it_as_it_was(world):
    with untouched(world), world.lend() as lease:
        clean, source = world.hashes(), lease.source
        lease.pause()
        world.generate("somebody else's picture <lora:mark:1>")
        assert world.hashes() != clean
        assert lease.resume() is source
        assert world.hashes() == clean
        assert not world.queue_is_free()


@check
def model_that_cannot_be_brought_back_is_named_and_the_run_stays_paused(world):
    broken = {"unet.input_blocks.0.0.bias": 0}
    with untouched(world), world.lend() as lease:
        lease.pause()
        with patch("lora_trainer.host.a1111.model.weights_of", return_value=broken):
            raises(HostBusy, lease.resume, lease.title, "Resume")
        assert world.queue_is_free()
        assert isinstance(lease.resume(), LiveSource)
        assert not world.queue_is_free()


@check
def another_checkpoint_loaded_in_a_pause_is_taken_off_and_comes_back(world):
    chosen = world.modules.shared.opts.data["sd_model_checkpoint"]
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            before = lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes()
            lease.pause()
            world.choose("sd_model_checkpoint", world.other).join(60)
            world.generate("somebody else's picture <lora:mark:1>")
            source = lease.resume()
            assert isinstance(source, LiveSource) and model.same_storages(source, world.loaded())
            assert world.hashes() == clean
            assert world.modules.shared.opts.data["sd_model_checkpoint"] == world.other
            assert lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes() == before
        assert world.loaded().sd_checkpoint_info.title == world.other
        world.choose("sd_model_checkpoint", chosen).join(60)


@check
def run_that_ends_while_paused_leaves_the_host_to_its_user(world):
    with untouched(world):
        with world.lend() as lease:
            lease.pause()
            assert world.queue_is_free()
        assert world.queue_is_free()


@check
def breathing_lets_exactly_one_waiting_picture_through(world):
    done, threads = [], []
    with untouched(world):
        with world.lend() as lease:
            clean, source = world.hashes(), lease.source
            assert not lease.breathe()
            for number in range(12):
                draw = lambda number=number: done.append((number, world.generate("a ring <lora:mark:1>", seed=number)))  # noqa: E731
                threads.append(threading.Thread(target=draw))
                threads[-1].start()
                wait_for(lambda number=number: world.host.waiting() == number + 1)
            for count in range(1, 5):
                assert lease.breathe()
                assert [number for number, _ in done] == list(range(count))
                assert world.hashes() == clean
                assert lease.source is source
        for thread in threads:
            thread.join(120)
        assert len(done) == 12
        world.generate("a ring")  # takes the network of the last one off


@check
def breathing_lets_nobody_through_when_the_user_wants_so(world):
    options = world.modules.shared.opts.data
    before, done = options.get(LET_THROUGH), []
    options[LET_THROUGH] = False
    try:
        with untouched(world):
            with world.lend() as lease:
                thread = threading.Thread(target=lambda: done.append(world.generate("a ring")))
                thread.start()
                wait_for(lambda: world.host.waiting() == 1)
                assert not lease.breathe()
                assert not done
            thread.join(60)
            assert done
    finally:
        options.pop(LET_THROUGH) if before is None else options.update({LET_THROUGH: before})


@check
def forty_five_waiting_pictures_all_come(world):
    done, threads = [], []
    with untouched(world):
        with world.lend() as lease:
            for number in range(45):
                threads.append(threading.Thread(target=lambda number=number: done.append(world.generate("a ring", seed=number, steps=1))))
                threads[-1].start()
            wait_for(lambda: world.host.waiting() == 45)
            for _ in range(6):
                lease.breathe()
                time.sleep(0.01)
            assert 6 <= len(done) < 20
        for thread in threads:
            thread.join(300)
        assert len(done) == 45


@check
def checkpoint_named_by_the_config_is_lent_and_the_choice_comes_back(world):
    other = world.modules.sd_models.checkpoint_aliases[world.other]
    with untouched(world):
        clean = world.hashes()
        with world.lend(pretrained_model_name_or_path=Path(other.filename).stem) as lease:
            assert lease.checkpoint == Path(other.filename)
            assert world.hashes() != clean
            assert lease.preview(REQUEST, weights(5), 1.0, Control()) is not None
        with world.lend(vae=world.vae) as lease:
            assert lease.vae_title == world.vae
            assert world.hashes() != clean


@check
def what_cannot_be_lent_is_refused_by_name_before_anything_is_touched(world):
    from modules import devices, sd_unet

    m, held = world.modules, world.loaded()
    lend = lambda: world.lend().__enter__()  # noqa: E731
    cases = [
        (held, "lowvram", True, HostBusy, ("--medvram",)),
        (devices, "fp8", True, HostBusy, ("fp8", "FP8 weight")),
        (sd_unet, "current_unet_option", SimpleNamespace(label="TensorRT thing"), HostBusy, ("TensorRT thing", "SD Unet")),
        (m.shared, "loaded_hypernetworks", [SimpleNamespace(name="oldpaint")], HostBusy, ("oldpaint",)),
        (held, "is_sdxl", True, ModelError, ("SDXL", "1.x")),
        (held, "is_sd2", True, ModelError, ("Stable Diffusion 2",)),
        (held, "is_sd3", True, ModelError, ("Stable Diffusion 3",)),
        (held.model.diffusion_model, "in_channels", 9, ModelError, ("inpainting",)),
    ]
    with untouched(world), m.call_queue.queue_lock:  # a refusal waits for nobody
        for owner, name, value, kind, words in cases:
            before = owner.__dict__.get(name)
            owner.__dict__[name] = value
            try:
                raises(kind, lend, *words)
                info = world.host.model_info()
                assert not info["trainable"] and words[0] in str(info["reason"]), info
                assert (world.host.busy_reason() is not None) == (kind is HostBusy)
            finally:
                owner.__dict__[name] = before
        assert world.host.model_info()["trainable"]
        raises(ModelError, lambda: world.lend(pretrained_model_name_or_path="no-such-model").__enter__(), "no-such-model")
        raises(ModelError, lambda: world.lend(vae="no-such.vae.safetensors").__enter__(), "no-such.vae")


@check
def leftovers_of_a_crash_are_removed(world):
    import os

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
def network_saved_a_second_ago_works_and_is_listed(world):
    write_lora(world.loras / "fresh.safetensors", 11)
    try:
        world.host.refresh_networks()
        assert "fresh" in model.loaded_networks().available_networks
        assert world.generate("a red circle<lora:fresh:1>") != world.generate("a red circle")
    finally:
        (world.loras / "fresh.safetensors").unlink()
        world.host.refresh_networks()


@check
def preview_file_is_not_held_open(world):
    maps = Path("/proc/self/maps")
    with world.lend() as lease:
        lease.preview(REQUEST, weights(5), 1.0, Control())
        if maps.exists():
            assert preview.PREFIX not in maps.read_text(encoding="utf-8", errors="replace")
