"""A model that the host lends anew in the middle of a run: the old one is gone before the new one is loaded, and a full GPU only pauses."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch

from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.events import Event, Finished, Paused, Resumed, Stepped, Warned
from lora_trainer.host.memory import LIMIT_SPARE, MemoryLimit
from lora_trainer.host.standalone import FileLease, StandaloneHost
from lora_trainer.train import loop
from lora_trainer.train.loop import run
from lora_trainer.train.memory import eight_bit
from lora_trainer.train.planning.memory_plan import Machine
from tests.train.runs import small_config

STEPS = 6


def short(out: Path, **changes) -> TrainConfig:
    return small_config(out, **{"steps__max_train_steps": STEPS, "optimizer__text_encoder_lr": 0.0, **changes})


def events(config: TrainConfig, folder: Path, control: Control) -> Iterator[Event]:
    with contextlib.closing(run(config, StandaloneHost(folder), control, folder / "run")) as work:
        for event in work:
            if isinstance(event, Paused):
                control.command("resume")
            yield event


def losses(found: list[Event]) -> list[float]:
    return [event.loss for event in found if isinstance(event, Stepped)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[float]:
    folder = tmp_path_factory.mktemp("plain")
    return losses(list(events(short(folder), folder, Control())))


@pytest.fixture
def read_anew(monkeypatch):
    """The host reads its model anew at the fourth look."""
    looks: list[int] = []

    def let_one_through(lease: FileLease, make_room: object = None) -> bool:
        looks.append(1)
        if len(looks) == 4:
            lease.source = attrs.evolve(lease.source)
        return len(looks) == 4

    monkeypatch.setattr(FileLease, "let_one_through", let_one_through)
    return looks


def watched_loads(monkeypatch, fails: int = 0):
    """Of each load after the first, how many U-Nets were alive before it; so many of them find no memory."""
    real, unets, alive = eight_bit.load_bundle, [], []

    def load(*args, **kwargs):
        gc.collect()
        alive.append(sum(unet() is not None for unet in unets))
        if unets and len(alive) <= 1 + fails:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        bundle = real(*args, **kwargs)
        unets.append(weakref.ref(bundle.unet))
        return bundle

    monkeypatch.setattr(eight_bit, "load_bundle", load)
    return alive


def test_never_two_models_are_held_when_one_is_lent_anew(plain, read_anew, tmp_path, monkeypatch):
    alive = watched_loads(monkeypatch)
    found = list(events(short(tmp_path), tmp_path, Control()))
    assert alive == [0, 0] and losses(found) == plain


def test_a_load_that_lacks_memory_once_is_tried_again(plain, read_anew, tmp_path, monkeypatch):
    alive = watched_loads(monkeypatch, fails=1)
    found = list(events(short(tmp_path), tmp_path, Control()))
    assert alive == [0, 0, 0] and losses(found) == plain and not [event for event in found if isinstance(event, Paused)]


def test_a_model_that_no_longer_fits_pauses_the_run_which_then_goes_on_the_same(plain, read_anew, tmp_path, monkeypatch):
    watched_loads(monkeypatch, fails=2)
    found = list(events(short(tmp_path), tmp_path, Control()))
    assert [type(event) for event in found if isinstance(event, (Paused, Resumed, Finished))] == [Paused, Resumed, Finished]
    assert any("not enough memory to continue" in str(event.message) for event in found if isinstance(event, Warned))
    assert losses(found) == plain


def test_the_peak_of_memory_is_that_of_the_run_and_not_of_what_came_before(tmp_path, monkeypatch):
    order: list[str] = []
    prepare = loop.setup.prepare
    monkeypatch.setattr(loop, "reset_peak_memory", lambda device: order.append(f"peak {device}"))
    monkeypatch.setattr(loop.setup, "prepare", lambda *args, **kwargs: order.append("load") or prepare(*args, **kwargs))
    list(events(short(tmp_path, steps__max_train_steps=1), tmp_path, Control()))
    assert order == ["peak cpu", "load"]


def test_what_the_hosts_model_takes_is_free_only_for_a_run_that_shares_it(tmp_path):
    memory = {"device": "NVIDIA", "total_mb": 8192, "free_mb": 3000, "host_mb": 4000}
    machine = Machine.of("cuda", memory, lent=True, auto_precision="fp16")
    shared, own = (machine.for_run(short(tmp_path, memory__own_process=beside)) for beside in (False, True))
    assert (shared.free_mb, shared.lent) == (7000, True) and (own.free_mb, own.lent) == (3000, False)
    assert machine.for_run(short(tmp_path, memory__device="cuda:1")).free_mb == 3000
    assert Machine.of("cuda", memory, lent=False, auto_precision="fp16").free_mb == 3000


GIGABYTE = 2**30


class WindowsCard:
    """A stand-in for CUDA on Windows: a card of 8 GB with 6 free, and what was asked of torch about this process's share of it."""

    def __init__(self, patch: pytest.MonkeyPatch, platform: str = "win32") -> None:
        self.fractions: list[tuple[float, int]] = []
        self.free = 6 * GIGABYTE
        patch.setattr(sys, "platform", platform)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 8 * GIGABYTE))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: GIGABYTE)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0, raising=False)
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: self.fractions.append((share, device)))


@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cuda", 1)])
def test_on_windows_a_run_may_take_what_is_free_and_afterwards_all_again(device, monkeypatch):
    card, index = WindowsCard(monkeypatch), device.index or 0
    with pytest.raises(KeyError), MemoryLimit(device) as limit:
        limit.lift()  # while the host draws
        card.free = 3 * GIGABYTE
        limit.set()
        limit.set()  # set already
        raise KeyError
    spare = LIMIT_SPARE / GIGABYTE
    assert card.fractions == [((7 - spare) / 8, index), (1.0, index), ((4 - spare) / 8, index), (1.0, index)]


@pytest.mark.parametrize(("platform", "device"), [("linux", "cuda"), ("win32", "cpu")])
def test_elsewhere_nothing_is_limited(platform, device, monkeypatch):
    card = WindowsCard(monkeypatch, platform)
    with MemoryLimit(torch.device(device)):
        assert card.fractions == []
    assert card.fractions == []


def test_a_run_lifts_its_limit_while_the_host_has_the_card_and_at_its_end(tmp_path, monkeypatch):
    order: list[str] = []
    for name in ("set", "lift"):
        monkeypatch.setattr(MemoryLimit, name, lambda self, name=name: order.append(name))
    for name in ("pause", "resume"):
        real = getattr(FileLease, name)
        monkeypatch.setattr(FileLease, name, lambda self, name=name, real=real: order.append(name) or real(self))
    monkeypatch.setattr(FileLease, "let_one_through", lambda self, make_room: False)
    control = Control()
    work = events(short(tmp_path), tmp_path, control)
    for event in work:
        if isinstance(event, Stepped) and event.step == 3:
            order.append("step")
            control.command("pause")
    begin = order.index("step")
    assert order[0] == "set" and order[begin : begin + 5] == ["step", "lift", "pause", "resume", "set"] and order[-1] == "lift"
