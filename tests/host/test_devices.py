"""Where a run calculates: by name, by a step that is really taken, and refused with the reason where that does not work."""

from __future__ import annotations

import types
from pathlib import Path

import attrs
import pytest
import torch
from torch.nn import functional

from lora_trainer.errors import TrainerError
from lora_trainer.host import devices
from lora_trainer.host.memory import device_memory, empty_cache, peak_memory
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.source import LiveSource
from lora_trainer.train.step.precision import choose_precision

CPU = torch.device("cpu")
NOTHING = LiveSource({}, {}, {}, 8, 4, None, Path())


@pytest.fixture(autouse=True)
def fresh():
    """What was tried in one test is tried again in the next."""
    devices.step_failure.cache_clear()
    yield
    devices.step_failure.cache_clear()


@pytest.fixture
def only(monkeypatch):
    """Makes torch say that this kind of device is here, and no other."""

    def here(kind: str) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(kind == "cuda"))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
        xpu = types.SimpleNamespace(is_available=lambda: kind == "xpu", device_count=lambda: 1)
        monkeypatch.setattr(torch, "xpu", xpu, raising=False)

    return here


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_really_taken(dtype):
    assert devices.step_failure(CPU, dtype) == ""


def test_the_step_draws_nothing_from_the_runs_chance():
    before = torch.random.get_rng_state()
    devices.step_failure(CPU, torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_operation_that_a_device_lacks_is_the_reason(monkeypatch):
    def lacking(*_, **__):
        raise NotImplementedError("The operator 'aten::linear' is not currently implemented for the MPS device.\nA second line")

    reference = devices._run_step(CPU, torch.float32)
    monkeypatch.setattr(devices, "_run_step", lambda device, dtype: reference if device == CPU else lacking())
    assert devices.step_failure(torch.device("mps"), torch.float32) == (
        "The operator 'aten::linear' is not currently implemented for the MPS device."
    )
    with pytest.raises(TrainerError, match=r"does not work on Apple MPS \(mps\) in float32: The operator") as caught:
        devices.require_step(torch.device("mps"), torch.float32)
    assert "cpu" in caught.value.problems[0].fix.text()


@pytest.mark.parametrize(
    ("wrong", "words"), [(lambda loss: loss * float("nan"), "is not finite"), (lambda loss: loss * 1.5, "differ from the CPU's by 50%")]
)
def test_a_device_that_calculates_wrongly_is_found_out(monkeypatch, wrong, words):
    step = devices._run_step
    monkeypatch.setattr(
        devices, "_run_step", lambda device, dtype: tuple(wrong(each) if device.type == "xpu" else each for each in step(CPU, dtype))
    )
    assert words in devices.step_failure(torch.device("xpu"), torch.float32)


def test_a_full_device_is_not_taken_for_one_that_cannot_train(monkeypatch):
    step, full = devices._run_step, [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")]

    def tried(device, dtype):
        if device != CPU and full:
            raise full.pop()
        return step(CPU, dtype)

    monkeypatch.setattr(devices, "_run_step", tried)
    with pytest.raises(RuntimeError, match="out of memory"):
        devices.require_step(torch.device("cuda"), torch.float32)
    devices.require_step(torch.device("cuda"), torch.float32)


def test_cards_of_amd_are_called_by_their_name(monkeypatch):
    monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "no kernel image is available")
    for hip, name in ((None, "CUDA"), ("6.1", "AMD ROCm")):
        monkeypatch.setattr(torch.version, "hip", hip)
        with pytest.raises(TrainerError, match=rf"does not work on {name} \(cuda:0\) in float16: no kernel image") as caught:
            devices.require_step(torch.device("cuda:0"), torch.float16)
        assert "mixed_precision" in caught.value.problems[0].fix.text()


def test_a_wrong_backward_pass_is_found_out_by_the_step_itself(monkeypatch):
    """Forward right, gradient wrong: what DirectML and MPS have been seen to do."""
    true = functional.group_norm
    count = 0

    def detached(*values, **named):
        return true(*values, **named).detach() if count > 1 else true(*values, **named)

    step = devices._run_step

    def counted(device, dtype):
        nonlocal count
        count += 1
        return step(CPU, dtype)

    monkeypatch.setattr(functional, "group_norm", detached)
    monkeypatch.setattr(devices, "_run_step", counted)
    assert devices.step_failure(torch.device("mps"), torch.float32)


def test_a_device_without_memory_of_its_own_cannot_be_trained_on():
    assert devices.step_failure(torch.device("meta"), torch.float32)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_a_device_that_trains_is_taken_by_itself_and_one_that_does_not_is_told(only, monkeypatch, kind):
    only(kind)
    monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "")
    assert devices.default_device() == (torch.device(kind), None)
    assert devices.device_named(kind) == torch.device(kind)
    monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "no gradients")
    device, told = devices.default_device()
    assert device == CPU
    assert told is not None
    assert "no gradients" in told.text()


