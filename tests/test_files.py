"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lora_trainer.errors import TrainerError
from lora_trainer.files import write_atomically


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path):
    target = tmp_path / "新的" / "moon.json"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new" and [file.name for file in target.parent.iterdir()] == ["moon.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="rights are another matter there")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_user_s_mask_lets_them(tmp_path: Path, mask: int, mode: int):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "moon.safetensors", b"weights")
    finally:
        os.umask(before)
    assert (tmp_path / "moon.safetensors").stat().st_mode & 0o777 == mode


def test_a_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "moon").write_bytes(b"")
    with pytest.raises(TrainerError, match="moon"):
        write_atomically(tmp_path / "moon" / "a.json", b"")
