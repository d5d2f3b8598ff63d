"""Texts of settings that would take minutes, or the whole memory, are refused or read in a moment."""

from __future__ import annotations

import time

import pytest

from lora_trainer.config.importing import import_text
from lora_trainer.errors import TrainerError

TEXTS = {
    "empty lines": "x\n" + "\n" * 900_000,
    "lines that go on": "x \\\n" * 200_000,
    "lists that never end": "$a=@(\n" + "(\n" * 200_000,
    "variables that double": "".join(f"a{n}=$a{n - 1}$a{n - 1}\n" for n in range(60)) + "accelerate launch train_network.py --x $a59",
    "a list that doubles": "$a=@(1)\n" + "$a+=$a\n" * 10_000,
    "a long variable many times": "a=" + "x" * 4000 + "\n" + "$a\n" * 20_000,
    "conditions in conditions": "if [ 1 ]; " + "then " * 15_000,
    "one long line of a batch file": "set a=1\n" + "x" * 90_000 + " %",
    "YAML that repeats itself": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(15)),
    "deep YAML": "a: " + "[" * 20_000,
    "deep JSON": '{"a":' * 100_000,
    "deep TOML": "a = " + "[" * 100_000,
    "a long key": ".".join("a" * 20_000) + " = 1",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text_is_read_or_refused_in_a_moment(name):
    begun = time.thread_time()
    try:
        import_text(TEXTS[name])
    except TrainerError as error:
        assert error.problems[0].fix.text()
    assert time.thread_time() - begun < 10.0, "the slowest was measured as 0.5 s; without limits they need minutes to years"
