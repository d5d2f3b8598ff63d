"""Wrong words and wrong configs: exit status 2, every problem named with its remedy, nothing left behind."""

import json
import os
import subprocess
import sys

import pytest

FOUR_WRONG = """
[data]
train_data_dir = "nowhere"
batch_size = 2.7
flip_aug = "false"
resolutoin = 64
[network]
dim = 0
"""


def test_every_problem_of_a_config_is_named_at_once(shell):
    shell.write(FOUR_WRONG)
    for verb in ("train", "check"):
        done = shell(verb, "my.toml")
        assert done.returncode == 2 and done.stdout == ""
        for words in (
            "data.batch_size: ",
            "data.flip_aug: ",
            "data.resolutoin: ",
            "network.dim: 0 is too small: at least 1",
            "Did you mean data.resolution?",
        ):
            assert words in done.stderr, verb
    assert sorted(path.name for path in shell.folder.iterdir()) == ["my.toml"]


def test_check_has_its_shape_even_where_nothing_can_be_planned(shell):
    shell.write(FOUR_WRONG)
    done = shell("check", "my.toml", "--json")
    found = json.loads(done.stdout)
    shape = {"images", "buckets", "steps_per_epoch", "epochs", "total_steps", "seconds", "files", "disk_mb", "memory", "problems"}
    assert done.returncode == 2 and shape <= set(found)
    assert [problem["path"] for problem in found["problems"]] == ["data.batch_size", "data.flip_aug", "data.resolutoin", "network.dim"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "none.toml"],
        ["train", "."],
        ["check", "my.toml", "--jsno"],
        ["check", "my.toml", "--js"],
        ["train", "my.toml", "--set", "data.batch_size"],
        ["train", "my.toml", "--set", "data.batch_size=many"],
        ["control", "none", "stop"],
        ["control", "none", "jump"],
        ["grid", "none", "--prompt", "x"],
        ["wizard", "--subject", "dragon"],
        ["wizard", "--subject", "style"],
        ["wizard", "--subject", "style", "--data", "none"],
        ["sample", "--model", "none.safetensors", "--prompt", "x", "--out", "x.png"],
        ["sample", "--model", "my.toml", "--prompt", "x", "--out", "x.png"],
        ["sample", "--model", "toy-sd15-host", "--lora", "my.toml", "--prompt", "x", "--out", "x.png"],
        ["sample", "--model", "toy-sd15-host", "--lora", "my.toml:strong", "--prompt", "x", "--out", "x.png"],
        ["sample", "--model", "toy-sd15-host", "--prompt", "x", "--width", "65", "--out", "x.png"],
        ["sample", "--model", "toy-sd15-host", "--prompt", "x", "--sampler", "fancy", "--out", "x.png"],
        ["sample", "--model", "toy-sd15-host", "--prompt", "x", "--max-token-length", "80", "--out", "x.png"],
    ],
)
def test_wrong_words_end_with_status_2_and_a_sentence(shell, words):
    shell.write("[data]\n")
    done = shell(*words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.strip() and "Traceback" not in done.stderr
    assert sorted(path.name for path in shell.folder.iterdir()) == ["my.toml"]


def test_pictures_model_and_name_are_all_looked_at_before_anything_is_made(shell):
    shell.write(
        """
[model]
pretrained_model_name_or_path = "none.safetensors"
[data]
train_data_dir = "none"
[save]
output_dir = "my.toml/out"
"""
    )
    done = shell("train", "my.toml")
    assert done.returncode == 2
    paths = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert paths == ["model.pretrained_model_name_or_path", "data.train_data_dir", "save.output_dir", "save.runs_dir"]
    assert sorted(path.name for path in shell.folder.iterdir()) == ["my.toml"]


def test_problems_are_told_in_the_systems_language(shell):
    shell.write(FOUR_WRONG)
    by_system = shell("check", "my.toml", LANG="zh_CN.UTF-8").stderr
    assert "data.batch_size" in by_system and any("\u4e00" <= sign <= "\u9fff" for sign in by_system)
    assert shell("check", "my.toml", "--lang", "zh_CN").stderr == by_system
    assert shell("check", "my.toml", "--lang", "en", LANG="zh_CN.UTF-8").stderr.isascii()
    assert "训练" in shell("train", "--help", "--lang", "zh_CN").stdout


def test_a_console_that_knows_few_letters_ends_no_verb(shell):
    shell.write('[data]\ntrain_data_dir = "图片 ü 🎨"\nresolutoin = 1\n')
    for verb in (["check", "my.toml"], ["check", "my.toml", "--json"], ["runs"], ["runs", "--json"], ["train", "--help"]):
        done = shell(*verb, "--lang", "zh_CN", PYTHONIOENCODING="gbk:strict")
        assert "UnicodeEncodeError" not in done.stderr and "Traceback" not in done.stderr
        if "--json" in verb:
            json.loads(done.stdout)
    done = shell("runs", "--dir", "🎨 ü", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and done.stdout


def test_a_reader_that_goes_away_is_no_error(shell):
    shell.write(FOUR_WRONG)
    command = [sys.executable, "-m", "lora_trainer", "check", "my.toml", "--json"]
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(command, cwd=shell.folder, env=shell.environment(), stdout=write, stderr=subprocess.PIPE, encoding="utf-8")
    os.close(write)
    _, told = process.communicate(timeout=60)
    assert "BrokenPipe" not in told and "Traceback" not in told and "Exception ignored" not in told


def test_runs_of_an_empty_folder_are_an_empty_list(shell):
    assert shell.json("runs") == []
    assert "No runs" in shell("runs").stdout


def test_the_light_verbs_do_without_torch(shell):
    code = (
        "import sys; from lora_trainer.cli.main import main; main(['runs']); sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=shell.folder, env=shell.environment(), check=False, capture_output=True).returncode
        == 0
    )
