"""Measures cells of a grid: draws the pictures that the ranking compares, and keeps what comes out of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lora_trainer.data.captions import caption_of
from lora_trainer.data.pictures.images import open_picture
from lora_trainer.data.records import ImageRecord
from lora_trainer.files import write_atomically
from lora_trainer.grid.files import GridFile
from lora_trainer.grid.painter import GridPainter, Loras, Picture
from lora_trainer.grid.rank import PROMPTS, SEEDS, Drawn, Measured, Yardstick, distances, measure, yardstick
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.inputs.vae import encode
from lora_trainer.train.previews.preview_prompts import SampleRequest

FEWEST_HELD = 4
MOST_REFERENCES = 64
FIRST_SEED, FIRST_EVERYDAY_SEED = 1000, 2000
EVERYDAY_SEEDS = 2
AT_ONCE = 2 * 512 * 512
"""Pixels of the pictures that are drawn together."""


@attrs.frozen(eq=False)
class References:
    """Latents of the run's pictures in the grid's size, and what is drawn to be held against them.

    `held` is empty where too few were held back: then the training pictures serve. `paths` are the training pictures' files.
    """

    training: Tensor
    held: Tensor
    paths: tuple[Path, ...]
    concept: tuple[SampleRequest, ...]
    everyday: tuple[SampleRequest, ...]
    sha256: str

    @property
    def pictures(self) -> Tensor:
        """What drawn pictures are held against."""
        return self.held if len(self.held) else self.training


def read_references(painter: GridPainter, pictures: TrainingDataset) -> References | None:
    """Encodes the run's pictures and words the prompts; None when stopped. Raises DatasetError.

    The concept is drawn from the captions of the pictures that it is held against, in turn.
    """
    subjects = [record for record in pictures.trained if not record.is_reg]
    trained, held, request = _some(subjects), _some(pictures.held), painter.request
    if len(held) < FEWEST_HELD:
        held = []
    latents, digest = [], hashlib.sha256()
    for record in [*trained, *held]:
        if painter.control.stopping:
            return None
        latents.append(latents_of(painter, open_picture(record.path)))
        digest.update(record.path.read_bytes())
    shown = held or trained
    captions = list(dict.fromkeys(caption_of(record, pictures.rules) for record in shown))
    others = everyday_prompts(captions, pictures.rules.trigger_word, pictures.rules.class_tokens or shown[0].class_tokens)
    return References(
        training=torch.cat(latents[: len(trained)]),
        held=torch.cat(latents[len(trained) :]) if held else torch.empty(0),
        paths=tuple(record.path for record in trained),
        concept=tuple(_asked(request, captions[number % len(captions)], FIRST_SEED + number) for number in range(SEEDS)),
        everyday=tuple(_asked(request, prompt, FIRST_EVERYDAY_SEED + number) for number, prompt in enumerate(others * EVERYDAY_SEEDS)),
        sha256=digest.hexdigest(),
    )


@torch.inference_mode(False)
def latents_of(painter: GridPainter, picture: Image.Image) -> Tensor:
    """Latents [1, 4, h/8, w/8] on the CPU of a picture, brought to the grid's size."""
    size = (painter.request.width, painter.request.height)
    fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(0)
    return encode(painter.bundle()[0], pixels.contiguous()).cpu()


def nearest_picture(painter: GridPainter, references: References, picture: Picture) -> Path:
    """The training picture that is nearest to a cell's; noted beside the cell."""
    beside = picture.path.with_suffix(".json")
    if beside.is_file():
        return Path(json.loads(beside.read_text(encoding="utf-8"))["nearest"])
    latents = picture.latents
    if latents is None:
        with Image.open(picture.path) as image:
            latents = latents_of(painter, image)
    found = references.paths[int(distances(latents, references.training).argmin())]
    write_atomically(beside, json.dumps({"nearest": str(found)}, ensure_ascii=False).encode("utf-8"))
    return found


