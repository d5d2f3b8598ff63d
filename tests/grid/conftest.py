"""A short training run whose files a grid is made of; each test gets a copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import pytest

from lora_trainer import assets
from lora_trainer.api.runs.start_run import create_run_folder, resolve_paths, training_work
from lora_trainer.config.schema import TrainConfig
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from tests.train.runs import small_config

EPOCHS = 3


@attrs.frozen
class TrainedRun:
    """A run's folder and the folder of its LoRA files."""

    folder: RunFolder
    loras: Path
    host: StandaloneHost

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    def lora(self, epoch: int) -> Path:
        """An epoch's file."""
        return self.loras / f"small-{epoch:06d}.safetensors"


def train(config: TrainConfig, root: Path) -> TrainedRun:
    """Trains in this thread and says where everything is."""
    host = StandaloneHost(root)
    config = resolve_paths(config, host)
    folder = create_run_folder(config)
    job = Job(training_work(config, host, folder), folder)
    job.run()
    assert job.status.state == "finished", job.status.problems
    return TrainedRun(folder, Path(config.save.output_dir), host)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Three epochs of three steps on the crescent, with validation."""
    root = tmp_path_factory.mktemp("trained")
    for part in ("train", "val"):
        source = next((assets.toy_pictures() / "crescent" / part).iterdir())
        shutil.copytree(source, root / "pictures" / part / "1_sks crescent")
    config = small_config(
        root,
        data__train_data_dir=str(root / "pictures" / "train"),
        data__batch_size=4,
        steps={"max_train_epochs": EPOCHS},
        validate__data_dir=str(root / "pictures" / "val"),
        sample={"prompts": ["sks crescent, black background --w 64 --h 64 --d 5 --l 5 --s 2"], "at_first": False, "every_n_steps": 1000},
    )
    return train(config, root)


@pytest.fixture
def trained(original: TrainedRun, tmp_path: Path) -> TrainedRun:
    """A copy of the run with files of its own; the pictures are shared."""
    path, loras = tmp_path / "runs" / original.folder.id, tmp_path / "loras"
    shutil.copytree(original.path, path)
    shutil.copytree(original.loras, loras)
    folder = RunFolder(path)
    manifest = folder.manifest()
    for file in manifest["files"]:
        file["path"] = str(loras / Path(file["path"]).name)
    folder.manifest_file.write_text(json.dumps(manifest), encoding="utf-8")
    return TrainedRun(folder, loras, StandaloneHost(tmp_path))
