"""What Forge and reForge promise for each family: checks inside of a real one, with its small model as the chosen checkpoint."""

import contextlib
import functools
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import attrs
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import random_checkpoint
from lora_trainer.control import Control
from lora_trainer.errors import ModelError, OutOfMemory
from lora_trainer.host.a1111.model import networks_module
from lora_trainer.host.forge import capabilities
from lora_trainer.models.detection.prediction_type import V_KEY, ZERO_SNR_KEY
from tests.host import contract, contract_runs
from tests.host.contract import REQUEST, raises, untouched, write_lora
from tests.host.contract_runs import PHASES, Run

LAYERS = {
    "sd1": contract.LAYERS,
    "sd2": {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (128, 128),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (64, 64),
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (64, 64),
    },
    "sdxl": {
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": (128, 128),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v": (64, 96),
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj": (32, 32),
        "lora_te2_text_model_encoder_layers_1_self_attn_q_proj": (64, 64),
    },
}
"""Some layers of the small models, with their rows and columns."""
NAMES = {
    "sd1": {r"lora_unet_(down|mid|up)_block": 192, r"lora_te_text_model": 24},
    "sd2": {r"lora_unet_(down|mid|up)_block": 192, r"lora_te_text_model": 18},
    "sdxl": {r"lora_unet_(input|middle|output)_block": 722, r"lora_te1_text_model": 24, r"lora_te2_text_model": 24},
}
"""What the keys of a LoRA's modules begin with, and how many of each the small models have."""
WORDS = {"sd2": {"modelspec.predict_key": "epsilon"}}
"""What a header says where nothing else tells what the model predicts."""
WHOLE_RUNS = (
    "run_with_previews_gives_the_same_file_as_a_run_without",
    "run_stopped_halfway_leaves_the_host_as_it_was",
    "run_that_raises_in_any_phase_leaves_the_host_as_it_was",
    "run_goes_on_exactly_after_a_pause_with_somebody_elses_picture",
    "run_goes_on_exactly_while_others_draw_between_its_steps",
    "run_goes_on_exactly_after_previews_that_crashed",
    "checkpoint_chosen_during_a_run_changes_nothing_and_is_loaded_at_its_end",
    "run_changed_stopped_and_resumed_ends_like_one_that_went_on",
)
FAMILIES = {}
LACKING = {}
"""Checks of a host that cannot load each family."""


def families_of_this_host():
    """The checks of the families that it loads, and those of what it lacks."""
    lacking = NAMES.keys() - capabilities.families()
    known = {name: function for name, function in FAMILIES.items() if name.partition("_")[0] not in lacking}
    return known | (LACKING if lacking else {})


def where_a_family_is_lacking(function):
    LACKING[function.__name__] = function
    return function


def in_each(function):
    for family in NAMES:
        FAMILIES[f"{family}_{function.__name__}"] = functools.partial(with_family, function, family)
    return function


def in_sdxl(function):
    FAMILIES[f"sdxl_{function.__name__}"] = functools.partial(with_family, function, "sdxl")
    return function


def also_in_sdxl(function):
    """Chooses its checkpoints itself."""
    FAMILIES[f"sdxl_{function.__name__}"] = function


def with_family(function, family, world):
    """The check with that family's checkpoint chosen; the host's picture is the same before and after."""
    with chosen(world, family):
        before, runs = world.generate("a red circle"), world.host.paths().runs_dir
        shutil.rmtree(runs, ignore_errors=True)  # the same check with another family has left runs of these names
        found = function(world)
        shutil.rmtree(runs, ignore_errors=True)
        assert world.generate("a red circle") == before, "the host draws another picture afterwards"
    return found


@contextlib.contextmanager
def chosen(world, family, marks=()):
    """The world's own checkpoint is the small one of Stable Diffusion 1; the other is made when somebody wants it."""
    world.family = family
    if family == "sd1":
        yield
        return
    before, title = world.modules.shared.opts.data["sd_model_checkpoint"], placed(world, family, marks)
    write_lora(world.loras / "mark.safetensors", 1, LAYERS[family])
    try:
        world.choose("sd_model_checkpoint", title).join(600)
        assert world.loaded().sd_checkpoint_info.title == title
        yield
    finally:
        write_lora(world.loras / "mark.safetensors", 1)
        world.choose("sd_model_checkpoint", before).join(600)


