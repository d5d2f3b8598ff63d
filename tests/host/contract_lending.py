"""The loan itself: nothing copied, nothing changed, and what cannot be lent."""

import contextlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch

from lora_trainer.control import Control
from lora_trainer.errors import ModelError
from lora_trainer.host.a1111 import model
from lora_trainer.models.source import FileSource, LiveSource
from tests.host.contract import REQUEST, check, only_in_a1111, raises, untouched, weights, write_lora


@check
def lending_copies_nothing_and_changes_nothing(world):
    with untouched(world), world.lend() as lease:
        own = world.storages()
        source = lease.source
        lent = [tensor for state in (source.unet_state, source.vae_state, source.text_state) for tensor in state.values()]
        copied = [tensor for tensor in lent if tensor.untyped_storage().data_ptr() not in own]
        assert len(lent) > 500
        assert not copied, f"{len(copied)} of {len(lent)} storages are copies"
        assert "text_model.embeddings.token_embedding.weight" in source.text_state
        assert not world.queue_is_free()
        assert len(lease.sha256) == 64
        info = world.host.model_info()
        assert (info["family"], info["native_size"], info["path"]) == ("sd1", 64, str(lease.checkpoint))


@check
def bundle_on_a_lent_model_copies_nothing(world):
    from lora_trainer.models.load import load

    with untouched(world), world.lend() as lease:
        own = world.storages()
        bundle = load(lease.source, lease.device)
        parameters = [parameter for part in bundle.modules() for parameter in part.parameters()]
        copied = [parameter for parameter in parameters if parameter.untyped_storage().data_ptr() not in own]
        assert len(parameters) > 900
        assert not copied, f"{len(copied)} of {len(parameters)} parameters are copies"


@check
@only_in_a1111
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
@only_in_a1111
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
        with torch.inference_mode():
            next(tensor for name, tensor in world.state().items() if name.endswith("input_blocks.0.0.bias")).add_(1)
        lease.pause()
        lease.resume()


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
@only_in_a1111
def what_cannot_be_lent_is_refused_by_name_before_anything_is_touched(world):
    m, held = world.modules, world.loaded()
    lend = lambda: world.lend().__enter__()  # noqa: E731
    cases = [
        (held, "is_ssd", True, ("SSD-1B", "SDXL")),
        (held, "is_sd3", True, ("Stable Diffusion 3",)),
        (held, "is_sdxl", True, ("an SDXL refiner",)),  # one text encoder where two belong
        (held, "is_sd2", True, ("a family that is not supported",)),  # of another kind than its family's
        (held, "embedder", SimpleNamespace(), ("an unCLIP model",)),
        (held.model.diffusion_model, "in_channels", 9, ("inpainting",)),
        (held.model.diffusion_model, "in_channels", 5, ("a depth model",)),
    ]
    with untouched(world), m.call_queue.queue_lock:  # a refusal waits for nobody
        for owner, name, value, words in cases:
            there, before = name in owner.__dict__, owner.__dict__.get(name)
            owner.__dict__[name] = value
            try:
                raises(ModelError, lend, *words)
                info = world.host.model_info()
                assert not info["trainable"] and words[0] in str(info["reason"]), info
            finally:
                owner.__dict__.pop(name) if not there else owner.__dict__.update({name: before})
        assert world.host.model_info()["trainable"]
        raises(ModelError, lambda: world.lend(pretrained_model_name_or_path="no-such-model").__enter__(), "no-such-model")
        raises(ModelError, lambda: world.lend(vae="no-such.vae.safetensors").__enter__(), "no-such.vae")
        raises(ModelError, lambda: world.lend(v2=True).__enter__(), "Stable Diffusion 1", "v2")


@check
@only_in_a1111
def what_is_on_beside_the_model_is_said_and_set_aside(world):
    """A replacement of the U-Net is off during the loan; a hypernetwork and an added network only stand in the previews."""
    from modules import sd_unet

    m, options = world.modules, world.modules.shared.opts.data
    option = replacement(world)
    said = {"sd_unet": option.label, "sd_hypernetwork": "oldpaint", "sd_lora": "always"}
    before = {key: options.get(key) for key in said}
    with untouched(world):
        options.update(said)
        try:
            sd_unet.apply_unet()
            assert sd_unet.current_unet_option.label == option.label
            with world.lend() as lease:
                assert sd_unet.current_unet_option is None
                assert isinstance(lease.source, LiveSource)
                told = [str(note) for note in lease.notes]
                assert len(told) == 3 and all(any(name in note for note in told) for name in said.values()), told
                lease.pause()
                assert sd_unet.current_unet_option.label == option.label
                lease.resume()
                assert sd_unet.current_unet_option is None
            assert sd_unet.current_unet_option.label == option.label
        finally:
            for key, value in before.items():
                options.pop(key) if value is None else options.update({key: value})
            sd_unet.apply_unet("None")
            getattr(sd_unet, "unet_options", [option]).remove(option)
    with world.lend() as lease:
        assert lease.notes == ()
    assert m.shared.opts.data.get("sd_unet") == before["sd_unet"]


def replacement(world):
    """A U-Net that somebody's extension offers in place of the checkpoint's; its pictures are its own."""
    from modules import sd_unet

    kind = getattr(sd_unet, "SdUnetOption", SimpleNamespace)
    option = kind()
    option.label = "a faster U-Net"
    if hasattr(sd_unet, "SdUnet"):
        faster = type("Faster", (sd_unet.SdUnet,), {"forward": lambda self, x, timesteps, context, *args, **more: x * 0.5})
        option.create_unet = faster
        sd_unet.unet_options.append(option)
    return option


@check
@only_in_a1111
def host_that_moves_its_model_in_pieces_is_trained_from_the_file(world):
    """As --medvram does it; in a real host with that flag, contract_pieces.py has more."""
    held = world.loaded()
    if getattr(held, "lowvram", False):
        return
    with untouched(world), held_in_pieces(world) as moved:
        with world.lend() as lease:
            assert isinstance(lease.source, FileSource) and lease.source.path == lease.checkpoint
            assert "--medvram" in str(lease.notes[0])
            assert moved.module_in_gpu is None, "something of the host's model is left on the device"
            assert lease.preview(REQUEST, weights(5), 1.0, Control()) is not None
        assert moved.module_in_gpu is held.first_stage_model
        assert world.host.busy_reason() is None and world.host.model_info()["trainable"]


@contextlib.contextmanager
def held_in_pieces(world):
    """The host's own record of what is on its device, with the VAE there."""
    held, flags = world.loaded(), world.modules.shared.cmd_opts
    try:
        from modules import lowvram
    except ImportError:
        lowvram = ModuleType("modules.lowvram")
        lowvram.send_everything_to_cpu = lambda: setattr(lowvram, "module_in_gpu", None)
    with (
        patch.dict(sys.modules, {"modules.lowvram": lowvram}),
        patch.object(sys.modules["modules"], "lowvram", lowvram, create=True),
        patch.object(flags, "medvram", True, create=True),
    ):
        held.__dict__["lowvram"], lowvram.module_in_gpu = True, held.first_stage_model
        try:
            yield lowvram
        finally:
            held.__dict__["lowvram"], lowvram.module_in_gpu = False, None


@check
def network_saved_a_second_ago_works_and_is_listed(world):
    write_lora(world.loras / "fresh.safetensors", 11)
    try:
        world.host.refresh_networks()
        assert "fresh" in model.networks_module().available_networks
        assert world.generate("a red circle<lora:fresh:1>") != world.generate("a red circle")
    finally:
        (world.loras / "fresh.safetensors").unlink()
        world.host.refresh_networks()
