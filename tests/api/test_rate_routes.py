"""A learning rate that is looked for from the tab: a run of its own that no list shows and that leaves nothing but its finding."""

from __future__ import annotations

from pathlib import Path

from tests.api.conftest import Server, small_config


def test_a_search_steps_like_a_run_and_tells_what_it_found(server: Server, pictures: Path):
    config = small_config(pictures, save__output_name="moon")
    told = server.post("rate", {"config": config, "steps": 12}).json()["run"]
    assert server.get("status").json()["run"]["kind"] == "rate"
    ended = server.wait_for_end(told)
    assert (ended["state"], ended["step"]) == ("finished", 12)
    found = server.get(f"runs/{told}/rate").json()
    assert len(found["curve"]) == 12 and 1e-6 < found["unet_lr"] < 1e-1
    assert 0 < found["text_encoder_lr"] < found["unet_lr"]
    assert server.get("runs").json() == []
    assert not list(server.host.paths().lora_dir.glob("*.safetensors")), "what was trained is thrown away"


def test_the_next_search_leaves_one_folder_and_a_stopped_one_has_what_it_saw(server: Server, pictures: Path):
    first = server.post("rate", {"config": small_config(pictures), "steps": 5}).json()["run"]
    server.wait_for_end(first)
    second = server.post("rate", {"config": small_config(pictures), "steps": 1000}).json()["run"]
    refused = server.post("runs", {"config": small_config(pictures)})
    assert refused.status_code == 409 and second in refused.text
    server.wait_for(lambda: server.get(f"runs/{second}").json()["step"] > 2)
    server.post(f"runs/{second}/control", {"command": "stop-discard"})
    assert server.wait_for_end(second)["state"] == "stopped"
    assert len(server.get(f"runs/{second}/rate").json()["curve"]) > 2
    assert [folder.name for folder in server.host.paths().runs_dir.iterdir()] == [second]


def test_a_search_is_refused_like_a_run_for_what_is_wrong(server: Server, pictures: Path):
    empty = server.post("rate", {"config": {"data": {"train_data_dir": str(pictures / "none")}}})
    assert empty.json()["problems"][0]["path"] == "data.train_data_dir"
    many = server.post("rate", {"config": small_config(pictures), "steps": 100000})
    assert many.status_code == 400 and many.json()["problems"][0]["path"] == "steps"
