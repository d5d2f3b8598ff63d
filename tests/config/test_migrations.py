"""The version of a config's form: older ones are brought to today's and told so, newer ones are read as far as they are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomlkit

from lora_trainer.config.build import build
from lora_trainer.config.files import config_text, read_config, write_config
from lora_trainer.config.migrations import VERSION, migrate
from lora_trainer.errors import ConfigError

MOVED = {1: {"network.rank": "network.dim", "data.old": ""}, 2: {"network.dim": "adapter.dim"}}


def test_a_written_config_carries_the_version_in_front():
    assert next(iter(tomlkit.parse(config_text(build({}))))) == "version"


def test_a_config_without_a_version_is_read_without_a_word():
    assert migrate({"network": {"dim": 4}}) == ({"network": {"dim": 4}}, ())


def test_options_that_were_renamed_since_are_moved_step_by_step_and_told():
    values, notes = migrate({"version": 1, "network": {"rank": 4}, "data": {"old": 3}}, MOVED, 3)
    assert values == {"network": {}, "data": {}, "adapter": {"dim": 4}}
    assert [note.text() for note in notes] == [
        "The setting network.rank is called network.dim now.",
        "The setting data.old is gone; its value 3 is not used.",
        "The setting network.dim is called adapter.dim now.",
    ]


def test_a_config_of_the_version_between_is_moved_from_there_on():
    values, notes = migrate({"version": 2, "network": {"rank": 4, "dim": 8}}, MOVED, 3)
    assert values == {"network": {"rank": 4}, "adapter": {"dim": 8}} and len(notes) == 1


def test_a_newer_config_is_read_with_a_note_and_unknown_settings_are_named(tmp_path: Path):
    file = tmp_path / "new.toml"
    file.write_text(f"version = {VERSION + 1}\n[network]\ndim = 4\n", encoding="utf-8")
    told: list[str] = []
    assert read_config(file, notify=lambda note: told.append(note.text())).network.dim == 4
    assert len(told) == 1 and "newer version" in told[0]
    file.write_text(f"version = {VERSION + 1}\n[network]\nwarp = 4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"network\.warp"):
        read_config(file)


def test_a_file_that_is_written_again_keeps_its_comments_and_gets_the_new_version(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text("version = 0  # old\n[network]\ndim = 4 # small\n", encoding="utf-8")
    write_config(build({"network": {"dim": 4}}), file, template=file)
    assert file.read_text(encoding="utf-8") == f"version = {VERSION}  # old\n[network]\ndim = 4 # small\n"
