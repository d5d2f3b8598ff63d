"""Options of captions that cannot be meant."""

from __future__ import annotations

import pytest

from lora_trainer.config.build import build
from lora_trainer.errors import ConfigError


@pytest.mark.parametrize("tokens", [75, 150, 225])
def test_captions_have_one_of_three_lengths(tokens):
    assert build({"model": {"max_token_length": tokens}}).model.max_token_length == tokens


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("model.max_token_length", 100, "75, 150 or 225"),
        ("model.max_token_length", 300, "75 to 225"),
        ("data.caption_separator", "", '","'),
        ("data.caption_tag_dropout_rate", 1.5, "0 to 1"),
        ("data.token_warmup_step", -1, "0 to"),
        ("data.caption_dropout_every_n_epochs", -1, "0 to"),
        ("data.caption_prefix", "a\nb", "Take it out"),
    ],
)
def test_a_value_that_captions_cannot_have_is_named_with_a_remedy(path, value, remedy):
    section, _, name = path.partition(".")
    with pytest.raises(ConfigError) as caught:
        build({section: {name: value}})
    (found,) = caught.value.problems
    assert found.path == path and remedy in str(found.fix)
