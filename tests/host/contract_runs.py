"""What every host promises to a whole training run: checks like those of contract.py, with the real loop on the small model."""

import contextlib
import gc
import shutil
import sys
import threading
import weakref
from pathlib import Path
from unittest.mock import patch

import attrs
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef

from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.control import Control
from lora_trainer.errors import HostBusy
from lora_trainer.host.a1111.lease import A1111Lease
from lora_trainer.jobs import resume_point
from lora_trainer.train import loop
from lora_trainer.train.trainer import Trainer
from tests.host import contract_lending, contract_previews, contract_turns  # noqa: F401 - their checks join the list
from tests.host.contract import CHECKS, REQUEST, check, only_in_a1111, untouched, wait_for  # noqa: F401 - the list of all

STEPS = 6
PHASES = {
    "loading": "lora_trainer.train.memory.eight_bit.load",
    "caching": "lora_trainer.train.setup.cache_latents",
    "training": "lora_trainer.train.step.accumulate.per_image_losses",
    "validating": "lora_trainer.train.validation.validation_loss",
    "saving": "lora_trainer.train.outputs.output.write_lora",
}


def few_pictures(folder):
    """Three pictures to train on and one to validate with."""
    for part, count in (("train", 3), ("val", 1)):
        source = next((assets.toy_pictures() / "crescent" / part).iterdir())
        target = folder / part / source.name.replace("10_", "1_")
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.glob("*.png"))[:count]:
            shutil.copy(path, target)
            shutil.copy(path.with_suffix(".txt"), target)
    return folder


class Run:
    """A run of six steps on the crescent; `at` maps an event's name, or a step's number, to what happens then."""

    def __init__(self, world, name, at=None, **changes):
        self.world, self.at, self.control, self.events = world, at or {}, Control(), []
        self.folder = Path(world.host.paths().runs_dir) / name
        self.output = self.folder / "out"
        pictures = few_pictures(self.folder / "pictures")
        self.config = build(
            {
                "model": {"pretrained_model_name_or_path": "", "clip_skip": world.host.clip_skip()},  # as the tab's form has it
                "data": {"train_data_dir": str(pictures / "train"), "resolution": 64, "batch_size": 1, "enable_bucket": False},
                "network": {"dim": 4, "alpha": 4},
                "steps": {"max_train_steps": STEPS},
                "validate": {"data_dir": str(pictures / "val"), "every_n_steps": 3},
                "save": {"output_dir": str(self.output), "output_name": name, "every_n_steps": 3},
            }
            | changes
        )

    def go(self, since=None):
        with contextlib.closing(loop.run(self.config, self.world.host, self.control, self.folder, since=since)) as work:
            for event in work:
                self.events.append(event)
                kind = type(event).__name__.lower()
                self.at.get(event.step if kind == "stepped" else kind, lambda run: None)(self)
        return self

    def count(self, kind):
        return sum(type(event).__name__ == kind for event in self.events)

    def weights(self):
        """The final file's tensors as bytes, and the run's files gone."""
        state = load_file(self.output / f"{self.config.save.output_name}.safetensors")
        return {key: tensor.numpy().tobytes() for key, tensor in state.items()}


def previews(**more):
    prompt = "a sks crescent on a white background --w 64 --h 64 --d 1 --l 5 --s 3"
    return {"sample": {"prompts": [prompt], "every_n_steps": 2, "sampler": "euler"} | more}


class Planted(Exception):
    """What nobody expects."""


@check
def run_with_previews_gives_the_same_file_as_a_run_without(world):
    with untouched(world, but=["files"]):
        plain = Run(world, "plain").go()
        drawn = Run(world, "drawn", **previews()).go()
    assert plain.count("Stepped") == drawn.count("Stepped") == STEPS
    assert (plain.count("Sampled"), drawn.count("Sampled")) == (0, 4)
    assert plain.weights() == drawn.weights()


