"""prepare cache: what is kept of encoded pictures, and away with it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_trainer.cli.main import main
from lora_trainer.data.cache.array_store import ArrayStore


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    store = ArrayStore(tmp_path / "cache" / "latents")
    for number in range(3):
        store.put(bytes([number]) * 32, np.full((4, 8, 8), number, np.float32))
    store.put(b"w" * 32, np.zeros((4, 8, 16), np.float32))
    store.close()
    return tmp_path / "cache" / "latents"


def said(capsys, *words):
    status = main(["prepare", "cache", "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def test_the_size_of_what_is_kept_is_shown_by_group(kept, capsys):
    status, found = said(capsys)
    assert status == 0 and found["folder"] == str(kept) and found["count"] == 4
    assert [(bucket["width"], bucket["height"], bucket["count"]) for bucket in found["buckets"]] == [(64, 64, 3), (128, 64, 1)]
    assert found["mb"] == pytest.approx(sum(path.stat().st_size for path in kept.iterdir()) / 2**20, abs=0.01)


def test_clear_deletes_it_and_says_how_much(kept, capsys):
    status, found = said(capsys, "--clear")
    assert status == 0 and found["left"] == 0 and found["count"] == 4
    assert not list(kept.glob("*.latents")) and not list(kept.glob("*.keys"))
    assert said(capsys)[1]["count"] == 0
    assert ArrayStore(kept).get((4, 8, 8), bytes(32)) is None


def test_encoded_captions_are_counted_and_cleared_too(kept, capsys):
    texts = ArrayStore(kept.parent / "texts")
    texts.put(b"t" * 32, np.zeros(2 + 77 * 8, np.float32))
    texts.close()
    assert main(["prepare", "cache"]) == 0
    assert "1 encoded captions" in capsys.readouterr().out
    status, found = said(capsys, "--clear")
    assert status == 0 and found["captions"]["count"] == 1 and found["count"] == 4
    assert said(capsys)[1]["captions"]["count"] == 0


def test_people_read_it_in_their_language(kept, capsys):
    assert main(["prepare", "cache", "--clear", "--lang", "zh_CN"]) == 0
    shown = capsys.readouterr().out
    assert "已编码图片 4 张" in shown and "64 x 64" in shown


def test_where_nothing_was_ever_kept_there_is_nothing_to_clear(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "none"))
    status, found = said(capsys, "--clear")
    assert status == 0 and found["count"] == 0 and found["freed_mb"] == 0
