"""Whole runs on models of a Hub that asks for permission: the token reaches the Hub, and no file that a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lora_trainer import assets
from lora_trainer.api.runs import start_run
from lora_trainer.cli.main import main
from lora_trainer.config.changes import with_value
from lora_trainer.events import Finished
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.jobs.job import Job
from lora_trainer.models.load import load, read_vae
from lora_trainer.models.source import FileSource
from tests.models.conftest import CPU
from tests.models.stand_in_hub import StandIn, serving
from tests.train.runs import events_of, small_config

TOKEN = "hf_onlyForTheHub"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that hands the small model out to those with the token; nothing of it is here, and the environment holds no token."""
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(StandIn({"toy.safetensors": assets.toy_checkpoint().read_bytes()}, token=TOKEN)) as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


def leaks(folder: Path) -> list[str]:
    """Files below a folder that hold the token, in their content or their name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [str(path) for path in files if TOKEN.encode() in path.read_bytes() or TOKEN in str(path)]


def test_the_token_of_the_settings_opens_a_gated_model_and_stands_in_no_file_afterwards(tmp_path, hub):
    host = StandaloneHost(tmp_path)
    changes = {"model__pretrained_model_name_or_path": "someone/some-model", "steps__max_train_steps": 2, "model__hub_token": TOKEN}
    config = start_run.resolve_paths(small_config(tmp_path, **changes, save__state=True, sample__prompts=["x --s 1"]), host)
    assert start_run.find_problems(config, host) == []
    folder = start_run.create_run_folder(config)
    job = Job(start_run.training_work(config, host, folder), folder)
    assert job.run().outcome == "finished"
    assert {authorization for _, _, authorization in hub.seen} == {f"Bearer {TOKEN}"}
    assert {path.name for path in folder.path.iterdir()} >= {"config.toml", "events.jsonl", "manifest.json", "report.txt"}
    assert leaks(tmp_path) == []


def test_without_a_token_the_run_says_what_to_do(tmp_path, hub):
    from lora_trainer.errors import ModelError

    config = small_config(tmp_path, model__pretrained_model_name_or_path="someone/some-model")
    with pytest.raises(ModelError, match="without permission") as caught:
        events_of(config, tmp_path)
    assert "model.hub_token" in caught.value.problems[0].fix.text()


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own_gets_the_token_without_a_file(tmp_path, hub):
    host = StandaloneHost(tmp_path)
    changes = {"model__pretrained_model_name_or_path": "someone/some-model", "steps__max_train_steps": 1, "memory__own_process": True}
    config = start_run.resolve_paths(small_config(tmp_path, **changes, model__hub_token=TOKEN), host)
    process = start_run.training_process(start_run.create_run_folder(config), host, token=config.model.hub_token)
    process.start()
    assert process.join(300)
    assert process.status.outcome == "finished", process.output_file.read_text(encoding="utf-8")
    assert leaks(tmp_path) == []


def test_a_vae_of_a_hub_is_fetched_with_the_model_and_used(tmp_path, hub, toy_checkpoint, monkeypatch):
    wanted = {name: tensor + 0.5 for name, tensor in read_vae(toy_checkpoint).items()}
    save_file({name: tensor.contiguous() for name, tensor in wanted.items()}, tmp_path / "vae.safetensors")
    hub.files = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": (tmp_path / "vae.safetensors").read_bytes()}
    config = small_config(tmp_path, model__vae="someone/some-model", model__hub_token=TOKEN, steps__max_train_steps=1)
    assert isinstance(events_of(config, tmp_path)[-1], Finished)
    with StandaloneHost(tmp_path).lease(config.model) as lease:
        assert isinstance(lease.source, FileSource)
        bundle = load(lease.source, CPU)
    assert float((bundle.vae.encoder.conv_in.weight - wanted["encoder.conv_in.weight"]).abs().max()) == 0


@pytest.mark.parametrize("vae", ["there is none.safetensors", "toy.txt"])
def test_a_vae_that_cannot_be_used_is_a_problem_before_the_run(tmp_path, vae):
    (tmp_path / "toy.txt").write_text("no VAE", encoding="utf-8")
    config = small_config(tmp_path, model__vae=str(tmp_path / vae), save__runs_dir=str(tmp_path))
    assert [problem.path for problem in start_run.find_problems(config, StandaloneHost(tmp_path))] == ["model.vae"]


def test_check_says_what_the_model_is_and_why(tmp_path, capsys, monkeypatch):
    from lora_trainer.config.files import write_config

    monkeypatch.chdir(tmp_path)
    write_config(small_config(tmp_path), tmp_path / "a.toml")
    assert main(["check", "a.toml"]) == 0
    assert "Stable Diffusion 1, predicts the noise, 64 pixels (nothing in it says otherwise" in capsys.readouterr().out
    assert main(["check", "a.toml", "--json"]) == 0
    badge = json.loads(capsys.readouterr().out)["model"]
    assert badge["because"].startswith("nothing in it says otherwise")
    assert (badge["family"], badge["prediction"], badge["native_size"], badge["sure"]) == ("sd1", "epsilon", 64, True)


class WebUI(StandaloneHost):
    """A host with a list of its own, in which the Hub's model does not stand."""

    name = "a1111"


@pytest.mark.parametrize("named", ["someone/some-model", "elsewhere.safetensors"])
def test_what_is_not_in_a_webuis_list_needs_a_process_of_its_own_which_reads_it(tmp_path, hub, toy_checkpoint, named):
    (tmp_path / "elsewhere.safetensors").write_bytes(toy_checkpoint.read_bytes())
    model = str(tmp_path / named) if named.endswith(".safetensors") else named
    shared = small_config(tmp_path, model__pretrained_model_name_or_path=model, save__runs_dir=str(tmp_path))
    (problem,) = start_run.find_problems(shared, WebUI(tmp_path))
    assert problem.path == "model.pretrained_model_name_or_path"
    assert "memory.own_process" in problem.fix.text()
    apart = with_value(shared, "memory.own_process", True)
    assert start_run.find_problems(apart, WebUI(tmp_path)) == []
    assert start_run.with_file_paths(apart, WebUI(tmp_path)).model.pretrained_model_name_or_path == model
    assert [one.path for one in start_run.find_problems(with_value(apart, "model.vae", "someone/a-vae"), WebUI(tmp_path))] == []
    vae = small_config(tmp_path, model__vae="someone/a-vae", save__runs_dir=str(tmp_path))
    assert [one.path for one in start_run.find_problems(vae, WebUI(tmp_path))] == ["model.vae"]
    listed = small_config(tmp_path, save__runs_dir=str(tmp_path))
    assert start_run.find_problems(listed, WebUI(tmp_path)) == []
