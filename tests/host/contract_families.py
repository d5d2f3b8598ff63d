"""What A1111 promises for each family of models: checks inside of a real one, on the small models of family_models.py."""

import contextlib
import math
import sys
import threading
from pathlib import Path
from unittest.mock import patch

import attrs
import torch
from safetensors.torch import load_file

from lora_trainer.control import Control
from lora_trainer.errors import OutOfMemory
from lora_trainer.models.source import LiveSource
from tests.host.contract import REQUEST, only_in_a1111, raises, untouched
from tests.host.contract_runs import Run, only_in_a_real_host, previews

FAMILIES = {"toy": "sd1", "zz-sd2": "sd2", "zz-sd2-v": "sd2", "zz-sdxl": "sdxl"}
LAYERS = {"sd1": (192, 24), "sd2": (192, 18), "sdxl": (722, 48)}
"""Layers of U-Net and text encoders that a LoRA is put on, in the small models: Stable Diffusion 2's last text layer is never read."""
WORDS = ("", "a sks crescent on a white background", "photo of one girl, long hair, looking at the viewer")
WEIGHTED = ("a (red circle:1.4) on a [white] wall", r"(mika \(series\)), ((long hair)), blue:1.2) eyes", "[a (red) circle")
CLOSE = 1e-5


@contextlib.contextmanager
def loaded(world, name):
    """The host with that checkpoint, chosen by its user; his old choice afterwards."""
    options = world.modules.shared.opts
    before = options.sd_model_checkpoint
    title = next(info.title for info in world.modules.sd_models.checkpoints_list.values() if Path(info.filename).stem == name)
    world.choose("sd_model_checkpoint", title).join(120)
    assert Path(world.loaded().sd_checkpoint_info.filename).stem == name
    try:
        yield world.loaded()
    finally:
        world.choose("sd_model_checkpoint", before).join(120)


