"""Runs from the command line: trained, stopped, killed, steered from another process, drawn."""

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import save_file

from lora_trainer import assets
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.manager import JobManager


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_training_ends_with_its_files_and_a_second_run_of_the_name_overwrites_nothing(shell, config):
    config(steps=4, extra='every_n_steps = 2\nprecision = "float"\n[sample]\nprompts = ["a sks crescent --w 64 --h 64 --s 1"]')
    planned = shell.json("check", "my.toml")
    done = shell("train", "my.toml", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "finished" and result["run"] == str(shell.folder / "runs" / "moon")
    names = ["moon-step00000002.safetensors", "moon.safetensors"]
    assert [file.rpartition("/")[2] for file in result["files"]] == names and all(Path(file).is_file() for file in result["files"])
    folder = RunFolder(shell.folder / "runs" / "moon")
    steps = [event for event in folder.events() if event["event"] == "stepped"]
    assert len(steps) == planned["total_steps"] == 4 and planned["files"] == 2
    assert {"config.toml", "plan.json", "events.jsonl", "manifest.json", "report.txt", "samples"} <= {
        path.name for path in folder.path.iterdir()
    }
    assert not folder.pid_file.exists() and "step 4: saved" in done.stderr
    assert [run["name"] for run in shell.json("runs")] == ["moon"]

    before = hashes(shell.folder / "out")
    again = shell("train", "my.toml")
    assert again.returncode == 2 and "save.output_name" in again.stderr and "moon-v2" in again.stderr
    assert hashes(shell.folder / "out") == before and len(shell.json("runs")) == 1
    allowed = shell("train", "my.toml", "--set", "save.overwrite=true", "--set", "steps.max_train_steps=2")
    assert allowed.returncode == 0 and (shell.folder / "runs" / "moon-v2").is_dir()


def test_a_runs_config_means_the_same_from_another_folder(shell, config, tmp_path):
    config(steps=1)
    assert shell("train", "my.toml").returncode == 0
    shell.folder = tmp_path / "elsewhere"
    shell.folder.mkdir()
    found = shell.json("check", tmp_path / "runs" / "moon" / "config.toml", "--set", "save.output_name=again")
    assert found["total_steps"] == 1 and found["images"] == 12


def test_ctrl_c_stops_after_the_step_and_saves(shell, config):
    config(steps=5000)
    process = shell.start("train", "my.toml", "--json")
    folder = shell.wait_for_step(2)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    result = json.loads(printed)
    assert result["outcome"] == "stopped" and len(result["files"]) == 1 and "-step0000" in result["files"][0]
    assert folder.outcome() == "stopped" and "Stopped at step" in told


def test_ctrl_c_twice_aborts_at_once(shell, config):
    config(steps=5000)
    process = shell.start("train", "my.toml")
    folder = shell.wait_for_step(2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in told
    assert folder.outcome() == "stopped" and not folder.pid_file.exists()


def test_a_killed_run_is_readable_and_called_interrupted(shell, config):
    config(steps=5000)
    process = shell.start("train", "my.toml")
    folder = shell.wait_for_step(3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [event["n"] for event in folder.events()] == list(range(1, len(folder.events()) + 1))
    assert JobManager().history(shell.folder / "runs")[0]["outcome"] == "interrupted"
    assert [run["outcome"] for run in shell.json("runs")] == ["interrupted"]
    ended = shell("control", "runs/moon", "stop")
    assert ended.returncode == 1 and "has ended" in ended.stderr


def test_another_process_pauses_resumes_saves_and_stops(shell, config):
    config(steps=5000)
    process = shell.start("train", "my.toml")
    folder = shell.wait_for_step(2)

    def events(kind):
        return [event for event in folder.events() if event["event"] == kind]

    assert shell("control", "runs/moon", "pause").returncode == 0
    shell.wait_for(lambda: events("paused"))
    step = events("stepped")[-1]["step"]
    time.sleep(0.3)
    assert events("stepped")[-1]["step"] == step
    assert shell("control", "moon", "save").returncode == 0
    assert shell("control", "moon", "resume").returncode == 0
    shell.wait_for(lambda: events("resumed") and events("saved") and events("stepped")[-1]["step"] > step)
    assert shell("control", folder.path, "stop").returncode == 0
    process.communicate(timeout=120)
    assert process.returncode == 130 and folder.outcome() == "stopped"


def test_a_run_that_fails_names_the_file_and_ends_with_status_1(shell, config):
    with safe_open(str(assets.toy_checkpoint()), framework="pt") as file:
        vae = {key: file.get_tensor(key) for key in file.keys() if key.startswith("first_stage_model.")}  # noqa: SIM118
    vae["first_stage_model.encoder.conv_in.weight"] *= float("nan")
    save_file(vae, shell.folder / "broken-vae.safetensors")
    config(steps=3)
    done = shell("train", "my.toml", "--set", "model.vae=broken-vae.safetensors", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 1 and result["outcome"] == "failed" and result["files"] == []
    assert "00.png" in result["problems"][0]["message"] and "model.vae" in result["problems"][0]["fix"]
    assert "00.png" in done.stderr and "report.txt" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_pictures):
    """A LoRA of a few steps, and its run."""
    from tests.cli.conftest import Shell

    shell = Shell(tmp_path_factory.mktemp("trained"))
    train = toy_pictures / "crescent" / "train"
    shell.write(
        f"""
[model]
pretrained_model_name_or_path = "toy-sd15-host"
[data]
train_data_dir = '{train}'
trigger_word = "sks"
resolution = 64
batch_size = 12
[network]
dim = 4
alpha = 4
[optimizer]
learning_rate = 5e-3
[steps]
max_train_epochs = 1
[save]
output_dir = "out"
output_name = "moon"
"""
    )
    done = shell("train", "my.toml", "--json")
    assert done.returncode == 0, done.stderr
    return shell


@pytest.mark.slow
def test_a_sample_without_weight_is_the_bases_picture(trained):
    def draw(name, *words):
        asked = ["--model", "toy-sd15-host", "--prompt", "a sks crescent", "--steps", 2, "--seed", 3, "--out", name]
        return Image.open(trained.json("sample", *asked, *words)["file"])

    base, none = draw("base.png"), draw("none.png", "--lora", "out/moon.safetensors:0")
    full = draw("full.png", "--lora", "out/moon.safetensors")
    assert base.size == (64, 64)
    assert ImageChops.difference(base, none).getbbox() is None and ImageChops.difference(base, full).getbbox() is not None
    assert draw("folder", "--sampler", "euler_a", "--height", 128).size == (64, 128)


def test_a_network_named_in_a_prompt_as_in_a_webui_is_told(shell, config):
    config(steps=1)
    found = shell.json("check", "my.toml", "--set", 'sample.prompts=["a vase <lora:mika:0.8>"]')
    assert any("<lora:mika:0.8>" in warning["message"] for warning in found["warnings"])
    asked = ["--model", "toy-sd15-host", "--prompt", "a vase <lora:mika:0.8>", "--steps", "1", "--out", "a.png", "--json"]
    done = shell("sample", *asked)
    assert done.returncode == 0 and "--lora FILE:WEIGHT" in done.stderr and len(json.loads(done.stdout)["notes"]) == 1


def test_options_in_the_prompt_of_a_sample_are_told(shell):
    prompt = "a vase --n bad --7"
    done = shell("sample", "--model", "toy-sd15-host", "--prompt", prompt, "--steps", 1, "--out", "a.png")
    assert done.returncode == 0, done.stderr
    assert "--n, --7 is read as a part of the text: give --negative" in done.stderr


@pytest.mark.slow
def test_a_grid_is_drawn_with_its_json(trained):
    prompt = "a <lora:moon-NUM:STRENGTH> sks crescent --s 2"
    found = trained.json("grid", "moon", "--prompt", prompt, "--weights", "0.5,1", "--out", "drawn-grid")
    assert {(cell["epoch"], cell["weight"]) for cell in found["cells"]} == {(1, 0.5), (1, 1.0)}
    assert json.loads((trained.folder / "drawn-grid" / "grid.json").read_text(encoding="utf-8")) == found
    assert (trained.folder / "drawn-grid" / "grid.png").is_file()
    assert [run["id"] for run in trained.json("runs")] == ["moon"]


def test_the_grids_arguments_are_checked_before_anything_is_drawn(trained):
    for words in (
        ["--weights", "strong"],
        ["--weights", ""],
        ["--epochs", "7"],
        ["--weights", "99"],
        ["--epochs", "0.9"],
        ["--epochs", "nan"],
    ):
        done = trained("grid", "moon", "--prompt", "x", *words, "--out", "never")
        assert done.returncode == 2 and "Traceback" not in done.stderr and not (trained.folder / "never").exists(), words


def test_the_wizards_file_is_accepted_and_a_second_press_changes_nothing(shell, toy_pictures):
    data = toy_pictures / "crescent" / "train"
    words = ["wizard", "--data", data, "--subject", "object", "--vram", 8, "--model", "toy-sd15-host"]
    found = shell.json(*words, "--out", "made.toml")
    assert all({"path", "value", "because"} <= set(change) and change["because"] for change in found["changes"])
    checked = shell.json("check", "made.toml", "--set", "data.trigger_word=sks")
    assert checked["problems"] == [] and checked["total_steps"] == found["plan"]["total_steps"]
    assert shell.json("wizard", "made.toml", "--subject", "object", "--vram", 8)["changes"] == []
    without = shell.json("wizard", "--data", data, "--subject", "object", "--vram", 8)
    assert without["plan"]["memory"]["parts"]["model"] > 1000  # Stable Diffusion 1.5 is assumed, not the small model


def test_the_tab_is_served_until_ctrl_c(shell):
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = shell.start("ui", "--no-browser", "--port", port)

    def answer(path):
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30).read()
        except OSError:
            return None

    status = json.loads(shell.wait_for(lambda: answer("lora-trainer/v1/status")))
    assert status["host"]["name"] == "standalone" and b"lora_trainer_root" in answer("")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in told, told


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(shell):
    done = shell("demo", "--out", "d", "--set", "steps.max_train_epochs=1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for name in (
        "grid.png",
        "grid.json",
        "samples.png",
        "report.txt",
        "demo.toml",
        "runs/crescent/events.jsonl",
        "loras/crescent.safetensors",
    ):
        assert (shell.folder / "d" / name).is_file(), name
    assert result["outcome"] == "finished" and result["verdict"] and len(result["files"]) == 2
    assert result["verdict"] in (shell.folder / "d" / "report.txt").read_text(encoding="utf-8")
