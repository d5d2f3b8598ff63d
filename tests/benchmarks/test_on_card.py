"""The card script: each block's outcome is told at once, one that fails hides none, and it runs from wheels alone."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import on_card
from benchmarks.card import runner
from benchmarks.card.block import Block, BlockLeftOut, Card, require
from benchmarks.card.catalogue import BLOCKS
from benchmarks.card.wheels import fits, use_wheels

CI_SECONDS = 180


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(torch.device("cpu"), tmp_path / "runs")


def fails(card):
    require(1 == 2, "one is not two")


def breaks(card):
    raise ZeroDivisionError("a | b")


def lacks(card):
    raise BlockLeftOut("the package is not installed")


def test_whatever_a_block_does_those_after_it_run_and_each_is_told_at_once(card):
    told: list[str] = []

    def looks(card):
        assert len(told) == 3  # the lines of the blocks before it are written already
        return {"share": 0.123456, "rows": [{"case": "a", "MB": 1.0}, {"case": "b", "s": 2}]}

    blocks = [
        Block(name, name, work, 1.0, 0.0) for name, work in (("fails", fails), ("breaks", breaks), ("lacks", lacks), ("looks", looks))
    ]
    results = runner.run_blocks(blocks, card, 60.0, told.append)
    outcomes = [result.outcome for result in results]
    assert outcomes[0] == "failed: one is not two" and outcomes[2:] == ["left out: the package is not installed", "passed"]
    assert outcomes[1].startswith("failed: ZeroDivisionError: a | b (test_on_card.py:")
    assert [result.is_failed for result in results] == [True, True, False, False]
    assert [json.loads(line)["outcome"] for line in told] == outcomes
    text = runner.table({"device": "A card", "torch": "2"}, results, 5.0)
    assert "4 blocks, 2 failed" in text and "a \\| b" in text and "share 0.1235" in text
    assert "| case | MB | s |" in text and "| b |  | 2 |" in text


def test_a_block_that_would_not_end_in_time_or_needs_cuda_does_not_begin(card):
    blocks = [Block("long", "", fails, 1.0, 3600.0), Block("cuda", "", fails, 1.0)]
    assert [result.outcome for result in runner.run_blocks(blocks, card, 60.0, print)] == ["left out for time", "needs CUDA"]


def test_every_fault_has_its_block_and_all_fit_into_the_time_of_ci():
    names = [block.name for block in BLOCKS]
    assert len(names) == len(set(names))
    assert {name[:2] for name in names if name[0] == "E"} == {f"E{number}" for number in range(1, 8)}
    assert sum(block.cpu_seconds or 0.0 for block in BLOCKS) <= CI_SECONDS
    assert sum(block.cuda_seconds for block in BLOCKS if "sd-scripts" not in block.name) <= 900


def test_the_command_writes_a_table_named_after_the_device_and_fails_with_a_block(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    assert on_card.main(["--device", "cpu", "--minutes", "1", "--out", str(tmp_path), "--only", "E3-remedies", "graphs"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("outcome") for line in lines] == [None, "needs CUDA", "passed", None]
    assert lines[0]["machine"]["torch"] == torch.__version__
    assert "| E3-remedies | passed |" in (tmp_path / "card-cpu.md").read_text(encoding="utf-8")
    monkeypatch.setattr("benchmarks.card.catalogue.BLOCKS", (Block("fails", "", fails, 1.0, 0.0),))
    assert on_card.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        on_card.main(["--only", "nothing"])


def test_wheels_of_this_python_come_first_without_being_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for name in ("card_probe-1-py3-none-any", f"other-1-{own}-{own}-win_arm64"):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as archive:
            archive.writestr(f"{name.partition('-')[0]}.py", "HERE = 1")
    assert list(use_wheels(tmp_path, tmp_path / "unpacked")) == [f"other-1-{own}-{own}-win_arm64.whl is for another Python or machine."]
    import card_probe

    assert card_probe.HERE == 1 and Path(card_probe.__file__).parent == tmp_path / "unpacked"
    assert next(use_wheels(tmp_path / "nothing", tmp_path / "x")).endswith("holds no wheels.")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tomlkit-0.12.0-py3-none-any.whl", True),
        ("regex-1-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", True),
        ("tokenizers-1-cp39-abi3-manylinux_2_17_x86_64.whl", True),
        ("bitsandbytes-1-py3-none-manylinux_2_24_x86_64.whl", True),
        ("numpy-2-cp313-cp313-manylinux_2_17_x86_64.whl", False),
        ("numpy-2-cp312-cp312-win_amd64.whl", False),
        ("numpy-2-cp312-cp312-manylinux_2_17_aarch64.whl", False),
        ("newer-1-cp313-abi3-manylinux_2_17_x86_64.whl", False),
        ("old-1-py2-none-any.whl", False),
    ],
)
def test_a_wheel_is_used_where_its_tags_fit(name, expected, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 3, "final", 0))
    monkeypatch.setattr("sysconfig.get_platform", lambda: "linux-x86_64")
    assert fits(name) is expected
