"""What every host does with a file of each type of network: trained here, drawn with there, each weight looked at while it stands."""

from pathlib import Path

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.adapters.files.checkpoint_layers import checkpoint_layers
from lora_trainer.adapters.network_file import bias_delta_of, delta_of, modules_of
from lora_trainer.config.choices.network_hosts import ALL, NO, file_kind, host_support
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.network_tools.extract import read_slice
from tests.host.contract import only_in_a1111, untouched
from tests.host.contract_families import FAMILIES, loaded
from tests.host.contract_forge_families import in_each
from tests.host.contract_runs import Run, only_in_a_real_host

CLOSE = 1e-4
RATES = {"full": 0.002, "oft": 0.01}
UNET = "model.diffusion_model."
CLIP = ("cond_stage_model.", "conditioner.embedders.0.")


def in_checkpoints_words(world):
    """The weights that stand in the host now, by their names in a checkpoint: all of A1111's; Forge's without open_clip's encoders."""
    held = {}
    for key, tensor in world.state().items():
        root, _, rest = key.partition(".")
        here = {"unet": (UNET,), "clip_l": CLIP}.get(root, ("",))
        held |= {prefix + (rest if prefix else key.replace(".wrapped.", ".")): tensor for prefix in here}
    return held


def expected(file, checkpoint, held):
    """(place of a weight in a checkpoint, what should stand there) for every layer of the file that is to be seen in the host."""
    _, layers = checkpoint_layers(checkpoint)
    with safe_open(checkpoint, "pt") as base:
        for name, state in modules_of(load_file(str(file)), str(file)).items():
            changes = {layers[name].weight: delta_of, layers[name].bias: lambda state, _: bias_delta_of(state)}
            for place, change in changes.items():
                if place is None or place.key not in held:
                    continue
                plain = read_slice(base.get_tensor, place).float()
                if (delta := change(state, plain)) is not None:
                    yield place, plain + delta


def beyond(held, weight):
    """The largest difference, without what a half-precision number (Forge's text encoder, before and after the sum) cannot show."""
    rounding = torch.finfo(held.dtype).eps * weight.abs() if held.dtype is torch.float16 else 0.0
    return float(((held.float() - weight).abs() - rounding).max())


def drawn_with(world, file, whole):
    """How many weights were found right; the picture at 0 and afterwards is the base, at 1 it is not (unless nothing is read)."""
    target = world.loras / file.name
    target.write_bytes(file.read_bytes())
    world.host.refresh_networks()
    checkpoint = Path(world.loaded().sd_checkpoint_info.filename)
    try:
        base, prompt = world.generate("a red circle"), f"a red circle<lora:{target.stem}:"
        assert world.generate(f"{prompt}0>") == base
        at_1 = world.generate(f"{prompt}1>")
        held = in_checkpoints_words(world)
        wanted = list(expected(file, checkpoint, held))
        wrong = {place.key: beyond(read_slice(held.get, place), weight) for place, weight in wanted}
        wrong = {key: value for key, value in wrong.items() if not value <= CLOSE}
        assert (at_1 != base) is (whole != NO), f"{file.stem}: the picture {'does not change' if at_1 == base else 'changes'}"
        assert world.generate("a red circle") == base
    finally:
        target.unlink()
        world.host.refresh_networks()
    assert len(wanted) >= 190, len(wanted)
    assert whole != ALL or not wrong, (len(wrong), len(wanted), sorted(wrong.items(), key=lambda entry: -entry[1])[:5])
    return len(wanted) - len(wrong)


def each_type(world, family):
    """Type -> weights found right, of a file that a run in this host has left."""
    seen = {}
    for name in NETWORK_TYPES:
        whole = host_support(file_kind(name), world.host.name)[0]
        rates = dict.fromkeys(("learning_rate", "text_encoder_lr"), RATES.get(name, 0.02))
        network, steps = {"type": name, "dim": 4, "alpha": 4}, {"max_train_steps": 3}
        run = Run(world, f"{family}-of-type-{name}", network=network, optimizer=rates, steps=steps)
        # A1111 multiplies a file's matrices in the file's own format, and its torch cannot do that in half precision on a CPU
        run.config = attrs.evolve(run.config, save=attrs.evolve(run.config.save, precision="float"))
        file = next(run.go().output.glob(f"{run.config.save.output_name}.safetensors"))
        moved = sum(bool(tensor.abs().max() > 0) for tensor in load_file(file).values())
        assert moved > 0
        seen[name] = drawn_with(world, file, whole)
    return seen


@only_in_a_real_host
@only_in_a1111
def file_of_every_type_and_family_stands_in_the_host_as_it_was_trained(world):
    seen = {}
    for checkpoint, family in FAMILIES.items():
        if not checkpoint.endswith("-v"):
            with loaded(world, checkpoint), untouched(world, but=["files", "networks"]):
                seen[family] = each_type(world, family)
    return seen


@in_each
def file_of_every_type_stands_in_the_host_as_it_was_trained(world):
    return each_type(world, world.family)
