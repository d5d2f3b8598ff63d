"""What captions do to a whole run: encoded ahead or in each step the weights are the same, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open

from lora_trainer.control import Control
from lora_trainer.data import captions as wording
from lora_trainer.events import Finished, Phase, Stepped, Stopped, Validated
from lora_trainer.train import loop, setup
from lora_trainer.train.inputs.caption_encoder import CAPTION_BATCH, CaptionEncoder

from .runs import events_of, small_config, tensors_of

VARIED = {
    "data__shuffle_caption": True,
    "data__caption_dropout_rate": 0.2,
    "data__caption_tag_dropout_rate": 0.1,
    "data__enable_wildcard": True,
    "data__token_warmup_step": 0.5,
    "optimizer__text_encoder_lr": 0,
    "sample__at_first": False,
}


@pytest.fixture
def tagged(tmp_path, toy_pictures) -> str:
    """Twelve pictures with tags to shuffle and drop."""
    folder = tmp_path / "tagged"
    shutil.copytree(toy_pictures / "crescent" / "train", folder)
    for number, text in enumerate(sorted(folder.rglob("*.txt"))):
        text.write_text(f"{{a|one}} crescent, white background, tag {number}, small, night, sky, {number % 3} stars", encoding="utf-8")
    return str(folder)


class Each(CaptionEncoder):
    """Keeps nothing: every caption is encoded in the step that reads it."""

    asked: ClassVar[list[int]] = []

    def missing(self, captions):
        self._encoded = {}
        return super().missing(captions)

    def encode(self, bundle, captions):
        Each.asked.append(len(captions))
        return super().encode(bundle, captions)


class Counted(CaptionEncoder):
    """Notes how many captions are encoded at a time."""

    filled: ClassVar[list[int]] = []

    def fill(self, bundle, captions):
        if captions:
            Counted.filled.append(len(captions))
        super().fill(bundle, captions)


def weights(out: Path, tagged: str, **changes):
    config = small_config(out, data__train_data_dir=tagged, **{**VARIED, **changes})
    events = events_of(config, out)
    assert isinstance(events[-1], Finished)
    return tensors_of(out / "loras" / "small.safetensors"), [event.loss for event in events if isinstance(event, Stepped)]


def test_captions_encoded_ahead_train_the_same_weights_as_captions_encoded_in_each_step(tmp_path, tagged, monkeypatch):
    Counted.filled, Each.asked = [], []
    monkeypatch.setattr(setup, "CaptionEncoder", Counted)
    ahead, losses = weights(tmp_path / "ahead", tagged, data__batch_size=3)
    monkeypatch.setattr(setup, "CaptionEncoder", Each)
    monkeypatch.setattr(loop.RunLoop, "_encode_ahead", lambda self, steps, sampler: (yield from ()) or len(steps))
    each, other_losses = weights(tmp_path / "each", tagged, data__batch_size=3)
    assert max(Counted.filled) == CAPTION_BATCH and len(Each.asked) == 12  # ahead in batches; in each of the 12 steps
    assert losses == other_losses
    assert ahead.keys() == each.keys() and all(torch.equal(ahead[key], each[key]) for key in ahead)


def test_little_room_for_captions_changes_no_weight(tmp_path, tagged, monkeypatch):
    wide, _ = weights(tmp_path / "wide", tagged)
    monkeypatch.setattr(CaptionEncoder, "capacity", lambda self: 5)
    narrow, _ = weights(tmp_path / "narrow", tagged)
    assert all(torch.equal(wide[key], narrow[key]) for key in wide)


def test_many_captions_are_a_phase_of_their_own_that_can_be_stopped(tmp_path, tagged, monkeypatch):
    control = Control()
    fill = CaptionEncoder.fill

    def stop_then(self, bundle, captions):
        fill(self, bundle, captions)
        control.command("stop")

    monkeypatch.setattr(CaptionEncoder, "fill", stop_then)
    config = small_config(tmp_path, data__train_data_dir=tagged, **VARIED)
    monkeypatch.setattr(loop, "ENCODING_PHASE_MIN", 8)
    events = events_of(config, tmp_path, control)
    assert [event.name for event in events if isinstance(event, Phase)].count("encoding") == 1
    assert isinstance(events[-1], Stopped) and not any(isinstance(event, Stepped) for event in events)


def test_what_the_captions_step_shows_is_what_is_trained_on(tmp_path, tagged, monkeypatch):
    """The route's captions of an epoch against those that the run read, growing captions and all."""
    from lora_trainer.api.caption_list import caption_list
    from lora_trainer.api.scan_cache import ScanCache
    from lora_trainer.api.threads import Workers

    config = small_config(tmp_path, data__train_data_dir=tagged, **VARIED)
    read = {}
    drawn = wording.process_caption

    def noted(record, rules, **moment):
        text = drawn(record, rules, **moment)
        if moment["repeat"] == 0:
            read[record.key, moment["epoch"]] = text
        return text

    monkeypatch.setattr(wording, "process_caption", noted)
    events_of(config, tmp_path)
    shown = caption_list(ScanCache(Workers()), config, 1, "en")["pictures"]
    texts = {picture["key"]: "".join(part["before"] + part["text"] for part in picture["parts"]) for picture in shown}
    seen = {key: text for (key, epoch), text in read.items() if epoch == 1}
    assert len(seen) > 1 and seen == {key: texts[key] for key in seen}


def test_long_captions_are_trained_on_and_validated(tmp_path, tagged, toy_pictures):
    long = ", ".join(f"thing {number}" for number in range(60))
    folder = Path(tagged)
    for text in folder.rglob("*.txt"):
        text.write_text(f"sks crescent, {long}, a red end", encoding="utf-8")
    held = str(toy_pictures / "crescent" / "val")
    changes = {"data__shuffle_caption": False, "data__caption_dropout_rate": 0.0, "data__caption_tag_dropout_rate": 0.0}
    changes |= {"data__token_warmup_step": 0.0, "validate__data_dir": held, "steps__max_train_steps": 4}

    def run(tokens: int):
        config = small_config(tmp_path / str(tokens), data__train_data_dir=tagged, **{**VARIED, **changes}, model__max_token_length=tokens)
        events = events_of(config, tmp_path / str(tokens))
        path = tmp_path / str(tokens) / "loras" / "small.safetensors"
        with safe_open(str(path), "pt") as file:
            assert file.metadata()["ss_max_token_length"] == str(tokens)
        assert any(isinstance(event, Validated) for event in events)
        return next(event.loss for event in events if isinstance(event, Stepped))

    assert run(75) != run(225)
