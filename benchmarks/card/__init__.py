"""The blocks of benchmarks/on_card.py: what only a graphics card can prove, asserted; the same code on a CPU where it can run there."""
