"""The words that a run's pictures are shown with, as they stand at each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_trainer.data import captions
from lora_trainer.data.batch_sampler import Item
from lora_trainer.data.records import ImageRecord
from lora_trainer.train.inputs.examples import text_of
from lora_trainer.train.progress import Course

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import Pictures


class Wording:
    """Captions of one run: a pure function of the seed, the epoch, the step and the showing."""

    def __init__(self, pictures: Pictures, seed: int, course: Course) -> None:
        self.pictures, self.seed, self.course = pictures, seed, course

    def of(self, item: Item, step: int) -> str:
        """The caption of a showing in this epoch, as it reads after `step` steps."""
        course = self.course
        return text_of(self.pictures, item, seed=self.seed, epoch=course.epoch, step=step, total_steps=course.plan.total_steps)

    def held(self, record: ImageRecord) -> str:
        """The caption of a picture that is held back: the same each time."""
        return captions.caption_of(record, self.pictures.rules_of(record))
