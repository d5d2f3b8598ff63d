"""Memory runs out in the middle of a run: it goes on with less, or says the one thing to change; the host's weights are never touched."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from benchmarks.memory import Allocations
from lora_trainer import assets
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.control import Control
from lora_trainer.errors import OutOfMemory
from lora_trainer.events import Changed, Event, Finished, Phase, Sampled, Stepped, Validated, Warned
from lora_trainer.host.a1111 import A1111Host
from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.messages import say
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.optim import optimizers
from lora_trainer.train import validation
from lora_trainer.train.inputs import vae
from lora_trainer.train.inputs.caption_encoder import CaptionEncoder
from lora_trainer.train.loop import run
from lora_trainer.train.memory import placement
from lora_trainer.train.memory.oom import out_of_memory
from lora_trainer.train.step import attention
from tests.host import contract
from tests.host.data_folder import make_data
from tests.host.fake_webui import FakeWebUI
from tests.train.runs import small_config, tensors_of
from tests.train.shortage import Card, Failing

PLACES = 20
SOME = (1, 6, 11, 16)
"""Loading, a forward, a backward, the end; the others are slow tests."""
SHORT = {
    "steps__max_train_steps": 2,
    "optimizer__text_encoder_lr": 1e-3,
    "validate__fraction": 0.2,
    "save__every_n_steps": 1,
    "sample__at_first": False,
}


def short_config(out: Path, **changes):
    return small_config(out, **{**SHORT, "model__pretrained_model_name_or_path": "", "data__cache_latents_to_disk": False, **changes})


def under(mode, host, config, folder: Path) -> list[Event]:
    """The run's events; `mode` is on whenever the run works."""
    found: list[Event] = []
    with contextlib.closing(run(config, host, Control(), folder / "run")) as work:
        while True:
            try:
                with mode:
                    found.append(next(work))
            except StopIteration:
                return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("webui"))


@pytest.fixture(scope="module")
def fake(data):
    return FakeWebUI(data)


@pytest.fixture
def world(fake, data, monkeypatch):
    fake.install(monkeypatch)
    return contract.World(data / "models" / "Lora", "zz-other.safetensors", "plain.safetensors")


@pytest.fixture(scope="module")
def undisturbed(fake, data, tmp_path_factory):
    """How often a whole run allocates, its losses and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        counting, out = Failing(), tmp_path_factory.mktemp("undisturbed")
        losses = [event.loss for event in under(counting, A1111Host(), short_config(out), out) if isinstance(event, Stepped)]
    return counting.count, losses, tensors_of(out / "loras" / "small.safetensors")


@pytest.mark.parametrize("place", [pytest.param(place, marks=[] if place in SOME else [pytest.mark.slow]) for place in range(PLACES)])
def test_a_run_that_lacks_memory_once_ends_well_and_leaves_the_hosts_weights_alone(place, world, undisturbed, tmp_path):
    count, losses, weights = undisturbed
    before = world.hashes()
    failing = Failing(fails=int(count * (place + 0.5) / PLACES))
    try:
        events = under(failing, world.host, short_config(tmp_path), tmp_path)
    except OutOfMemory as error:  # nothing was begun yet: the host's own looking at its model
        assert place == 0 and error.problems[0].fix.text()
        assert world.hashes() == before and world.queue_is_free()
        return
    assert failing.failed and isinstance(events[-1], Finished)
    assert [event.loss for event in events if isinstance(event, Stepped)] == losses
    found = tensors_of(tmp_path / "loras" / "small.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert world.hashes() == before and world.queue_is_free()


def on_card(config, folder: Path, room: float = float("inf"), since: str = "Phase training") -> tuple[list[Event], float]:
    """The run's events, and the most bytes alive above those at `since` (an event, and its name), from where only `room` more are there."""
    found, card, above = [], Allocations(), 0
    with contextlib.closing(run(config, StandaloneHost(folder), Control(), folder / "run")) as work:
        while True:
            try:
                with card:
                    found.append(next(work))
            except StopIteration:
                return found, card.peak - above
            if not above and f"{type(found[-1]).__name__} {getattr(found[-1], 'name', '')}".strip() == since:
                above = card.peak = card.alive
                card.room = above + room


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """What a step of four pictures takes at most where nothing lacks, and the losses."""
    out = tmp_path_factory.mktemp("roomy")
    events, most = on_card(large_config(out), out)
    return most, [event.loss for event in events if isinstance(event, Stepped)]


