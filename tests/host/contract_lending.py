"""The loan itself: nothing copied, nothing changed, and what cannot be lent."""

from pathlib import Path
from types import SimpleNamespace

import torch

from lora_trainer.control import Control
from lora_trainer.errors import HostBusy, ModelError
from lora_trainer.host.a1111 import model
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
def network_saved_a_second_ago_works_and_is_listed(world):
    write_lora(world.loras / "fresh.safetensors", 11)
    try:
        world.host.refresh_networks()
        assert "fresh" in model.loaded_networks().available_networks
        assert world.generate("a red circle<lora:fresh:1>") != world.generate("a red circle")
    finally:
        (world.loras / "fresh.safetensors").unlink()
        world.host.refresh_networks()
