"""Every key of every program at its usual value, at 0, empty and false: taken or told once, and never told to be off where it is not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import yaml

from lora_trainer.cli.main import main
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.importing import Imported, import_text
from lora_trainer.config.importing.arguments import SPECIAL, paths_by_name
from lora_trainer.config.importing.reasons import _KEYS_BY_REASON, OFF, REASONS
from lora_trainer.config.importing.tables import leaves
from lora_trainer.config.importing.values import flatten
from lora_trainer.errors import ConfigError
from tests.config.importing.test_programs import AI_TOOLKIT, ONE_TRAINER, SIMPLE_TUNER
from tests.nested import with_value

HERE = Path(__file__).parent
LYCORIS = {
    "algo": "lokr", "multiplier": 1.0, "linear_dim": 8, "linear_alpha": 4, "full_matrix": True, "factor": 24, "bypass_mode": False,
    "apply_preset": {"target_module": ["Attention", "FeedForward"], "module_algo_map": {"Attention": {"factor": 24}}},
}  # fmt: skip
EXAMPLES: dict[str, tuple[str, Any]] = {
    "kohya_ss": ("json", json.loads((HERE / "kohya_ss.json").read_text(encoding="utf-8"))),
    "sd-scripts": ("toml", tomlkit.parse((HERE / "sd_scripts.toml").read_text(encoding="utf-8")).unwrap()),
    "lora-scripts": ("toml", tomlkit.parse((HERE / "lora_scripts.toml").read_text(encoding="utf-8")).unwrap()),
    "OneTrainer": ("json", ONE_TRAINER),
    "SimpleTuner": ("json", SIMPLE_TUNER),
    "ai-toolkit": ("yaml", yaml.safe_load(AI_TOOLKIT)),
    "LyCORIS": ("json", LYCORIS),
}
NEVER_OFF = re.compile(r"(^|_)(lr|rate|dim|alpha|seed|skip|te1|te2|epochs|steps|batch|size|repeats|tokens)(_|\d|$)")
"""Names of numbers of which 0 is no switch."""
OFF_AT_ZERO = re.compile(
    r"max_train_(epochs|steps)|num_train_epochs|every_n|warmup|decay_steps|keep_tokens|token_warmup|dropout_rate|tag_dropout|last_n|"
    r"stop_text_encoder|early_stop|max_validation|no_token_padding|drop_?out|initial_|caption_dropout|sample_after|save_(every|last)|backup"
)
"""Those of which it is one: nothing is limited, repeated or dropped."""


def written(form: str, values: Any) -> str:
    if form == "toml":
        return tomlkit.dumps(values)
    return yaml.safe_dump(values) if form == "yaml" else json.dumps(values)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every plain value."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if _is_tables(values) else ()
    for key, value in entries:
        if (isinstance(value, dict) and value) or _is_tables(value):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) for part in value)


def told(found: Imported) -> Counter[str]:
    return Counter([one.key.removesuffix(" (...)") for one in found.taken] + [one.key for one in found.left])


def keys_of(name: str, values: Any) -> set[str]:
    tables = name in ("ai-toolkit",)
    return {key for key, _ in (leaves(values) if tables else flatten(values))}


@pytest.mark.parametrize("value", [0, "", False], ids=["0", "empty", "false"])
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_every_key_is_told_once_whatever_its_value_and_is_off_only_where_that_is_true(name: str, value: Any):
    form, values = EXAMPLES[name]
    usual = import_text(written(form, values))
    assert max(told(usual).values()) == 1
    wrong = []
    for path in places(values):
        changed = with_value(values, path, value)
        try:
            found = import_text(written(form, changed))
        except ConfigError:
            continue  # the key was a mark of the program, or the only one that was taken
        if found.kind != usual.kind:
            continue
        counts = told(found)
        assert max(counts.values()) == 1, path
        assert len(counts) >= len(told(usual)) - 3, path  # of a concept that is left out, its own values are told together
        for left in found.left:
            plain = left.key.rpartition(".")[2].removeprefix("--")
            if left.why is OFF and NEVER_OFF.search(plain) and not OFF_AT_ZERO.search(plain):
                wrong.append((left.key, left.value))
    assert sorted(set(map(str, wrong))) == []


def test_the_table_of_reasons_has_one_row_a_key():
    rows = [name for names in _KEYS_BY_REASON.values() for name in names.split()]
    assert [name for name, count in Counter(rows).items() if count > 1] == [] and len(rows) == len(REASONS)


BASE = {"pretrained_model_name_or_path": "m.safetensors", "network_module": "networks.lora", "network_dim": 8, "network_alpha": 8,
        "max_train_steps": 100, "learning_rate": 1e-4}  # fmt: skip


@pytest.mark.parametrize("value", [0, False, ""], ids=["0", "false", "empty"])
def test_every_name_that_is_known_is_taken_or_told_at_every_value(value: Any):
    for name in {*paths_by_name(), *REASONS, *SPECIAL}:
        if "." in name or (name in BASE and value == ""):
            continue
        found = import_text(tomlkit.dumps({**BASE, name: value}))
        assert told(found)[name] == 1, name
        left = next((one for one in found.left if one.key == name), None)
        if left is None and name in paths_by_name() and name not in SPECIAL:  # taken: the option has it
            section, _, option = paths_by_name()[name].rpartition(".")
            got = getattr(getattr(found.config, section), option) if section else getattr(found.config, option)
            assert not got or got == "0", name
        if left is not None and left.why is OFF:  # off here too: the option does not exist, or is off without the key
            assert name not in ("learning_rate_te", "learning_rate_te1", "learning_rate_te2", "t5xxl_lr", "seed", "network_alpha")
            path = paths_by_name().get(name)
            default = options()[path].option if path else None
            assert default is None or name in SPECIAL


@pytest.mark.parametrize("module", ["networks.lora", "lycoris.kohya"])
def test_an_alpha_of_0_is_the_rank_as_it_is_there(module: str):
    found = import_text(tomlkit.dumps({**BASE, "network_module": module, "network_alpha": 0}))
    assert (found.config.network.dim, found.config.network.alpha) == (8, 8.0)
    assert (
        import_text(tomlkit.dumps({**BASE, "network_module": module, "network_dim": 6, "network_alpha": "0"})).config.network.alpha == 6.0
    )


def test_the_seed_0_of_kohya_ss_is_told_as_what_it_is():
    values = {**EXAMPLES["kohya_ss"][1], "seed": 0}
    (left,) = [one for one in import_text(json.dumps(values)).left if one.key == "seed"]
    assert "new seed for each run" in left.why.text()


def test_lycoris_takes_its_own_defaults():
    text = {**BASE, "network_module": "lycoris.kohya", "network_args": ["algo=locon", "dora_wd=True"]}
    network = import_text(tomlkit.dumps(text)).config.network
    assert (network.dora_axis, network.preset) == ("out", "full")
    text["network_args"] = ["algo=locon", "dora_wd=True", "wd_on_output=False", "conv_dim=4", "conv_alpha=0"]
    network = import_text(tomlkit.dumps(text)).config.network
    assert (network.dora_axis, network.conv_alpha) == ("in", 8.0)


@pytest.mark.parametrize(
    ("given", "unet", "text"),
    [
        ({"unet_lr": 4e-4}, 4e-4, 2e-6),
        ({"text_encoder_lr": 4e-5}, 2e-6, 4e-5),
        ({"unet_lr": 4e-4, "learning_rate": 1e-5}, 4e-4, 1e-5),
        ({"unet_lr": 4e-4, "text_encoder_lr": 0}, 4e-4, 0.0),
        ({"unet_lr": 4e-4, "network_train_unet_only": True}, 4e-4, 0.0),
        ({"learning_rate": 3e-4}, 3e-4, 3e-4),
        ({}, 2e-6, 2e-6),
    ],
)
def test_the_part_without_a_rate_gets_the_other_programs_default(given: dict[str, Any], unet: float, text: float):
    from lora_trainer.config import effective

    values = {name: value for name, value in BASE.items() if name != "learning_rate"}
    config = import_text(tomlkit.dumps({**values, **given})).config
    assert (effective.unet_lr(config), effective.text_encoder_lr(config)) == (unet, text)


STRANGERS = {
    "pyproject.toml": '[project]\nname = "x"\nversion = "1.0"\ndependencies = ["torch"]\n[tool.ruff]\nline-length = 140\n',
    "ruff.toml": 'line-length = 140\ntarget-version = "py310"\n[lint]\nselect = ["E"]\n',
    "package.json": '{"name": "x", "version": "1.0.0", "scripts": {"test": "jest"}, "dependencies": {"a": "^1"}}',
    "unet.json": '{"_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "layers": [320, 640], "dropout": 0.0}',
    "tokenizer.json": '{"model_max_length": 77, "pad_token": "!", "tokenizer_class": "CLIPTokenizer"}',
    "webui.json": '{"samples_save": true, "sd_model_checkpoint": "x.safetensors", "CLIP_stop_at_last_layers": 2, "seed": 1}',
    "workflow.json": '{"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "cfg": 8.0}}}',
    "accelerate.yaml": "compute_environment: LOCAL_MACHINE\nmixed_precision: fp16\nnum_processes: 1\n",
    "compose.yaml": "services:\n  a:\n    image: x\n",
    "preset.toml": 'enable_conv = true\nuse_fnmatch = true\n[module_algo_map.CrossAttention]\nalgo = "lokr"\nfactor = 16\n',
    "adapter_config.json": '{"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["to_q"], "lora_dropout": 0.0}',
    "captions.json": '{"a.png": {"caption": "a vase", "tags": "vase"}}',
    "prompts.json": '[{"prompt": "a vase", "seed": 1}]',
}


@pytest.mark.parametrize("name", list(STRANGERS))
def test_a_file_of_strangers_is_no_success_and_writes_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / name).write_text(STRANGERS[name], encoding="utf-8")
    assert main(["import", str(tmp_path / name), "--out", str(tmp_path / "out.toml")]) == 1
    assert not (tmp_path / "out.toml").exists() and name in capsys.readouterr().err


def test_tables_with_equal_keys_are_told_apart():
    """As in sd-scripts the last one counts; the other is told by its whole name."""
    text = 'network_module = "networks.lora"\n[one]\nnetwork_dim = 4\nlearning_rate = 1e-4\n[two]\nnetwork_dim = 8\n'
    found = import_text(text)
    assert found.config.network.dim == 8
    assert {one.key for one in found.taken} == {"network_module", "one.learning_rate", "two.network_dim"}
    assert [(one.key, one.why.text()) for one in found.left] == [("one.network_dim", "Another key of the file decides it.")]
