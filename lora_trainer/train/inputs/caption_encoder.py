"""Encodes captions for the U-Net: ahead of the steps with a frozen text encoder, in each step with gradients when it is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from lora_trainer.messages import Message, say
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning, concat
from lora_trainer.models.tokenize import tokenize
from lora_trainer.train.inputs.caption_cache import CaptionCache
from lora_trainer.train.memory import placement
from lora_trainer.train.step.precision import Precision, compute_scope

CAPTION_BATCH = 16
"""Captions per batch. The shape never changes, since with another one a device may sum in another order."""
MAX_CACHE_BYTES = 512 * 2**20
"""Memory limit of encoded captions."""
MAX_TOKENIZED = 20_000


class CaptionEncoder:
    """Encodes captions for one run.

    A frozen encoder encodes each caption once, and the result depends neither on when nor on the other captions of its batch: encoding
    ahead trains what encoding in each step trains. Where a batch costs hardly more than one caption (CUDA), captions are encoded in
    full batches; elsewhere one by one, and in batches once a batch has given the same bits as its captions alone.

    Captions in `persistent` are kept in `cache` too, where there is one; others are random and hardly come again. `warnings` are to be
    reported and cleared by the caller.
    """

    def __init__(
        self,
        precision: Precision,
        clip_skip: int,
        is_trained: bool,
        max_token_length: int = 75,
        *,
        cache: CaptionCache | None = None,
        persistent: Collection[str] = (),
    ) -> None:
        self.precision, self.clip_skip, self.is_trained, self.max_token_length = precision, clip_skip, is_trained, max_token_length
        self.warnings: list[Message] = []
        self._cache, self._persistent = (None if is_trained else cache), frozenset(persistent)
        self._token_ids: dict[str, Tensor] = {}
        self._encoded: dict[str, Conditioning] = {}
        self._batches_are_exact: bool | None = None

    def encode(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """The conditioning of n captions; call it inside the step's own precision scope."""
        if self.is_trained:
            ids = torch.stack([self._tokenize(bundle, caption) for caption in captions]).to(bundle.device)
            return bundle.family.encode_text(bundle, ids, self.clip_skip)
        self.fill(bundle, self.missing(captions))
        return concat([self._encoded[caption] for caption in captions]).to(bundle.device)

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Captions that are not encoded yet, without duplicates; none when the encoder is trained."""
        return [] if self.is_trained else [caption for caption in dict.fromkeys(captions) if caption not in self._encoded]

    def fill(self, bundle: ModelBundle, captions: Sequence[str]) -> None:
        """Encodes captions, or reads them from the cache on disk, and keeps them in CPU memory."""
        captions = [caption for caption in captions if not self._load_cached(bundle, caption)]
        for start in range(0, len(captions), CAPTION_BATCH):
            batch = captions[start : start + CAPTION_BATCH]
            encode = self._encode_full_batch if self.uses_full_batches(bundle) else self._encode_as_alone
            encoded = encode(bundle, batch)
            for number, caption in enumerate(batch):
                self._encoded[caption] = encoded[number : number + 1].clone()
                self._save_to_cache(caption)

    @staticmethod
    def uses_full_batches(bundle: ModelBundle) -> bool:
        """Whether full batches are the reference on this device; else captions encoded alone."""
        return bundle.device.type == "cuda"

    def retain(self, captions: Iterable[str]) -> None:
        """Drops all encoded captions but these."""
        self._encoded = {caption: self._encoded[caption] for caption in captions if caption in self._encoded}

    def capacity(self) -> int:
        """Number of encoded captions that fit in memory."""
        encoded = next(iter(self._encoded.values()), None)
        return MAX_CACHE_BYTES // encoded.nbytes if encoded is not None else MAX_CACHE_BYTES // (4 * 1024 * (self.max_token_length + 2))

    def close(self) -> None:
        """Closes the cache's files."""
        if self._cache is not None:
            self._cache.close()

    def _load_cached(self, bundle: ModelBundle, caption: str) -> bool:
        if self._cache is None or caption not in self._persistent:
            return False
        conditioning = self._cache.get(bundle, caption, self.max_token_length + 2)
        if conditioning is not None:
            self._encoded[caption] = conditioning
        return conditioning is not None

    def _save_to_cache(self, caption: str) -> None:
        if self._cache is None or caption not in self._persistent:
            return
        try:
            self._cache.put(caption, self._encoded[caption])
        except OSError as error:
            self.close()
            self._cache = None
            self.warnings.append(say("Encoded captions cannot be kept on disk ({why}).", why=error.strerror or str(error)))

    def _tokenize(self, bundle: ModelBundle, caption: str) -> Tensor:
        if caption not in self._token_ids:
            if len(self._token_ids) >= MAX_TOKENIZED:
                self._token_ids.clear()
            self._token_ids[caption] = tokenize(bundle.tokenizer, [caption], self.max_token_length)[0]
        return self._token_ids[caption]

    def _encode_full_batch(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """In a batch padded with the last caption; one by one where the position in the batch changes bits."""
        padded = [*captions, *captions[-1:] * (CAPTION_BATCH - len(captions))]
        if self._batches_are_exact is None:
            rotated = self._encode_batch(bundle, [*padded[1:], padded[0]])
            self._batches_are_exact = self._encode_batch(bundle, padded).equals(rotated.map(lambda tensor: tensor.roll(1, 0)))
        return self._encode_batch(bundle, padded)[: len(captions)] if self._batches_are_exact else self._encode_singly(bundle, captions)

    def _encode_as_alone(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """With the bits of captions encoded alone; the first full batch is encoded both ways to see whether batches give the same."""
        if len(captions) == CAPTION_BATCH and self._batches_are_exact:
            return self._encode_batch(bundle, captions)
        alone = self._encode_singly(bundle, captions)
        if len(captions) == CAPTION_BATCH and self._batches_are_exact is None:
            self._batches_are_exact = self._encode_batch(bundle, captions).equals(alone)
        return alone

    def _encode_singly(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        return concat([self._encode_batch(bundle, [caption]) for caption in captions])

    def _encode_batch(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """The conditioning of these captions, on the CPU."""
        for encoder in bundle.text_encoders:
            placement.move_to_device(encoder, bundle.device)
        with compute_scope(self.precision, bundle.device, grad=False):
            ids = tokenize(bundle.tokenizer, captions, self.max_token_length).to(bundle.device)
            return bundle.family.encode_text(bundle, ids, self.clip_skip).cpu()


def captions_within(batches: Iterable[Sequence[str]], capacity: int) -> tuple[list[str], int]:
    """The distinct captions of as many batches as fit into `capacity` captions (at least one), and the number of those batches."""
    distinct: dict[str, None] = {}
    count = 0
    for captions in batches:
        new = [caption for caption in dict.fromkeys(captions) if caption not in distinct]
        if count and new and len(distinct) + len(new) > capacity:
            break
        distinct.update(dict.fromkeys(new))
        count += 1
    return list(distinct), count
