"""Changes of a run over the routes: what may be changed while it goes on, what only when it is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.api.runs.resume import plan_resume
from lora_trainer.config.build import build
from lora_trainer.config.files import write_config
from lora_trainer.errors import ConfigError
from lora_trainer.jobs import resume_point
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.resume_point import SavedState

KEPT = {"changes": [], "steps_per_epoch": 10, "total_steps": 100, "step": 40}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that broke off behind a state of step 40."""
    found = RunFolder.create(tmp_path, "moon")
    write_config(build({"steps": {"max_train_epochs": 10}}), found.config_file)
    monkeypatch.setattr(resume_point, "require_state", lambda run: SavedState(run, 40, 1, KEPT))
    return found


def test_memory_may_be_used_otherwise_when_a_run_is_resumed(folder: RunFolder):
    config, since = plan_resume(folder, {"memory.gradient_checkpointing": True, "optimizer.learning_rate": 1e-5})
    assert config.memory.gradient_checkpointing is True
    assert since.changed_settings() == {"optimizer.learning_rate": 1e-5}  # this one is a change of the run, with its step
    assert plan_resume(folder, {"memory.gradient_checkpointing": "true"})[0].memory.gradient_checkpointing is True


def test_what_is_learnt_may_not_be_changed_by_resuming(folder: RunFolder):
    with pytest.raises(ConfigError, match="cannot be changed"):
        plan_resume(folder, {"network.dim": 4})


def test_a_change_may_not_name_a_place_outside_when_others_can_reach_the_host(closed_server, tmp_path):
    runs = closed_server.host.paths().runs_dir
    folder = RunFolder.create(runs, "moon")
    write_config(build({}), folder.config_file)
    folder.pid_file.write_text('{"pid": 1, "machine": "elsewhere"}', encoding="utf-8")
    folder.events_file.write_text("", encoding="utf-8")
    changes = {"sample.prompt_file": str(tmp_path / "elsewhere" / "prompts.txt")}
    answer = closed_server.post("runs/moon/control", {"command": "change", "changes": changes})
    assert answer.status_code == 403
    assert not folder.control_file.exists()