def apart(ours, theirs):
    """The largest difference, in units of the largest number."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert torch.isfinite(theirs).all() and torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())))


def bundle_on(lease):
    from lora_trainer.models.load import load

    return load(lease.source, lease.device)


def text_of(held, bundle, sdxl):
    """What the host reads of the captions, and what we read: {"states": (theirs, ours), "pooled": ..., "sizes": ...}."""
    from modules.prompt_parser import SdConditioning

    from lora_trainer.models.tokenize import tokenize

    theirs = held.get_learned_conditioning(SdConditioning(list(WORDS), width=128, height=64))
    ours = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, list(WORDS)), 1)
    if not sdxl:
        return {"states": (theirs, ours.states)}, theirs, ours
    width = ours.pooled.shape[1]
    both = {"states": (theirs["crossattn"], ours.states), "pooled": (theirs["vector"][:, :width], ours.pooled)}
    return both, theirs, ours


def answers_of(held, bundle, sdxl):
    """Differences of the bundle's answers from those of the host's own modules."""
    draw = torch.Generator().manual_seed(4)
    noisy, t = torch.randn(len(WORDS), 4, 8, 16, generator=draw), torch.tensor([3, 500, 999])
    picture = torch.rand(1, 3, 64, 64, generator=draw) * 2 - 1
    with torch.no_grad():
        texts, theirs, ours = text_of(held, bundle, sdxl)
        context = {"context": theirs["crossattn"], "y": theirs["vector"]} if sdxl else {"context": theirs}
        if sdxl:
            ours = attrs.evolve(ours, sizes=torch.tensor([[64, 128, 0, 0, 64, 128]]).expand(len(WORDS), 6))
        found = {name: apart(own, other) for name, (other, own) in texts.items()}
        found["unet"] = apart(bundle.family.denoise(bundle, noisy, t, ours), held.model.diffusion_model(noisy, t, **context))
        vae = held.first_stage_model
        moments = vae.quant_conv(vae.encoder(picture))
        found["encoded"] = apart(bundle.vae.encode(picture).latent_dist.parameters, moments)
        found["decoded"] = apart(bundle.vae.decode(moments[:, :4]).sample, vae.decode(moments[:, :4]))
    return found


@only_in_a_real_host
@only_in_a1111
def every_family_is_lent_without_a_copy_and_answers_as_the_host_does(world):
    seen = {}
    for name, family in FAMILIES.items():
        with loaded(world, name) as held, untouched(world), world.lend() as lease:
            assert isinstance(lease.source, LiveSource) and lease.notes == (), lease.notes
            own, source = world.storages(), lease.source
            lent = [t for state in (source.unet_state, source.vae_state, source.text_state, source.text_2_state) for t in state.values()]
            bundle = bundle_on(lease)
            parameters = [parameter for part in bundle.modules() for parameter in part.parameters()]
            copied = [tensor for tensor in [*lent, *parameters] if tensor.untyped_storage().data_ptr() not in own]
            assert not copied, f"{name}: {len(copied)} of {len(lent)} + {len(parameters)} storages are copies"
            assert (bundle.family.name, bundle.prediction) == (family, "v" if name.endswith("-v") else "epsilon")
            info = world.host.model_info()
            assert (info["family"], info["prediction"], info["trainable"]) == (family, bundle.prediction, True), info
            seen[name] = answers_of(held, bundle, family == "sdxl")
            assert len(lent) > 500
    worst = {name: max(found.values()) for name, found in seen.items()}
    assert max(worst.values()) < CLOSE, seen
    return {name: {key: f"{value:.1e}" for key, value in found.items()} for name, found in seen.items()}


@only_in_a_real_host
@only_in_a1111
def own_sampler_reads_weighted_words_as_the_host_does(world):
    from modules.prompt_parser import SdConditioning

    from lora_trainer.train.previews.sampling import encode_prompts

    seen = {}
    for name, family in FAMILIES.items():
        with loaded(world, name) as held, untouched(world), world.lend() as lease, torch.no_grad():
            bundle = bundle_on(lease)
            for prompt in WEIGHTED:
                theirs = held.get_learned_conditioning(SdConditioning([prompt], width=64, height=64))
                theirs = theirs["crossattn"] if family == "sdxl" else theirs
                seen[name, prompt] = apart(encode_prompts(bundle, [prompt], 1).states, theirs)
    assert max(seen.values()) < CLOSE, seen
    return {name: f"{value:.1e}" for (name, _), value in seen.items()}


@only_in_a_real_host
@only_in_a1111
def lora_of_every_family_loads_whole_is_listed_and_changes_the_picture(world):
    """Weight 0 is the base bit for bit; the host's own list has it under its family; a preview is what txt2img draws."""
    networks, seen = sys.modules["networks"], {}
    for name, family in FAMILIES.items():
        with loaded(world, name) as held, untouched(world, but=["files", "networks"]):
            run = Run(world, f"whole-{name}", optimizer={"learning_rate": 0.03, "text_encoder_lr": 0.03}, steps={"max_train_steps": 3}).go()
            file = next(run.output.glob(f"whole-{name}.safetensors"))
            modules = {key.partition(".")[0] for key in load_file(file)}
            unet = sum(key.startswith("lora_unet") for key in modules)
            assert (unet, len(modules) - unet) == LAYERS[family], (unet, len(modules))
            target = world.loras / file.name
            target.write_bytes(file.read_bytes())
            world.host.refresh_networks()
            try:
                base, prompt = world.generate("a red circle"), f"a red circle<lora:{target.stem}:"
                assert world.generate(f"{prompt}0>") == base
                at_1 = world.generate(f"{prompt}1>")
                assert at_1 != base
                entry = networks.available_networks[target.stem]
                assert entry.sd_version.name == {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}[family]
                network = next(network for network in networks.loaded_networks if network.name == target.stem)
                assert len(network.modules) == len(modules), (len(network.modules), len(modules))
                assert not networks.extra_network_lora.errors
                baked = {layer.network_layer_name for layer in held.modules() if getattr(layer, "network_current_names", ())}
                left_out = [key for key in network.modules if key not in baked and key.rpartition("_attn_")[0] + "_attn" not in baked]
                assert not left_out, left_out[:3]
                with world.lend() as lease:
                    drawn = lease.preview(REQUEST, lambda path, target=target: path.write_bytes(target.read_bytes()), 1.0, Control())
                    assert drawn.tobytes() == at_1
                    assert lease.preview(REQUEST, None, 1.0, Control()).tobytes() == base
                assert world.generate("a red circle") == base
                seen[name] = len(modules)
            finally:
                target.unlink()
                world.host.refresh_networks()
    return seen


