"""Scores the cells of a grid: draws the pictures that the ranking compares, measures them, and keeps the measurements on disk.

Every cell draws the same requests: the concept (captions of the run's pictures) and unrelated prompts, which the network should not change.
"""

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

from lora_trainer.data.captions import plain_caption
from lora_trainer.data.pictures.images import open_picture
from lora_trainer.data.records import ImageRecord
from lora_trainer.files import write_atomically
from lora_trainer.grid.files import GridFile
from lora_trainer.grid.painter import CellPicture, GridPainter, Loras
from lora_trainer.grid.rank import PROMPTS, SEEDS, Baseline, CellLatents, Measurements, distances, make_baseline, measure
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.inputs.vae import encode
from lora_trainer.train.previews.preview_prompts import SampleRequest

MIN_VALIDATION = 4
"""Validation pictures below which the training pictures are the reference."""
MAX_REFERENCES = 64
FIRST_SEED, FIRST_UNRELATED_SEED = 1000, 2000
UNRELATED_SEEDS = 2
MAX_BATCH_PIXELS = 2 * 512 * 512
"""Pixels of the pictures that are drawn in one batch."""
OWN_PROMPTS = 2
FIXED_PROMPTS = (
    "a red circle on a white background",
    "a portrait of an old man",
    "a blue square on a black background",
    "a landscape with mountains",
    "a green triangle on a gray background",
    "a yellow cross on a blue background",
    "a photo of a dog",
    "a bowl of fruit on a table",
)
"""Shapes that even the small model draws, and common subjects."""
SUBSTITUTE = "picture"


@attrs.frozen(eq=False)
class References:
    """Latents of the run's pictures at the grid's size, and the requests that every cell draws.

    `validation` is empty where there are fewer than MIN_VALIDATION such pictures. `paths` are the training pictures' files; `sha256` is
    over all pictures.
    """

    training: Tensor
    validation: Tensor
    paths: tuple[Path, ...]
    concept: tuple[SampleRequest, ...]
    unrelated: tuple[SampleRequest, ...]
    sha256: str

    @property
    def pictures(self) -> Tensor:
        """The latents that drawn pictures are compared with: validation pictures, else training pictures."""
        return self.validation if len(self.validation) else self.training


def read_references(painter: GridPainter, dataset: TrainingDataset) -> References | None:
    """Encodes the run's pictures and makes the requests; None when stopped. Raises DatasetError.

    The concept's prompts are the captions of the pictures that it is compared with, in turn.
    """
    subjects = [record for record in dataset.train_records if not record.is_reg]
    training, validation, request = _evenly_spaced(subjects), _evenly_spaced(dataset.validation_records), painter.request
    if len(validation) < MIN_VALIDATION:
        validation = []
    latents, digest = [], hashlib.sha256()
    for record in [*training, *validation]:
        if painter.control.stopping:
            return None
        latents.append(encode_picture(painter, open_picture(record.path)))
        digest.update(record.path.read_bytes())
    compared, rules = validation or training, dataset.caption_rules
    captions = list(dict.fromkeys(plain_caption(record, rules) for record in compared))
    others = unrelated_prompts(captions, rules.trigger_word, rules.class_tokens or compared[0].class_tokens) * UNRELATED_SEEDS
    return References(
        training=torch.cat(latents[: len(training)]),
        validation=torch.cat(latents[len(training) :]) if validation else torch.empty(0),
        paths=tuple(record.path for record in training),
        concept=tuple(_with_prompt(request, captions[number % len(captions)], FIRST_SEED + number) for number in range(SEEDS)),
        unrelated=tuple(_with_prompt(request, prompt, FIRST_UNRELATED_SEED + number) for number, prompt in enumerate(others)),
        sha256=digest.hexdigest(),
    )


