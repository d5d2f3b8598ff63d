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
from torch import nn

from lora_trainer.models.load import clip_tokenizer

MODULES = "shared sd_models sd_vae sd_unet sd_hijack devices call_queue processing scripts cache paths errors script_callbacks launch_utils"
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
FLAGS = "ckpt_dir gradio_auth gradio_auth_path api_auth listen share ngrok server_name lowvram no_prompt_history"
TABLES = "available_networks available_network_aliases available_network_hash_lookup networks_in_memory"


def tree(state):
    """Modules named as the keys say, holding those tensors."""
    root = nn.Module()
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        place = root
        for part in path:
            place = place._modules.setdefault(part, nn.Module())
        place.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def tensors_of(file, prefix):
    state = {key: tensor.float() for key, tensor in load_file(file).items() if key.startswith(prefix)}
    return {key.removeprefix(prefix).replace("token_embedding.", "token_embedding.wrapped."): tensor for key, tensor in state.items()}


class FIFOLock:
    """The host's queue: whoever asks in the moment of a release overtakes those who wait."""

    def __init__(self):
        self._lock, self._inner_lock, self._pending_threads = threading.Lock(), threading.Lock(), collections.deque()

    def acquire(self, blocking=True):
        with self._inner_lock:
            if (free := self._lock.acquire(blocking=False)) or not blocking:
                return free
            mine = threading.Event()
            self._pending_threads.append(mine)
        mine.wait()
        return self._lock.acquire()

    def release(self, *_):
        with self._inner_lock:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()

    __enter__, __exit__ = acquire, release


class Options(SimpleNamespace):
    def __getattr__(self, key):
        return self.data.get(key, "None")

    def get_default(self, key):
        return None


