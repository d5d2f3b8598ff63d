"""Multiplications of a step by the type of network, counted on shapes alone."""

from __future__ import annotations

import pytest

from benchmarks import networks


@pytest.mark.slow
def test_multiplications_are_counted_without_the_weights():
    found = {name: networks.counted(name, 64) for name in ("lora", "loha, rank 8", "loha")}
    assert list(found.values()) == sorted(found.values()) and found["lora"] > 0
