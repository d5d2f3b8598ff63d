"""Patterns answer as Python's `re` does, in a time that does not grow with what `re` would try."""

from __future__ import annotations

import random
import re
import time
from contextlib import suppress

import pytest

from lora_trainer.config.build import build
from lora_trainer.config.patterns import MAX_VISITS, Pattern, PatternError
from lora_trainer.errors import ConfigError
from lora_trainer.models.prompt_weights import parse_prompt_attention

NAMES = (
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q",
    "unet.down_blocks.1.attentions.0.attn2.to_q",
    "lora_te_text_model_encoder_layers_11_mlp_fc1",
    "aab",
    "abab",
    "b.b",
)
PIECES = (
    "a",
    "b",
    "attn",
    r"\d",
    r"\w",
    r"\D",
    ".",
    "[ab]",
    "[^a]",
    "[a-f_]",
    "to_q",
    "^",
    "$",
    r"\b",
    r"\B",
    "(a|b)",
    "(?:attn1|2)",
    r"\.",
    "(?i:ATTN)",
    "(|a)",
)
REPEATS = ("", "", "*", "+", "?", "{2}", "{0,2}", "*?", "{1,}")
BACKTRACKING = (
    r"(([a-z_.0-9]+)+)+$X",
    r"(a|a|a|_|.)*$X",
    r"(.*.*.*.*){30}X",
    r"^(\w+\d?)+(\w+_?)*=$",
    "[a-z]*_[a-z]*_[a-z]*_[0-9]*X",
    "(a?){40}a{40}X",
)


def patterns() -> list[str]:
    rng = random.Random(1)
    made = []
    for _ in range(1500):
        text = "".join(rng.choice(PIECES) + rng.choice(REPEATS) for _ in range(rng.randint(1, 4)))
        text = f"({text})" + rng.choice(("*", "+", "{2,3}", "")) if rng.random() < 0.3 else text
        made.append(f"(?i){text}" if rng.random() < 0.1 else text)
    return made


def test_a_pattern_matches_what_re_matches():
    for text in patterns():
        try:
            expected = re.compile(text)
        except re.error:
            with pytest.raises(PatternError):
                Pattern(text)
            continue
        pattern = Pattern(text)
        for name in NAMES:
            assert pattern.matches(name) is bool(expected.search(name)), (text, name)


@pytest.mark.parametrize("text", BACKTRACKING)
def test_a_pattern_that_backtracks_for_ever_is_matched_in_linear_time(text):
    names = [
        f"lora_unet_down_blocks_{i}_attentions_{j}_transformer_blocks_{k}_attn2_to_q" for i in range(5) for j in range(5) for k in range(20)
    ]
    begun = time.thread_time()
    pattern = Pattern(text)
    assert not any(pattern.matches(name) for name in names)
    assert time.thread_time() - begun < 1.0, "re needs years; 0.02 s were measured"


def test_a_pattern_with_ever_new_sets_of_states_is_refused_after_a_fixed_number_of_visits():
    pattern = Pattern("(a|b)*a(a|b){900}X")
    rng = random.Random(1)
    with pytest.raises(PatternError, match="too long"):
        for _ in range(MAX_VISITS // 100):
            pattern.matches("".join(rng.choice("ab") for _ in range(3000)))


@pytest.mark.parametrize(
    "option", ["network.dim", "network.down_lr_weight", "schedule.warmup_steps", "data.resolution", "optimizer.unet_lr"]
)
@pytest.mark.parametrize("text", ["9" * 200_000, "9" * 200_000 + ",!", " " * 200_000 + "!"])
def test_a_number_of_any_length_is_read_or_refused_in_linear_time(option, text):
    section, name = option.split(".")
    begun = time.thread_time()
    with suppress(ConfigError):
        build({section: {name: text}})
    assert time.thread_time() - begun < 5.0, "0.01 s were measured; where digits can be split in two ways, it is minutes"


def test_a_weight_of_any_length_in_a_prompt_is_read_in_linear_time():
    begun = time.thread_time()
    parse_prompt_attention("(a:" + "9" * 200_000)
    assert time.thread_time() - begun < 5.0


@pytest.mark.parametrize(
    "text",
    ["(?=a)b", "(?!a)b", "(?<=a)b", r"(a)\1", "(?P<n>a)(?(n)b|c)", "(", "[", "*", "a{99999999999}", "a{1000}{1000}", "(" * 400, "a" * 2000],
)
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_cannot_be_matched_so_is_refused_by_name(text, option):
    with pytest.raises(ConfigError) as refused:
        build({"network": {option: [text]}})
    assert [problem.path for problem in refused.value.problems] == [f"network.{option}"]
    assert text[:200] in refused.value.problems[0].message.text()
