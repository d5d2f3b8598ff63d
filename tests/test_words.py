"""Both languages are whole: every label, help, message and remedy in the code has its Chinese, with the same places to fill."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import translations

PACKAGE = Path(__file__).parent.parent / "lora_trainer"
RAISED = {
    "say",
    "Message",
    "problem",
    "TrainerError",
    "DatasetError",
    "ModelError",
    "HostBusy",
    "MissingPackage",
    "OutOfMemory",
    "TrainingError",
    "CannotStep",
    "Refused",
    "Forbidden",
    "NotFound",
    "RequestError",
    "Conflict",
    "PayloadTooLarge",
}
TERMS = re.compile(
    r"LoRA|TensorBoard|float|U-Net|VAE|AdamW|AdaFactor|Prodigy|Lion|SGD|CAME|LAMB|Alpha|DDIM|DDPM|PLMS|pndm|LMS|Heun|DPM|Solver|Euler|Min-SNR|gamma|TOML|JSON|SD|XL|Flux|GPU|CPU|GB|MB|CLIP|X/Y/Z|txt2img|ID|Trainer|WebUI|epsilon|Esc|RAM|"
    r"\{[a-z_]*(?::[^}]*)?\}|[^A-Za-z]"
)


def templates() -> Iterator[tuple[str, str]]:
    """(template, place) of every message in the code."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name not in RAISED:
                continue
            values = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "fix")]
            for value in values:
                for constant in ast.walk(value):
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and " " in constant.value:
                        yield constant.value, f"{path.relative_to(PACKAGE)}:{node.lineno}"
    for option in declared_options(TrainConfig):
        yield option.option.label, f"config: {option.path}"
        yield option.option.help, f"config: {option.path}"
        for text in filter(None, [option.option.group, *(label for _, label in option.option.labels)]):
            yield text, f"config: {option.path}"


def test_every_message_has_its_chinese():
    known = translations("zh_CN")
    missing = sorted({f"{place}: {template}" for template, place in templates() if template not in known})
    assert missing == []


def test_no_place_to_fill_is_lost_in_translation():
    places = re.compile(r"\{([a-z_]+)")
    lost = [english for english, chinese in translations("zh_CN").items() if set(places.findall(english)) != set(places.findall(chinese))]
    assert lost == []


@pytest.mark.parametrize("language", ["zh_CN"])
def test_nothing_but_terms_stands_in_latin_letters_alone(language: str):
    latin = [
        f"{english} = {chinese}"
        for english, chinese in translations(language).items()
        if chinese.isascii() and TERMS.sub("", chinese).strip()
    ]
    assert latin == []
