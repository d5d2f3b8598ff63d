"""What A1111 promises where --medvram or --lowvram moves its model in pieces: checks inside of a real one with that flag."""

import torch
from modules import lowvram, shared

from lora_trainer.control import Control
from lora_trainer.models.source import FileSource
from tests.host.contract import REQUEST, untouched, weights
from tests.host.contract_families import FAMILIES, LAYERS, in_a_thread, loaded
from tests.host.contract_runs import Run, previews


def hooks(held):
    """How many modules the host has put its hooks on, and how many there are."""
    return [len(module._forward_pre_hooks) for module in held.modules()]


def run_goes_on_from_the_file_and_hooks_and_pieces_stay(world):
    """Trained with previews, a pause with somebody's picture, and a stop, on each family."""
    flag = "--lowvram" if shared.cmd_opts.lowvram else "--medvram"
    seen = {}
    for name, family in FAMILIES.items():
        if name.endswith("-v"):
            continue
        with loaded(world, name) as held, untouched(world, but=["files"]):
            before = world.generate("a red circle")
            with torch.no_grad():
                held.get_learned_conditioning(["what counts the words of a prompt leaves the text encoder on the device"])
            piece, count = lowvram.module_in_gpu, hooks(held)
            assert held.lowvram and piece is not None and sum(count) >= 3, (held.lowvram, piece is None, sum(count))
            assert world.host.model_info()["trainable"] and world.host.busy_reason() is None
            with world.lend() as lease:
                assert isinstance(lease.source, FileSource)
                assert flag in str(lease.notes[0])
                assert lowvram.module_in_gpu is None
                assert lease.preview(REQUEST, None, 1.0, Control()).tobytes() == before
                assert lowvram.module_in_gpu is None
                if family == "sd1":
                    assert lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes() != before
            assert world.loaded() is held and lowvram.module_in_gpu is piece and hooks(held) == count

            def somebody(run):
                world.generate("somebody else's picture")
                run.control.command("resume")

            at = {2: lambda run: run.control.command("pause"), "paused": in_a_thread(somebody)}
            run = Run(world, f"pieces{flag}-{name}", at, **previews()).go()
            assert (run.count("Paused"), run.count("Resumed"), run.count("Sampled"), run.count("Finished")) == (1, 1, 4, 1)
            assert sum(key.endswith(".alpha") for key in run.weights()) == sum(LAYERS[family])
            assert hooks(held) == count
            assert world.generate("a red circle") == before
            assert hooks(held) == count
            seen[name] = sum(count)
    return seen


CHECKS = {run_goes_on_from_the_file_and_hooks_and_pieces_stay.__name__: run_goes_on_from_the_file_and_hooks_and_pieces_stay}
