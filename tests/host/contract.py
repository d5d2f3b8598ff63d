"""What every host promises, as checks that run inside of it: in the fake one, and in a real WebUI through the probe extension.

A check is a function of the world around it; it raises AssertionError. Nothing here knows which host it is.
"""

import contextlib
import hashlib
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from lora_trainer.config.schema import ModelConfig
from lora_trainer.host.a1111 import A1111Host, model, preview
from lora_trainer.train.previews.preview_prompts import SampleRequest

CHECKS = {}
A1111_ONLY = set()
"""Checks of what another host does not have: layers' own backups of weights, a VAE chosen by itself, ways of holding a model."""
NETWORK_TABLES = ("available_networks", "available_network_aliases", "networks_in_memory")
REQUEST = SampleRequest("a red circle", width=64, height=64, seed=3, cfg=5, steps=6, sampler="euler", clip_skip=0)  # 0: as the host is set


def check(function):
    CHECKS[function.__name__] = function
    return function


def only_in_a1111(function):
    A1111_ONLY.add(function.__name__)
    return function


class World:
    """A host with two checkpoints (the first chosen), a VAE, and a LoRA called "mark"."""

    Host = A1111Host
    weight_fingerprints = "lora_trainer.host.a1111.model.weight_fingerprints"

    def __init__(self, loras, other_checkpoint, vae):
        self.host, self.loras, self.vae = self.Host(), Path(loras), vae
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

    def state(self):
        """Every tensor of the model, as a program reads them that knows nothing of the trainer."""
        return self.loaded().state_dict()

    def hashes(self):
        """sha256 of every one of them."""
        return {
            name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            for name, tensor in self.state().items()
            if tensor.ndim and ".hyper_" not in name  # A1111 leaves a hypernetwork's layers in the model, unused
        }

    def storages(self):
        return {tensor.untyped_storage().data_ptr() for tensor in self.state().values()}

    def wipe(self):
        model.wipe(self.loaded())

    def same_storages(self, source):
        return model.shares_memory(source, self.loaded())

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


LAYERS = {
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (64, 64),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (64, 64),
    "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (64, 64),
}
"""Layers that every Stable Diffusion 1.x model has in this size, with their rows and columns."""


def write_lora(path, seed, layers=LAYERS):
    """A small LoRA on those layers."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, (rows, columns) in layers.items():
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
    networks = model.networks_module()

    def seen():
        return {
            "weights": world.hashes(),
            "options": {key: value for key, value in m.shared.opts.data.items() if key not in but},
            "checkpoint": world.loaded().sd_checkpoint_info.filename,
            "vae": m.sd_vae.loaded_vae_file,
            "networks": {name: sorted(getattr(networks, name)) for name in NETWORK_TABLES if hasattr(networks, name)},
            "files": sorted(
                str(path) for folder in (world.loras, preview.previews_folder()) for path in folder.rglob("*") if path.is_file()
            ),
            "job": (m.shared.state.job, m.shared.state.interrupted, m.shared.state.skipped),
        }

    world.wipe()
    getattr(networks, "networks_in_memory", {}).clear()  # Forge Neo keeps none
    before = seen()
    yield
    getattr(model.networks_module(), "networks_in_memory", {}).clear()
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
