"""What the wizard knows of machine and pictures."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from tests.wizard.conftest import MakeFolder, config_for


def test_advising_for_a_named_card_never_imports_torch() -> None:
    code = "import sys, lora_trainer.wizard.advise, lora_trainer.wizard.facts, lora_trainer.wizard.probe; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_host_and_desktop_keep_their_share_of_a_card() -> None:
    card = MachineFacts.from_vram(8)
    assert (card.gigabytes, card.free_mb) == (8, pytest.approx(6.8 * 1024))


def test_what_others_hold_makes_a_card_smaller_and_what_the_host_holds_does_not() -> None:
    alone = MachineFacts.from_memory({"device": "NVIDIA X", "total_mb": 24564, "free_mb": 19000, "host_mb": 4600})
    beside_a_game = MachineFacts.from_memory({"device": "NVIDIA X", "total_mb": 24564, "free_mb": 10500, "host_mb": 4600})
    assert (alone.device, alone.total_mb) == ("cuda", 24564)
    assert beside_a_game.total_mb == pytest.approx(15100 + 1.2 * 1024)
    assert beside_a_game.free_mb == pytest.approx(15100)


def test_a_named_card_wins_over_the_machines_own() -> None:
    assert MachineFacts.from_memory({"device": "CPU", "total_mb": 64000, "free_mb": 50000}, 6) == MachineFacts.from_vram(6)


def test_pictures_are_counted_as_a_run_sees_them(make_folder: MakeFolder) -> None:
    folder = make_folder(10, sizes=((600, 600), (300, 900)))
    (folder / "0.txt").write_text("one", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"no picture")
    facts = DatasetFacts.read(config_for(folder))
    assert (facts.images, facts.captions, facts.smallest_side, facts.folder_repeats) == (10, 1, 300, False)
    groups = facts.bucket_counts(config_for(folder, data={"num_repeats": 7}, validate={"fraction": 0.2}))
    assert sum(group.pictures for group in groups) == 8
    assert all(group.examples == 7 * group.pictures for group in groups)
    assert len(groups) == 2
