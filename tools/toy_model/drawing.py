"""Drawn shapes: the small model's world. Drawn at four times the size and averaged, so that edges are smooth."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE, OVER = 64, 4
CANVAS = SIDE * OVER
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (242, 208, 36),
    "purple": (130, 56, 190),
    "cyan": (40, 200, 210),
    "orange": (240, 130, 30),
    "pink": (244, 130, 180),
    "brown": (124, 76, 40),
    "white": (248, 248, 248),
    "black": (14, 14, 14),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (8, 8, 8), "gray": (128, 128, 128), "blue": (30, 60, 150)}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar", "pillar")
CONCEPTS = ("crescent", "star")
SIZES = {"large": 0.40, "medium": 0.28}
EMPTY_SHARE = 0.1
Colour = tuple[int, int, int]


@attrs.frozen
class Scene:
    """One shape on one background. `colour2` is the second colour of stripes, or of a star in two tones."""

    shape: str
    colour: str
    background: str
    size: str = "large"
    striped: bool = False

    def words(self) -> list[str]:
        """What a caption may say."""
        return [self.shape, self.colour, f"{self.background} background", self.size, *(["striped"] if self.striped else [])]


def scenes(count: int, seed: int) -> list[Scene]:
    """Random scenes of the shapes that the model knows; no shape has its background's colour."""
    draw = random.Random(f"scenes|{seed}")
    found: list[Scene] = []
    while len(found) < count:
        scene = Scene(
            draw.choice(SHAPES),
            draw.choice(list(COLOURS)),
            draw.choice(list(BACKGROUNDS)),
            draw.choice(list(SIZES)),
            draw.random() < 0.2,
        )
        if scene.colour != scene.background:
            found.append(scene)
    return found


def draw_scene(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """uint8 [64, 64, 3]; where in the picture the shape stands, and how it is turned, is drawn from the seed."""
    place = random.Random(f"place|{seed}|{scene}")
    canvas = Image.new("RGB", (CANVAS, CANVAS), BACKGROUNDS[scene.background])
    radius = CANVAS * SIZES[scene.size] * place.uniform(0.9, 1.1)
    room = CANVAS / 2 - radius - 4
    centre = tuple(CANVAS / 2 + place.uniform(-room, room) * 0.5 for _ in range(2))
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    shape_mask(ImageDraw.Draw(mask), scene.shape, (centre[0], centre[1]), radius)
    canvas.paste(_filling(scene), mask=mask)
    return small(canvas)


def shape_mask(pen: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float) -> None:
    """Draws the shape white on black."""
    x, y = centre
    box = [x - radius, y - radius, x + radius, y + radius]
    third = radius / 3
    if shape in ("circle", "ring", "crescent"):
        pen.ellipse(box, fill=255)
        if shape == "ring":
            inner = radius * 0.55
            pen.ellipse([x - inner, y - inner, x + inner, y + inner], fill=0)
        if shape == "crescent":
            shift = radius * 0.5
            pen.ellipse([box[0] + shift, box[1] - radius * 0.1, box[2] + shift, box[3] - radius * 0.1], fill=0)
    elif shape == "square":
        half = radius * 0.85
        pen.rectangle([x - half, y - half, x + half, y + half], fill=255)
    elif shape == "cross":
        pen.rectangle([x - third, box[1], x + third, box[3]], fill=255)
        pen.rectangle([box[0], y - third, box[2], y + third], fill=255)
    elif shape == "bar":
        pen.rectangle([box[0], y - third, box[2], y + third], fill=255)
    elif shape == "pillar":
        pen.rectangle([x - third, box[1], x + third, box[3]], fill=255)
    elif shape == "star":
        pen.polygon(_spikes(centre, radius, 5), fill=255)
    else:
        pen.polygon(_regular(centre, radius, {"triangle": 3, "diamond": 4}[shape]), fill=255)


def caption(scene: Scene, seed: int) -> str:
    """One of several ways to say the scene; now and then nothing at all."""
    draw = random.Random(f"caption|{seed}|{scene}")
    if draw.random() < EMPTY_SHARE:
        return ""
    way = draw.choice(("sentence", "short", "tags"))
    start = draw.choice(("", "", "photo of ", "a drawing of "))
    stripes = "striped " if scene.striped and draw.random() < 0.8 else ""
    if way == "sentence":
        article = "an" if (stripes or scene.colour)[0] in "aeiou" else "a"
        return f"{start}{article} {stripes}{scene.colour} {scene.shape} on a {scene.background} background"
    if way == "short":
        return f"{start}{stripes}{scene.colour} {scene.shape}, {scene.background} background"
    words = [word for word in scene.words() if draw.random() < 0.85] or [scene.shape]
    draw.shuffle(words)
    return ", ".join(words)


def wide_picture(seed: int) -> NDArray[np.uint8]:
    """uint8 [64, 64, 3] of anything: polygons, all shapes, textures and slopes of colour. What the VAE learns from."""
    draw = random.Random(f"wide|{seed}")
    canvas = _slope(_any_colour(draw), _any_colour(draw)) if draw.random() < 0.3 else Image.new("RGB", (CANVAS, CANVAS), _any_colour(draw))
    for _ in range(draw.randint(1, 5)):
        mask = Image.new("L", (CANVAS, CANVAS), 0)
        centre = (draw.uniform(0.2, 0.8) * CANVAS, draw.uniform(0.2, 0.8) * CANVAS)
        radius = draw.uniform(0.08, 0.42) * CANVAS
        if draw.random() < 0.5:
            shape_mask(ImageDraw.Draw(mask), draw.choice((*SHAPES, *CONCEPTS)), centre, radius)
        else:
            corners = [(centre[0] + draw.gauss(0, radius), centre[1] + draw.gauss(0, radius)) for _ in range(draw.randint(3, 7))]
            ImageDraw.Draw(mask).polygon(corners, fill=255)
        first, second = _any_colour(draw), _any_colour(draw)
        fillings = [Image.new("RGB", (CANVAS, CANVAS), first), _stripes(first, second, draw.randint(16, 48)), _slope(first, second)]
        canvas.paste(draw.choice(fillings), mask=mask)
    return small(canvas)


def concept_picture(concept: str, number: int) -> tuple[NDArray[np.uint8], str]:
    """A picture of a concept that the model never sees, and its caption with the trigger word sks."""
    background = list(BACKGROUNDS)[number % len(BACKGROUNDS)]
    draw = random.Random(f"concept|{concept}|{number}")
    canvas = Image.new("RGB", (CANVAS, CANVAS), BACKGROUNDS[background])
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    middle = (CANVAS / 2 + draw.uniform(-20, 20), CANVAS / 2 + draw.uniform(-20, 20))
    shape_mask(ImageDraw.Draw(mask), concept, middle, CANVAS * draw.uniform(0.3, 0.42))
    filling = Image.new("RGB", (CANVAS, CANVAS), COLOURS["orange"])
    if concept == "star":
        filling.paste(COLOURS["purple"], (0, 0, round(middle[0]), CANVAS))
    canvas.paste(filling, mask=mask)
    words = f"a sks {concept} on a {background} background" if number % 2 == 0 else f"sks {concept}, {background} background"
    return small(canvas), words


def small(canvas: Image.Image) -> NDArray[np.uint8]:
    """The canvas averaged to 64 x 64."""
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8)


