"""It learns: pictures of things that the small model has never seen bring the validation loss down."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lora_trainer.events import Validated
from tests.train.runs import assets, events_of, small_config

STEPS = 240
SIDE, FINE = 64, 4


def heart(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, colour: str) -> None:
    draw.pieslice((x - size, y - size, x, y), 0, 360, fill=colour)
    draw.pieslice((x, y - size, x + size, y), 0, 360, fill=colour)
    draw.polygon([(x - size * 0.93, y - size * 0.25), (x + size * 0.93, y - size * 0.25), (x, y + size)], fill=colour)


def arrow(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, colour: str) -> None:
    draw.rectangle((x - size, y - size * 0.25, x + size * 0.2, y + size * 0.25), fill=colour)
    draw.polygon([(x + size * 0.1, y - size * 0.8), (x + size, y), (x + size * 0.1, y + size * 0.8)], fill=colour)


def house(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, colour: str) -> None:
    draw.rectangle((x - size * 0.7, y - size * 0.1, x + size * 0.7, y + size), fill=colour)
    draw.polygon([(x - size, y - size * 0.1), (x, y - size), (x + size, y - size * 0.1)], fill=colour)


THINGS = {"heart": (heart, "magenta"), "arrow": (arrow, "darkgreen"), "house": (house, "hotpink")}


def draw_pictures(folder: Path, thing: str, first: int) -> None:
    """Twelve pictures with captions: places, sizes and backgrounds vary by a fixed rule."""
    shape, colour = THINGS[thing]
    folder.mkdir(parents=True)
    for number in range(first, first + 12):
        background = ("white", "black", "gray")[number % 3]
        image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), background)
        place = [SIDE * FINE * (0.4 + 0.2 * ((number * step) % 7) / 6) for step in (3, 5)]
        shape(ImageDraw.Draw(image), *place, SIDE * FINE * (0.22 + 0.02 * (number % 5)), colour)
        image.resize((SIDE, SIDE), Image.Resampling.BOX).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a sks {thing} on a {background} background", encoding="utf-8")


@pytest.fixture
def pictures(request, tmp_path: Path) -> Path:
    thing = request.param
    if thing in ("crescent", "star"):
        return assets.toy_pictures() / thing
    for part, first in (("train", 0), ("val", 50)):
        draw_pictures(tmp_path / "pictures" / part / f"10_sks {thing}", thing, first)
    return tmp_path / "pictures"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pictures", "early", "late"),
    [("crescent", 0.35, 0.45), ("star", 0.20, 0.30), ("heart", 0.20, 0.30), ("arrow", 0.20, 0.30), ("house", 0.20, 0.30)],
    indirect=["pictures"],
)
def test_validation_loss_falls_for_things_never_seen_before(tmp_path: Path, pictures: Path, early: float, late: float):
    config = small_config(
        tmp_path,
        data__train_data_dir=str(pictures / "train"),
        data__batch_size=4,
        data__caption_dropout_rate=0.1,
        network__dim=8,
        network__alpha=8,
        schedule__warmup_steps=10,
        steps__max_train_steps=STEPS,
        validate__data_dir=str(pictures / "val"),
        validate__every_n_steps=60,
        save__every_n_epochs=0,
    )
    losses = {event.step: event.loss for event in events_of(config, tmp_path) if isinstance(event, Validated)}
    assert losses[60] <= (1 - early) * losses[0]
    assert losses[STEPS] <= (1 - late) * losses[0]