@only_in_a_real_host
@only_in_a1111
def run_of_every_family_goes_on_exactly_and_leaves_weights_options_and_pictures_as_they_were(world):
    """Paused, with a checkpoint of another kind chosen and drawn with meanwhile; stopped; out of memory."""
    for name in ("zz-sd2", "zz-sdxl"):
        with loaded(world, name) as held, untouched(world, but=["files"]):
            before, chosen = world.generate("a red circle"), held.sd_checkpoint_info.title

            def somebody(run):
                world.choose("sd_model_checkpoint", world.other).join(120)
                world.generate("somebody else's picture <lora:mark:1>")
                run.control.command("resume")

            at = {2: lambda run: run.control.command("pause"), "paused": in_a_thread(somebody)}
            plain = Run(world, f"calm-{name}").go()
            paused = Run(world, f"paused-{name}", at, **previews()).go()
            assert (paused.count("Paused"), paused.count("Resumed"), paused.count("Sampled"), paused.count("Finished")) == (1, 1, 4, 1)
            assert plain.weights() == paused.weights()
            assert world.loaded().sd_checkpoint_info.title == world.other
            world.choose("sd_model_checkpoint", chosen).join(120)
            stopped = Run(world, f"stopped-{name}", {1: lambda run: run.control.command("stop")}).go()
            assert stopped.count("Stopped") == 1
            assert world.generate("a red circle") == before


@only_in_a_real_host
def run_that_finds_no_memory_leaves_the_host_as_it_was(world):
    with untouched(world, but=["files"]):
        before = world.generate("a red circle")
        with patch("lora_trainer.train.step.accumulate.per_image_losses", side_effect=exhausted()):
            raises(OutOfMemory, Run(world, "full", **previews()).go)
        assert world.generate("a red circle") == before


def exhausted():
    """What torch raises when the device is full."""
    return torch.cuda.OutOfMemoryError("CUDA out of memory (planted)")


def in_a_thread(action):
    return lambda run: threading.Thread(target=action, args=[run]).start()


@only_in_a_real_host
@only_in_a1111
def checkpoint_that_the_host_takes_for_another_kind_is_trained_as_its_file_says(world):
    """SDXL that predicts v with zero terminal SNR, by keys in its file that A1111 1.10.1 does not know."""
    with loaded(world, "zz-sdxl-v") as held, untouched(world):
        info = world.host.model_info()
        assert (info["prediction"], info["zero_terminal_snr"]) == ("v", True)
        with world.lend() as lease:
            bundle = bundle_on(lease)
            assert (bundle.prediction, bundle.zero_terminal_snr, float(bundle.alphas_cumprod[-1])) == ("v", True, 0.0)
            told = " ".join(map(str, lease.notes))
            if held.parameterization != "v":
                assert "predicts epsilon, but it predicts v" in told, told
            if not getattr(held, "ztsnr", False):
                assert "zero terminal SNR" in told, told