def _evenly_spaced(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """All records, or MAX_REFERENCES of them at even intervals."""
    count = min(len(records), MAX_REFERENCES)
    return [records[number * len(records) // count] for number in range(count)]


def _with_prompt(request: SampleRequest, prompt: str, seed: int) -> SampleRequest:
    return attrs.evolve(request, prompt=prompt, seed=seed)


def unrelated_prompts(captions: Sequence[str], trigger: str, class_words: str) -> list[str]:
    """Eight prompts without the trigger: two of the run's own captions without their subject, the rest from a fixed list.

    The run's own show whether the network also changes the surroundings of the subject ("a picture on a beach").
    """
    own = list(dict.fromkeys(text for caption in captions if (text := without_subject(caption, trigger, class_words)) is not None))
    if len(own) > OWN_PROMPTS:
        own = [own[(2 * number + 1) * len(own) // (2 * OWN_PROMPTS)] for number in range(OWN_PROMPTS)]
    return list(dict.fromkeys([*own, *FIXED_PROMPTS]))[:PROMPTS]


def without_subject(caption: str, trigger: str, class_words: str) -> str | None:
    """The caption with "picture" in place of trigger and class words; None when it contains neither, or nothing else.

    Class words may contain the trigger (a folder called "10_sks cat" names both). A caption with neither is not used: it might describe the
    concept itself.
    """
    trigger = trigger.strip()
    words = _word_pattern(trigger).sub(" ", class_words).strip() if trigger else class_words.strip()
    has_class = bool(words) and _word_pattern(words).search(caption) is not None
    if (trigger and not _word_pattern(trigger).search(caption)) or not (trigger or has_class):
        return None
    text = _word_pattern(trigger).sub(" " if has_class else SUBSTITUTE, caption) if trigger else caption
    text = _tidy(_word_pattern(words).sub(SUBSTITUTE, text) if has_class else text)
    return text if text and text != SUBSTITUTE else None


def _word_pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)


def _tidy(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)


@torch.inference_mode(False)
def encode_picture(painter: GridPainter, picture: Image.Image) -> Tensor:
    """Latents [1, channels, h/8, w/8] on the CPU of a picture, cropped and resized to the grid's size."""
    size = (painter.request.width, painter.request.height)
    fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(0)
    return encode(painter.bundle()[0], pixels.contiguous()).cpu()


def nearest_picture(painter: GridPainter, references: References, picture: CellPicture) -> Path:
    """The training picture nearest to a cell's picture; kept in a .json beside it."""
    side_file = picture.path.with_suffix(".json")
    if side_file.is_file():
        return Path(json.loads(side_file.read_text(encoding="utf-8"))["nearest"])
    latents = picture.latents
    if latents is None:
        with Image.open(picture.path) as image:
            latents = encode_picture(painter, image)
    nearest = references.paths[int(distances(latents, references.training).argmin())]
    write_atomically(side_file, json.dumps({"nearest": str(nearest)}, ensure_ascii=False).encode("utf-8"))
    return nearest


@attrs.define(eq=False)
class CellScorer:
    """Measures one cell after the other; the measurements are kept in `folder`."""

    painter: GridPainter
    references: References
    folder: Path
    base: CellLatents | None = None

    def make_baseline(self) -> Baseline | None:
        """The reference distances, from pictures of the base model, which are drawn once. None when stopped."""
        self.base = self._draw_base()
        if self.base is None:
            return None
        training = self.references.training if len(self.references.validation) else None
        return make_baseline(self.base, self.references.pictures, training)

    def measure_cell(self, file: GridFile, weight: float) -> Measurements | None:
        """A cell's measurements, from `folder` or made now; None when stopped. Call `make_baseline` first."""
        assert self.base is not None
        path = self.folder / f"{self._hash(file.sha256, f'{weight:g}')}.json"
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            return Measurements(tuple(values["distances"]), tuple(values["drifts"]), values["copied"], tuple(values.get("moved", ())))
        latents = self._draw([(file.path, weight)])
        if latents is None:
            return None
        measurements = measure(latents, self.base, self.references.pictures, are_training=not len(self.references.validation))
        write_atomically(path, json.dumps(attrs.asdict(measurements)).encode("utf-8"))
        return measurements

    def _draw_base(self) -> CellLatents | None:
        from safetensors.torch import load, save

        path = self.folder / f"base-{self._hash()}.safetensors"
        if path.is_file():
            return CellLatents(**load(path.read_bytes()))
        latents = self._draw([])
        if latents is not None:
            write_atomically(path, save({"concept": latents.concept, "others": latents.others}))
        return latents

    def _draw(self, loras: Loras) -> CellLatents | None:
        requests = [*self.references.concept, *self.references.unrelated]
        size = max(1, MAX_BATCH_PIXELS // (requests[0].width * requests[0].height))
        batches = []
        for start in range(0, len(requests), size):
            batch = self.painter.sample_latents(requests[start : start + size], loras)
            if batch is None:
                return None
            batches.append(batch)
        latents = torch.cat(batches)
        return CellLatents(latents[:SEEDS].contiguous(), latents[SEEDS:].contiguous())

    def _hash(self, *words: str) -> str:
        requests = [attrs.astuple(request) for request in (*self.references.concept, *self.references.unrelated)]
        text = json.dumps([self.painter.model_key, self.references.sha256, requests, *words])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]
