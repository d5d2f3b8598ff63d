"""Captions to what the U-Net reads: encoded ahead while the text encoder is frozen, in each step with gradients while it learns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from lora_trainer.messages import Message, say
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning, together
from lora_trainer.models.tokenize import tokenize
from lora_trainer.train.inputs.caption_cache import CaptionCache
from lora_trainer.train.step.precision import Precision, cast_for_inference, compute_scope

ROWS = 16
"""Captions of one batch. The shape never changes: with another one a device may add up in another order."""
MEMORY = 512 * 2**20
"""Bytes that encoded captions may take."""
IDS_KEPT = 20_000


class CaptionEncoder:
    """Encodes captions for one run.

    A frozen encoder reads each caption once, and what comes out does not depend on when, nor on the captions beside it: one that was
    encoded ahead trains bit for bit what one encoded in its own step trains. Where a batch costs hardly more than one caption (CUDA),
    each is read in a full batch; elsewhere alone, and in batches as soon as one has given the same bits as its captions alone.

    What is read of the captions in `lasting` is kept in `store` too, where there is one; others are not worth the room, being drawn
    anew each time. `told`: what is to be said of that.
    """

    def __init__(
        self,
        precision: Precision,
        clip_skip: int,
        trained: bool,
        max_token_length: int = 75,
        *,
        store: CaptionCache | None = None,
        lasting: Collection[str] = (),
    ) -> None:
        self.precision, self.clip_skip, self.trained, self.max_token_length = precision, clip_skip, trained, max_token_length
        self.told: list[Message] = []
        self._store, self._lasting = (None if trained else store), frozenset(lasting)
        self._ids: dict[str, Tensor] = {}
        self._encoded: dict[str, Conditioning] = {}
        self._batches_agree: bool | None = None

    def encode(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """What the U-Net reads of n captions; call it inside the step's own precision scope."""
        if self.trained:
            ids = torch.stack([self._tokens(bundle, caption) for caption in captions]).to(bundle.device)
            return bundle.family.encode_text(bundle, ids, self.clip_skip)
        self.fill(bundle, self.missing(captions))
        return together([self._encoded[caption] for caption in captions]).to(bundle.device)

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Those that are still to be encoded, each once; none while the encoder learns."""
        return [] if self.trained else [caption for caption in dict.fromkeys(captions) if caption not in self._encoded]

    def fill(self, bundle: ModelBundle, captions: Sequence[str]) -> None:
        """Encodes captions, or reads what is kept of them, and keeps them in ordinary memory."""
        captions = [caption for caption in captions if not self._read_back(bundle, caption)]
        for start in range(0, len(captions), ROWS):
            some = captions[start : start + ROWS]
            read = self._in_full_batch if self.always_full(bundle) else self._alone
            encoded = read(bundle, some)
            for number, caption in enumerate(some):
                self._encoded[caption] = encoded[number : number + 1].clone()
                self._keep(caption)

    @staticmethod
    def always_full(bundle: ModelBundle) -> bool:
        """Whether full batches are what captions are compared with here; else captions read alone."""
        return bundle.device.type == "cuda"

    def forget_others(self, captions: Iterable[str]) -> None:
        """Drops what is kept of other captions than these."""
        self._encoded = {caption: self._encoded[caption] for caption in captions if caption in self._encoded}

    def room(self) -> int:
        """How many different captions may be kept at a time."""
        one = next(iter(self._encoded.values()), None)
        return MEMORY // (one.nbytes) if one is not None else MEMORY // (4 * 1024 * (self.max_token_length + 2))

    def close(self) -> None:
        """Lets go of the files."""
        if self._store is not None:
            self._store.close()

    def _read_back(self, bundle: ModelBundle, caption: str) -> bool:
        if self._store is None or caption not in self._lasting:
            return False
        kept = self._store.get(bundle, caption, self.max_token_length + 2)
        if kept is not None:
            self._encoded[caption] = kept
        return kept is not None

    def _keep(self, caption: str) -> None:
        if self._store is None or caption not in self._lasting:
            return
        try:
            self._store.put(caption, self._encoded[caption])
        except OSError as error:
            self.close()
            self._store = None
            self.told.append(say("Encoded captions cannot be kept on disk ({why}).", why=error.strerror or str(error)))

    def _tokens(self, bundle: ModelBundle, caption: str) -> Tensor:
        if caption not in self._ids:
            if len(self._ids) >= IDS_KEPT:
                self._ids.clear()
            self._ids[caption] = tokenize(bundle.tokenizer, [caption], self.max_token_length)[0]
        return self._ids[caption]

    def _in_full_batch(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """Read with the last caption repeated up to ROWS; one by one where the place in the batch would change bits."""
        filled = [*captions, *captions[-1:] * (ROWS - len(captions))]
        if self._batches_agree is None:
            turned = self._read(bundle, [*filled[1:], filled[0]])
            self._batches_agree = self._read(bundle, filled).equals(turned.map(lambda tensor: tensor.roll(1, 0)))
        return self._read(bundle, filled)[: len(captions)] if self._batches_agree else self._one_by_one(bundle, captions)

    def _alone(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """As if each was read alone; the first full batch is read both ways, which tells whether batches may be used."""
        if len(captions) == ROWS and self._batches_agree:
            return self._read(bundle, captions)
        alone = self._one_by_one(bundle, captions)
        if len(captions) == ROWS and self._batches_agree is None:
            self._batches_agree = self._read(bundle, captions).equals(alone)
        return alone

    def _one_by_one(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        return together([self._read(bundle, [caption]) for caption in captions])

    def _read(self, bundle: ModelBundle, captions: Sequence[str]) -> Conditioning:
        """What is read of them, in ordinary memory."""
        for encoder in bundle.text_encoders:
            cast_for_inference(encoder, bundle.device)
        with compute_scope(self.precision, bundle.device, grad=False):
            ids = tokenize(bundle.tokenizer, captions, self.max_token_length).to(bundle.device)
            return bundle.family.encode_text(bundle, ids, self.clip_skip).cpu()


def captions_within(showings: Iterable[Sequence[str]], room: int) -> tuple[list[str], int]:
    """The different captions of as many batches as fit into `room` captions, at least one, and how many batches that are."""
    found: dict[str, None] = {}
    count = 0
    for texts in showings:
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if count and new and len(found) + len(new) > room:
            break
        found.update(dict.fromkeys(new))
        count += 1
    return list(found), count
