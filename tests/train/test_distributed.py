"""Several processes on the CPU train what one process with all their pictures a step trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_trainer.config.files import write_config
from lora_trainer.control import Control
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.process_rank import SINGLE, Rank, process_rank
from lora_trainer.train.distributed import SharedControl, SingleProcess, shard_of
from tests.train.ordinary import draw_ordinary
from tests.train.runs import small_config, tensors_of

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def started(folder: Path, config, processes: int = 1) -> subprocess.Popen[bytes]:
    """`train` as a user starts it, going on in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / "config.toml")
    words = [sys.executable, *(TWO if processes == 2 else []), "-m", "lora_trainer", "train", str(folder / "config.toml")]
    output = (folder / "output.txt").open("wb")
    return subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output)


def lines(folder: Path, *kinds: str) -> list[dict]:
    """Events of the only run in `folder`, so far; those of some kinds."""
    runs = list((folder / "runs").glob("*/events.jsonl"))
    found = [json.loads(line) for line in runs[0].read_text(encoding="utf-8").split("\n")[:-1]] if runs else []
    return [line for line in found if not kinds or line["event"] in kinds]


def waited(folder: Path, *kinds: str, more: int = 0, seconds: float = 240.0) -> list[dict]:
    """The events of these kinds as soon as there are more than `more` of them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if len(found := lines(folder, *kinds)) > more:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {kinds}: {(folder / 'output.txt').read_text(encoding='utf-8')[-3000:]}")


def ended(folder: Path, process: subprocess.Popen[bytes]) -> int:
    code = process.wait(timeout=300)
    if code and not lines(folder, "stopped", "failed"):
        raise AssertionError((folder / "output.txt").read_text(encoding="utf-8")[-3000:])
    return code


@pytest.fixture(scope="module")
def uneven_pictures(tmp_path_factory) -> Path:
    """Eleven pictures in two shapes and three of regularisation: no bucket is a multiple of any batch."""
    folder = tmp_path_factory.mktemp("uneven")
    for path in draw_ordinary(folder / "own", 11).glob("*.png"):
        if int(path.stem) % 3 == 0:
            Image.open(path).crop((0, 16, 64, 48)).resize((128, 64)).save(path)
    draw_ordinary(folder / "general" / "1_shape", 3, first=40)
    return folder


def uneven(pictures: Path, folder: Path, batch: int, **changes):
    data = {"batch_size": batch, "enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32}
    data |= {"train_data_dir": str(pictures / "own"), "reg_data_dir": str(pictures / "general"), "num_repeats": 1}
    steps = {"max_train_steps": 0, "max_train_epochs": 2, "gradient_accumulation_steps": 2}
    common = {"validate__fraction": 0.2, "loss__min_snr_gamma": 5.0, "loss__prior_loss_weight": 0.5, "optimizer__text_encoder_lr": 1e-3}
    given = {f"data__{name}": value for name, value in data.items()} | {f"steps__{name}": value for name, value in steps.items()}
    return small_config(folder, **(given | common | changes))


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(tmp_path: Path, uneven_pictures: Path):
    process = started(tmp_path / "two", uneven(uneven_pictures, tmp_path / "two", 2), processes=2)
    alone = started(tmp_path / "one", uneven(uneven_pictures, tmp_path / "one", 4))
    assert (ended(tmp_path / "two", process), ended(tmp_path / "one", alone)) == (0, 0)
    two, one = (lines(tmp_path / name, "stepped") for name in ("two", "one"))
    assert len(one) >= 4
    assert [event["loss"] for event in two] == pytest.approx([event["loss"] for event in one], rel=1e-5)
    assert [event["grad_norm"] for event in two] == pytest.approx([event["grad_norm"] for event in one], rel=1e-4)
    places = [[(event["step"], event["epoch"], event["lr"]) for event in events] for events in (two, one)]
    assert places[0] == places[1]
    validated = [[event["loss"] for event in lines(tmp_path / name, "validated")] for name in ("two", "one")]
    assert len(validated[0]) >= 2
    assert validated[0] == pytest.approx(validated[1], rel=1e-5)
    assert [lines(tmp_path / name, "started")[0]["processes"] for name in ("two", "one")] == [2, 1]
    assert len(list((tmp_path / "two" / "runs").iterdir())) == 1
    written, expected = (tensors_of(tmp_path / name / "loras" / "small.safetensors") for name in ("two", "one"))
    apart, whole = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (written, expected))
    assert float((apart - whole).norm() / whole.norm()) < 1e-4  # AdamW enlarges the last bits of gradients that are next to nothing


def test_pause_reaches_every_process_and_one_that_dies_ends_the_run_with_its_name(tmp_path: Path):
    process = started(tmp_path, small_config(tmp_path, steps__max_train_steps=100_000), processes=2)
    waited(tmp_path, "stepped", more=3)
    folder = RunFolder(next((tmp_path / "runs").iterdir()))
    folder.command("pause")
    waited(tmp_path, "paused")
    steps = len(lines(tmp_path, "stepped"))
    time.sleep(0.5)
    assert len(lines(tmp_path, "stepped")) == steps
    folder.command("resume")
    waited(tmp_path, "stepped", more=steps + 1)
    first = json.loads(folder.pid_file.read_text(encoding="utf-8"))["pid"]
    other = next(pid for pid in children_of(process.pid) if pid != first)
    os.kill(other, signal.SIGKILL)
    failed = waited(tmp_path, "failed")[0]
    assert "process 1 of 2 has ended" in failed["problems"][0]["message"]
    assert ended(tmp_path, process) != 0


@pytest.mark.slow
def test_a_stop_ends_every_process_and_saves_once(tmp_path: Path):
    process = started(tmp_path, small_config(tmp_path, steps__max_train_steps=100_000), processes=2)
    waited(tmp_path, "stepped", more=3)
    RunFolder(next((tmp_path / "runs").iterdir())).command("stop")
    ended(tmp_path, process)
    stopped = lines(tmp_path, "stopped")[0]
    assert [Path(path).name for path in stopped["files"]] == [f"small-step{stopped['step']:08d}.safetensors"]


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_is_the_run_of_one_without_a_break(tmp_path: Path):
    changes = {"schedule__type": "constant", "save__every_n_steps": 3}
    alone = started(tmp_path / "one", small_config(tmp_path / "one", data__batch_size=4, steps__max_train_steps=8, **changes))
    first = started(tmp_path / "two", small_config(tmp_path / "two", steps__max_train_steps=5, **changes), processes=2)
    assert (ended(tmp_path / "one", alone), ended(tmp_path / "two", first)) == (0, 0)
    run = next((tmp_path / "two" / "runs").iterdir())
    words = ["-m", "lora_trainer", "train", "--resume", str(run), "--set", "steps.max_train_steps=8"]
    done = subprocess.run([sys.executable, *TWO, *words], cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    steps = {event["step"]: event["loss"] for event in lines(tmp_path / "two", "stepped")}
    expected = {event["step"]: event["loss"] for event in lines(tmp_path / "one", "stepped")}
    assert sorted(steps) == list(range(1, 9))
    assert [steps[step] for step in sorted(steps)] == pytest.approx([expected[step] for step in sorted(expected)], rel=1e-5)


@pytest.mark.slow
def test_other_pictures_in_one_process_are_noticed_before_the_first_step(tmp_path: Path):
    """As on two machines whose folders differ; here by a seed that only one process is given."""
    write_config(small_config(tmp_path), tmp_path / "config.toml")
    words = [sys.executable, *TWO, "--no-python", "bash", "-c"]
    train = f'{sys.executable} -m lora_trainer train "{tmp_path / "config.toml"}" --set seed=$((RANK + 1))'
    done = subprocess.run([*words, train], cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "process 1" in lines(tmp_path, "failed")[0]["problems"][0]["message"]
    assert lines(tmp_path, "stepped") == []


def children_of(pid: int) -> list[int]:
    """Python processes that a process started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@pytest.mark.parametrize("size", range(9))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_of_a_batch_are_the_batch_and_differ_by_one_at_most(size: int, count: int):
    parts = [shard_of(range(size), rank, count) for rank in range(count)]
    assert [item for part in parts for item in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_who_starts_several_processes_says_which_one_this_is():
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert process_rank(told) == Rank(rank=3, world_size=4, local_rank=1)
    assert not process_rank(told).is_main
    assert process_rank({}) == SINGLE
    assert process_rank({**told, "WORLD_SIZE": "1", "RANK": "0"}) == SINGLE
    assert process_rank({name: value for name, value in told.items() if name != "MASTER_ADDR"}) == SINGLE


def test_one_process_alone_shares_with_nobody():
    shares, parameter = SingleProcess(), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    assert float(shares.all_reduce([parameter], torch.tensor(2.0))) == 2.0
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert shares.shard([1, 2, 3]) == [1, 2, 3]


class Wire:
    """Stands for the connection: what the first process tells is told to the others in the same order."""

    def __init__(self, told: list, rank: int):
        self.told, self.rank = told, Rank(rank=rank, world_size=2)

    def broadcast_if_set(self, word):
        if self.rank.is_main:
            self.told.append(word)
            return word
        return self.told.pop(0)


def test_every_process_is_asked_the_same_between_the_same_two_steps():
    told, user = [], Control()
    first, other = SharedControl(Wire(told, 0), user), SharedControl(Wire(told, 1), Control())

    def agreed():
        first.sync()
        other.sync()
        seen = [(one.stopping, one.save_on_stop, one.pausing, one.take_changes()) for one in (first, other)]
        assert seen[0] == seen[1]
        return seen[0]

    assert agreed() == (False, True, False, [])
    user.change({"optimizer.learning_rate": 1e-5})
    user.command("pause")
    assert not first.pausing  # not before they meet
    assert agreed() == (False, True, True, [{"optimizer.learning_rate": 1e-5}])
    assert agreed() == (False, True, True, [])
    user.command("resume")
    user.command("save")
    assert agreed() == (False, True, False, [])
    assert (first.take("save"), other.take("save"), first.take("save")) == (True, False, False)
    user.command("stop-discard")
    assert (first.local.stopping, first.stopping, other.local.stopping) == (True, False, False)
    assert agreed() == (True, False, False, [])
    assert told == []
