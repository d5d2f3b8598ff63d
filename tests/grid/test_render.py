"""Rendering a grid of a real, short run on the small model."""

from __future__ import annotations

import contextlib
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_trainer.control import Control
from lora_trainer.errors import TrainerError
from lora_trainer.events import Event, Finished, Paused, Phase, Rendered, Resumed, Stopped, Warned
from lora_trainer.grid.render import render
from lora_trainer.host.base import HostPaths
from lora_trainer.host.standalone import FileLease, StandaloneHost
from tests.grid.conftest import EPOCHS, TrainedRun

PROMPT = "sks crescent, black background <lora:small-NUM:STRENGTH>"
WEIGHTS = [0.5, 1.0]


def grid_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "grid.json").read_text(encoding="utf-8"))


def drawn(
    run: TrainedRun, *, prompt: str = PROMPT, weights: list[float] = WEIGHTS, epochs: list[int] | None = None, **more: Any
) -> list[Event]:
    """All events of a grid in the run's own folder."""
    host, control, out = more.get("host", run.host), more.get("control", Control()), more.get("out", run.folder.grid_dir)
    with contextlib.closing(render(run.path, host, prompt, weights, epochs, control, out)) as work:
        return list(work)


def rendered(events: list[Event]) -> list[Rendered]:
    return [event for event in events if isinstance(event, Rendered)]


def test_a_grid_has_one_picture_per_cell_and_a_ranked_shortlist(trained: TrainedRun):
    events = drawn(trained)
    cells = [(epoch, weight) for epoch in range(1, EPOCHS + 1) for weight in WEIGHTS]
    assert [(event.epoch, event.weight) for event in rendered(events)] == cells
    found = grid_json(trained.folder.grid_dir)
    assert [(cell["epoch"], cell["weight"]) for cell in found["cells"]] == cells
    for cell in found["cells"]:
        assert Image.open(trained.folder.grid_dir / cell["image"]).size == (64, 64)
        assert cell["prompt"] == f"sks crescent, black background <lora:small-{cell['epoch']:06d}:{cell['weight']:g}>"
        assert Path(cell["nearest"]).parent.name == "1_sks crescent"
    assert 1 <= sum(cell["scores"] is not None for cell in found["cells"]) <= 6
    assert found["best"] is None and "No cell shows the concept" in found["sentence"]  # nine steps teach nothing
    assert found["diagnosis"]["kind"] == "too-little"
    assert (found["seed"], found["steps"], found["cfg"]) == (5, 2, 5.0)  # the run's first preview prompt
    assert isinstance(events[-1], Finished) and Path(events[-1].files[0]).name == "grid.png"
    assert Image.open(trained.folder.grid_dir / "grid.png").width > 2 * 64
    assert [event.name for event in events if isinstance(event, Phase)] == ["rendering", "ranking"]


def test_what_is_drawn_is_not_drawn_again(trained: TrainedRun):
    drawn(trained)
    before = grid_json(trained.folder.grid_dir)
    lost = trained.folder.grid_dir / before["cells"][2]["image"]
    pixels = Image.open(lost).tobytes()
    lost.unlink()
    assert [event.cached for event in rendered(drawn(trained))] == [True, True, False, True, True, True]
    assert Image.open(lost).tobytes() == pixels
    after = grid_json(trained.folder.grid_dir)
    assert after["cells"] == before["cells"]
    assert not any(event.cached for event in rendered(drawn(trained, prompt=PROMPT + " --d 6", weights=[1.0], epochs=[2])))


def test_other_networks_of_the_prompt_count(trained: TrainedRun):
    shutil.copyfile(trained.lora(3), trained.loras / "light.safetensors")
    drawn(trained, weights=[1.0], epochs=[1])
    alone = Image.open(trained.folder.grid_dir / grid_json(trained.folder.grid_dir)["cells"][0]["image"]).tobytes()
    drawn(trained, prompt=PROMPT + " <lora:light:0.5>", weights=[1.0], epochs=[1])
    found = grid_json(trained.folder.grid_dir)
    assert Image.open(trained.folder.grid_dir / found["cells"][0]["image"]).tobytes() != alone
    with pytest.raises(TrainerError, match="shadow"):
        drawn(trained, prompt=PROMPT + " <lora:shadow:0.5>", weights=[1.0], epochs=[1])


