"""Captions that were encoded ahead are bit for bit what they would be in their own step."""

from __future__ import annotations

import attrs
import pytest
import torch

from lora_trainer import assets
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import concat
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.models.tokenize import tokenize
from lora_trainer.train.inputs.caption_encoder import CAPTION_BATCH, CaptionEncoder, captions_within
from lora_trainer.train.step.precision import Precision, compute_scope

FULL = Precision(torch.float32, None, False)
HALF = Precision(torch.bfloat16, torch.bfloat16, False)
TEXTS = [f"a photo of {number} red circles, {'very ' * (number % 9)}small" for number in range(2 * CAPTION_BATCH + 5)]


@pytest.fixture(scope="module", params=[FULL, HALF], ids=["float32", "bfloat16"])
def precision(request) -> Precision:
    return request.param


@pytest.fixture(scope="module")
def bundle(precision) -> ModelBundle:
    return load(FileSource(assets.toy_checkpoint()), torch.device("cpu"), precision.base)


class FullBatches(CaptionEncoder):
    """As on a GPU, where every caption is read in a full batch."""

    @staticmethod
    def uses_full_batches(bundle: ModelBundle) -> bool:
        return True


@pytest.mark.parametrize("kind", [CaptionEncoder, FullBatches])
@pytest.mark.parametrize("tokens", [75, 150])
def test_captions_encoded_ahead_equal_those_encoded_in_each_step(bundle, precision, kind, tokens):
    ahead, each = kind(precision, 1, False, tokens), kind(precision, 1, False, tokens)
    ahead.fill(bundle, ahead.missing(TEXTS))
    for start in range(0, len(TEXTS), 3):
        texts = TEXTS[start : start + 3][::-1]
        each.retain([])
        one = each.encode(bundle, texts)
        assert ahead.missing(texts) == []
        assert ahead.encode(bundle, texts).equals(one)
        assert one.states.shape[:2] == (len(texts), tokens + 2)


@pytest.mark.needs_gpu
def test_on_a_gpu_captions_encoded_ahead_equal_those_encoded_in_each_step():
    half = Precision(torch.float16, torch.float16, True)
    bundle = load(FileSource(assets.toy_checkpoint()), torch.device("cuda"), half.base)
    ahead, each = CaptionEncoder(half, 1, False), CaptionEncoder(half, 1, False)
    ahead.fill(bundle, TEXTS)
    for start in range(0, len(TEXTS), 3):
        each.retain([])
        assert ahead.encode(bundle, TEXTS[start : start + 3]).equals(each.encode(bundle, TEXTS[start : start + 3]))


def test_batches_are_used_where_they_change_no_bit(bundle, precision, counted):
    captions = CaptionEncoder(precision, 1, False)
    captions.fill(counted(bundle), TEXTS)
    calls = list(counted.sizes)
    alone = CaptionEncoder(precision, 1, False)
    with compute_scope(precision, bundle.device, grad=False):
        batch = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, TEXTS[:CAPTION_BATCH]), 1)
    exact = batch.equals(concat([alone.encode(bundle, [text]) for text in TEXTS[:CAPTION_BATCH]]))
    # the first batch both ways; a CPU whose batches round otherwise reads the second alone, as it does what fills none
    second = [CAPTION_BATCH] if exact else [1] * CAPTION_BATCH
    assert calls == [*[1] * CAPTION_BATCH, CAPTION_BATCH, *second, *[1] * 5]
    for text in TEXTS:
        assert captions.encode(bundle, [text]).equals(alone.encode(bundle, [text]))


def test_captions_are_read_alone_where_a_batch_changes_bits(bundle, precision, counted):
    captions = CaptionEncoder(precision, 1, False)
    captions.fill(counted(bundle, spoil=lambda read: read + 0.5 * (len(read) > 1)), TEXTS)
    assert counted.sizes == [*[1] * CAPTION_BATCH, CAPTION_BATCH, *[1] * (len(TEXTS) - CAPTION_BATCH)]
    alone = CaptionEncoder(precision, 1, False)
    for text in TEXTS:
        assert captions.encode(bundle, [text]).equals(alone.encode(bundle, [text]))


def test_captions_are_read_alone_where_their_place_in_a_full_batch_changes_bits(bundle, precision, counted):
    captions = FullBatches(precision, 1, False)
    places = torch.arange(CAPTION_BATCH).reshape(-1, 1, 1)
    captions.fill(counted(bundle, spoil=lambda read: read + places[: len(read)]), TEXTS)
    assert counted.sizes == [CAPTION_BATCH, CAPTION_BATCH, *[1] * len(TEXTS)]


def test_each_caption_is_read_once(bundle, precision, counted):
    captions, watched = CaptionEncoder(precision, 1, False), counted(bundle)
    captions.encode(watched, ["a", "b", "a"])
    captions.encode(watched, ["b", "c"])
    assert sum(counted.sizes) == 3


def test_a_learning_encoder_is_asked_in_each_step(bundle, precision, counted):
    captions, watched = CaptionEncoder(precision, 1, True), counted(bundle)
    assert captions.missing(["a", "b"]) == []
    captions.encode(watched, ["a", "b"])
    captions.encode(watched, ["a", "b"])
    assert counted.sizes == [2, 2]


def test_what_will_not_come_again_is_forgotten(bundle, precision):
    captions = CaptionEncoder(precision, 1, False)
    captions.fill(bundle, ["a", "b", "c"])
    captions.retain(["b", "x"])
    assert captions.missing(["a", "b", "c"]) == ["a", "c"]


def test_captions_reach_as_far_as_there_is_room():
    batches = [["a", "b"], ["b", "a"], ["c", "c"], ["d"]]
    assert captions_within(batches, 3) == (["a", "b", "c"], 3)
    assert captions_within(batches, 1) == (["a", "b"], 2)
    assert captions_within(batches, 99) == (["a", "b", "c", "d"], 4)
    assert captions_within([], 5) == ([], 0)


@pytest.fixture
def counted():
    """Calls with a bundle give one whose family notes how many captions it reads at once in `sizes`, and may spoil what it reads."""

    def watch(bundle: ModelBundle, spoil=lambda read: read) -> ModelBundle:
        class Watched:
            def __getattr__(self, name):
                return getattr(bundle.family, name)

            def encode_text(self, bundle_, ids, clip_skip):
                watch.sizes.append(len(ids))
                return bundle.family.encode_text(bundle_, ids, clip_skip).map(spoil)

        return attrs.evolve(bundle, family=Watched())

    watch.sizes = []
    return watch
