"""The run as a whole, on the small model: what it writes, what it leaves alone, what it is a function of."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lora_trainer.control import Control
from lora_trainer.errors import ConfigError, DatasetError, TrainerError, TrainingError
from lora_trainer.events import Finished, Paused, Resumed, Sampled, Saved, Started, Stepped, Stopped, Validated, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train.loop import run
from tests.train.runs import assets, events_of, small_config, tensors_of

ROOT = Path(__file__).parents[2]
PROMPT = "a sks crescent on a white background --w 64 --h 64 --d 1 --l 5 --s 3"


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain run of 12 steps: its folder and its final file's tensors."""
    folder = tmp_path_factory.mktemp("plain")
    events_of(small_config(folder), folder)
    return tensors_of(folder / "loras" / "small.safetensors")


def test_a_run_writes_every_epoch_numbered_and_the_final_file(tmp_path: Path):
    config = small_config(tmp_path, steps__max_train_steps=0, steps__max_train_epochs=2, data__batch_size=60, sample__prompts=[PROMPT])
    events = events_of(config, tmp_path)
    names = [Path(event.path).name for event in of_kind(events, Saved)]
    assert names == ["small-000001.safetensors", "small-000002.safetensors", "small.safetensors"]
    assert [event.final for event in of_kind(events, Saved)] == [False, False, True]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert [event.step for event in of_kind(events, Sampled)] == [0, 2, 4]
    side = json.loads((tmp_path / "loras" / "small-000001.json").read_text(encoding="utf-8"))
    assert (side["activation text"], side["sd version"]) == ("sks", "SD1")
    assert (tmp_path / "loras" / "small-000001.preview.png").read_bytes() == Path(of_kind(events, Sampled)[1].path).read_bytes()


