"""A run needs as much memory as the largest of its phases, each of which the plan lists."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch

from benchmarks import random_checkpoint
from lora_trainer.cli.check import PHASES, print_plan
from lora_trainer.cli.console import Console
from lora_trainer.config.build import build
from lora_trainer.host import devices
from lora_trainer.models.detection.detect import ModelFacts, inspect
from lora_trainer.models.source import FileSource
from lora_trainer.train.planning.memory_plan import Machine
from lora_trainer.train.planning.plan import TrainingPlan, make_plan
from lora_trainer.train.step.precision import choose_precision
from lora_trainer.wizard.facts import MachineFacts

CARD = Machine("cuda", 6.8 * 1024, 10.0)
GB = 1024.0


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> ModelFacts:
    path = tmp_path_factory.mktemp("models") / "sdxl.safetensors"
    return inspect(random_checkpoint.hollow(path, random_checkpoint.SHAPES["sdxl"][0]))


def plan(facts: ModelFacts, machine: Machine = CARD, **sections: dict[str, object]) -> TrainingPlan:
    values: dict[str, dict[str, object]] = {
        "data": {"train_data_dir": "x", "resolution": 1024, "cache_text_encoder_outputs": True},
        "network": {"dim": 8},
        "optimizer": {"text_encoder_lr": 0},
        "memory": {"mixed_precision": "bf16", "gradient_checkpointing": True},
        "sample": {"prompts": ["a house"]},
    }
    return make_plan(build({name: {**values.get(name, {}), **sections.get(name, {})} for name in values | sections}), (), facts, machine)


def needed(found: TrainingPlan) -> dict[str, float]:
    return {phase.name: phase.needed_mb for phase in found.memory_phases}


def test_every_phase_is_listed_and_the_largest_is_what_the_run_needs(sdxl):
    found = plan(sdxl)
    assert list(needed(found)) == ["load", "captions", "pictures", "step", "preview", "save"]
    memory = found.to_json()["memory"]
    assert memory["needed_mb"] == max(memory["phases"].values())
    assert sum(memory["parts"].values()) == pytest.approx(memory["needed_mb"], abs=1)


def test_sdxl_that_is_read_from_a_file_never_has_all_its_parts_on_a_card_of_8_gb(sdxl):
    found = needed(plan(sdxl))
    weights = sdxl.unet_parameters * 2, sdxl.text_parameters * 2, sdxl.vae_parameters * 4
    assert max(found.values()) < CARD.free_mb < sum(weights) / 2**20 + 2.5 * GB  # together, and what encoding takes besides
    assert found["captions"] < weights[0] / 2**20 and found["pictures"] < weights[0] / 2**20


@pytest.mark.parametrize(
    ("name", "capability", "precision"),
    [
        ("NVIDIA GeForce GTX 1080", (6, 1), "no"),
        ("NVIDIA GeForce GTX 1660", (7, 5), "no"),
        ("Tesla V100", (7, 0), "fp16"),
        ("NVIDIA GeForce RTX 2070", (7, 5), "fp16"),
        ("NVIDIA GeForce RTX 3060", (8, 6), "bf16"),
    ],
)
def test_a_card_is_planned_in_the_precision_that_its_run_computes_in(
    sdxl, monkeypatch, name: str, capability: tuple[int, int], precision: str
):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    monkeypatch.setattr(devices, "step_failure", lambda device, dtype: "")
    assert choose_precision("auto", FileSource(Path("sdxl.safetensors")), cuda).name == precision
    memory = {"device": name, "total_mb": 24 * GB, "free_mb": 24 * GB, "host_mb": 0, "precision": devices.auto_precision(cuda)}
    machine = MachineFacts.from_memory(memory).to_machine()
    automatic, named = (needed(plan(sdxl, machine, memory={"mixed_precision": word})) for word in ("auto", precision))
    assert automatic == named
    half = needed(plan(sdxl, machine, memory={"mixed_precision": "fp16"}))
    assert (automatic["step"] > 1.5 * half["step"]) is (precision == "no")


def test_what_a_webui_lends_stays_on_the_card_in_every_phase(sdxl):
    own, lent = needed(plan(sdxl)), needed(plan(sdxl, attrs.evolve(CARD, lent=True)))
    everything = (sdxl.unet_parameters + sdxl.text_parameters) * 2 / 2**20
    assert "preview" not in lent  # the WebUI draws
    assert all(lent[name] >= everything for name in lent) and own["captions"] < everything


def test_phases_that_do_not_occur_are_not_listed(sdxl):
    found = needed(plan(sdxl, data={"cache_text_encoder_outputs": False}, optimizer={"text_encoder_lr": 1e-5}, sample={"prompts": []}))
    assert "captions" not in found and "preview" not in found


@pytest.mark.parametrize(
    ("phase", "more"),
    [
        ("pictures", {"data": {"vae_batch_size": 4}}),
        ("step", {"data": {"batch_size": 4}}),
        ("pictures", {"data": {"resolution": 1536}}),
    ],
)
def test_what_a_phase_takes_grows_with_its_own_settings(phase, more, sdxl):
    wide = attrs.evolve(CARD, free_mb=80_000.0)
    assert needed(plan(sdxl, wide, **more))[phase] > needed(plan(sdxl, wide))[phase] * 1.2


def test_check_says_what_each_phase_needs(sdxl, capsys):
    found = plan(sdxl)
    print_plan(found.to_json(), Console())
    said = capsys.readouterr().out
    assert all(f"  {PHASES[name].text('en')}: {megabytes:.1f} MB" in said for name, megabytes in needed(found).items())
