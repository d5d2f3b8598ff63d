"""Every option and every message of the rooms config/ and data/ exists in Chinese, with the same places for values."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lora_trainer
from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import translations

PACKAGE = Path(lora_trainer.__file__).parent
LATIN_ALONE = {"VAE", "{wrong}"}


def sentences(room: str) -> set[str]:
    """Texts of a room that a user can see: arguments of say, of errors and of problem, and the tables of templates."""
    found = set()
    for path in (PACKAGE / room).rglob("*.py"):
        if path.parent.name == "importing":  # names of programs
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        quiet = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        quiet |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in quiet else None
            if isinstance(text, str) and re.search(r"^\S+ \S+", text) and (text[-1] in ".?})" or "{" in text):
                found.add(text)
    return found


@pytest.mark.parametrize("option", list(declared_options(TrainConfig)), ids=lambda option: option.path)
def test_every_option_has_a_chinese_label_and_help(option):
    chinese = translations("zh_CN")
    for text in (option.option.label, option.option.help):
        assert text in chinese, text
        assert re.search(r"[\u4e00-\u9fff]", chinese[text]) or text in LATIN_ALONE


@pytest.mark.parametrize("room", ["config", "data"])
def test_every_message_of_a_room_is_translated_with_the_same_values(room):
    chinese = translations("zh_CN")
    texts = sentences(room) - {option.option.help for option in declared_options(TrainConfig)}
    assert len(texts) > 30
    assert sorted(texts - set(chinese)) == []
    for text in texts:
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[text])), text


@pytest.mark.parametrize("part, room", [("config", "config"), ("data", "data")])
def test_no_translation_is_left_over_from_a_message_that_is_gone(part, room):
    import tomlkit

    known = tomlkit.parse((PACKAGE / "locale" / "zh_CN" / f"{part}.toml").read_text(encoding="utf-8")).unwrap()["words"]
    source = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / room).rglob("*.py"))
    literals = {node.value for node in ast.walk(ast.parse("\n".join(_without_future(source)))) if isinstance(node, ast.Constant)}
    assert sorted(set(known) - literals) == []


def _without_future(source: str) -> list[str]:
    return [line for line in source.splitlines() if not line.startswith("from __future__")]