@check
def network_named_in_a_preview_prompt_is_used_beside_the_one_that_is_trained(world):
    options = "--w 64 --h 64 --d 3 --l 5 --s 6"
    prompts = [f"a red circle {tag} {options}" for tag in ("<lora:mark:1>", "<lora:beside:1>", "<lora:nobody:1>")]
    with untouched(world, but=["files"]):
        sample = {"prompts": prompts, "every_n_steps": STEPS, "sampler": "euler"}
        model = {"pretrained_model_name_or_path": "", "clip_skip": world.host.clip_skip()}
        run = Run(world, "beside", sample=sample, model=model, optimizer={"learning_rate": 0.02}).go()
        plain = Run(world, "alone", model=model, optimizer={"learning_rate": 0.02}).go()
    assert run.weights() == plain.weights()
    notes = [event.message.text() for event in run.events if type(event).__name__ == "Warned" and event.path == "sample.prompts"]
    assert [note.partition(":")[0] for note in notes] == ["prompt 2", "prompt 3"], notes
    drawn = [Image.open(run.folder / event.path).tobytes() for event in run.events if type(event).__name__ == "Sampled"]
    target = world.loras / "beside.safetensors"
    shutil.copy(run.output / "beside.safetensors", target)
    world.host.refresh_networks()
    try:
        both, trained = (world.generate(f"a red circle{tag}<lora:beside:1>", cfg_scale=5.0) for tag in (" <lora:mark:1>", ""))
    finally:
        target.unlink()
        world.host.refresh_networks()
    assert drawn[0] == world.generate("a red circle <lora:mark:1>", cfg_scale=5.0) and drawn[3] == both
    assert drawn[4] == drawn[5] == trained and both != trained


@check
def checkpoint_chosen_during_a_run_changes_nothing_and_is_loaded_at_its_end(world):
    options = world.modules.shared.opts
    chosen, threads = options.sd_model_checkpoint, []

    def choose(run):
        threads.append(world.choose("sd_model_checkpoint", world.other))

    with untouched(world, but=["files"]):
        plain = Run(world, "unswitched", **previews()).go()
        switched = Run(world, "switched", at={2: choose}, **previews()).go()
        threads[0].join(60)
        assert world.loaded().sd_checkpoint_info.title == world.other
        assert switched.count("Sampled") == 4
        assert plain.weights() == switched.weights()
        world.choose("sd_model_checkpoint", chosen).join(60)


@check
def run_stopped_halfway_leaves_the_host_as_it_was(world):
    with untouched(world, but=["files"]):
        run = Run(world, "stopped", at={3: lambda run: run.control.command("stop")}, **previews()).go()
    assert type(run.events[-1]).__name__ == "Stopped"
    assert run.count("Stepped") == 3


@check
def run_that_raises_in_any_phase_leaves_the_host_as_it_was(world):
    for phase, target in PHASES.items():
        with untouched(world, but=["files"]):
            try:
                with patch(target, side_effect=Planted(phase)):
                    Run(world, f"raised-{phase}").go()
            except Planted as error:
                assert str(error) == phase
            else:
                raise AssertionError(f"the phase {phase} was never reached")


@check
def run_goes_on_exactly_after_a_pause_with_somebody_elses_picture(world):
    seen = []

    def draw(run):
        def somebody():
            seen.append(world.generate("a ring <lora:mark:1>"))
            run.control.command("resume")

        threading.Thread(target=somebody).start()

    with untouched(world, but=["files"]):
        plain = Run(world, "unpaused").go()
        paused = Run(world, "paused", at={3: lambda run: run.control.command("pause"), "paused": draw}, **previews()).go()
    assert seen
    assert (paused.count("Paused"), paused.count("Resumed")) == (1, 1)
    assert plain.weights() == paused.weights()


@check
def pause_leaves_nothing_of_the_run_where_it_was(world):
    """Model and network are let go of; what is kept lies elsewhere (weak references; on a GPU: nothing is on it)."""
    trainers, alive = [], []
    attach = Trainer.attach

    def remember(trainer):
        trainers[:] = [trainer]
        attach(trainer)

    def look(run):
        trainer = trainers[0]
        tensors = [tensor for part in trainer.adapter.parameters().values() for tensor in part]
        tensors += [value for state in trainer.optimizer.inner.state.values() for value in state.values() if value.dim()]
        run.held = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        run.models = [weakref.ref(module) for module in trainer.bundle.modules()]
        run.control.command("pause")

    def paused(run):
        gc.collect()
        alive.extend(reference for reference in run.held if not reference.expired())
        alive.extend(reference() for reference in run.models if reference() is not None)
        assert trainers[0].bundle is None and trainers[0].source is None
        threading.Timer(0.2, run.control.command, ["resume"]).start()

    with untouched(world, but=["files"]), patch.object(Trainer, "attach", remember):
        run = Run(world, "let-go", at={3: look, "paused": paused}).go()
    assert len(run.held) > 100
    assert run.models
    assert alive == []


