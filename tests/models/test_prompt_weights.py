"""Words of a prompt that count more or less: what a prompt says, and what comes of it."""

from __future__ import annotations

import pytest
import torch

from lora_trainer.models import prompt_weights
from lora_trainer.models.load import clip_tokenizer
from lora_trainer.models.tokenize import tokenize

CASES = [
    ("", [("", 1.0)]),
    ("a red circle", [("a red circle", 1.0)]),
    ("a (red) circle", [("a ", 1.0), ("red", 1.1), (" circle", 1.0)]),
    ("a ((red)) circle", [("a ", 1.0), ("red", 1.21), (" circle", 1.0)]),
    ("a [red] circle", [("a ", 1.0), ("red", 1 / 1.1), (" circle", 1.0)]),
    ("(red circle:1.3), blue", [("red circle", 1.3), (", blue", 1.0)]),
    ("(red: 0.7 ) blue", [("red", 0.7), (" blue", 1.0)]),
    ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
    ("(a [b] c)", [("a ", 1.1), ("b", 1.0), (" c", 1.1)]),
    (r"mika \(series\)", [("mika (series)", 1.0)]),
    (r"(mika \(series\):1.2)", [("mika (series)", 1.2)]),
    ("a:1.2) b", [("a:1.2) b", 1.0)]),
    ("time 12:30, b]", [("time 12:30, b]", 1.0)]),
    ("a (never closed", [("a ", 1.0), ("never closed", 1.1)]),
    ("a [never closed", [("a ", 1.0), ("never closed", 1 / 1.1)]),
    ("(a:b:1.5)", [("a:b", 1.5)]),
    ("()", [("", 1.0)]),
]


@pytest.mark.parametrize(("prompt", "wanted"), CASES, ids=[prompt for prompt, _ in CASES])
def test_brackets_say_how_much_a_word_counts(prompt, wanted):
    found = prompt_weights.parse_prompt_attention(prompt)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted])


@pytest.mark.parametrize("limit", [75, 150])
def test_a_prompt_without_brackets_is_read_like_a_caption(limit):
    tokenizer, prompts = clip_tokenizer(), ["", "a red circle, on a wall", "one girl, long hair, " * 30]
    ids, weights = prompt_weights.tokenize_weighted(tokenizer, prompts, limit)
    assert torch.equal(ids, tokenize(tokenizer, prompts, limit))
    assert torch.equal(weights, torch.ones(3, limit + 2))


def test_without_a_limit_the_longest_prompt_is_read_to_its_end():
    ids, weights = prompt_weights.tokenize_weighted(clip_tokenizer(), ["a", "(one girl, long hair, :1.2)" * 15], 0)
    assert ids.shape == (2, 77 * 2) and weights.shape == (2, 152)
    assert weights[1].unique().tolist() == pytest.approx([1.0, 1.2]) and weights[0].eq(1).all()


def test_states_are_weighed_and_each_encoder_keeps_its_mean():
    states = torch.randn(2, 77, 10, generator=torch.Generator().manual_seed(1)) + 0.5
    weights = torch.ones(2, 77)
    weights[1, 3:6] = 1.5
    found = prompt_weights.apply_weights(states, weights, [4, 6])
    assert torch.equal(found[0], states[0]) and not torch.equal(found[1], states[1])
    for part in (slice(0, 4), slice(4, 10)):
        wanted = states[1, :, part].double().numpy() * weights[1, :, None].double().numpy()
        wanted *= states[1, :, part].double().numpy().mean() / wanted.mean()
        assert abs(found[1, :, part].double().numpy() - wanted).max() < 1e-5
    assert prompt_weights.apply_weights(states, torch.ones(2, 77), [4, 6]) is states