class FakeWebUI(SimpleNamespace):
    def __init__(self, data):
        super().__init__(**{name: ModuleType(f"modules.{name}") for name in MODULES.split()}, networks=ModuleType("networks"))
        models = data / "models"
        files = sorted((models / "Stable-diffusion").glob("*.safetensors"))
        known = {file.name: SimpleNamespace(filename=str(file), title=file.name, sha256=None) for file in files}
        for info in known.values():
            info.model_name = info.name_for_extra = Path(info.filename).stem
        self.state = SimpleNamespace(
            begin=self.begin, end=lambda: self.begin(""), interrupt=lambda: setattr(self.state, "interrupted", True)
        )
        self.begin("")
        self.data = {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "sd_model_checkpoint": files[0].name}
        self.shared.cmd_opts = SimpleNamespace(lora_dir=str(models / "Lora"), **dict.fromkeys(FLAGS.split()))
        self.shared.opts, self.shared.state = Options(data=self.data, set=self.choose), self.state
        self.shared.loaded_hypernetworks, self.shared.total_tqdm = [], SimpleNamespace(clear=lambda: None)
        self.devices.__dict__.update(device=torch.device("cpu"), dtype_vae=torch.float32, fp8=False, torch_gc=lambda: None)
        self.sd_unet.__dict__.update(current_unet_option=None, get_unet_option=lambda: None)
        self.sd_models.__dict__.update(checkpoints_list=dict(known), checkpoint_aliases=dict(known), model_path=str(models))
        self.sd_models.__dict__.update(SkipWritingToConfig=threading.Lock, reload_model_weights=self.reload)
        self.sd_models.select_checkpoint = lambda: self.sd_models.checkpoint_aliases[self.data["sd_model_checkpoint"]]
        self.sd_vae.__dict__.update(vae_dict={file.name: str(file) for file in (models / "VAE").glob("*")}, loaded_vae_file=None)
        self.sd_vae.resolve_vae = lambda _: SimpleNamespace(vae=self.sd_vae.vae_dict.get(self.data["sd_vae"]))
        self.sd_vae.reload_vae_weights = self.reload_vae
        self.sd_hijack.model_hijack = SimpleNamespace(apply_circular=lambda on: None)
        self.call_queue.queue_lock, self.scripts.ScriptRunner = FIFOLock(), SimpleNamespace
        self.cache.cache, self.paths.data_path, self.paths.models_path = collections.defaultdict(dict).__getitem__, str(data), str(models)
        self.networks.__dict__.update({name: {} for name in TABLES.split()}, loaded_networks=[], list_available_networks=self.list)
        self.networks.network = SimpleNamespace(NetworkOnDisk=lambda name, file: SimpleNamespace(name=name, filename=file))
        self.networks.network_restore_weights_from_backup = lambda layer: layer.weight.copy_(layer.network_weights_backup)
        own = {"sample": lambda p: self.sample(p), "close": lambda p: None}
        self.processing.StableDiffusionProcessing = type("Processing", (SimpleNamespace,), {"cached_c": [None, None]})
        self.processing.StableDiffusionProcessingTxt2Img = type("Txt2Img", (self.processing.StableDiffusionProcessing,), own)
        self.processing.process_images = self.process_images
        unet, vae, text = (tree(tensors_of(files[0], prefix)) for prefix in PREFIXES)
        text.config = SimpleNamespace(num_attention_heads=4, hidden_size=64, num_hidden_layers=4)
        unet.__dict__.update(in_channels=4, num_heads=8)
        held = nn.Module()
        held.__dict__.update(is_sd1=True, lowvram=False, image_size=8, sd_checkpoint_info=known[files[0].name])
        held.model, held.first_stage_model = nn.ModuleDict({"diffusion_model": unet}), vae
        held.cond_stage_model = nn.ModuleDict({"wrapped": nn.ModuleDict({"transformer": text})})
        held.model.__dict__["diffusion_model"], held.cond_stage_model.__dict__["tokenizer"] = unet, clip_tokenizer()
        held.cond_stage_model.__dict__["wrapped"] = SimpleNamespace(transformer=text)
        self.shared.sd_model, self.parts = held, (unet, vae, text)
        self.sd_models.model_data = SimpleNamespace(sd_model=held, lock=threading.Lock())

    def install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(**vars(self)))
        for name in MODULES.split():
            monkeypatch.setitem(sys.modules, f"modules.{name}", getattr(self, name))
        monkeypatch.setitem(sys.modules, "networks", self.networks)

    def begin(self, job):
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
        vae_file = self.sd_vae.resolve_vae("").vae if vae_file == "" else vae_file
        if vae_file != self.sd_vae.loaded_vae_file:
            own = tensors_of(self.shared.sd_model.sd_checkpoint_info.filename, PREFIXES[1])
            self.parts[1].load_state_dict(tensors_of(vae_file, "") if vae_file else own)
            self.sd_vae.loaded_vae_file = vae_file

    def list(self):
        files = Path(self.shared.cmd_opts.lora_dir).rglob("*.safetensors")
        found = {file.stem: self.networks.network.NetworkOnDisk(file.stem, str(file)) for file in files}
        for table in (self.networks.available_networks, self.networks.available_network_aliases):
            table.clear()
            table.update(found)

    def bake(self, wanted):
        """Into three layers, from their backup when they carried something else."""
        unet, _, text = self.parts
        for layer in (unet.input_blocks._modules["1"]._modules["1"].proj_in, unet.out._modules["2"], text.text_model.final_layer_norm):
            if getattr(layer, "network_current_names", ()) != wanted:
                if getattr(layer, "network_weights_backup", None) is None:
                    layer.network_weights_backup = layer.weight.clone()
                layer.weight.copy_(layer.network_weights_backup)
                for name, weight in wanted:
                    file = self.networks.available_networks[name].filename
                    layer.weight += weight * sum(float(tensor.abs().mean()) for tensor in load_file(file).values()) / 10
                layer.network_current_names = wanted

    def sample(self, p):
        """A hash of weights, prompt and settings, after as many steps as were asked for."""
        for _ in range(p.steps):
            time.sleep(0.005)
            if self.state.interrupted:
                break
        torch.manual_seed(p.seed)
        memory, key = self.processing.StableDiffusionProcessing, (p.words, p.wanted)
        if memory.cached_c[0] != key:
            memory.cached_c = [key, float(self.parts[2].text_model.final_layer_norm.weight.double().sum())]
        seen = [float(tensor.double().sum()) for part in self.parts[:2] for tensor in part.parameters()]
        words = repr(
            (seen, memory.cached_c[1], p.words, p.seed, p.steps, p.cfg_scale, p.sampler_name, self.data["CLIP_stop_at_last_layers"])
        )
        return hashlib.sha512(words.encode()).digest()

    def process_images(self, p):
        settings, lists = getattr(p, "override_settings", {}), self.networks
        before = {key: self.data[key] for key in settings}
        self.data.update(settings)
        self.reload()
        if not self.shared.cmd_opts.no_prompt_history:
            (Path(self.paths.data_path) / "params.txt").write_text(p.prompt, encoding="utf-8")
        wanted = [(name, float(weight)) for name, weight in re.findall(r"<lora:([^:>]+):([^>]+)>", p.prompt)]
        if any(name not in lists.available_networks for name, _ in wanted):
            self.list()
        p.wanted = tuple(net for net in wanted if net[0] in lists.available_networks)
        p.words = re.sub(r"<lora:[^>]*>", "", p.prompt)
        lists.loaded_networks[:] = [SimpleNamespace(name=name) for name, _ in p.wanted]
        with torch.no_grad():
            self.bake(p.wanted)
            picture = Image.frombytes("L", (8, 8), p.sample())
        if getattr(p, "override_settings_restore_afterwards", True):
            self.data.update(before)
        return SimpleNamespace(images=[picture])