@attrs.define(eq=False)
class CellScorer:
    """Measures one cell after the other; `folder` keeps the numbers."""

    painter: GridPainter
    references: References
    folder: Path
    base: Drawn | None = None

    def yardstick(self) -> Yardstick | None:
        """From what the base draws; drawn once. None when stopped."""
        self.base = self._kept_base()
        if self.base is None:
            return None
        training = self.references.training if len(self.references.held) else None
        return yardstick(self.base, self.references.pictures, training)

    def measured(self, file: GridFile, weight: float) -> Measured | None:
        """A cell's numbers, kept or measured now; None when stopped. `yardstick` comes first."""
        assert self.base is not None
        path = self.folder / f"{self._hash(file.sha256, f'{weight:g}')}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Measured(tuple(kept["distances"]), tuple(kept["drifts"]), kept["copied"])
        drawn = self._draw([(file.path, weight)])
        if drawn is None:
            return None
        found = measure(drawn, self.base, self.references.pictures, are_training=not len(self.references.held))
        write_atomically(path, json.dumps(attrs.asdict(found)).encode("utf-8"))
        return found

    def _kept_base(self) -> Drawn | None:
        from safetensors.torch import load, save

        path = self.folder / f"base-{self._hash()}.safetensors"
        if path.is_file():
            return Drawn(**load(path.read_bytes()))
        drawn = self._draw([])
        if drawn is not None:
            write_atomically(path, save({"concept": drawn.concept, "others": drawn.others}))
        return drawn

    def _draw(self, loras: Loras) -> Drawn | None:
        requests = [*self.references.concept, *self.references.everyday]
        size = max(1, AT_ONCE // (requests[0].width * requests[0].height))
        drawn = []
        for start in range(0, len(requests), size):
            latents = self.painter.latents(requests[start : start + size], loras)
            if latents is None:
                return None
            drawn.append(latents)
        both = torch.cat(drawn)
        return Drawn(both[:SEEDS].contiguous(), both[SEEDS:].contiguous())

    def _hash(self, *words: str) -> str:
        asked = [attrs.astuple(request) for request in (*self.references.concept, *self.references.everyday)]
        text = json.dumps([self.painter.model_key, self.references.sha256, asked, *words])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]


def _asked(request: SampleRequest, prompt: str, seed: int) -> SampleRequest:
    return attrs.evolve(request, prompt=prompt, seed=seed)


def _some(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """All of a few, else evenly taken ones of many."""
    count = min(len(records), MOST_REFERENCES)
    return [records[number * len(records) // count] for number in range(count)]


OWN = 2
EVERYDAY = (
    "a red circle on a white background",
    "a portrait of an old man",
    "a blue square on a black background",
    "a landscape with mountains",
    "a green triangle on a gray background",
    "a yellow cross on a blue background",
    "a photo of a dog",
    "a bowl of fruit on a table",
)
"""Shapes that even the small model draws, and what everybody draws."""
NOUN = "picture"


def everyday_prompts(captions: Sequence[str], trigger: str, class_words: str) -> list[str]:
    """Eight prompts without the trigger: two of the run's own captions without their subject, the rest from a fixed list.

    The own ones tell whether the network also changes what stands around the subject ("a picture on a beach").
    """
    own = dict.fromkeys(text for caption in captions if (text := without_subject(caption, trigger, class_words)) is not None)
    texts = list(own)
    picked = [texts[(2 * number + 1) * len(texts) // (2 * OWN)] for number in range(OWN)] if len(texts) > OWN else texts
    return list(dict.fromkeys([*picked, *EVERYDAY]))[:PROMPTS]


def without_subject(caption: str, trigger: str, class_words: str) -> str | None:
    """The caption with "picture" where trigger and class words stood; None when it held neither, or nothing else is left.

    Class words may hold the trigger (a folder called "10_sks cat" names both). A caption without either is not used: it might
    be the concept itself.
    """
    trigger = trigger.strip()
    words = _word(trigger).sub(" ", class_words).strip() if trigger else class_words.strip()
    named = bool(words) and _word(words).search(caption) is not None
    if (trigger and not _word(trigger).search(caption)) or not (trigger or named):
        return None
    text = _word(trigger).sub(" " if named else NOUN, caption) if trigger else caption
    text = _tidy(_word(words).sub(NOUN, text) if named else text)
    return text if text and text != NOUN else None


def _word(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)


def _tidy(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)
