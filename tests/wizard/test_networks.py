"""Which network the wizard advises for a subject, and what it says of its size."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from lora_trainer.config.build import build
from lora_trainer.config.changes import apply_changes
from lora_trainer.models.detection.detect import inspect
from lora_trainer.train.planning.network_plan import planned_network
from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from tests.wizard.advice import advise


@pytest.fixture(scope="module")
def facts(toy_pictures: Path, toy_checkpoint: Path):
    folder = toy_pictures / "crescent" / "train"
    config = build({"data": {"train_data_dir": str(folder), "resolution": 64}})
    return DatasetFacts.read(config), inspect(toy_checkpoint)


def advised(facts, subject: str, *, family: str = "sd1", typed=(), **network):
    pictures, model = facts
    config = build({"network": network, "data": {"resolution": 64}})
    machine = MachineFacts.from_vram(24.0)
    model = attrs.evolve(model, family=family)
    changes = advise(config, machine, pictures, model, subject, typed)
    return config, {change.path: change for change in changes}


def test_a_style_learns_with_its_convolutions_and_other_subjects_without(facts):
    _, style = advised(facts, "style")
    assert (style["network.type"].value, style["network.conv_dim"].value, style["network.conv_alpha"].value) == ("locon", 8, 4.0)
    _, person = advised(facts, "person")
    assert not {"network.type", "network.conv_dim"} & set(person)


def test_a_style_on_sdxl_stays_a_lora(facts):
    pictures, model = facts
    _, style = advised((pictures, attrs.evolve(model, layers=())), "style", family="sdxl")
    assert "network.type" not in style


def test_a_product_of_two_pairs_gets_a_lower_rank(facts):
    _, person = advised(facts, "person", typed=("network.type",), type="loha")
    assert person["network.dim"].value == 8 and "64" in person["network.dim"].reason.text()


def test_whole_weights_learn_at_a_tenth_of_the_rate_and_get_no_rank(facts):
    _, plain = advised(facts, "person")
    _, whole = advised(facts, "person", typed=("network.type",), type="full")
    assert whole["optimizer.unet_lr"].value == pytest.approx(plain["optimizer.unet_lr"].value / 10, rel=0.02)
    assert not {"network.dim", "network.alpha"} & set(whole)


def test_the_size_that_is_told_is_that_of_the_file(facts):
    config, changes = advised(facts, "person")
    after = apply_changes(config, [changes["network.dim"], changes["network.alpha"]])
    megabytes = planned_network(after, facts[1]).file_bytes / 2**20
    assert changes["network.dim"].reason.values["mb"] == pytest.approx(megabytes, abs=0.06)
