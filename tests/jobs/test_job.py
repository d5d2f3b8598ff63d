"""A run is iterated, noted and always ended by one last event."""

import json
import threading
import time

import pytest

from lora_trainer.errors import DatasetError
from lora_trainer.events import Finished, Phase, Started, Warned
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.manager import JobManager
from lora_trainer.jobs.status import RunStatus, translate_problem
from tests.jobs.works import PLAN, endless_work, small_work, stepped


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs", "moon")


def kinds(folder):
    return [line["event"] for line in folder.events()]


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_events_are_numbered_from_one_and_carry_their_time(folder):
    before = time.time()
    Job(small_work(folder), folder).run()
    lines = folder.events()
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(before - 1 < line["time"] < time.time() + 1 for line in lines)
    assert kinds(folder)[0] == "started" and kinds(folder)[-1] == "finished" and kinds(folder).count("stepped") == 10


def test_manifest_maps_epoch_and_step_to_file_losses_and_previews(folder):
    Job(small_work(folder), folder).run()
    manifest = folder.manifest()
    first = manifest["files"][0]
    assert (first["epoch"], first["step"], first["validation"], first["samples"]) == (1, 5, 0.4, ["samples/1.png"])
    assert first["loss"] == pytest.approx(2 / 5)
    assert manifest["outcome"] == "finished" and manifest["best"]["epoch"] == 1
    assert manifest["validation"][0] == {"step": 0, "epoch": 0, "loss": 0.5}
    assert folder.plan() == PLAN


def test_pictures_are_named_relative_to_the_run_so_that_it_can_be_moved(folder):
    Job(small_work(folder), folder).run()
    assert [line["path"] for line in folder.events() if line["event"] == "sampled"] == ["samples/1.png", "samples/2.png"]


def test_an_error_with_a_remedy_ends_in_failed_in_the_readers_language(folder):
    def work(control):
        yield Started(PLAN)
        raise DatasetError("{folder} holds no pictures.", folder="here", fix="Choose another folder.", path="data.train_data_dir")

    status = Job(work, folder).run()
    assert status.outcome == "failed" and status.state == "failed"
    problem = folder.events()[-1]["problems"][0]
    assert (problem["path"], problem["message"], problem["fix"]) == (
        "data.train_data_dir",
        "here holds no pictures.",
        "Choose another folder.",
    )
    assert translate_problem(problem, "en")["message"] == "here holds no pictures."
    assert problem["words"]["message"]["values"]["folder"] == "here"
    assert "here holds no pictures." in status.to_json()["error"]


def test_an_unforeseen_error_leaves_its_place_in_the_report(folder):
    def work(control):
        yield stepped(3)
        raise ZeroDivisionError("by nothing")

    status = Job(work, folder).run()
    assert status.to_json()["problems"][0]["message"] == "ZeroDivisionError: by nothing" and status.step == 3
    assert 'raise ZeroDivisionError("by nothing")' in folder.report_file.read_text(encoding="utf-8")


def test_a_full_disk_is_named(folder):
    def work(control):
        yield stepped(1)
        raise OSError(28, "No space left on device", "/data/moon.safetensors")

    problem = Job(work, folder).run().to_json()["problems"][0]
    assert problem["path"] == "/data/moon.safetensors" and "disk is full" in problem["message"] and "Free some disk space" in problem["fix"]


def test_a_sink_that_raises_is_dropped_with_one_warning_and_the_run_goes_on(folder):
    calls = []

    def broken(record):
        calls.append(record.n)
        raise ValueError("pen is empty")

    status = Job(small_work(folder), folder, [broken]).run()
    assert calls == [1] and status.outcome == "finished"
    warnings = [line for line in folder.events() if line["event"] == "warned"]
    assert len(warnings) == 1 and "pen is empty" in warnings[0]["message"]["text"]


