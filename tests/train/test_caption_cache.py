"""Captions kept encoded: the same bits as encoded now, found again by content only, refused while the encoder learns."""

from __future__ import annotations

import pytest
import torch

from benchmarks import random_checkpoint
from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.data.cache.array_store import TEXTS
from lora_trainer.errors import ConfigError
from lora_trainer.events import Finished, Warned
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.inputs.caption_cache import CaptionCache, encoder_key
from lora_trainer.train.inputs.caption_encoder import CaptionEncoder
from lora_trainer.train.loop import RunLoop
from lora_trainer.train.step.precision import Precision
from lora_trainer.train.trainer import Trainer
from tests.train.runs import events_of, small_config, tensors_of

CPU = torch.device("cpu")
FULL = Precision(torch.float32, None, False)
HALF = Precision(torch.bfloat16, torch.bfloat16, False)
TEXT_LR = {"optimizer__text_encoder_lr": 0.0}
TO_DISK = {"data__cache_text_encoder_outputs_to_disk": True, **TEXT_LR}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return random_checkpoint.write(tmp_path_factory.mktemp("random") / "sdxl.safetensors", random_checkpoint.TINY_SDXL, torch.float32)


@pytest.fixture
def reads(monkeypatch):
    """How many captions the encoders read, call by call."""
    counts: list[int] = []
    read = CaptionEncoder._encode_batch

    def counted(captions, bundle, texts):
        counts.append(len(texts))
        return read(captions, bundle, texts)

    monkeypatch.setattr(CaptionEncoder, "_encode_batch", counted)
    return counts


def captions_of(bundle, folder, precision, texts, skip=1, tokens=75):
    store = CaptionCache(folder, lambda: encoder_key(bundle, precision, skip, tokens))
    return CaptionEncoder(precision, skip, False, tokens, cache=store, persistent=texts)


@pytest.mark.parametrize("precision", [FULL, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_comes_back_from_disk_is_what_was_encoded_in_bits_and_format(tmp_path, sdxl, reads, family, precision):
    bundle = load(FileSource(sdxl if family == "sdxl" else assets.toy_checkpoint()), CPU, precision.base)
    texts = ["", "a red circle", "a ünïcode \N{CRESCENT MOON}", "very " * 70]
    first, again = (captions_of(bundle, tmp_path, precision, texts) for _ in range(2))
    first.fill(bundle, texts)
    first.close()
    before = sum(reads)
    found = again.encode(bundle, texts)
    assert sum(reads) == before == len(texts)
    expected = CaptionEncoder(precision, 1, False).encode(bundle, texts)
    assert found.equals(expected) and (found.pooled is None) == (family == "sd1")
    assert [tensor.dtype for tensor in found.tensors()] == [tensor.dtype for tensor in expected.tensors()]
    again.close()


def test_another_encoder_layer_length_or_precision_finds_nothing(tmp_path):
    bundle = load(FileSource(assets.toy_checkpoint()), CPU)
    texts = ["a red circle"]
    first = captions_of(bundle, tmp_path, FULL, texts)
    first.fill(bundle, texts)
    first.close()
    other = load(FileSource(assets.toy_checkpoint()), CPU)
    weight = next(parameter for name, parameter in other.text_encoder.named_parameters() if name.endswith("layers.0.mlp.fc1.bias"))
    with torch.no_grad():
        weight[0] += 1e-6
    ways = [(other, FULL, 1, 75), (bundle, FULL, 2, 75), (bundle, FULL, 1, 150), (bundle, HALF, 1, 75)]
    readers = {encoder_key(*way) for way in [*ways, (bundle, FULL, 1, 75)]}
    assert len(readers) == len(ways) + 1
    for one, precision, skip, tokens in ways:
        store = CaptionCache(tmp_path, lambda way=(one, precision, skip, tokens): encoder_key(*way))
        assert store.get(one, texts[0], tokens + 2) is None
        store.close()


def test_a_layer_that_a_family_does_not_read_by_clip_skip_makes_no_other_caption(sdxl):
    bundle = load(FileSource(sdxl), CPU)
    assert encoder_key(bundle, FULL, 1, 75) == encoder_key(bundle, FULL, 2, 75)


@pytest.mark.parametrize("drawn", [pytest.param(False, marks=pytest.mark.slow), True], ids=["as written", "shuffled and dropped"])
def test_a_run_learns_the_same_bits_with_captions_from_disk(tmp_path, reads, monkeypatch, drawn):
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    options = {"data__shuffle_caption": drawn, "data__caption_dropout_rate": 0.3 * drawn, "steps__max_train_steps": 3}

    def trained(name, **more):
        reads.clear()
        config = small_config(tmp_path / name, **options, **more)
        assert isinstance(events_of(config, tmp_path / name)[-1], Finished)
        return tensors_of(tmp_path / name / "loras" / "small.safetensors"), sum(reads)

    expected, all_read = trained("plain", **TEXT_LR)
    for name in ("first", "second"):
        found, read = trained(name, **TO_DISK)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert drawn or read == (all_read if name == "first" else 0)
    assert list((tmp_path / "cache" / TEXTS).glob("*.latents"))


def test_captions_that_are_drawn_anew_are_not_kept_on_disk(tmp_path):
    bundle = load(FileSource(assets.toy_checkpoint()), CPU)
    captions = captions_of(bundle, tmp_path, FULL, ["a, b"])
    captions.fill(bundle, ["a, b", "b, a"])
    store = CaptionCache(tmp_path, lambda: encoder_key(bundle, FULL, 1, 75))
    assert store.get(bundle, "a, b", 77) is not None and store.get(bundle, "b, a", 77) is None


def test_a_disk_that_refuses_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CaptionCache, "put", full)
    events = events_of(small_config(tmp_path, **TO_DISK, steps__max_train_steps=2), tmp_path)
    assert isinstance(events[-1], Finished)
    told = [event for event in events if isinstance(event, Warned) and "Encoded captions cannot be kept on disk" in str(event.message)]
    assert len(told) == 1 and "No space left" in str(told[0].message)


@pytest.mark.parametrize("name", ["cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"])
def test_captions_are_not_kept_while_the_text_encoder_learns(name):
    with pytest.raises(ConfigError) as raised:
        build({"data": {name: True}})
    assert [problem.path for problem in raised.value.problems] == [f"data.{name}"]
    assert "text_encoder_lr = 0" in str(raised.value.problems[0].fix)
    build({"data": {name: True}, "optimizer": {"text_encoder_lr": 0}})


@pytest.mark.parametrize("asked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_encoders_leave_the_device_after_the_captions_of_an_epoch_where_that_is_wanted(tmp_path, monkeypatch, asked):
    spared: list[bool] = []
    monkeypatch.setattr(Trainer, "offload_unused", lambda trainer: spared.append(True) or False)
    encode = RunLoop._encode_ahead

    def watched(run, groups, sampler):
        before = len(spared)
        count = yield from encode(run, groups, sampler)
        assert (len(spared) > before) is asked
        return count

    monkeypatch.setattr(RunLoop, "_encode_ahead", watched)
    config = small_config(tmp_path, data__cache_text_encoder_outputs=asked, **TEXT_LR, steps__max_train_steps=2)
    assert isinstance(events_of(config, tmp_path)[-1], Finished)
    assert spared
