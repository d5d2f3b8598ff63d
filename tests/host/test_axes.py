import sys
from types import ModuleType, SimpleNamespace

import pytest

from lora_trainer.host.a1111 import axes


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1, 2,10", ["000001", "000002", "000010"]),
        ("1-4", ["000001", "000002", "000003", "000004"]),
        ("2-10 (+4)", ["000002", "000006", "000010"]),
        ("000003", ["000003"]),
        ("step120, 7,", ["step00000120", "000007"]),
        ("step00000120", ["step00000120"]),
        ("", []),
    ],
)
def test_epochs_are_written_as_people_write_them(text, numbers):
    assert axes.parse_epochs(text) == numbers


def processing(prompt, negative=""):
    return SimpleNamespace(prompt=prompt, negative_prompt=negative, extra_generation_params={"Lora hashes": "x"})


def test_both_axes_fill_the_recipe():
    p = processing("NUM photos of STRENGTH <lora:mika-NUM:STRENGTH>, <lora:STRENGTHS-NUMBER:1>", "<lora:ugly-NUM:0.3>")
    axes.apply_epoch(p, "000003", [])
    axes.apply_weight(p, 0.8, [])
    assert p.prompt == "NUM photos of STRENGTH <lora:mika-000003:0.8>, <lora:STRENGTHS-NUMBER:1>"
    assert p.negative_prompt == "<lora:ugly-000003:0.3>"


def test_every_cell_has_parameters_of_its_own():
    p = processing("<lora:mika-NUM:1>")
    shared = p.extra_generation_params
    axes.apply_epoch(p, "000001", [])
    p.extra_generation_params["Lora hashes"] = "of epoch 1"
    assert shared == {"Lora hashes": "x"}


@pytest.mark.parametrize("prompt", ["a photo", "<lora:mika:1>", "NUM <lora:NUMBER-1:1>"])
def test_prompt_without_the_recipe_says_what_to_write(prompt):
    with pytest.raises(RuntimeError, match="<lora:NAME-NUM:STRENGTH>"):
        axes.apply_epoch(processing(prompt), "000001", [])


def test_axes_are_added_once_to_the_hosts_script(monkeypatch):
    options = []
    script = SimpleNamespace(script_class=type("Script", (), {"__module__": "xyz_grid.py"}), module=None)
    other = SimpleNamespace(script_class=type("Script", (), {"__module__": "loopback.py"}), module=None)
    script.module = SimpleNamespace(
        axis_options=options, AxisOption=lambda *words, **more: SimpleNamespace(label=words[0], type=words[1], **more)
    )
    package, scripts = ModuleType("modules"), ModuleType("modules.scripts")
    package.scripts, scripts.scripts_data = scripts, [other, script]
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
    assert axes.add_axes() and axes.add_axes()
    assert [option.label for option in options] == ["[LoRA Trainer] Epoch", "[LoRA Trainer] Weight"]
    assert options[0].format_value(None, None, "000012") == "Epoch 12"
    assert options[1].format_value(None, None, 0.6000001) == "Weight 0.6"
    scripts.scripts_data = [other]
    assert not axes.add_axes()
