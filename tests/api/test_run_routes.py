"""Runs over the routes: started, steered, looked at, deleted; and every refusal says what to do."""

import json
import subprocess
import sys
from pathlib import Path

import httpx

from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.messages import say
from tests.api.conftest import V1, small_config
from tests.jobs.works import endless_work, small_work

ROOT = Path(__file__).parents[2]


def finished(server, name="moon"):
    """A run of the past with two saved epochs."""
    folder = RunFolder.create(server.host.paths().runs_dir, name)
    output = server.host.paths().lora_dir
    output.mkdir(parents=True, exist_ok=True)
    for epoch in (1, 2):
        (output / f"moon-{epoch:06d}.safetensors").write_bytes(b"weights")
    (folder.samples_dir).mkdir()
    (folder.samples_dir / "1.png").write_bytes(b"\x89PNG picture")
    folder.config_file.write_text('[network]\ndim = 8\n[save]\noutput_name = "moon"\n', encoding="utf-8")
    Job(small_work(folder, output=output), folder).run()
    return folder


def test_a_run_is_started_followed_and_ends_with_its_files(server, pictures):
    started = server.post("runs", {"config": small_config(pictures)})
    assert started.status_code == 200, started.text
    run = started.json()["run"]
    found = server.wait_for_end(run)
    assert found["outcome"] == "finished", found["error"]
    assert found["step"] == found["total_steps"] == 6 and found["manifest"]["files"][0]["epoch"] == 1
    events = server.get(f"runs/{run}/events", after=0).json()
    assert [event["n"] for event in events["events"]] == list(range(1, events["next"] + 1))
    assert sum(event["event"] == "stepped" for event in events["events"]) == 6
    preview = next(event for event in events["events"] if event["event"] == "sampled")
    picture = server.get(f"runs/{run}/files/{preview['path']}")
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    assert server.get("runs").json()[0]["id"] == run
    assert server.get(f"runs/{run}/config").json()["config"]["network"]["dim"] == 4
    status = server.get("status").json()
    assert status["run"]["id"] == run and status["run"]["state"] == "finished"

    again = server.post("runs", {"config": small_config(pictures)})
    problem = again.json()["problems"][0]
    assert again.status_code == 400 and problem["path"] == "save.output_name" and problem["proposal"] == "moon-v2"


def test_events_after_a_number_are_only_the_later_ones(server):
    folder = finished(server)
    events = server.get(f"runs/{folder.id}/events", after=14).json()
    assert [event["n"] for event in events["events"]] == list(range(15, events["next"] + 1)) and events["next"] > 15
    assert server.get(f"runs/{folder.id}/events", after=events["next"]).json() == {"events": [], "next": events["next"]}
    assert server.get(f"runs/{folder.id}/events", after="soon").status_code == 400


def test_a_config_as_toml_is_taken_too(server, pictures):
    toml = f"[data]\ntrain_data_dir = '{pictures}'\nresolution = 64\nbatchsize = 3\n"
    answer = server.post("runs", {"toml": toml})
    assert answer.status_code == 400 and answer.json()["problems"][0]["path"] == "data.batchsize"
    broken = server.post("runs", {"toml": "[data\n"})
    assert broken.status_code == 400 and broken.json()["problems"][0]["path"] == "toml"


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_left_behind(server):
    config = small_config("/no/such/folder", model__pretrained_model_name_or_path="missing-model")
    answer = server.post("runs", {"config": config})
    assert answer.status_code == 400
    assert [problem["path"] for problem in answer.json()["problems"]] == ["model.pretrained_model_name_or_path", "data.train_data_dir"]
    assert all(problem["message"] and problem["fix"] for problem in answer.json()["problems"])
    assert server.get("runs").json() == [] and not server.host.paths().runs_dir.exists()


def test_problems_are_told_in_chinese_to_who_reads_it(server):
    answer = server.post("runs", {"config": {"network": {"dim": 0}}}, headers={"X-Language": "zh_CN"})
    assert "0" in answer.json()["problems"][0]["message"] and not answer.json()["problems"][0]["message"].isascii()
    assert server.post("runs?lang=zh-CN", {"config": {"network": {"dim": 0}}}).json() == answer.json()


def test_a_second_start_is_refused_with_the_running_one_named(server, pictures):
    server.manager.start(RunFolder.create(server.host.paths().runs_dir, "first"), endless_work)
    answer = server.post("runs", {"config": small_config(pictures)})
    assert answer.status_code == 409 and answer.json()["run"] == "first" and "first" in answer.json()["problems"][0]["message"]


def test_a_busy_host_refuses_with_its_reason(server, pictures):
    server.host.busy = say("The checkpoint is being merged.")
    answer = server.post("runs", {"config": small_config(pictures)})
    assert answer.status_code == 409 and "being merged" in answer.json()["problems"][0]["message"]