def test_weight_zero_is_the_picture_without_the_network(trained: TrainedRun):
    drawn(trained, weights=[0.0, 1.0], epochs=[3])
    found = grid_json(trained.folder.grid_dir)
    zero, full = (Image.open(trained.folder.grid_dir / cell["image"]).tobytes() for cell in found["cells"])
    assert zero == Image.open(trained.folder.grid_dir / found["base"]).tobytes() != full


def test_a_stopped_grid_keeps_its_cells_and_goes_on_from_there(trained: TrainedRun):
    control = Control()
    events = []
    with contextlib.closing(render(trained.path, trained.host, PROMPT, WEIGHTS, None, control, trained.folder.grid_dir)) as work:
        for event in work:
            events.append(event)
            if len(rendered(events)) == 3:
                control.command("stop")
    assert isinstance(events[-1], Stopped) and events[-1].step == 3
    found = grid_json(trained.folder.grid_dir)
    assert len(found["cells"]) == 3 and found["best"] is None and found["epochs"] == [1, 2, 3]
    assert [event.cached for event in rendered(drawn(trained))] == [True] * 3 + [False] * 3


def test_a_ranking_that_was_stopped_names_no_best_and_says_so(trained: TrainedRun):
    control = Control()
    with contextlib.closing(render(trained.path, trained.host, PROMPT, [1.0], None, control, trained.folder.grid_dir)) as work:
        for event in work:
            if isinstance(event, Phase) and event.name == "ranking":
                control.command("stop")
    found = grid_json(trained.folder.grid_dir)
    assert found["best"] is None and "stopped" in found["sentence"] and len(found["cells"]) == EPOCHS


def test_only_files_that_the_run_wrote_are_used(trained: TrainedRun):
    trained.lora(2).write_bytes(trained.lora(1).read_bytes())
    trained.lora(1).unlink()
    shutil.copyfile(trained.lora(3), trained.lora(9))
    events = drawn(trained, weights=[1.0])
    assert {event.epoch for event in rendered(events)} == {3}
    warnings = " ".join(str(event.message) for event in events if isinstance(event, Warned))
    assert "small-000002.safetensors is not the file that this run wrote" in warnings
    assert "small-000001.safetensors is gone" in warnings
    assert "small-000009.safetensors is not from this run" in warnings


def test_an_epoch_without_a_usable_file_is_refused(trained: TrainedRun):
    trained.lora(2).unlink()
    with pytest.raises(TrainerError, match=r"epoch 2 has no usable file.*1, 3"):
        drawn(trained, epochs=[2, 3])


def test_a_grid_elsewhere_is_whole_there(trained: TrainedRun, tmp_path: Path):
    out = tmp_path / "elsewhere"
    drawn(trained, weights=[1.0], epochs=[3], out=out)
    found = grid_json(out)
    assert found == grid_json(trained.folder.grid_dir)
    assert (out / found["cells"][0]["image"]).is_file() and (out / found["base"]).is_file() and (out / "grid.png").is_file()


def test_without_the_pictures_the_grid_is_drawn_and_not_ranked(trained: TrainedRun):
    config = trained.folder.config_file
    text = config.read_text(encoding="utf-8")
    gone = next(line for line in text.splitlines() if line.startswith("train_data_dir"))
    config.write_text(text.replace(gone, 'train_data_dir = "/nowhere/at/all"'), encoding="utf-8")
    events = drawn(trained, weights=[1.0], epochs=[3])
    found = grid_json(trained.folder.grid_dir)
    assert len(rendered(events)) == 1 and found["cells"][0]["scores"] is None
    assert "Not ranked" in found["sentence"] and any(isinstance(event, Warned) for event in events)


