"""Configs as files: read with everything wrong named, written with the user's comments kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_trainer.config.build import build
from lora_trainer.config.files import config_text, read_config, write_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, TrainerError


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    return caught.value.text()


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "train.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return write


def test_a_config_is_read_and_sets_win_over_it(written):
    path = written("seed = 7\n[data]\nbatch_size = 2 # two\nresolution = [64, 128]\n")
    config = read_config(path, ["data.batch_size=3"])
    assert (config.seed, config.data.batch_size, config.data.resolution) == (7, 3, (64, 128))


def test_windows_line_ends_and_a_byte_order_mark_are_read(written):
    assert read_config(written(b"\xef\xbb\xbfseed = 7\r\n[data]\r\nbatch_size = 2\r\n")).data.batch_size == 2


@pytest.mark.parametrize(
    "text, line",
    [
        ("seed = 1\n[data]\nbatch_size =\n", 3),
        ("seed = 1\nseed = 2\n", 2),
        ("[data]\nbatch_size = 1\n[network]\n[data]\nx = 1\n", 4),
        ("seed = 1\n[data\n", 2),
        ('seed = 1\n\nx = "open\n', 3),
    ],
)
def test_a_mistake_in_the_toml_names_file_and_line(written, text, line):
    path = written(text)
    assert str(path) in refusal(path) and f"line {line} " in refusal(path)


def test_a_windows_path_that_is_no_toml_is_answered_with_the_remedy(written):
    text = refusal(written('[data]\ntrain_data_dir = "C:\\Users\\x"\n'))
    assert "line 2" in text and "single quotes" in text and "C:\\Users" in text


def test_a_windows_path_that_toml_misreads_is_answered_with_the_remedy(written):
    text = refusal(written('[data]\ntrain_data_dir = "C:\\new\\train"\n'))
    assert "data.train_data_dir" in text and "single quotes" in text


def test_a_windows_path_in_single_quotes_is_kept_as_it_is(written):
    assert read_config(written("[data]\ntrain_data_dir = 'C:\\new\\train'\n")).data.train_data_dir == "C:\\new\\train"


def test_a_missing_file_a_folder_and_a_wrong_encoding_are_named(written, tmp_path):
    assert "no such file" in refusal(tmp_path / "none.toml") and "none.toml" in refusal(tmp_path / "none.toml")
    assert "is a folder" in refusal(tmp_path)
    assert "UTF-8" in refusal(written('x = "é"'.encode("utf-16")))
    assert "UTF-8" in refusal(written(b'x = "\xe9"'))


@pytest.mark.skipif(os.name == "nt", reason="rights are different on Windows")
def test_a_file_of_somebody_else_is_named(written):
    path = written("seed = 1")
    path.parent.chmod(0o755)
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything: ask as another user
        assert _as_nobody(path) == "may not be read."
    else:
        assert "may not be read" in refusal(path)


def _as_nobody(path: Path) -> str:
    """What reading says to a process without rights."""
    import subprocess
    import sys

    for folder in path.parents:
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    code = (
        "import sys; from pathlib import Path; from lora_trainer.config.files import read_config; import os; os.setuid(65534)\n"
        "try: read_config(Path(sys.argv[1]))\n"
        "except Exception as error: print(error.problems[0].message.text())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, encoding="utf-8", check=False)
    return done.stdout.strip() or done.stderr


def test_a_relative_folder_is_found_beside_the_config_when_it_is_not_here(written, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "here").mkdir()
    path = written('[data]\ntrain_data_dir = "pictures"\n[save]\noutput_dir = "out"\n')
    monkeypatch.chdir(tmp_path / "here")
    config = read_config(path)
    assert Path(config.data.train_data_dir) == tmp_path / "pictures"
    assert config.save.output_dir == "out"
    (tmp_path / "here" / "pictures").mkdir()
    assert read_config(path).data.train_data_dir == "pictures"


def test_a_folder_that_is_nowhere_stays_as_it_was_written(written):
    assert read_config(written('[data]\ntrain_data_dir = "nowhere"\n')).data.train_data_dir == "nowhere"


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"data": {"train_data_dir": "数据 集/ü {x}/[1]", "trigger_word": '"sks"', "leave_out": ["a'b.png"], "resolution": [64, 128]}},
        {"optimizer": {"unet_lr": 0.0, "text_encoder_lr": 1e-5}, "schedule": {"warmup_steps": "5%"}, "sample": {"prompts": ["a\nb", "\\"]}},
        {"save": {"every_n_epochs": 0}, "data": {"train_data_dir": "C:\\new\\train"}},
    ],
)
def test_a_written_config_is_read_as_the_same(tmp_path, mapping):
    config, path = build(mapping), tmp_path / "new folder" / "config.toml"
    write_config(config, path)
    assert read_config(path) == config
    assert list(path.parent.iterdir()) == [path]


def test_a_written_config_tells_every_option_that_has_a_value():
    assert "bucket_reso_steps = 64" in config_text(TrainConfig()) and "unet_lr" not in config_text(TrainConfig())


def test_comments_and_order_of_the_users_own_file_are_kept(written, tmp_path):
    path = written("# mine\nseed = 1 # lucky\n\n[network]\ndim = 4  # small\n[data] # pictures\nresolution = 64\n")
    config = read_config(path, ["network.dim=32", "save.output_name=mika", "data.batch_size=2"])
    write_config(config, tmp_path / "out.toml", template=path)
    text = (tmp_path / "out.toml").read_text(encoding="utf-8")
    assert read_config(tmp_path / "out.toml") == config
    assert "# mine" in text and "seed = 1 # lucky" in text and "# small" in text and "# pictures" in text
    assert text.index("[network]") < text.index("[data]") < text.index("[save]")
    assert "bucket_reso_steps" not in text


def test_a_value_that_became_empty_again_leaves_the_file(written, tmp_path):
    path = written("[optimizer]\nunet_lr = 0.5 # gone\nlearning_rate = 0.1\n")
    write_config(build({"optimizer": {"learning_rate": 0.1}}), tmp_path / "out.toml", template=path)
    assert read_config(tmp_path / "out.toml").optimizer.unet_lr is None


def test_a_config_may_be_written_over_its_own_template(written):
    path = written("# mine\n[data]\nbatch_size = 2\n")
    write_config(build({"data": {"batch_size": 3}}), path, template=path)
    assert path.read_text(encoding="utf-8") == "# mine\n[data]\nbatch_size = 3\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TrainerError, match=r"out\.toml"):
        write_config(TrainConfig(), tmp_path / "file" / "out.toml")


@pytest.mark.parametrize("written", ["5e-5,", '"5e-5,"', "5e-5 ;  # half", '" 5e-5, "'])
def test_a_rate_with_a_comma_behind_it_is_read_with_a_note(tmp_path, written):
    path = tmp_path / "a.toml"
    path.write_text(f"[optimizer]\nunet_lr = {written}\n", encoding="utf-8")
    notes = []
    assert read_config(path, (), notes.append).optimizer.unet_lr == 5e-5
    assert [note.text().partition(", without")[0] for note in notes] == ["optimizer.unet_lr is read as 5e-05"]


def test_a_number_of_an_override_may_have_a_comma_behind_it(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("", encoding="utf-8")
    notes = []
    config = read_config(path, ["optimizer.text_encoder_lr=1e-5,", "data.batch_size=4,"], notes.append)
    assert (config.optimizer.text_encoder_lr, config.data.batch_size, len(notes)) == (1e-5, 4, 2)


@pytest.mark.parametrize("written", ["5e-5,,1", "5e-5, 1e-5", "five,", "4 4,"])
def test_what_is_no_single_number_is_still_refused(tmp_path, written):
    path = tmp_path / "a.toml"
    path.write_text(f"[optimizer]\nunet_lr = {written}\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        read_config(path)