def test_pause_resume_and_stop_work_over_the_route(server):
    folder = RunFolder.create(server.host.paths().runs_dir, "first")
    server.manager.start(folder, endless_work)
    server.wait_for(lambda: server.get("status").json()["run"]["step"] > 2)
    assert server.post(f"runs/{folder.id}/control", {"command": "pause"}).status_code == 200
    server.wait_for(lambda: server.get("status").json()["run"]["state"] == "paused")
    server.post(f"runs/{folder.id}/control", {"command": "resume"})
    server.wait_for(lambda: server.get("status").json()["run"]["state"] == "training")
    answer = server.post(f"runs/{folder.id}/control", {"command": "stop"}).json()
    assert answer["state"] in ("stopping", "stopped")
    assert server.wait_for_end(folder.id)["outcome"] == "stopped"
    ended = server.post(f"runs/{folder.id}/control", {"command": "stop"})
    assert ended.status_code == 409 and "ended" in ended.json()["problems"][0]["message"]
    unknown = server.post(f"runs/{folder.id}/control", {"command": "jump"})
    assert unknown.status_code == 400 and "jump" in unknown.json()["problems"][0]["message"]


ELSEWHERE = """
import sys
from pathlib import Path
from tests.jobs.works import endless_work
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
Job(endless_work, RunFolder.create(Path(sys.argv[1]), "outside")).run()
"""


def test_a_run_of_another_process_is_seen_and_stopped(server):
    runs = server.host.paths().runs_dir
    process = subprocess.Popen([sys.executable, "-c", ELSEWHERE, str(runs)], cwd=ROOT)
    try:
        server.wait_for(lambda: any(run["step"] > 2 for run in server.get("runs").json()))
        found = server.get("runs/outside").json()
        assert found["state"] == "training" and found["outcome"] is None and found["loss_average"] is not None
        assert server.client.delete("runs/outside").status_code == 409
        assert server.post("runs/outside/control", {"command": "stop"}).status_code == 200
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert server.get("runs/outside").json()["outcome"] == "stopped"


def test_an_unknown_run_is_not_found(server):
    for path in ("runs/none", "runs/none/events", "runs/none/files/x.png", "runs/none/grid", "runs/none/config"):
        answer = server.get(path)
        assert answer.status_code == 404 and answer.json()["problems"][0]["fix"], path


def test_no_file_outside_the_run_is_given_out(server):
    folder = finished(server)
    (server.host.paths().runs_dir / "secret.txt").write_text("secret", encoding="utf-8")
    (folder.path / "out").symlink_to(server.host.paths().runs_dir)
    for name in (
        "../secret.txt",
        "..%2Fsecret.txt",
        "samples/../../secret.txt",
        "out/secret.txt",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "samples",
    ):
        with httpx.Client() as client:
            answer = client.get(f"{server.origin}{V1}/runs/{folder.id}/files/{name}")
        assert answer.status_code == 404 and "secret" not in answer.text.replace("secret.txt", ""), name
    for run in ("..", ".", "%2e%2e", "..%2f..", "a%5cb"):
        with httpx.Client() as client:
            assert client.get(f"{server.origin}{V1}/runs/{run}/events").status_code == 404, run