def test_the_header_says_what_hosts_read(tmp_path: Path):
    events_of(small_config(tmp_path, model__clip_skip=2, save__precision="fp16"), tmp_path)
    with safe_open(tmp_path / "loras" / "small.safetensors", framework="pt") as file:
        words = file.metadata()
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F16"}  # noqa: SIM118
    assert words["ss_output_name"] == "small"
    assert words["ss_base_model_version"] == "sd_v1"
    assert words["ss_network_dim"] == "4"
    assert words["ss_clip_skip"] == "2"
    assert words["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(words["ss_tag_frequency"])["10_sks crescent"]
    assert json.loads(words["ss_bucket_info"])["buckets"]["0"] == {"resolution": [64, 64], "count": 120}
    assert json.loads(words["ss_dataset_dirs"]) == {"10_sks crescent": {"n_repeats": 10, "img_count": 12}}
    assert len(words["ss_new_sd_model_hash"]) == 64
    assert len(words["ss_sd_model_hash"]) == 8
    assert len(words["sshs_model_hash"]) == 64


def test_the_header_lists_the_tags_that_are_read_and_no_marks(tmp_path: Path):
    folder = tmp_path / "3_vase"
    folder.mkdir()
    for number, caption in enumerate(("vase; |||; blue", "vase ||| tall, thin; {red|blue}")):
        Image.new("RGB", (64, 64), (number * 90, 40, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    marks = {"data__keep_tokens_separator": "|||", "data__enable_wildcard": True, "data__caption_separator": ";"}
    events_of(
        small_config(tmp_path, data__train_data_dir=str(folder), data__shuffle_caption=True, **marks, steps__max_train_steps=1), tmp_path
    )
    with safe_open(tmp_path / "loras" / "small.safetensors", framework="pt") as file:
        counted = json.loads(file.metadata()["ss_tag_frequency"])
    assert counted == {"3_vase": {"vase": 2, "blue": 2, "tall, thin": 1, "red": 1}}


@pytest.mark.parametrize(
    "changes",
    [
        {"memory__gradient_checkpointing": True},
        {"data__cache_latents": False},
        {"sample__prompts": [PROMPT], "sample__every_n_steps": 5},
        {"validate__every_n_steps": 5, "validate__data_dir": str(assets.toy_pictures() / "crescent" / "val")},
        {"save__every_n_steps": 3},
    ],
    ids=["checkpointing", "uncached", "previews", "validation", "saves"],
)
def test_what_only_looks_on_changes_no_bit_of_the_result(tmp_path: Path, plain, changes):
    events_of(small_config(tmp_path, **changes), tmp_path)
    tensors = tensors_of(tmp_path / "loras" / "small.safetensors")
    assert set(tensors) == set(plain)
    assert [name for name in plain if not torch.equal(plain[name], tensors[name])] == []


def test_another_seed_gives_another_result(tmp_path: Path, plain):
    events_of(small_config(tmp_path, seed=2), tmp_path)
    tensors = tensors_of(tmp_path / "loras" / "small.safetensors")
    assert not any(torch.equal(plain[name], tensors[name]) for name in plain if "lora_up" in name and "mid_block" not in name)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_when_the_date_is_fixed(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tests.train.runs import *; folder = Path(sys.argv[1]);"
        "events_of(small_config(folder, steps__max_train_steps=3), folder)"
    )
    contents = []
    for name in "ab":
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, env=environment, check=True)
        contents.append((tmp_path / name / "loras" / "small.safetensors").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("rates", "count"), [((0.0, 2e-3), 24), ((2e-3, 0.0), 192), ((2e-3, 2e-3), 216)])
def test_every_layer_that_is_trained_moves_and_no_other_is_in_the_file(tmp_path: Path, rates, count, checkpointing):
    changes = {"optimizer__unet_lr": rates[0], "optimizer__text_encoder_lr": rates[1]}
    events_of(small_config(tmp_path, memory__gradient_checkpointing=checkpointing, steps__max_train_steps=11, **changes), tmp_path)
    ups = {name: tensor for name, tensor in tensors_of(tmp_path / "loras" / "small.safetensors").items() if "lora_up" in name}
    still = [name for name, tensor in ups.items() if not tensor.any()]
    assert len(ups) == count
    # at 64 pixels the middle block sees one token: its query and key can have no effect
    assert all("mid_block_attentions_0_transformer_blocks_0_attn1_to_" in name for name in still)


def test_a_layer_that_does_not_move_ends_the_run_by_name(tmp_path: Path, monkeypatch):
    from lora_trainer.adapters import network

    def forgetful(site, layer):
        return site.forward if layer.plan.name.endswith("up_blocks_3_attentions_2_proj_out") else kept(site, layer)

    kept = network.make_forward
    monkeypatch.setattr(network, "make_forward", forgetful)
    with pytest.raises(TrainingError, match="lora_unet_up_blocks_3_attentions_2_proj_out"):
        events_of(small_config(tmp_path), tmp_path)


@pytest.mark.parametrize(("batch", "accumulation", "repeats", "sizes"), itertools.product([1, 5], [1, 3], [1, 2], [1, 3]))
def test_the_plan_counts_the_steps_that_come(tmp_path: Path, batch, accumulation, repeats, sizes):
    from PIL import Image

    pictures = tmp_path / f"{repeats}_thing"
    pictures.mkdir()
    for number in range(7):
        shape = [(64, 64), (128, 64), (64, 192)][number % sizes]
        Image.new("RGB", shape, (number * 30, 80, 120)).save(pictures / f"{number}.png")
    config = small_config(
        tmp_path,
        data__train_data_dir=str(pictures),
        data__batch_size=batch,
        data__min_bucket_reso=32,
        data__bucket_reso_steps=32,
        steps__max_train_steps=0,
        steps__max_train_epochs=2,
        steps__gradient_accumulation_steps=accumulation,
        save__every_n_epochs=0,
        optimizer__text_encoder_lr=0,
    )
    events = events_of(config, tmp_path)
    plan = of_kind(events, Started)[0].plan
    assert plan["total_steps"] == len(of_kind(events, Stepped)) == 2 * plan["steps_per_epoch"]
    assert sum(bucket["count"] for bucket in plan["buckets"]) == 7


def test_accumulated_batches_step_like_one_batch_of_all_their_pictures(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    base = {"steps__max_train_steps": 1, "optimizer__max_grad_norm": 0}
    events_of(small_config(whole, data__batch_size=120, **base), whole)
    events = events_of(small_config(parts, data__batch_size=7, steps__gradient_accumulation_steps=100, **base), parts)
    one, many = (tensors_of(folder / "loras" / "small.safetensors") for folder in (whole, parts))
    assert len(of_kind(events, Stepped)) == 1
    # AdamW's first step is the gradient's sign times the rate: it is the same wherever the gradient is not nearly zero
    ups = [(one[name], many[name]) for name in one if "lora_up" in name and one[name].any()]
    agree = sum(int(torch.isclose(a, b, rtol=0.05, atol=1e-5).sum()) for a, b in ups) / sum(a.numel() for a, _ in ups)
    assert agree > 0.99


def test_nothing_global_is_changed_at_any_event(tmp_path: Path):
    config = small_config(
        tmp_path, sample__prompts=[PROMPT], sample__every_n_steps=2, steps__max_train_steps=4, validate__fraction=0.2, save__every_n_steps=2
    )

    def globals_now():
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled(),
            torch.is_autocast_cpu_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_num_threads(),
            gc.isenabled(),
            gc.get_freeze_count(),
            torch.get_rng_state().tolist(),
        )

    before = globals_now()
    with contextlib.closing(run(config, StandaloneHost(tmp_path), Control(), tmp_path / "run")) as work:
        for event in work:
            assert globals_now() == before, event


def test_a_run_inside_no_grad_and_inference_mode_still_learns(tmp_path: Path, plain):
    with torch.inference_mode():
        events_of(small_config(tmp_path), tmp_path)
    tensors = tensors_of(tmp_path / "loras" / "small.safetensors")
    assert all(torch.equal(plain[name], tensors[name]) for name in plain)


def test_stop_saves_the_step_and_says_so(tmp_path: Path):
    control, seen = Control(), []
    with contextlib.closing(run(small_config(tmp_path), StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            seen.append(event)
            if isinstance(event, Stepped) and event.step == 3:
                control.command("stop")
    assert isinstance(seen[-1], Stopped)
    assert [Path(path).name for path in seen[-1].files] == ["small-step00000003.safetensors"]


def test_stop_without_saving_writes_nothing(tmp_path: Path):
    control = Control()
    with contextlib.closing(run(small_config(tmp_path), StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            if isinstance(event, Stepped):
                control.command("stop-discard")
    assert not list((tmp_path / "loras").glob("*.safetensors")) if (tmp_path / "loras").exists() else True


def test_a_pause_changes_no_bit_of_the_result(tmp_path: Path, plain):
    control, kinds = Control(), []
    with contextlib.closing(run(small_config(tmp_path), StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            kinds.append(type(event))
            if isinstance(event, Stepped) and event.step == 5:
                control.command("pause")
            if isinstance(event, Paused):
                threading.Timer(0.3, control.command, ["resume"]).start()
    assert Paused in kinds
    assert Resumed in kinds
    tensors = tensors_of(tmp_path / "loras" / "small.safetensors")
    assert all(torch.equal(plain[name], tensors[name]) for name in plain)


def test_save_and_preview_can_be_asked_for_at_any_step(tmp_path: Path):
    control, seen = Control(), []
    config = small_config(tmp_path, sample__prompts=[PROMPT], sample__every_n_epochs=0, sample__at_first=False)
    with contextlib.closing(run(config, StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            seen.append(event)
            if isinstance(event, Stepped) and event.step == 4:
                control.command("save")
                control.command("sample")
    assert [event.step for event in of_kind(seen, Sampled)] == [4]
    assert "small-step00000004.safetensors" in [Path(event.path).name for event in of_kind(seen, Saved)]


def test_validation_comes_before_training_at_its_interval_and_at_the_end(tmp_path: Path):
    config = small_config(tmp_path, validate__data_dir=str(assets.toy_pictures() / "crescent" / "val"), validate__every_n_steps=5)
    assert [event.step for event in of_kind(events_of(config, tmp_path), Validated)] == [0, 5, 10, 12]


def test_a_second_run_of_the_same_name_overwrites_nothing(tmp_path: Path):
    config = small_config(tmp_path, steps__max_train_steps=1)
    events_of(config, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "loras").iterdir()}
    with pytest.raises(ConfigError, match="small-v2") as caught:
        events_of(config, tmp_path)
    assert caught.value.problems[0].path == "save.output_name"
    assert {path.name: path.read_bytes() for path in (tmp_path / "loras").iterdir()} == before


def test_two_runs_at_once_never_write_files_of_one_name(tmp_path: Path):
    first = run(small_config(tmp_path), StandaloneHost(tmp_path), Control(), tmp_path / "first")
    with contextlib.closing(first):
        assert isinstance(next(first), Started)
        with pytest.raises(TrainerError, match="small") as refused:
            events_of(small_config(tmp_path), tmp_path)
        assert refused.value.problems[0].path == "save.output_name"
    assert list((tmp_path / "loras").iterdir()) == []
    assert isinstance(events_of(small_config(tmp_path), tmp_path)[-1], Finished)


def test_the_claim_of_a_killed_run_holds_nobody_up(tmp_path: Path):
    (tmp_path / "loras").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    holder = {"pid": dead.pid, "mark": "1", "machine": socket.gethostname(), "token": "0"}
    (tmp_path / "loras" / ".small.running").write_text(json.dumps(holder), encoding="utf-8")
    assert isinstance(events_of(small_config(tmp_path), tmp_path)[-1], Finished)


def test_a_picture_damaged_behind_its_header_is_named_and_left_out_of_plan_and_run(tmp_path: Path):
    pictures = tmp_path / "pictures"
    shutil.copytree(assets.toy_pictures() / "crescent" / "train", pictures)
    whole = sorted(pictures.rglob("*.png"))
    whole[1].write_bytes(whole[1].read_bytes()[:-400])
    events = events_of(small_config(tmp_path, data__train_data_dir=str(pictures), data__batch_size=4), tmp_path)
    assert isinstance(events[0], Started) and events[0].plan["images"] == len(whole) - 1
    assert [event.message.text("en") for event in events if isinstance(event, Warned) and whole[1].name in event.message.text("en")]
    assert isinstance(events[-1], Finished) and events[-1].step == 12


def test_pictures_without_any_words_are_refused(tmp_path: Path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(DatasetError, match="trigger word"):
        events_of(small_config(tmp_path, data__train_data_dir=str(tmp_path / "pictures"), data__trigger_word=""), tmp_path)


def test_alpha_above_rank_trains_with_one_warning_that_says_how_strong(tmp_path: Path):
    events = events_of(small_config(tmp_path, network__alpha=8, steps__max_train_steps=1), tmp_path)
    told = [event.message.text() for event in of_kind(events, Warned) if event.path == "network.alpha"]
    assert told == ["Alpha is larger than rank: the network is scaled by 2.0."]


def test_a_rate_of_zero_runs_and_says_that_nothing_is_learned(tmp_path: Path):
    events = events_of(small_config(tmp_path, optimizer__learning_rate=0), tmp_path)
    assert any("nothing will be learned" in event.message.text() for event in of_kind(events, Warned))
    assert not any(tensor.any() for name, tensor in tensors_of(tmp_path / "loras" / "small.safetensors").items() if "lora_up" in name)


@pytest.mark.parametrize("word", ["fp16", "bf16"])
def test_half_precision_trains_on_the_cpu_where_torch_can(tmp_path: Path, word):
    config = small_config(tmp_path, memory__mixed_precision=word)
    if word == "fp16" and not hasattr(torch.amp, "GradScaler"):
        with pytest.raises(TrainerError, match=r"fp16 cannot be trained on the CPU"):
            events_of(config, tmp_path)
        return
    steps = of_kind(events_of(config, tmp_path), Stepped)
    assert all(0 < step.loss < 2 for step in steps)
    assert all(tensor.isfinite().all() for tensor in tensors_of(tmp_path / "loras" / "small.safetensors").values())
