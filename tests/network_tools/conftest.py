"""The small random checkpoints of tests/models, and a plain LoRA on the first of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.conftest import checkpoint
from tests.network_tools.made import chosen, state_of, write

__all__ = ["checkpoint"]
# PEFT is installed on the newer leg only (requirements-test.txt)
collect_ignore = ["test_peft_oracle.py"] if sys.version_info < (3, 11) else []


@pytest.fixture(scope="session")
def base(checkpoint: Callable[[str], Path]) -> Path:
    """A small Stable Diffusion 1 checkpoint."""
    return checkpoint("sd1")


@pytest.fixture(scope="session")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 4 on its attention layers."""
    return write(tmp_path_factory.mktemp("lora") / "plain.safetensors", state_of(chosen(base)))
