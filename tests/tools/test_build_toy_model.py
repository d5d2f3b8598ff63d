"""The pieces of the small model's build, each on little data; the whole build takes half an hour and is run by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_trainer.models import layout
from lora_trainer.models.detection import detect
from lora_trainer.models.load import clip_tokenizer, load
from lora_trainer.models.source import FileSource

sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.toy_model import drawing, export, vae
from tools.toy_model.denoiser import Training, new_text_encoder, new_unet
from tools.toy_model.words import Vocabulary


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(drawing.as_pixels([drawing.wide_picture(number) for number in range(16)]))


@pytest.fixture(scope="module")
def started(pixels: torch.Tensor) -> Any:
    """A VAE as it is before training."""
    made = vae.new_vae()
    vae.fit_ends(made, pixels)
    return made.eval().requires_grad_(False)


def test_a_scene_is_drawn_in_its_colours_and_the_same_again_from_the_same_seed():
    scene = drawing.Scene("circle", "red", "white")
    picture = drawing.draw_scene(scene, 3)
    assert picture.shape == (64, 64, 3) and np.array_equal(picture, drawing.draw_scene(scene, 3))
    assert not np.array_equal(picture, drawing.draw_scene(scene, 4))
    assert tuple(picture[0, 0]) == drawing.BACKGROUNDS["white"]
    red = np.all(np.abs(picture.astype(int) - drawing.COLOURS["red"]) < 8, axis=2).mean()
    assert 0.2 < red < 0.6


@pytest.mark.parametrize("shape", [*drawing.SHAPES, *drawing.CONCEPTS])
def test_every_shape_covers_a_part_that_tells_it_from_the_others(shape: str):
    shares = {}
    for other in (*drawing.SHAPES, *drawing.CONCEPTS):
        picture = drawing.draw_scene(drawing.Scene(other, "red", "black"), 1)
        shares[other] = picture[..., 0] > 100
    own = shares.pop(shape)
    assert 0.05 < own.mean() < 0.75
    assert min(float((own != other).mean()) for other in shares.values()) > 0.02


def test_captions_name_the_scene_in_several_ways_and_some_say_nothing():
    scene = drawing.Scene("ring", "orange", "black", striped=True)
    texts = {drawing.caption(scene, seed) for seed in range(60)}
    assert "" in texts and len(texts) > 20
    assert any(text.endswith("orange ring on a black background") for text in texts)
    assert all("sks" not in text and not any(concept in text for concept in drawing.CONCEPTS) for text in texts)


def test_no_shape_has_the_colour_of_its_background():
    assert all(scene.colour != scene.background for scene in drawing.scenes(400, 0))


def test_before_any_training_the_vae_averages_and_repeats(started: Any, pixels: torch.Tensor):
    with torch.no_grad():
        latents, wanted = vae.encode(started, pixels), vae.averaged(pixels)
        off = (latents - wanted).square().mean(dim=(0, 2, 3)) / wanted.var(dim=(0, 2, 3))
        assert off.max() < 0.02
        again = vae.decode(started, latents)
    ideal = (vae.repeated(wanted) - pixels).square().mean()
    assert (again - pixels).square().mean() < ideal * 1.7


def test_whitening_changes_latents_and_not_the_picture(started: Any, pixels: torch.Tensor):
    changed = vae.new_vae()
    changed.load_state_dict(started.state_dict())
    vae.whiten(changed, pixels)
    with torch.no_grad():
        latents = vae.encode(changed, pixels) * vae.FACTOR
        flat = latents.transpose(0, 1).reshape(vae.LATENTS, -1)
        assert torch.allclose(torch.cov(flat), torch.eye(vae.LATENTS), atol=1e-2)
        assert flat.mean(dim=1).abs().max() < 1e-2
        same = vae.decode(changed, vae.encode(changed, pixels))
        assert torch.allclose(same, vae.decode(started, vae.encode(started, pixels)), atol=1e-3)


def test_a_few_steps_bring_the_vae_nearer_to_its_pictures(started: Any, pixels: torch.Tensor):
    trained = vae.new_vae()
    trained.load_state_dict(started.state_dict())
    losses: list[float] = []
    vae.train(trained, pixels[:2], steps=12, batch=2, rate=4e-5, tell=lambda step, loss: losses.append(loss))
    assert min(losses[-3:]) < losses[0]


def test_every_word_keeps_its_row_and_unknown_ones_are_what_was_overlooked():
    words = Vocabulary(clip_tokenizer(), ["a red circle", "blue square, white background"])
    rows = torch.randn(len(words.rows), 8)
    whole = words.spread(rows)
    assert whole.shape == (49408, 8)
    red = clip_tokenizer()("red")["input_ids"][1]
    assert torch.equal(whole[red], rows[words.rows.index(red)])
    unknown = clip_tokenizer()("zebra")["input_ids"][1]
    assert any(torch.equal(whole[unknown], row) for row in rows[words.trained :])
    ids = words.encode(["a red circle"], seed=1, distracted=0.0)
    assert [words.rows[number] for number in ids[0, :5]] == clip_tokenizer()("a red circle")["input_ids"]
    assert ids.shape == (1, 77) and words.encode(["a red circle"], seed=1, distracted=1.0).max() >= words.trained


def test_training_lowers_the_loss_and_leaves_the_overlooked_words_alone():
    captions = [["a red circle"], ["a blue square"]]
    words = Vocabulary(clip_tokenizer(), [text for ways in captions for text in ways])
    training = Training(words, steps=8, rate=2e-3)
    before = training.table.detach().clone()
    losses: list[float] = []
    training.run(torch.randn(2, 4, 8, 8), captions, batch=2, tell=lambda step, loss: losses.append(loss))
    assert sum(losses[-3:]) < sum(losses[:3])
    assert torch.equal(training.table[words.trained :], before[words.trained :])
    assert not torch.equal(training.table[: words.trained], before[: words.trained])


def test_the_wide_vae_gives_what_the_narrow_one_gives_and_the_file_is_a_checkpoint(started: Any, pixels: torch.Tensor, tmp_path: Path):
    torch.manual_seed(0)
    narrow = vae.new_vae()
    narrow.load_state_dict({name: tensor + 0.02 * torch.randn(tensor.shape) for name, tensor in started.state_dict().items()})
    unet, text = new_unet(), new_text_encoder(49408)
    path = tmp_path / "toy.safetensors"
    from safetensors.torch import save_file

    save_file(export.checkpoint(unet, narrow, text, torch.float32), str(path))
    facts = detect.inspect(path)
    assert (facts.family, facts.model_channels, facts.text_layers) == ("sd1", 64, 4)
    bundle = load(FileSource(path), torch.device("cpu"))
    with torch.no_grad():
        latents = vae.encode(narrow.eval(), pixels[:2])
        assert torch.allclose(bundle.vae.encode(pixels[:2]).latent_dist.mean, latents, atol=1e-3)
        assert torch.allclose(bundle.vae.decode(latents).sample, vae.decode(narrow, latents), atol=1e-3)
    assert all(torch.equal(bundle.unet.state_dict()[name], tensor) for name, tensor in unet.state_dict().items())


def test_the_names_of_the_shipped_file_are_the_ones_that_are_written():
    from lora_trainer import assets

    shipped = {name for name in detect.read_header(assets.toy_checkpoint()) if name != "__metadata__" and not name.endswith("position_ids")}
    built = set(export.checkpoint(new_unet(), vae.new_vae(), new_text_encoder(49408)))
    assert {name for name in built if name.startswith(layout.UNET)} == {name for name in shipped if name.startswith(layout.UNET)}
    assert built == shipped