@only_in_a_real_host
@only_in_a1111
def model_in_8_bits_is_read_from_its_file_and_the_host_keeps_its_8_bits(world):
    m = world.modules
    plain = Run(world, "wide", **previews()).go()
    for name, draws in (("toy", True), ("zz-sdxl", False)):  # A1111 cannot draw with open_clip in 8 bits on a CPU
        with loaded(world, name):
            m.shared.opts.data["fp8_storage"] = "Enable"
            m.sd_models.reload_model_weights()
            try:
                assert any(str(tensor.dtype) == "torch.float8_e4m3fn" for tensor in world.state().values()), "not in 8 bits"
                with untouched(world, but=["files"]):
                    before = world.generate("a red circle") if draws else None
                    run = Run(world, f"narrow-{name}", **previews() if draws else {}).go()
                    assert any("float8_e4m3fn" in str(event.message) for event in run.events if type(event).__name__ == "Warned")
                    assert run.count("Sampled") == (4 if draws else 0)
                    if draws:
                        assert world.generate("a red circle") == before
                        assert run.weights() == plain.weights(), "the file's own weights are those that are shared otherwise"
            finally:
                m.shared.opts.data.pop("fp8_storage")
                m.sd_models.reload_model_weights()
    assert not any("float8" in str(tensor.dtype) for tensor in world.state().values())


@only_in_a_real_host
@only_in_a1111
def what_the_host_adds_to_its_drawing_does_not_reach_training(world):
    """Token merging, a hypernetwork, a textual inversion: previews are what txt2img draws with them, the weights are the plain ones."""
    options = world.modules.shared.opts.data
    with untouched(world, but=["files"]):
        plain = Run(world, "bare").go()
        base = world.generate("a red circle")
        for more, prompt in additions(world):
            before = {key: options.get(key) for key in more}
            options.update(more)
            try:
                drawn = world.generate(prompt)
                assert drawn != base, f"{more or prompt} changed nothing: this check proves nothing"
                with world.lend() as lease:
                    request = attrs.evolve(REQUEST, prompt=prompt)
                    assert lease.preview(request, None, 1.0, Control()).tobytes() == drawn
                    found = answers_of(world.loaded(), bundle_on(lease), sdxl=False)
                    assert math.isfinite(found["unet"]) and max(found["states"], found["encoded"]) < CLOSE, found
                for key in more:  # what stands in a prompt of somebody else's is gone with his picture
                    assert Run(world, f"with-{key}", **previews()).go().weights() == plain.weights()
            finally:
                for key, value in before.items():
                    options.pop(key) if value is None else options.update({key: value})
        assert world.generate("a red circle") == base


def additions(world):
    """What changes a picture without changing a weight: options, and the prompt to draw with."""
    from modules import hashes, shared
    from modules.hypernetworks import hypernetwork
    from modules.sd_hijack import model_hijack

    yield {"token_merging_ratio": 0.5}, "a red circle"
    folder = Path(shared.cmd_opts.hypernetwork_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    made = hypernetwork.Hypernetwork(name="oldpaint", enable_sizes=[64], layer_structure=[1, 2, 1], weight_init="Normal")
    for layer in made.layers[64]:
        for parameter in layer.parameters():
            parameter.data.normal_(0, 0.3)
    made.save(str(folder / "oldpaint.pt"))
    hashes.cache("hashes").pop("hypernet/oldpaint", None)
    shared.reload_hypernetworks()
    try:
        yield {"sd_hypernetwork": "oldpaint"}, "a red circle"
        yield {}, "a red circle <hypernet:oldpaint:1>"
    finally:
        (folder / "oldpaint.pt").unlink()
        shared.reload_hypernetworks()
    embedding = Path(shared.cmd_opts.embeddings_dir) / "markword.pt"
    embedding.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"string_to_param": {"*": torch.randn(2, 64, generator=torch.Generator().manual_seed(2))}, "name": "markword"}, embedding)
    database = model_hijack.embedding_db
    database.load_textual_inversion_embeddings(force_reload=True)
    try:
        yield {}, "a red circle markword"
    finally:
        embedding.unlink()
        database.load_textual_inversion_embeddings(force_reload=True)