def large_config(out: Path, **changes):
    small = {"validate__fraction": 0.0, "optimizer__text_encoder_lr": 0.0, "data__batch_size": 4, "save__every_n_steps": 0}
    return short_config(out, **{**small, **changes})


def test_a_card_that_is_too_small_gets_by_with_recomputing_and_pieces(roomy, tmp_path):
    """The run is the same but for rounding, and says what it changed."""
    most, losses = roomy
    events, used = on_card(large_config(tmp_path), tmp_path, most * 0.43)
    changed = [event.path for event in events if isinstance(event, Changed)]
    assert changed[:2] == ["memory.gradient_checkpointing", "memory.checkpointing_budget_gb"]
    assert isinstance(events[-1], Finished) and used <= most * 0.43
    assert [event.loss for event in events if isinstance(event, Stepped)] == pytest.approx(losses, rel=1e-5)


def test_without_another_try_the_run_says_the_one_thing_to_change(roomy, tmp_path):
    most, _ = roomy
    with pytest.raises(OutOfMemory) as caught:
        on_card(large_config(tmp_path, memory__retry=False), tmp_path, most * 0.43)
    assert [problem.path for problem in caught.value.problems] == ["memory.gradient_checkpointing"]


def test_a_card_on_which_nothing_helps_ends_the_run_with_one_remedy(tmp_path):
    events: list[Event] = []
    config = large_config(tmp_path)
    with (
        pytest.raises(OutOfMemory) as caught,
        contextlib.closing(run(config, StandaloneHost(tmp_path), Control(), tmp_path / "run")) as work,
    ):
        card = Allocations()
        while True:
            with card:
                events.append(next(work))
            if isinstance(events[-1], Stepped):
                card.room = card.alive + 1000
    assert [(event.path, event.new) for event in events if isinstance(event, Changed) and "budget" not in event.path] == [
        ("memory.gradient_checkpointing", True),
        ("memory.attention", "sliced"),
        ("memory.pictures_at_once", 2),
        ("memory.pictures_at_once", 1),
    ]
    assert len(caught.value.problems) == 1 and "Close other programs" in caught.value.problems[0].text()


def test_pieces_of_a_step_train_what_the_whole_step_trains(roomy, tmp_path):
    _, losses = roomy
    events = under(contextlib.nullcontext(), StandaloneHost(tmp_path), large_config(tmp_path, memory__pictures_at_once=3), tmp_path)
    assert [event.loss for event in events if isinstance(event, Stepped)] == pytest.approx(losses, rel=1e-6)


