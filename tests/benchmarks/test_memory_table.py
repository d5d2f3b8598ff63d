"""The memory table in the documents is what the plan says today, and near what was counted."""

from __future__ import annotations

import pytest

from benchmarks import memory_table
from benchmarks.memory_table import ROOT, Case


@pytest.mark.parametrize(("name", "chinese"), [("memory.md", False), ("memory.zh-CN.md", True)])
def test_the_documents_hold_the_table_that_the_plan_gives_now(name, chinese):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert memory_table.tables(memory_table.kept_counts(), chinese) in text


def test_what_was_counted_is_within_a_tenth_of_the_plan_for_every_family():
    counts = memory_table.kept_counts()
    counted = [case for case in memory_table.cases() if case.name in counts]
    assert {case.family for case in counted} == {"sd1", "sd2", "sdxl"} and len(counted) > 20
    for case in counted:
        planned, found = memory_table.both(case, counts)
        assert found is not None and abs(planned / found - 1) < 0.1, case.name


def test_recomputing_and_eight_bits_need_less_and_more_pictures_more():
    whole, again, eight = (
        sum(memory_table.planned(Case("sdxl", 1024, 1, *ways)).values()) for ways in ((False, False), (True, False), (True, True))
    )
    assert whole > 1.5 * again and again - eight > 2000
    assert sum(memory_table.planned(Case("sdxl", 1024, 2, True)).values()) > again
