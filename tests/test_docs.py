"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_trainer.config.param import declared_options
from lora_trainer.config.reference import reference
from lora_trainer.config.schema import TrainConfig

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (\d+) \|")


@pytest.mark.parametrize(("language", "name"), [("en", "options.md"), ("zh_CN", "options.zh-CN.md")])
def test_the_list_of_options_is_made_from_the_declarations(language: str, name: str):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == reference(language)


def features() -> list[list[str]]:
    lines = (ROOT / "docs" / "features.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if ROW.match(line)]


def test_every_feature_has_one_line():
    assert [int(row[0]) for row in features()] == list(range(1, 167))


def test_the_tests_and_options_that_features_name_exist():
    known = {option.path for option in declared_options(TrainConfig)}
    missing = []
    for number, _, _, words, test in features():
        missing += [f"{number}: {path}" for path in re.findall(r"`([a-z_]+\.[a-z_]+)`", words) if path not in known]
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", test):
            file = ROOT / path
            if not file.is_file() or f"def {name}(" not in file.read_text(encoding="utf-8"):
                missing.append(f"{number}: {path}::{name}")
    assert missing == []


def test_pictures_that_documents_show_are_there():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for name in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / name).exists(), f"{document.name} names {name}"


def test_done_features_name_a_test():
    assert [row[0] for row in features() if row[4] != "not yet" and "::" not in row[4]] == []


@pytest.mark.parametrize("name", ["other-programs.md", "other-programs.zh-CN.md"])
def test_each_kind_of_file_of_another_program_names_its_test_and_is_counted(name: str):
    from lora_trainer.adapters.files.naming import PREFIXES
    from lora_trainer.config.importing.networks import MODULE_NAMES

    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    rows = [cells for cells in lines if cells[2].isdigit()]
    assert len(rows) == len(lines) - 2
    counted = {"read": 0, "named": 0}
    for cells in rows:
        filled = [cell for cell in cells[3:] if cell]
        assert int(cells[2]) == len(filled), cells[0]
        for cell in filled:
            word, test = cell.split(" ", 1)
            path, _, function = test.strip("`").partition("::")
            counted[word] += 1
            assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), test
    assert all(str(number) in text for number in (*counted.values(), len(PREFIXES), len(MODULE_NAMES)))