@check
def run_changed_stopped_and_resumed_ends_like_one_that_went_on(world):
    rate = {"optimizer.learning_rate": 5e-4}
    state = {"state_every_n_steps": 1, "every_n_steps": 3}

    def save(name):
        return {"save": {"output_dir": str(Path(world.host.paths().runs_dir) / name / "out"), "output_name": name, **state}}

    with untouched(world, but=["files"]):
        whole = Run(world, "went-on", at={2: lambda run: run.control.change(rate)}, **save("went-on")).go()
        cut = Run(
            world,
            "cut",
            at={2: lambda run: run.control.change(rate), 4: lambda run: run.control.command("stop")},
            **save("cut"),
        ).go()
        assert (cut.count("Changed"), cut.count("Stopped")) == (1, 1)
        cut.at, cut.control = {}, Control()
        cut.go(
            resume_point.find_resume_point(
                cut.folder, [{"event": "changed", "path": path, "new": new, "step": 2} for path, new in rate.items()], {}
            )
        )
    assert (cut.count("Resumed"), cut.count("Finished")) == (1, 1)
    assert [event.step for event in cut.events if type(event).__name__ == "Stepped"] == list(range(1, STEPS + 1))
    assert whole.weights() == cut.weights()


@check
def run_stopped_in_a_pause_saves_what_it_has_and_leaves_the_host_to_its_user(world):
    def busy(run):
        threading.Timer(0.3, run.control.command, ["stop"]).start()
        lock = world.modules.call_queue.queue_lock
        assert lock.acquire(blocking=False)
        run.at["stopped"] = lambda run: lock.release()  # somebody draws until after the end of the run

    with untouched(world, but=["files"]):
        run = Run(world, "left", at={3: lambda run: run.control.command("pause"), "paused": busy}).go()
    assert (run.count("Paused"), run.count("Resumed"), run.count("Stopped")) == (1, 0, 1)
    assert (run.output / "left-step00000003.safetensors").exists()


@check
def run_whose_model_cannot_come_back_stays_paused_and_says_so(world):
    tries = []

    def resume(run):
        threading.Timer(0.3, run.control.command, ["resume"]).start()

    def again(run):
        if run.count("Paused"):
            tries.append(str(run.events[-1].message))
            resume(run)

    take_back = A1111Lease._recover_model

    def refuse_once(lease):
        if not tries:
            raise HostBusy("the checkpoint is gone.", fix="Load it.")
        take_back(lease)

    with untouched(world, but=["files"]):
        plain = Run(world, "calm").go()
        with patch.object(A1111Lease, "_recover_model", refuse_once):
            run = Run(world, "stubborn", at={3: lambda run: run.control.command("pause"), "paused": resume, "warned": again}).go()
    assert tries == ["the checkpoint is gone. Load it."], tries
    assert (run.count("Paused"), run.count("Resumed")) == (1, 1)
    assert plain.weights() == run.weights()


@check
def run_goes_on_exactly_while_others_draw_between_its_steps(world):
    threads, drawn = [], []

    def ask(run):
        threads.append(threading.Thread(target=lambda: drawn.append(world.generate("a ring <lora:mark:1>"))))
        threads[-1].start()
        wait_for(lambda: world.host.waiting() or len(drawn) == len(threads))

    with untouched(world, but=["files"]):
        plain = Run(world, "undisturbed").go()
        shared = Run(world, "shared", at=dict.fromkeys((1, 3, 4), ask)).go()
        assert len(drawn) == 3, "they waited for the end of the run"
        world.generate("a ring")
    assert plain.weights() == shared.weights()


@check
def run_goes_on_exactly_after_previews_that_crashed(world):
    txt2img = world.modules.processing.StableDiffusionProcessingTxt2Img
    original = txt2img.sample

    def crash(p, *args, **kwargs):
        original(p, *args, **kwargs)
        raise ValueError("the card fell out")

    with untouched(world, but=["files"]):
        plain = Run(world, "whole").go()
        with patch.object(txt2img, "sample", crash):
            crashed = Run(world, "crashed", **previews()).go()
    assert crashed.count("Warned") >= 3
    assert crashed.count("Sampled") == 0
    assert plain.weights() == crashed.weights()


