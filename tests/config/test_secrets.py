"""What must never be written or shown: it is there for the run, and in no mapping, text, repr or problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config.build import apply_overrides, build, rebuild, to_mapping
from lora_trainer.config.changes import with_value
from lora_trainer.config.files import config_text, read_config, write_config
from lora_trainer.config.importing import import_text
from lora_trainer.errors import ConfigError

TOKEN = "hf_AbC123"


@pytest.fixture
def config():
    return build(apply_overrides({}, [f"model.hub_token={TOKEN}"]))


def test_a_token_is_there_for_the_run_and_is_neither_written_nor_shown(config, tmp_path: Path):
    assert config.model.hub_token == TOKEN
    write_config(config, tmp_path / "config.toml")
    for text in (
        repr(config),
        str(to_mapping(config)),
        config_text(config, changed_only=True),
        (tmp_path / "config.toml").read_text("utf-8"),
    ):
        assert TOKEN not in text
        assert "hub_token" not in text


def test_a_file_that_is_written_after_the_users_own_takes_no_token_along(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text(f'# mine\n[model]\nhub_token = "{TOKEN}"\nclip_skip = 2\n', encoding="utf-8")
    config = read_config(own)
    assert config.model.hub_token == TOKEN
    write_config(config, tmp_path / "new.toml", template=own)
    text = (tmp_path / "new.toml").read_text("utf-8")
    assert ("# mine" in text, "clip_skip = 2" in text, TOKEN in text) == (True, True, False)


def test_changes_of_other_options_keep_the_token(config):
    assert with_value(config, "model.clip_skip", 2).model.hub_token == TOKEN
    assert rebuild(config, to_mapping(config)) == config


@pytest.mark.parametrize("value", [12345678, [TOKEN], f"{TOKEN}\nx", f"{TOKEN} x", f"{TOKEN}é"])
def test_a_token_that_is_none_is_refused_without_being_shown(value):
    with pytest.raises(ConfigError) as caught:
        build({"model": {"hub_token": value}})
    problem = caught.value.problems[0]
    assert problem.path == "model.hub_token"
    assert not any(part in problem.text() for part in (TOKEN, "12345678"))


def test_a_line_with_a_token_that_cannot_be_read_is_not_shown(tmp_path: Path):
    path = tmp_path / "x.toml"
    path.write_text(f"[model]\nhub_token = {TOKEN}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert "line 2" in str(caught.value)
    assert TOKEN not in caught.value.text()


def test_settings_that_are_pasted_come_back_without_their_token():
    found = import_text(f'[model]\nhub_token = "{TOKEN}"\nclip_skip = 2\n')
    assert TOKEN not in str((to_mapping(found.config), found.to_json("en")))