def placed(world, family, marks):
    """The title of the small checkpoint in the host's list."""
    sd_models = world.modules.sd_models
    folder = Path(sd_models.checkpoint_aliases[world.other].filename).parent
    path = folder / f"zz-small-{'-'.join([family, *marks])}.safetensors"
    if not path.exists():
        widths = random_checkpoint.SHAPES[family][1]
        state = random_checkpoint.checkpoint(widths, torch.float32, marks=marks)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, WORDS.get(family))
        if described := world.described(family):
            path.with_suffix(".yaml").write_text(described, encoding="utf-8")
        sd_models.list_models()
    info = sd_models.checkpoint_aliases[path.name]
    info.calculate_shorthash()
    return info.title


def bundle_of(lease):
    from lora_trainer.models.load import load
    from lora_trainer.train.step.precision import choose_precision

    return load(lease.source, lease.device, choose_precision("auto", lease.source, lease.device).base)


@in_each
def bundle_calculates_what_the_hosts_modules_calculate(world):
    from modules.prompt_parser import SdConditioning

    from lora_trainer.models.tokenize import tokenize

    height, width, texts = 64, 96, ["a sks crescent on a white background", "two words, and then some more of them"]
    draw = torch.Generator().manual_seed(0)
    noisy, steps = torch.randn(2, 4, height // 8, width // 8, generator=draw), torch.tensor([10, 900])
    pixels = torch.rand(1, 3, height, width, generator=draw) * 2 - 1
    with untouched(world), world.lend() as lease, torch.no_grad():
        ours, theirs = bundle_of(lease), world.loaded().forge_objects_original
        vae, unet = theirs.vae.first_stage_model, theirs.unet.model.diffusion_model
        told = ours.family.encode_text(ours, tokenize(ours.tokenizer, texts), world.host.clip_skip())
        heard = world.loaded().get_learned_conditioning(SdConditioning(texts, width=width, height=height))
        heard = heard if isinstance(heard, dict) else {"crossattn": heard}
        vector = heard.get("vector")
        if vector is not None:
            told = told.with_sizes(torch.tensor([[height, width, 0, 0, height, width]]).expand(2, 6))
        latents = torch.randn(1, 4, height // 8, width // 8, generator=draw)
        pairs = {
            "text": (told.states, heard["crossattn"][:, :77]),
            "whole text": (told.pooled, vector if vector is None else vector[:, : told.pooled.shape[1]]),
            "U-Net": (ours.family.denoise(ours, noisy, steps, told), unet(noisy, steps, context=heard["crossattn"], y=vector)),
            "encoder": (ours.vae.encode(pixels).latent_dist.parameters, vae.quant_conv(vae.encoder(pixels))),
            "decoder": (ours.vae.decode(latents).sample, vae.decode(latents)),
        }
        known = {name: pair for name, pair in pairs.items() if pair[0] is not None}
        far = {name: float((one - other).abs().max() / other.abs().max().clamp(min=1)) for name, (one, other) in known.items()}
    assert len(far) == (4 if vector is None else 5)
    assert max(far.values()) < 1e-5, far
    return far


@in_each
def bundle_on_a_lent_model_copies_nothing_and_is_there_at_once(world):
    from lora_trainer.models.load import load

    with untouched(world), world.lend() as lease:
        own, begin, before = world.storages(), time.perf_counter(), resident()
        bundle = load(lease.source, lease.device)
        seconds, more = time.perf_counter() - begin, resident() - before
        parameters = [parameter for part in bundle.modules() for parameter in part.parameters()]
        copied = [parameter for parameter in parameters if parameter.untyped_storage().data_ptr() not in own]
        assert len(parameters) > (1900 if world.family == "sdxl" else 900)
        assert not copied, f"{len(copied)} of {len(parameters)} parameters are copies"
        assert bundle.family.name == lease.source.family == world.host.model_info()["family"] == world.family
    return {"seconds": round(seconds, 3), "parameters": len(parameters), "megabytes": round(more / 1e6, 1)}


def resident():
    import psutil

    return psutil.Process().memory_info().rss


@in_each
def trained_file_is_listed_and_drawn_with_whole(world):
    """Every module under the family's names is known to the host; weight 0 is the base bit for bit, 1 is not."""
    run = Run(world, "whole", optimizer={"learning_rate": 0.01, "text_encoder_lr": 0.01}).go()
    target = world.loras / "whole.safetensors"
    target.write_bytes((run.output / "whole.safetensors").read_bytes())
    try:
        modules = {key.partition(".")[0] for key in load_file(target)}
        found = Counter(next((name for name in NAMES[world.family] if re.match(name, module)), module) for module in modules)
        assert dict(found) == NAMES[world.family], found
        world.host.refresh_networks()
        version = getattr(networks_module().available_networks["whole"], "sd_version", None)  # Forge Neo tells none
        assert version is None or version.name == world.family.upper()
        base = world.generate("a red circle")
        assert world.generate("a red circle<lora:whole:0>") == base
        assert world.generate("a red circle<lora:whole:1>") != base
        assert len(set(world.patched())) == len(modules) == sum(NAMES[world.family].values())
    finally:
        target.unlink()
        world.host.refresh_networks()
    return dict(found)


@in_each
def previews_of_a_run_are_what_txt2img_draws(world):
    """The first one with the untrained model, the last one with the file that the run leaves."""
    prompt = "a sks crescent on a white background"
    request = {"prompts": [f"{prompt} --w 64 --h 64 --d 3 --l 5 --s 6"], "every_n_steps": 6, "sampler": "euler"}
    run = Run(world, "pixels", sample=request, optimizer={"learning_rate": 0.02}).go()
    first, last = ((run.folder / event.path) for event in run.events if type(event).__name__ == "Sampled")
    target = world.loras / "pixels.safetensors"
    target.write_bytes((run.output / "pixels.safetensors").read_bytes())
    try:
        plain, trained = world.generate(prompt), world.generate(f"{prompt}<lora:pixels:1>")
    finally:
        target.unlink()
    assert plain != trained
    assert [Image.open(path).convert("RGB").tobytes() for path in (first, last)] == [plain, trained]


@in_each
def run_that_runs_out_of_memory_in_any_phase_leaves_the_host_as_it_was(world):
    ended = {}
    for phase, target in PHASES.items():
        with untouched(world, but=["files"]):
            try:
                with patch(target, side_effect=torch.cuda.OutOfMemoryError(f"CUDA out of memory while {phase}")) as used:
                    run = Run(world, f"full-{phase}").go()
            except OutOfMemory as error:
                ended[phase] = str(error)
            else:
                ended[phase] = type(run.events[-1]).__name__
            assert used.called, f"the phase {phase} was never reached"
    assert "CUDA out of memory while training" in ended["training"]
    return ended


@in_each
def run_whose_memory_is_short_once_ends_as_if_it_had_not_been(world):
    from lora_trainer.train.step import accumulate

    calculate, calls = accumulate.per_image_losses, []

    def short_once(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return calculate(*args, **more)

    with untouched(world, but=["files"]):
        plain = Run(world, "roomy").go()
        with patch(PHASES["training"], short_once):
            short = Run(world, "short").go()
    assert len(calls) > contract_runs.STEPS
    assert plain.weights() == short.weights()


@in_sdxl
def networks_left_on_the_model_are_off_what_is_lent_and_previews_put_theirs_on(world):
    clean = world.hashes()
    baked = world.generate("a red circle<lora:mark:1>")
    assert world.hashes() != clean, "the host did not bake the network: this check proves nothing"
    with untouched(world), world.lend() as lease:
        assert world.hashes() == clean
        drawn = lease.preview(REQUEST, lambda path: write_lora(path, 1, LAYERS["sdxl"]), 1.0, Control())
        assert drawn.tobytes() == baked
        assert world.hashes() == clean
        skipped = lease.preview(attrs.evolve(REQUEST, clip_skip=2), None, 1.0, Control())
        assert skipped.tobytes() == lease.preview(REQUEST, None, 1.0, Control()).tobytes(), "SDXL reads the layer before the last anyway"
    world.generate("a red circle")


@also_in_sdxl
def prediction_and_schedule_are_those_that_the_host_draws_with(world):
    with chosen(world, "sdxl", (V_KEY, ZERO_SNR_KEY)), untouched(world), world.lend() as lease:
        assert (lease.source.prediction, lease.source.zero_terminal_snr) == ("v", True)
        bundle = bundle_of(lease)
        assert (bundle.prediction, bundle.zero_terminal_snr) == ("v", True)
        assert lease.preview(REQUEST, None, 1.0, Control()) is not None
    with chosen(world, "sdxl"), world.lend() as lease:
        assert (lease.source.prediction, lease.source.zero_terminal_snr) == ("epsilon", False)


@where_a_family_is_lacking
def checkpoint_of_a_family_that_the_host_cannot_load_is_refused_by_name_before_anything_is_touched(world):
    title = placed(world, "sd2", ())
    with untouched(world):
        raises(ModelError, world.lend(pretrained_model_name_or_path=title).__enter__, "Stable Diffusion 2")
    options = world.modules.shared.opts.data
    before = options["sd_model_checkpoint"]
    with world.chosen_but_not_loaded(title):
        info = world.host.model_info()
        assert not info["trainable"] and "Stable Diffusion 2" in str(info["reason"]), info
    assert options["sd_model_checkpoint"] == before


FAMILIES |= {f"sdxl_{name}": functools.partial(with_family, contract.CHECKS[name], "sdxl") for name in WHOLE_RUNS}