@check
def trained_file_works_in_the_host_at_once_and_weight_zero_is_the_base(world):
    run = Run(world, "at-once").go()
    file = next(run.output.glob("at-once.safetensors"))
    (world.loras / "at-once.safetensors").write_bytes(file.read_bytes())
    try:
        base = world.generate("a red circle")
        assert world.generate("a red circle<lora:at-once:0>") == base
        assert world.generate("a red circle<lora:at-once:1>") != base
    finally:
        (world.loras / "at-once.safetensors").unlink()


REAL_ONLY = {}


def only_in_a_real_host(function):
    REAL_ONLY[function.__name__] = function


@only_in_a_real_host
def conditioning_of_a_caption_equals_the_hosts(world):
    from modules import shared

    from lora_trainer.models.load import load
    from lora_trainer.models.tokenize import tokenize
    from lora_trainer.train.step.precision import choose_precision

    captions = ["", "a sks crescent on a white background", "photo of one girl, long hair, looking at the viewer, " * 4]
    with untouched(world), world.lend() as lease:
        bundle, worst = load(lease.source, lease.device, choose_precision("auto", lease.source, lease.device).base), {}
        for skip in (1, 2):
            before = shared.opts.data.get("CLIP_stop_at_last_layers")
            shared.opts.data["CLIP_stop_at_last_layers"] = skip
            try:
                for caption in captions:
                    getattr(world.loaded(), "set_clip_skip", lambda _: None)(skip)
                    with torch.no_grad():
                        theirs = world.loaded().get_learned_conditioning([caption])[:, :77]
                        ours = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, [caption]), skip).states
                    if len(bundle.tokenizer(caption)["input_ids"]) <= 77:  # the host goes on in a second piece, training cuts off
                        worst[skip, caption] = float((theirs - ours).abs().max())
            finally:
                shared.opts.data.pop("CLIP_stop_at_last_layers") if before is None else shared.opts.data.update(
                    CLIP_stop_at_last_layers=before
                )
        assert len(worst) >= 4
        assert max(worst.values()) < 1e-5, worst


@only_in_a_real_host
def run_whose_model_is_unloaded_by_a_button_or_a_program_goes_on_exactly(world):
    """Neither asks for the queue: Forge Neo then drops its model, the others move it off the device."""
    unload = world.modules.sd_models.unload_model_weights
    with untouched(world, but=["files"]):
        plain = Run(world, "kept", **previews()).go()
        robbed = Run(world, "robbed", at={3: lambda run: unload()}, **previews()).go()
        assert (robbed.count("Stepped"), robbed.count("Sampled")) == (STEPS, 4)
        assert plain.weights() == robbed.weights()
        assert [(robbed.folder / event.path).read_bytes() for event in robbed.events if type(event).__name__ == "Sampled"] == [
            (plain.folder / event.path).read_bytes() for event in plain.events if type(event).__name__ == "Sampled"
        ]


@only_in_a_real_host
def frozen_settings_do_not_keep_a_preview_from_being_drawn(world):
    options = world.modules.shared.cmd_opts
    with untouched(world), world.lend() as lease, patch.object(options, "freeze_settings", True):
        assert lease.preview(attrs.evolve(REQUEST, clip_skip=2), None, 1.0, Control()) is not None


@only_in_a_real_host
@only_in_a1111
def small_text_encoder_is_the_one_that_the_host_names(world):
    """192 + 24 modules of a trained file are known to the host: none is left out, none is in error."""
    from modules import sd_models

    networks = sys.modules["networks"]
    run = Run(world, "names").go()
    target = world.loras / "names.safetensors"
    target.write_bytes(next(run.output.glob("names.safetensors")).read_bytes())
    try:
        world.generate("a red circle<lora:names:1>")
        network = next(network for network in networks.loaded_networks if network.name == "names")
        assert len(network.modules) == 192 + 24, len(network.modules)
        assert not networks.extra_network_lora.errors
        baked = [layer for layer in sd_models.model_data.sd_model.modules() if getattr(layer, "network_current_names", ())]
        assert sum(layer.network_layer_name in network.modules for layer in baked) == 192 + 24
    finally:
        target.unlink()
        world.generate("a red circle")