def test_the_run_counts_as_ended_only_after_the_work_gave_everything_back(folder):
    seen = []

    def work(control):
        try:
            yield stepped(1)
            yield Finished(1)
        finally:
            seen.append((job.running, kinds(folder)[-1]))

    job = Job(work, folder)
    job.run()
    assert seen == [(True, "stepped")] and kinds(folder)[-1] == "finished" and not job.running


def test_an_error_while_giving_back_is_a_failure_although_finished_was_said(folder):
    def work(control):
        try:
            yield Finished(1)
        finally:
            raise RuntimeError("the model did not come back")

    assert Job(work, folder).run().outcome == "failed"
    assert kinds(folder) == ["failed"]


def test_the_work_is_closed_in_the_thread_that_ran_it_when_it_is_interrupted(folder):
    closed = []

    def work(control):
        try:
            yield stepped(1)
            raise KeyboardInterrupt
        finally:
            closed.append(threading.current_thread())

    with pytest.raises(KeyboardInterrupt):
        Job(work, folder).run()
    assert closed == [threading.main_thread()] and kinds(folder)[-1] == "stopped" and not folder.pid_file.exists()


def test_stop_shows_at_once_and_ends_the_run(folder):
    manager = JobManager()
    job = manager.start(folder, endless_work)
    wait_for(lambda: job.status.step > 2)
    job.command("stop")
    assert job.snapshot()["state"] in ("stopping", "stopped")
    assert job.join(5) and folder.outcome() == "stopped" and manager.current is None and manager.latest is job


def test_pause_and_resume_are_seen_in_the_status(folder):
    job = JobManager().start(folder, endless_work)
    wait_for(lambda: job.status.step > 2)
    job.command("pause")
    assert job.snapshot()["asked"] in ("pause", "")
    wait_for(lambda: job.status.state == "paused")
    step = job.status.step
    time.sleep(0.05)
    assert job.status.step == step and job.snapshot()["asked"] == ""
    job.command("resume")
    wait_for(lambda: job.status.step > step)
    job.command("stop")
    assert job.join(5)


def test_another_process_steers_by_the_control_file(folder):
    job = JobManager().start(folder, endless_work)
    wait_for(lambda: job.status.step > 1)
    RunFolder(folder.path).command("stop")
    assert job.join(5) and folder.outcome() == "stopped" and not folder.control_file.exists()


def test_commands_written_before_the_first_was_read_are_all_kept(folder):
    folder.command("save")
    folder.command("stop")
    assert folder.control_file.read_text(encoding="utf-8").split() == ["save", "stop"]


def test_a_second_start_is_refused_with_the_name_of_the_first(folder, tmp_path):
    from lora_trainer.errors import HostBusy

    manager = JobManager()
    job = manager.start(folder, endless_work)
    with pytest.raises(HostBusy, match="moon"):
        manager.start(RunFolder.create(tmp_path / "runs", "star"), endless_work)
    job.command("stop")
    assert job.join(5)
    second = manager.start(RunFolder.create(tmp_path / "runs", "star"), endless_work)
    second.command("stop")
    assert second.join(5)


def test_warnings_travel_as_template_and_values(folder):
    from lora_trainer.messages import say

    def work(control):
        yield Warned(say("{n} pictures are small.", n=3))
        yield Finished(0)

    status = Job(work, folder).run()
    assert status.to_json()["warning"] == "3 pictures are small."
    line = json.loads(folder.events_file.read_text(encoding="utf-8").splitlines()[0])
    assert line["message"]["template"] == "{n} pictures are small." and line["message"]["values"] == {"n": 3}


def test_a_run_that_gets_another_length_shows_it_at_once():
    status = RunStatus(id="moon", name="moon").after(Started({"total_steps": 100, "epochs": 10, "steps_per_epoch": 10}), 1.0)
    longer = status.after(Phase("training", 100), 2.0).after(Phase("training", 145), 3.0)
    assert (longer.total_steps, longer.epochs) == (145, 15)
    assert longer.after(Phase("caching", 7), 4.0).total_steps == 145