class _Scarce:
    """An optimizer that has no room for its state the first time."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __call__(self, optimizer, factor):
        result = self.inner(optimizer, factor)
        if optimizer.groups[0].name != "probe":  # the step that tries the optimizer out
            self.calls += 1
            if self.calls == 1:
                raise MemoryError
        return result


def test_an_optimizer_that_lacks_memory_in_its_first_step_begins_anew(roomy, tmp_path, monkeypatch):
    """It fails when it has stepped already: the step is taken back before it is done again."""
    from lora_trainer.optim.optimizers import TrainingOptimizer

    scarce = _Scarce(TrainingOptimizer.step)
    monkeypatch.setattr(TrainingOptimizer, "step", lambda self, factor: scarce(self, factor))
    events = under(contextlib.nullcontext(), StandaloneHost(tmp_path), large_config(tmp_path), tmp_path)
    assert scarce.calls == 3
    assert [event.loss for event in events if isinstance(event, Stepped)] == roomy[1]


CUDA_OOM = "CUDA out of memory. Tried to allocate 2.50 GiB."
OFFLOADED = str(say("Memory ran out: parts of the model that are not needed are moved off the GPU."))


@pytest.fixture
def card(monkeypatch):
    card = Card()
    card.install(monkeypatch)
    return card


@pytest.mark.parametrize("kind", ["captions", "pictures", "evaluating"])
def test_work_that_never_fits_ends_the_run_and_every_measure_is_taken_once(kind, card, tmp_path, monkeypatch):
    """The repeated work brings its own parts back to the card: moving those off again must not count as a new try."""

    def never_fits(*args, **kwargs):
        bundle = next(each for each in args if hasattr(each, "text_encoders"))
        for module in {"captions": bundle.text_encoders, "pictures": (bundle.vae,), "evaluating": (bundle.unet,)}[kind]:
            placement.move_to_device(module, bundle.device)
        raise torch.cuda.OutOfMemoryError(CUDA_OOM)

    place = {
        "captions": (CaptionEncoder, "_encode_batch"),
        "pictures": (vae, "encode"),
        "evaluating": (validation, "validation_loss"),
    }[kind]
    encode = (lambda self, bundle, captions: never_fits(bundle)) if kind == "captions" else never_fits
    monkeypatch.setattr(*place, encode)
    events: list[Event] = []
    config = large_config(tmp_path, validate__fraction=0.2)
    with (
        pytest.raises(OutOfMemory) as caught,
        contextlib.closing(run(config, StandaloneHost(tmp_path), Control(), tmp_path / "run")) as work,
    ):
        for event in work:
            events.append(event)
            assert len(events) < 60, "the run goes round for ever"
    warnings = [str(event.message) for event in events if isinstance(event, Warned) and "Memory ran out" in str(event.message)]
    assert warnings and len(warnings) == len(set(warnings))
    assert caught.value.problems[0].fix.text()


@pytest.mark.parametrize(
    ("place", "leaves", "stays"),
    [
        ((CaptionEncoder, "_encode_batch"), "UNet2DConditionModel", "CLIPTextModel"),
        ((vae, "encode"), "CLIPTextModel", "AutoencoderKL"),
    ],
    ids=["captions", "pictures"],
)
def test_what_the_work_needs_stays_on_the_card_when_the_rest_leaves_it(place, leaves, stays, card, tmp_path, monkeypatch):
    real, failures = getattr(*place), iter([True, True])

    def fails_twice(*args):
        if card.has(leaves) and next(failures, False):
            card.log.clear()  # what came before the last failure
            raise torch.cuda.OutOfMemoryError(CUDA_OOM)
        return real(*args)

    monkeypatch.setattr(*place, fails_twice)
    attach = NetworkAdapter.attach
    monkeypatch.setattr(NetworkAdapter, "attach", lambda self, *args: card.log.append(("network", "attached")) or attach(self, *args))
    later = {"data__trigger_word": "", "data__caption_dropout_every_n_epochs": 2}  # another caption in the second epoch
    config = large_config(tmp_path, **later, data__batch_size=64, steps__max_train_steps=3)
    events = under(contextlib.nullcontext(), StandaloneHost(tmp_path), config, tmp_path)
    assert isinstance(events[-1], Finished)
    assert OFFLOADED in [str(event.message) for event in events if isinstance(event, Warned)]
    assert (leaves, "off") in card.log and (stays, "off") not in card.log[: card.log.index((leaves, "off"))]
    back = len(card.log) - 1 - card.log[::-1].index(("UNet2DConditionModel", "on"))
    assert card.log[back + 1] == ("network", "attached")  # what it made of the weights is where they are


def test_captions_then_pictures_are_encoded_before_the_unet_is_on_the_card(card, roomy, tmp_path):
    events = under(contextlib.nullcontext(), StandaloneHost(tmp_path), large_config(tmp_path), tmp_path)
    came = [name for name, where in card.log if where == "on"]
    assert came == ["CLIPTextModel", "AutoencoderKL", "UNet2DConditionModel"]
    phases = [event.name for event in events if isinstance(event, Phase)]
    assert phases.index("caching") < phases.index("training")
    assert [event.loss for event in events if isinstance(event, Stepped)] == roomy[1]


def test_a_card_that_holds_one_part_at_a_time_trains_and_draws_the_same(tmp_path, monkeypatch):
    for name in ("CAPTION_BYTES", "STEP_BYTES", "DECODE_BYTES"):
        monkeypatch.setattr(placement, name, 0)
    changes = {
        "data__trigger_word": "",
        "data__caption_dropout_every_n_epochs": 2,
        "data__cache_text_encoder_outputs": True,
        "validate__fraction": 0.2,
        "data__batch_size": 64,
        "steps__max_train_steps": 4,
        "sample__prompts": ["a sks crescent --w 64 --h 64 --s 2"],
        "sample__every_n_steps": 2,
    }
    runs = []
    for name, card in (("wide", Card()), ("narrow", Card())):
        card.install(monkeypatch)
        if name == "narrow":
            bundle = load(FileSource(assets.toy_checkpoint()), torch.device("cpu"))
            card.room = max(placement.weight_bytes(modules) for modules in placement.part_modules(bundle).values()) + 1
        folder = tmp_path / name
        events = under(contextlib.nullcontext(), StandaloneHost(folder), large_config(folder, **changes), folder)
        runs.append([*(event.loss for event in events if isinstance(event, (Stepped, Validated)))])
        runs.append([Path(event.path).read_bytes() for event in events if isinstance(event, Sampled)])
        assert card.most <= card.room
    assert runs[:2] == runs[2:] and len(runs[1]) >= 2
    assert card.log.count(("UNet2DConditionModel", "off")) >= 2  # at each preview, and for new captions


def test_captions_that_do_not_fit_are_no_reason_for_smaller_pictures():
    config = short_config(Path("out"), data__resolution=1024)
    assert "resolution" not in out_of_memory(config, 0, "full", "captions").problems[0].text()
    assert "768" in out_of_memory(config, 0, "full", "pictures").problems[0].text()


GIGABYTE = 2**30
LIBRARIES = [
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx`",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "Unable to find an engine to execute this computation",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`",
    "miopenStatusInternalError",
]


@pytest.mark.parametrize("text", LIBRARIES)
def test_a_library_that_fails_on_a_full_card_has_run_out_of_memory(text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (GIGABYTE // 5, 8 * GIGABYTE))
    assert is_out_of_memory(RuntimeError(text), torch.device("cuda")) and is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(text), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (6 * GIGABYTE, 8 * GIGABYTE))
    assert not is_out_of_memory(RuntimeError(text), torch.device("cuda"))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "MPS backend out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling",
        "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
        "Could not allocate tensor with 1073741824 bytes. There is not enough GPU video memory available!",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.",
    ],
)
def test_what_says_so_itself_is_out_of_memory_on_any_device(text):
    assert is_out_of_memory(RuntimeError(text)) and not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize("text", ["CUDA error: an illegal memory access was encountered", "expected scalar type Half but found Float"])
def test_another_error_is_none_whatever_is_free(text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 8 * GIGABYTE))
    assert not is_out_of_memory(RuntimeError(text))


def test_a_full_card_is_no_reason_against_an_attention_or_an_optimizer(monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError(CUDA_OOM)

    monkeypatch.setitem(attention.ATTENTION, "sdpa", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        attention.why_not("sdpa", torch.device("cpu"), torch.float32, [8])
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        optimizers.probe("AdamW", {})


def test_memory_that_lacks_before_anything_is_loaded_is_told_with_a_remedy(tmp_path):
    """The optimizer is tried out first, on the card where it needs one."""
    with pytest.raises(OutOfMemory) as caught:
        under(Allocations(room=1000), StandaloneHost(tmp_path), short_config(tmp_path), tmp_path)
    assert caught.value.problems[0].fix.text()
