"""What an option says of its place in a form: every condition can come true, every heading is one block."""

from __future__ import annotations

from itertools import groupby

from lora_trainer.config.param import declared_options, param, section
from lora_trainer.config.schema import TrainConfig

OPTIONS = {option.path: option for option in declared_options(TrainConfig)}


@section
class _Inner:
    kind: str = param("plain", "Kind", "", choices={"plain": "Plain", "odd": "Odd"})
    size: int = param(1, "Size", "", group="Odd ones", when={"kind": ("odd",), "outer.on": ()})
    more: int = param(1, "More", "", when="size")


def test_a_name_without_a_dot_is_of_the_same_section():
    size, more = (option.option for option in declared_options(_Inner, "inner.") if option.path != "inner.kind")
    assert [(need.path, need.values) for need in size.when] == [("inner.kind", ("odd",)), ("outer.on", ())]
    assert [(need.path, need.values) for need in more.when] == [("inner.size", ())]


def test_choices_may_bring_their_words():
    kind = next(declared_options(_Inner)).option
    assert (kind.choices, kind.labels) == (("plain", "odd"), (("plain", "Plain"), ("odd", "Odd")))


def test_every_condition_names_an_option_and_values_that_it_can_have():
    wrong = []
    for option in OPTIONS.values():
        for need in option.option.when:
            other = OPTIONS.get(need.path)
            choices = other.option.choices if other else ()
            if other is None or need.path == option.path or (choices and not set(need.values) <= set(choices)):
                wrong.append((option.path, need))
    assert wrong == []


def test_the_options_of_a_heading_stand_together():
    torn = []
    for name, options in groupby(OPTIONS.values(), key=lambda option: option.path.rpartition(".")[0]):
        headings = [heading for heading, _ in groupby(option.option.group for option in options if option.option.kind != "hidden")]
        if len(headings) != len(set(headings)):
            torn.append((name, headings))
    assert torn == []