def test_files_come_with_a_kind_that_no_browser_runs(server):
    folder = finished(server)
    (folder.samples_dir / "x.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    page = server.get(f"runs/{folder.id}/files/samples/x.html")
    assert page.headers["content-type"].startswith("text/plain") and page.headers["x-content-type-options"] == "nosniff"
    assert server.get(f"runs/{folder.id}/files/samples/1.png").headers["content-type"] == "image/png"


def test_the_chosen_cell_becomes_the_files_preferred_weight(server):
    folder = finished(server)
    beside = server.host.paths().lora_dir / "moon-000002.json"
    beside.write_text(json.dumps({"notes": "mine", "preferred weight": 0}), encoding="utf-8")
    answer = server.post(f"runs/{folder.id}/use", {"epoch": 2, "weight": 0.8}).json()
    assert answer["prompt"] == "<lora:moon-000002:0.8>"
    assert json.loads(beside.read_text(encoding="utf-8")) == {"notes": "mine", "preferred weight": 0.8}
    assert server.get(f"runs/{folder.id}").json()["chosen"] == {"epoch": 2, "weight": 0.8} and server.host.refreshed
    assert server.post(f"runs/{folder.id}/use", {"epoch": 9, "weight": 0.8}).status_code == 404
    assert server.post(f"runs/{folder.id}/use", {"epoch": "2", "weight": 0.8}).json()["problems"][0]["path"] == "epoch"


def test_a_run_can_be_renamed_and_keeps_its_id(server):
    folder = finished(server)
    server.post(f"runs/{folder.id}/name", {"name": "月亮 first try"})
    assert server.get("runs").json()[0] | {"name": "月亮 first try", "id": "moon"} == server.get("runs").json()[0]
    assert server.post(f"runs/{folder.id}/name", {"name": " \n"}).status_code == 400


def test_deleting_a_run_leaves_its_weights_unless_they_are_named_too(server):
    folder = finished(server)
    weights = server.host.paths().lora_dir / "moon-000001.safetensors"
    answer = server.client.delete(f"runs/{folder.id}").json()
    assert answer["deleted"] == folder.id and answer["files"] == []
    assert not folder.path.exists() and weights.exists() and server.get("runs").json() == []


def test_deleting_weights_too_spares_files_that_somebody_changed(server):
    import hashlib

    folder = finished(server)
    manifest = folder.manifest()
    manifest["files"][0]["sha256"] = hashlib.sha256(b"weights").hexdigest()
    folder.manifest_file.write_text(json.dumps(manifest), encoding="utf-8")
    answer = server.client.delete(f"runs/{folder.id}", params={"weights": "1"}).json()
    output = server.host.paths().lora_dir
    assert answer["files"] == [str(output / "moon-000001.safetensors")]
    assert not (output / "moon-000001.safetensors").exists() and (output / "moon-000002.safetensors").exists()


def test_a_failed_run_says_why_in_both_languages(server):
    from lora_trainer.errors import DatasetError

    def work(control):
        raise DatasetError("{folder} holds no pictures.", folder="x", fix="Choose the folder that holds the pictures.")
        yield

    folder = RunFolder.create(server.host.paths().runs_dir, "broken")
    Job(work, folder).run()
    english, chinese = (server.get("runs/broken", lang=language).json() for language in ("en", "zh_CN"))
    assert english["problems"][0]["message"] == "x holds no pictures." and english["state"] == "failed"
    assert chinese["problems"][0]["message"] != english["problems"][0]["message"] and "x" in chinese["problems"][0]["message"]
    event = server.get("runs/broken/events", lang="zh_CN").json()["events"][-1]
    assert event["problems"][0]["message"] == chinese["problems"][0]["message"]
    assert "DatasetError" in server.get("report", run="broken").text


def test_a_grid_needs_saved_epochs_and_sensible_numbers(server):
    folder = finished(server)
    wrong = [
        ({"run": "none", "prompt": "x", "weights": [1]}, 404, "run"),
        ({"run": folder.id, "prompt": "x", "weights": []}, 400, "weights"),
        ({"run": folder.id, "prompt": "x", "weights": ["a"]}, 400, "weights"),
        ({"run": folder.id, "prompt": " ", "weights": [1]}, 400, "prompt"),
        ({"run": folder.id, "prompt": "x", "weights": [1], "epochs": [7]}, 400, "epochs"),
        ({"run": folder.id, "weights": [1]}, 400, "prompt"),
    ]
    for body, status, path in wrong:
        answer = server.post("grid", body)
        assert (answer.status_code, answer.json()["problems"][0]["path"]) == (status, path), body
    assert server.get(f"runs/{folder.id}/grid").json() == {"cells": [], "best": None}


def test_what_is_sent_must_be_a_json_object(server):
    for content in (b"[1]", b"{", b"\xff"):
        answer = server.client.post("runs", content=content)
        assert answer.status_code == 400 and answer.json()["problems"][0]["fix"]
    assert server.client.post("runs", content=b"{" + b" " * (9 << 20)).status_code == 413


def test_losses_that_are_no_numbers_stay_valid_json(server):
    from lora_trainer.events import Stepped

    def work(control):
        yield Stepped(1, 1, float("nan"), float("inf"), 1e-4, 0.0, 0.1, 0.0)

    folder = RunFolder.create(server.host.paths().runs_dir, "nan")
    server.manager.start(folder, work).join(10)
    texts = [server.get(path).text for path in ("runs/nan/events", "status", "runs/nan")]
    assert not any("NaN" in text or "Infinity" in text for text in texts)


def test_settings_of_another_trainer_are_taken_with_a_reason_for_each_key_that_is_not(server):
    text = '{"LoRA_type": "Standard", "network_dim": 24, "use_wandb": true, "frob": 1}'
    answer = server.post("config", {"toml": text}, headers={"X-Language": "zh_CN"}).json()
    assert answer["config"]["network"] == {"dim": 24} and "dim = 24" in answer["toml"]
    imported = answer["imported"]
    assert (imported["kind"], imported["keys"], len(imported["taken"])) == ("kohya_ss", 4, 2)
    assert [left["key"] for left in imported["left"]] == ["use_wandb", "frob"] and "sd-scripts" in imported["left"][1]["why"]
    assert server.post("config", {"toml": answer["toml"]}).json() == answer | {"imported": None}


def test_settings_of_a_run_that_another_version_made_come_with_a_note(server):
    folder = RunFolder.create(server.host.paths().runs_dir, "moon")
    folder.config_file.write_text("version = 99\n[network]\ndim = 8\n", encoding="utf-8")
    answer = server.get(f"runs/{folder.id}/config").json()
    assert answer["config"]["network"]["dim"] == 8 and len(answer["notes"]) == 1 and "newer" in answer["notes"][0]
