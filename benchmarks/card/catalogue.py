"""All blocks in the order in which they run: what is likeliest to be wrong and cheapest to see comes first."""

from __future__ import annotations

from benchmarks.card import attention, faults, giving_back, graphs, networks, packages, plan, precision, shortage, speed

BLOCKS = (
    *attention.BLOCKS,
    *networks.BLOCKS,
    *precision.BLOCKS,
    *giving_back.BLOCKS,
    *graphs.BLOCKS,
    *faults.BLOCKS,
    *shortage.BLOCKS,
    *plan.BLOCKS,
    *speed.BLOCKS,
    *packages.BLOCKS,
)