def test_the_consumer_keeps_its_own_torch(trained: TrainedRun):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with contextlib.closing(render(trained.path, trained.host, PROMPT, [1.0], [3], Control(), trained.folder.grid_dir)) as work:
        for _ in work:
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            assert torch.equal(torch.get_rng_state(), state)


# in a host with a pipeline of its own


class Pipeline(StandaloneHost):
    """Draws by itself: one colour for each weight, and notes what it was asked."""

    def __init__(self, root: Path, lora_dir: Path):
        super().__init__(root)
        self.lora_dir, self.asked, self.turns = lora_dir, [], []

    def paths(self) -> HostPaths:
        import attrs

        return attrs.evolve(super().paths(), lora_dir=self.lora_dir)

    @contextmanager
    def lease(self, model):
        with super().lease(model) as lent:
            yield PipelineLease(self, lent)


class PipelineLease(FileLease):
    def __init__(self, host: Pipeline, lent: FileLease):
        super().__init__(lent.checkpoint, lent.vae, lent.clip_skip, lent.device, own_previews=True)
        self.host = host

    def preview(self, request, write_weights, weight, control):
        copy = self.host.lora_dir.parent / "lent.safetensors"
        if write_weights is not None:
            write_weights(copy)
        self.host.asked.append((request.prompt, copy.read_bytes() if write_weights else None, weight))
        return Image.new("RGB", (request.width, request.height), (int(100 * weight), 50, 200))

    def pause(self):
        self.host.turns.append("pause")

    def resume(self):
        self.host.turns.append("resume")
        return self.source


def test_a_host_draws_the_cells_and_finds_the_files_by_name(trained: TrainedRun, tmp_path: Path):
    host = Pipeline(tmp_path, trained.loras)
    drawn(trained, host=host, epochs=[3])
    assert [(prompt, lent) for prompt, lent, _ in host.asked] == [
        ("sks crescent, black background", None),
        ("sks crescent, black background <lora:small-000003:0.5>", None),
        ("sks crescent, black background <lora:small-000003:1>", None),
    ]
    found = grid_json(trained.folder.grid_dir)
    assert Image.open(trained.folder.grid_dir / found["cells"][1]["image"]).getpixel((0, 0)) == (100, 50, 200)


def test_a_file_that_the_host_cannot_find_is_lent_to_it(trained: TrainedRun, tmp_path: Path):
    (tmp_path / "Lora").mkdir()
    host = Pipeline(tmp_path, tmp_path / "Lora")
    drawn(trained, host=host, weights=[0.5], epochs=[3])
    assert host.asked[1] == ("sks crescent, black background", trained.lora(3).read_bytes(), 0.5)


def test_a_second_file_of_the_same_name_is_not_drawn_by_mistake(trained: TrainedRun, tmp_path: Path):
    (trained.loras / "old").mkdir()
    shutil.copyfile(trained.lora(1), trained.loras / "old" / trained.lora(3).name)
    host = Pipeline(tmp_path, trained.loras)
    drawn(trained, host=host, weights=[0.5], epochs=[3])
    assert host.asked[1][1] == trained.lora(3).read_bytes()


def test_a_paused_grid_gives_the_host_back_and_goes_on(trained: TrainedRun, tmp_path: Path):
    host, control = Pipeline(tmp_path, trained.loras), Control()
    kinds = []
    with contextlib.closing(render(trained.path, host, PROMPT, WEIGHTS, [3], control, trained.folder.grid_dir)) as work:
        for event in work:
            kinds.append(type(event))
            if isinstance(event, Rendered) and Paused not in kinds:
                control.command("pause")
            if isinstance(event, Paused):
                assert host.turns == ["pause"]
                control.command("resume")
    assert host.turns == ["pause", "resume"] and kinds.index(Resumed) == kinds.index(Paused) + 1
    assert kinds.count(Rendered) == 2 and kinds[-1] is Finished
