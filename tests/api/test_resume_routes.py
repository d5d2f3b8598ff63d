"""Going on with a run, and changing one that goes on, over the routes."""

from __future__ import annotations

import time

from tests.api.conftest import small_config


def wait_for_step(server, run, step):
    end = time.monotonic() + 120
    while server.get(f"runs/{run}").json()["step"] < step and time.monotonic() < end:
        time.sleep(0.05)


def test_a_run_is_changed_and_given_more_steps_when_it_has_ended(server, pictures):
    config = small_config(pictures)
    config["steps"] = {"max_train_steps": 400}
    run = server.post("runs", {"config": config}).json()["run"]
    wait_for_step(server, run, 2)
    refused = server.post(f"runs/{run}/control", {"command": "change", "changes": {"network.dim": 8}})
    assert refused.status_code == 400 and refused.json()["problems"][0]["path"] == "network.dim"
    changed = server.post(
        f"runs/{run}/control", {"command": "change", "changes": {"steps.max_train_steps": 8, "schedule.type": "constant"}}
    )
    assert [(one["path"], one["new"]) for one in changed.json()["changes"]] == [("steps.max_train_steps", 8), ("schedule.type", "constant")]
    found = server.wait_for_end(run)
    assert found["outcome"] == "finished" and found["state_step"] == found["step"]
    done = server.post(f"runs/{run}/resume", {})
    assert done.status_code == 400 and done.json()["problems"][0]["path"] == "steps.max_train_epochs"
    longer = found["step"] + 2
    assert server.post(f"runs/{run}/resume", {"changes": {"steps.max_train_steps": longer}}).json() == {"run": run}
    again = server.wait_for_end(run)
    assert (again["outcome"], again["step"]) == ("finished", longer)
    kinds = [event["event"] for event in server.get(f"runs/{run}/events", after=0).json()["events"]]
    assert kinds.count("resumed") == 1 and kinds.count("finished") == 2
