"""A WebUI of a few lines that does to a model what A1111 does to it: bakes LoRAs into its weights and leaves them there, stores
a chosen checkpoint at once and loads it later into the same storages, remembers prompts, seeds everybody's random numbers.
It holds the small model's real tensors; its pictures are hashes of all that matters to a picture.
"""

import collections
import hashlib
import re
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import load_file

from tests.host.data_folder import PREFIXES, info_of, model_of, tensors_of
from tests.host.fifo_lock import FIFOLock

MODULES = """shared sd_models sd_vae sd_unet sd_hijack sd_samplers devices call_queue processing scripts cache paths errors script_callbacks
    launch_utils"""
SAMPLERS = ("DPM++ 2M", "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DDIM", "PLMS")
FLAGS = "ckpt_dir gradio_auth gradio_auth_path api_auth listen share ngrok server_name lowvram no_prompt_history"
TABLES = "available_networks available_network_aliases available_network_hash_lookup networks_in_memory"


class FakeWebUI(SimpleNamespace):
    def __init__(self, data):
        super().__init__(**{name: ModuleType(f"modules.{name}") for name in MODULES.split()}, networks=ModuleType("networks"))
        models, self.state = data / "models", SimpleNamespace(begin=self.begin, end=self.begin)
        files = sorted((models / "Stable-diffusion").glob("*.safetensors"))
        known = {file.name: info_of(file) for file in files}
        self.state.interrupt = lambda: setattr(self.state, "interrupted", True)
        self.data = {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "sd_model_checkpoint": files[0].name}
        flags = SimpleNamespace(lora_dir=str(models / "Lora"), **dict.fromkeys(FLAGS.split()))
        reading = {"__getattr__": lambda _, key: self.data.get(key, "None")}
        options = type("Options", (SimpleNamespace,), reading)(data=self.data, set=self.choose)
        held = model_of(files[0])
        held.__dict__.update(is_sd1=True, lowvram=False, image_size=8, sd_checkpoint_info=known[files[0].name])
        self.parts = (held.model.diffusion_model, held.first_stage_model, held.cond_stage_model.wrapped.transformer)
        processing = type("Processing", (SimpleNamespace,), {"cached_c": [None, None]})
        txt2img = type("Txt2Img", (processing,), {"sample": lambda p: self.sample(p), "close": lambda p: None})
        vaes = {file.name: str(file) for file in (models / "VAE").glob("*")}
        for module, things in {
            self.shared: {"opts": options, "cmd_opts": flags, "state": self.state, "sd_model": held},
            self.devices: {"device": torch.device("cpu"), "dtype_vae": torch.float32, "fp8": False, "torch_gc": lambda: None},
            self.sd_unet: {"current_unet_option": None, "apply_unet": self.apply_unet},
            self.sd_models: {"checkpoints_list": dict(known), "checkpoint_aliases": dict(known), "model_path": str(models)}
            | {"SkipWritingToConfig": threading.Lock, "reload_model_weights": self.reload},
            self.sd_vae: {"vae_dict": vaes, "loaded_vae_file": None, "reload_vae_weights": self.reload_vae},
            self.sd_samplers: {"all_samplers_map": dict.fromkeys(SAMPLERS)},
            self.sd_hijack: {"model_hijack": SimpleNamespace(apply_circular=lambda on: None)},
            self.cache: {"cache": collections.defaultdict(dict).__getitem__},
            self.paths: {"data_path": str(data), "models_path": str(models)},
            self.processing: {"StableDiffusionProcessing": processing, "StableDiffusionProcessingTxt2Img": txt2img}
            | {"process_images": self.process_images},
            self.networks: {name: {} for name in TABLES.split()} | {"loaded_networks": [], "list_available_networks": self.list},
        }.items():
            module.__dict__.update(things)
        self.begin()
        self.call_queue.queue_lock, self.scripts.ScriptRunner = FIFOLock(), SimpleNamespace
        self.shared.loaded_hypernetworks, self.shared.total_tqdm = [], SimpleNamespace(clear=lambda: None)
        self.sd_models.model_data = SimpleNamespace(sd_model=held, lock=threading.Lock())
        self.sd_models.select_checkpoint = lambda: self.sd_models.checkpoint_aliases[self.data["sd_model_checkpoint"]]
        self.sd_vae.resolve_vae = lambda _: SimpleNamespace(vae=vaes.get(self.data["sd_vae"]))
        self.networks.network = SimpleNamespace(NetworkOnDisk=lambda name, file: SimpleNamespace(name=name, filename=file))
        self.networks.network_restore_weights_from_backup = lambda layer: layer.weight.copy_(layer.network_weights_backup)

    def install(self, monkeypatch):
        own = {f"modules.{name}": getattr(self, name) for name in MODULES.split()}
        for name, module in {"modules": SimpleNamespace(**vars(self)), "networks": self.networks, **own}.items():
            monkeypatch.setitem(sys.modules, name, module)

    def begin(self, job=""):
        self.state.__dict__.update(job=job, interrupted=False, skipped=False)

    def choose(self, key, value):
        self.data[key] = value  # at once; the loading waits for its turn
        with self.call_queue.queue_lock:
            self.reload()
            self.reload_vae()

    def reload(self, sd_model=None, info=None, forced_reload=False):
        held, info = self.shared.sd_model, info or self.sd_models.select_checkpoint()
        if held.sd_checkpoint_info.filename != info.filename or forced_reload:
            for module, prefix in zip(self.parts, PREFIXES, strict=True):
                module.load_state_dict(tensors_of(info.filename, prefix))
            for layer in held.modules():
                layer.__dict__.update(network_current_names=(), network_weights_backup=None)
            held.__dict__["sd_checkpoint_info"], self.sd_vae.loaded_vae_file = info, None
            self.reload_vae()

    def reload_vae(self, sd_model=None, vae_file=""):
        wanted = self.sd_vae.resolve_vae("").vae if vae_file == "" else vae_file
        if wanted != self.sd_vae.loaded_vae_file:
            source = (wanted, "") if wanted else (self.shared.sd_model.sd_checkpoint_info.filename, PREFIXES[1])
            self.parts[1].load_state_dict(tensors_of(*source))
            self.sd_vae.loaded_vae_file = wanted

    def apply_unet(self, name=None):
        wanted = name or self.shared.opts.sd_unet
        self.sd_unet.current_unet_option = None if wanted == "None" else SimpleNamespace(label=wanted)

    def list(self):
        files = Path(self.shared.cmd_opts.lora_dir).rglob("*.safetensors")
        self.networks.available_networks.clear()
        self.networks.available_networks.update({file.stem: SimpleNamespace(name=file.stem, filename=str(file)) for file in files})
        self.networks.available_network_aliases = dict(self.networks.available_networks)

    def bake(self, wanted):
        """Into three layers, from their backup when they carried something else."""
        unet, _, text = self.parts
        for layer in (unet.input_blocks._modules["1"]._modules["1"].proj_in, unet.out._modules["2"], text.text_model.final_layer_norm):
            if getattr(layer, "network_current_names", ()) != wanted:
                if getattr(layer, "network_weights_backup", None) is None:
                    layer.network_weights_backup = layer.weight.clone()
                layer.weight.copy_(layer.network_weights_backup)
                for name, weight in wanted:
                    state = load_file(self.networks.available_networks[name].filename)
                    layer.weight += weight * sum(float(tensor.abs().mean()) for tensor in state.values()) / 10
                layer.network_current_names = wanted

    def sample(self, p):
        """A hash of weights, prompt and settings, after as many steps as were asked for."""
        end = time.monotonic() + p.steps * 0.005
        while time.monotonic() < end and not self.state.interrupted:
            time.sleep(0.005)
        torch.manual_seed(p.seed)
        memory = self.processing.StableDiffusionProcessing
        if memory.cached_c[0] != (p.words, p.wanted):
            memory.cached_c = [(p.words, p.wanted), float(self.parts[2].text_model.final_layer_norm.weight.double().sum())]
        seen = [float(tensor.double().sum()) for part in self.parts[:2] for tensor in part.parameters()]
        words = repr(
            (seen, memory.cached_c[1], p.words, p.seed, p.steps, p.cfg_scale, p.sampler_name, self.data["CLIP_stop_at_last_layers"])
        )
        return hashlib.sha512(words.encode()).digest()

    def process_images(self, p):
        if p.sampler_name not in SAMPLERS:
            raise RuntimeError(f"Sampler not found: {p.sampler_name}")
        settings, lists = getattr(p, "override_settings", {}), self.networks
        before = {key: self.data[key] for key in settings}
        self.data.update(settings)
        self.reload()
        if not self.shared.cmd_opts.no_prompt_history:
            (Path(self.paths.data_path) / "params.txt").write_text(p.prompt, encoding="utf-8")
        wanted = [(name, float(weight)) for name, weight in re.findall(r"<lora:([^:>]+):([^>]+)>", p.prompt)]
        self.list() if {name for name, _ in wanted} - lists.available_networks.keys() else None
        p.wanted = tuple(net for net in wanted if net[0] in lists.available_networks)
        p.words = re.sub(r"<lora:[^>]*>", "", p.prompt)
        lists.loaded_networks[:] = [SimpleNamespace(name=name) for name, _ in p.wanted]
        with torch.no_grad():
            self.bake(p.wanted)
            picture = Image.frombytes("L", (8, 8), p.sample())
        self.data.update(before if getattr(p, "override_settings_restore_afterwards", True) else {})
        return SimpleNamespace(images=[picture])
