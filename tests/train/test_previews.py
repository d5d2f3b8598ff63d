"""Previews of short real runs: what is asked for is drawn, and nothing that goes wrong with one harms the run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file

from lora_trainer import assets
from lora_trainer.cli.sample import ImageSampler
from lora_trainer.control import Control
from lora_trainer.events import Finished, Paused, Phase, Resumed, Sampled, Saved, Stopped, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train.loop import run
from lora_trainer.train.previews import previews
from lora_trainer.train.setup import preview_prompts
from tests.network_tools.made import chosen, state_of
from tests.train.runs import events_of, small_config, tensors_of

SMALL = "--w 64 --h 64 --s 1"
SHORT = {"steps__max_train_steps": 2, "sample__every_n_steps": 1, "save__state": False}


def drawn(events) -> list[tuple[int, int, str]]:
    return [(event.step, event.index, event.prompt) for event in events if isinstance(event, Sampled)]


def warnings(events) -> list[str]:
    return [event.message.text() for event in events if isinstance(event, Warned)]


def test_a_bad_row_is_named_once_and_the_others_are_drawn(tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_text(f"bad --w wide\nstar {SMALL}\n", encoding="utf-8")
    config = small_config(tmp_path, sample__prompts=[f"moon {SMALL} --ss nothing"], sample__prompt_file=str(file), **SHORT)
    events = events_of(config, tmp_path)
    assert drawn(events) == [(0, 2, "star"), (1, 2, "star"), (2, 2, "star")]
    about = [text for text in warnings(events) if "not drawn" in text]
    assert [text.partition(" is not drawn")[0] for text in about] == ["prompt 1", f"{file}, line 1"]
    assert isinstance(events[-1], Finished)


def test_a_prompt_file_that_is_edited_is_read_again_at_the_next_preview(tmp_path: Path):
    file, control, events = tmp_path / "p.txt", Control(), []
    file.write_text(f"moon {SMALL}\n", encoding="utf-8")
    config = small_config(tmp_path, sample__prompt_file=str(file), **SHORT)
    with contextlib.closing(run(config, StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            events.append(event)
            if isinstance(event, Sampled) and event.step == 0:
                file.write_text(f"star {SMALL} --d 5\nbad --x\n", encoding="utf-8")
            if isinstance(event, Sampled) and event.step == 1:
                file.unlink()
    assert drawn(events) == [(0, 0, "moon"), (1, 0, "star")]
    assert sum("line 2 is not drawn" in text for text in warnings(events)) == 1
    assert sum("cannot be read" in text for text in warnings(events)) == 1


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError(), ZeroDivisionError("odd")])
def test_a_preview_that_fails_is_a_warning_and_the_rest_goes_on(tmp_path: Path, monkeypatch, error):
    real = previews.draw

    def failing(bundle, request, precision, stopping, make_ready):
        if request.prompt == "star":
            raise error
        return real(bundle, request, precision, stopping, make_ready)

    monkeypatch.setattr(previews, "draw", failing)
    prompts = [f"{word} {SMALL}" for word in ("moon", "star", "sun")]
    events = events_of(small_config(tmp_path, sample__prompts=prompts, sample__at_first=False, **SHORT), tmp_path)
    assert drawn(events) == [(step, index, word) for step in (1, 2) for index, word in ((0, "moon"), (2, "sun"))]
    assert sum("was left out" in text for text in warnings(events)) == 2 and isinstance(events[-1], Finished)


def test_every_file_is_on_the_disk_before_the_last_previews_are_drawn(tmp_path: Path):
    config = small_config(tmp_path, sample__prompts=[f"moon {SMALL}"], save__every_n_epochs=0, **SHORT)
    final = tmp_path / "loras" / "small.safetensors"
    with contextlib.closing(run(config, StandaloneHost(tmp_path), Control(), tmp_path / "run")) as work:
        seen = [(type(event), final.is_file()) for event in work if isinstance(event, (Saved, Phase, Sampled))]
    assert seen[-1] == (Sampled, True) and (Saved, True) in seen
    assert (tmp_path / "loras" / "small.preview.png").is_file()


def test_stop_ends_a_preview_and_the_run_saves(tmp_path: Path):
    control = Control()
    config = small_config(tmp_path, sample__prompts=["moon --w 64 --h 64 --s 900"], sample__at_first=False, **SHORT)
    events = []
    with contextlib.closing(run(config, StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            events.append(event)
            if isinstance(event, Phase) and event.name == "sampling":
                control.command("stop")
    assert drawn(events) == [] and isinstance(events[-1], Stopped)
    assert [Path(event.path).name for event in events if isinstance(event, Saved)] == ["small-step00000001.safetensors"]


def test_a_pause_comes_between_two_pictures_and_the_rest_is_drawn_after_it(tmp_path: Path):
    control, events = Control(), []
    config = small_config(tmp_path, sample__prompts=[f"moon {SMALL}", f"star {SMALL}"], sample__at_first=False, **SHORT)
    with contextlib.closing(run(config, StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            events.append(event)
            if isinstance(event, Sampled) and (event.step, event.index) == (1, 0):
                control.command("pause")
            if isinstance(event, Paused):
                control.command("resume")
    kinds = [type(event) for event in events if isinstance(event, (Sampled, Paused, Resumed))]
    assert kinds == [Sampled, Paused, Resumed, Sampled, Sampled, Sampled]


def test_samplers_with_noise_of_their_own_change_nothing_of_the_training(tmp_path: Path):
    def trained(folder: Path, prompts: list[str]):
        events_of(small_config(folder, sample__prompts=prompts, **SHORT), folder)
        return tensors_of(folder / "loras" / "small.safetensors")

    plain = trained(tmp_path / "plain", [])
    drawing = trained(tmp_path / "drawing", [f"moon {SMALL} --ss {name}" for name in ("ddpm", "euler_a", "k_dpm_2_a")])
    assert all(torch.equal(plain[name], drawing[name]) for name in plain)


def largest_difference(first: Image.Image, second: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_a_network_in_a_preview_prompt_is_used_beside_the_one_that_is_trained(tmp_path: Path, kind: str):
    """The oracle: a picture drawn after the run with both files."""
    beside = tmp_path / "loras" / "mika.safetensors"
    beside.parent.mkdir()
    save_file(state_of(chosen(assets.toy_checkpoint()), kind, alpha=4.0), beside)
    options = "--w 64 --h 64 --s 3"
    prompts = [f"moon <lora:mika:0.5> {options}", f"moon {options}", f"moon <lora:small:1> {options}", f"moon <lora:nobody:1> {options}"]
    config = small_config(tmp_path, sample__prompts=prompts, optimizer__learning_rate=0.05, optimizer__text_encoder_lr=0.05, **SHORT)
    events = events_of(config, tmp_path)
    pictures = {(event.step, event.index): Image.open(event.path) for event in events if isinstance(event, Sampled)}
    small, draws = tmp_path / "loras" / "small.safetensors", ImageSampler(assets.toy_checkpoint()).draw_seeds

    def picture(*loras: tuple[Path, float]) -> Image.Image:
        request = attrs.evolve(dict(preview_prompts(config).requests)[1], prompt="moon")
        return next(iter(draws(request, [request.seed], list(loras))))

    expected = {(0, 0): [(beside, 0.5)], (2, 0): [(beside, 0.5), (small, 1.0)], (2, 1): [(small, 1.0)], (2, 2): [(small, 1.0)]}
    wanted = {place: picture(*loras) for place, loras in expected.items()}
    assert [place for place in wanted if largest_difference(pictures[place], wanted[place]) > 2] == []
    assert min(largest_difference(wanted[2, 0], wanted[place]) for place in ((0, 0), (2, 1))) > 8
    assert [prompt for _, _, prompt in drawn(events)] == ["moon <lora:mika:0.5>", "moon", "moon <lora:small:1>", "moon <lora:nobody:1>"] * 3
    notes = [text for text in warnings(events) if text.startswith("prompt")]
    assert [note.partition(":")[0] for note in notes] == ["prompt 3", "prompt 4"]


def test_networks_in_preview_prompts_change_nothing_of_the_training(tmp_path: Path):
    beside = tmp_path / "mika.safetensors"
    save_file(state_of(chosen(assets.toy_checkpoint()), alpha=4.0), beside)

    def trained(folder: Path, prompts: list[str]):
        config = small_config(folder, sample__prompts=prompts, network__base_weights=[str(beside)], **SHORT)
        events = events_of(config, folder)
        assert len(drawn(events)) == 3 * len(prompts)
        return tensors_of(folder / "loras" / "small.safetensors")

    plain, drawing = trained(tmp_path / "plain", []), trained(tmp_path / "drawing", [f"moon <lora:mika:1> {SMALL}"])
    assert all(torch.equal(plain[name], drawing[name]) for name in plain)


def test_a_network_of_another_model_leaves_its_picture_out_and_the_run_goes_on(tmp_path: Path):
    wrong = tmp_path / "loras" / "wrong.safetensors"
    wrong.parent.mkdir()
    save_file({f"lora_unet_mid_block_{part}": torch.ones(2, 2) for part in ("x.lora_down.weight", "x.lora_up.weight")}, wrong)
    prompts = [f"moon <lora:wrong:1> {SMALL}", f"star <lora:wrong:much> {SMALL}", f"sun {SMALL}"]
    events = events_of(small_config(tmp_path, sample__prompts=prompts, sample__at_first=False, **SHORT), tmp_path)
    assert drawn(events) == [(step, 2, "sun") for step in (1, 2)] and isinstance(events[-1], Finished)
    assert sum("was left out" in text and "wrong.safetensors" in text for text in warnings(events)) == 2
    assert sum("prompt 2 is not drawn" in text for text in warnings(events)) == 1
