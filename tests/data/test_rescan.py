"""A folder that was not touched is not read again; one that was, is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_trainer.data.sources import scan
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.scan import cached_scan, scan_source

from .conftest import noise


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "FRESH", -(10**18))  # as if everything had lain there for long
    for name in ("10_sks/a.png", "10_sks/b.png", "5_other/c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        noise((64, 64), ord(name[-5])).save(path)
    (tmp_path / "10_sks" / "a.txt").write_text("one", encoding="utf-8")
    return Source("data.train_data_dir", str(tmp_path))


def again(source: Source) -> bool:
    """Whether it was read anew; what is answered is right in any case."""
    before = scan._scan_of_fingerprint.cache_info().misses
    assert cached_scan(source) == scan_source(source)
    return scan._scan_of_fingerprint.cache_info().misses > before


def test_an_untouched_folder_is_read_once(source):
    assert again(source) and not again(source) and not again(source)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "10_sks" / "a.txt").write_text("two", encoding="utf-8"),
        lambda folder: (folder / "10_sks" / "b.txt").write_text("new", encoding="utf-8"),
        lambda folder: (folder / "10_sks" / "b.png").unlink(),
        lambda folder: (folder / "10_sks" / "b.png").rename(folder / "5_other" / "b.png"),
        lambda folder: (folder / "5_other").rename(folder / "7_other"),
        lambda folder: noise((48, 64), 3).save(folder / "10_sks" / "a.png"),
        lambda folder: os.utime(folder / "10_sks" / "a.png", (1e9, 1e9)),
    ],
)
def test_whatever_is_changed_is_seen(source, change):
    again(source)
    change(Path(source.folder))
    assert again(source) and not again(source)


def test_a_file_that_was_changed_just_now_is_not_believed(source, monkeypatch):
    monkeypatch.setattr(scan, "FRESH", 10**12)
    before = scan._scan_of_fingerprint.cache_info().misses
    assert cached_scan(source) == scan_source(source) and scan._scan_of_fingerprint.cache_info().misses == before


def test_other_options_read_anew(source):
    import attrs

    again(source)
    assert again(attrs.evolve(source, leave_out=("10_sks/a.png",)))