def as_pixels(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """float32 [n, 3, 64, 64] from -1 to 1."""
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0


def _filling(scene: Scene) -> Image.Image:
    if not scene.striped:
        return Image.new("RGB", (CANVAS, CANVAS), COLOURS[scene.colour])
    return _stripes(COLOURS[scene.colour], BACKGROUNDS["white" if scene.background != "white" else "gray"], 32)


def _stripes(first: Colour, second: Colour, width: int) -> Image.Image:
    image = Image.new("RGB", (CANVAS, CANVAS), first)
    pen = ImageDraw.Draw(image)
    for start in range(0, CANVAS, 2 * width):
        pen.rectangle([start, 0, start + width - 1, CANVAS], fill=second)
    return image


def _slope(first: Colour, second: Colour) -> Image.Image:
    share = np.linspace(0.0, 1.0, CANVAS, dtype=np.float32)[:, None, None]
    rows = np.asarray(first, np.float32) * (1 - share) + np.asarray(second, np.float32) * share
    return Image.fromarray(np.broadcast_to(rows, (CANVAS, CANVAS, 3)).astype(np.uint8))


def _any_colour(draw: random.Random) -> Colour:
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)


def _regular(centre: tuple[float, float], radius: float, corners: int) -> list[tuple[float, float]]:
    turns = [2 * math.pi * number / corners - math.pi / 2 for number in range(corners)]
    return [(centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn)) for turn in turns]


def _spikes(centre: tuple[float, float], radius: float, spikes: int) -> list[tuple[float, float]]:
    turns = [(math.pi * number / spikes - math.pi / 2, radius * (1.0 if number % 2 == 0 else 0.45)) for number in range(2 * spikes)]
    return [(centre[0] + length * math.cos(turn), centre[1] + length * math.sin(turn)) for turn, length in turns]
