"""What only Forge can do to a run: checks beside those of contract.py, inside of a real one."""

import contextlib

import torch

from lora_trainer.control import Control
from lora_trainer.models.source import FileSource, LiveSource
from tests.host.contract import REQUEST, untouched, weights, write_lora
from tests.host.contract_runs import Run, previews

FORGE_ONLY = {}


def only_in_forge(function):
    FORGE_ONLY[function.__name__] = function


@only_in_forge
def model_is_loaded_where_nobody_has_drawn_yet(world):
    data = world.modules.sd_models.model_data
    clean = world.hashes()
    data.sd_model, data.forge_hash = world.modules.sd_models.FakeInitialModel(), ""
    assert world.host.model_info()["trainable"] and world.loaded() is None
    with world.lend() as lease:
        assert isinstance(lease.source, LiveSource)
        assert world.hashes() == clean
    assert world.hashes() == clean


@only_in_forge
def what_is_lent_can_be_learned_through(world):
    from lora_trainer.models.load import load

    assert all(tensor.is_inference() for tensor in world.state().values() if tensor.ndim > 1 and tensor.dtype is torch.float16)
    with untouched(world), world.lend() as lease:
        states = (lease.source.unet_state, lease.source.vae_state, lease.source.text_state)
        assert not any(tensor.is_inference() for state in states for tensor in state.values())
        unet = load(lease.source, lease.device).unet
        added = torch.zeros(1, 4, 8, 8, requires_grad=True)
        unet(added, torch.tensor([500]), torch.zeros(1, 77, 64)).sample.square().mean().backward()
        assert added.grad.abs().sum() > 0


@contextlib.contextmanager
def diffusion_in(world, bits):
    """What the page's "Diffusion in Low Bits" does."""
    from modules_forge import main_entry

    options = world.modules.shared.opts.data
    before = options.get("forge_unet_storage_dtype", "Automatic")
    options["forge_unet_storage_dtype"] = bits
    main_entry.refresh_model_loading_parameters()
    try:
        yield
    finally:
        options["forge_unet_storage_dtype"] = before
        main_entry.refresh_model_loading_parameters()
        world.generate("in whole numbers again")


@contextlib.contextmanager
def loaded_first(world):
    """The next picture loads what was chosen."""
    world.generate("in eight bits")
    yield


@only_in_forge
def model_in_low_bits_is_read_from_its_file_and_that_is_said(world):
    plain = Run(world, "wide", **previews()).go()
    with diffusion_in(world, "float8-e4m3fn"):
        before = world.generate("in eight bits")
        assert any(tensor.dtype is torch.float8_e4m3fn for tensor in world.state().values()), "not in 8 bits: this check proves nothing"
        with untouched(world, but=["files"]):
            with world.lend() as lease:
                assert isinstance(lease.source, FileSource)
                assert "float8_e4m3fn" in str(lease.notes[0])
                assert lease.preview(REQUEST, weights(5), 1.0, Control()) is not None
            narrow = Run(world, "narrow", **previews()).go()
        assert world.generate("in eight bits") == before
    assert any("float8_e4m3fn" in str(event.message) for event in narrow.events if type(event).__name__ == "Warned")
    assert narrow.count("Sampled") == plain.count("Sampled") == 4
    assert narrow.weights().keys() == plain.weights().keys()


@only_in_forge
def networks_that_are_added_while_drawing_are_off_during_a_loan_and_on_again_after_it(world):
    """ "float8-e4m3fn (fp16 LoRA)" hangs them on the layers and leaves the weights alone."""
    with diffusion_in(world, "float8-e4m3fn (fp16 LoRA)"), loaded_first(world), untouched(world):
        plain, marked = world.generate("a red circle"), world.generate("a red circle<lora:mark:1>")
        assert plain != marked
        assert world.hung() == 2
        with world.lend() as lease:
            assert world.hung() == 0
            assert isinstance(lease.source, FileSource)
            assert lease.preview(REQUEST, weights(1), 1.0, Control()).tobytes() == marked
            assert lease.preview(REQUEST, None, 1.0, Control()).tobytes() == plain
        assert world.generate("a red circle<lora:mark:1>") == marked
        world.generate("a red circle")


@only_in_forge
def file_written_anew_during_a_loan_is_drawn_with_at_once(world):
    names = [world.loras / f"{name}.safetensors" for name in ("rewritten", "fresh-name")]
    try:
        write_lora(names[0], 21)
        world.host.refresh_networks()
        old = world.generate("a red circle<lora:rewritten:1>")
        with world.lend():
            for path in names:
                write_lora(path, 22)
        world.host.refresh_networks()
        new = world.generate("a red circle<lora:rewritten:1>")
        assert new != old
        assert new == world.generate("a red circle<lora:fresh-name:1>")
    finally:
        for path in names:
            path.unlink(missing_ok=True)
        world.host.refresh_networks()
        world.generate("a red circle")