def test_what_is_told_of_the_device_is_told_by_the_lease(only, monkeypatch, tmp_path):
    from lora_trainer.config.schema import ModelConfig

    only("mps")
    monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "no gradients")
    with StandaloneHost(tmp_path).lease(ModelConfig()) as lease:
        assert lease.device == CPU
        assert ["Apple MPS is not used" in note.text() for note in lease.notes] == [True]


@pytest.mark.parametrize("name", ["dml", "DirectML:1", "privateuseone:0"])
def test_directml_without_its_package_is_refused_by_name(name):
    with pytest.raises(TrainerError, match=r"DirectML \(.*\) needs the package torch-directml"):
        devices.device_named(name)


def test_directml_is_what_its_package_says(monkeypatch):
    package = types.SimpleNamespace(device=lambda number=0: torch.device("privateuseone", number))
    monkeypatch.setitem(__import__("sys").modules, "torch_directml", package)
    assert devices.device_named("dml:1") == torch.device("privateuseone:1")
    assert device_memory(torch.device("privateuseone:1")) == {
        "device": "privateuseone:1",
        "total_mb": 0,
        "free_mb": 0,
        "host_mb": 0,
        "precision": "no",
    }


def test_a_name_that_is_none_is_answered_with_those_that_are_here(only):
    only("mps")
    for name in ("cuda:7", "xpu", "the second one", "meta", "mps:1"):
        with pytest.raises(TrainerError, match="there is no device") as caught:
            devices.device_named(name)
        assert caught.value.problems[0].fix.text().endswith("cpu, mps:0.")


def test_half_precision_gives_way_to_float32_where_its_step_does_not_work(monkeypatch, tmp_path):
    held = attrs.evolve(NOTHING, unet_state={"x": torch.zeros(1, dtype=torch.float16)}, path=tmp_path / "x.safetensors")
    for device in (torch.device("mps"), torch.device("cuda")):
        monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "")
        assert choose_precision("auto", held, device).base is torch.float16
        monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "" if dtype is torch.float32 else "no")
        assert choose_precision("auto", held, device).base is torch.float32
        assert choose_precision("bf16", held, device).base is torch.bfloat16  # asked for: require_step says why not
    with pytest.raises(TrainerError, match="in bfloat16: no"):
        devices.require_step(torch.device("mps"), torch.bfloat16)


def test_the_memory_of_a_card_is_as_its_own_library_tells_it(monkeypatch):
    gigabyte = 1 << 30
    told = {"recommended_max_memory": lambda: 8 * gigabyte, "driver_allocated_memory": lambda: 3 * gigabyte, "empty_cache": lambda: None}
    monkeypatch.setattr(torch, "mps", types.SimpleNamespace(**told))
    memory = device_memory(torch.device("mps"))
    assert (memory["device"], memory["total_mb"], memory["host_mb"]) == ("Apple MPS", 8 * 1024, 3 * 1024)
    assert 0 < memory["free_mb"] <= 5 * 1024
    assert peak_memory(torch.device("mps")) == 3 * gigabyte
    card = types.SimpleNamespace(name="Arc", total_memory=16 * gigabyte)
    told = {"memory_reserved": lambda device: gigabyte, "get_device_properties": lambda device: card, "empty_cache": lambda: None}
    monkeypatch.setattr(torch, "xpu", types.SimpleNamespace(**told), raising=False)
    assert device_memory(torch.device("xpu")) == {
        "device": "Arc",
        "total_mb": 16 * 1024,
        "free_mb": 15 * 1024,
        "host_mb": 1024,
        "precision": "no",
    }
    for kind in ("cpu", "mps", "xpu"):
        empty_cache(torch.device(kind))
    assert peak_memory(CPU) is None
