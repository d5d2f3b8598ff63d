"""A remedy leads on: what it names is followed, and no other remedy asks for the way back."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer.adapters.lora_file import write_lora
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import plan_layers
from lora_trainer.api.runs import plans, start_run
from lora_trainer.config.build import rebuild, to_mapping
from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import NetworkConfig, TrainConfig
from lora_trainer.errors import Problem
from lora_trainer.host.devices import default_device
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from tests.test_words import templates
from tests.train.runs import events_of, small_config

OPTIONS = "|".join(re.escape(option.path) for option in declared_options(TrainConfig))
VERBS = "[Ss]et|[Tt]urn on|[Tt]urn off|[Ss]witch on|[Ll]eave"
ORDER = re.compile(rf"(?P<verb>{VERBS}) (?P<option>{OPTIONS})\b(?: (?:=|to) (?P<value>\S+?))?(?=[\s,.:;)]|$)")
BOTH_WAYS = {
    "data.bucket_no_upscale": "on where pictures are enlarged, off where none would be: test_never_enlarging_is_not_asked_for_and_against",
    "data.masks_beside": "on where masks lie beside pictures, off where none does",
    "network.dim_from_weights": "off only for files without ranks, which fit without it: test_a_file_without_ranks_ends_at_its_own_type",
    "optimizer.text_encoder_lr": "0 where memory or kept captions need it; more where a file has text layers, or another file",
    "validate.fraction": "0 or no folder of its own, where both are given; 0.1 only where the folder is the training's own",
}
"""Options that remedies name both ways, and why they do not lead in a circle."""


def direction(match: re.Match[str]) -> str:
    """What a remedy does to an option, as one word."""
    verb, value = match["verb"].lower(), (match["value"] or "").strip("\"'")
    if verb in ("turn on", "switch on"):
        return "true"
    if verb == "turn off":
        return "false"
    if verb == "leave":
        return "empty"
    return value or "true"


def orders() -> Iterator[tuple[str, str, str]]:
    """(option, direction, template) of every remedy in the code that names what to do to an option."""
    for template, _ in templates():
        for match in ORDER.finditer(template):
            yield match["option"], direction(match), template


def test_no_two_remedies_name_one_option_both_ways_without_a_reason():
    ways: dict[str, set[str]] = defaultdict(set)
    for option, way, _ in orders():
        ways[option].add("no" if way in ("no", "bf16") else way)  # both away from fp16
    assert sum(map(len, ways.values())) >= 15
    both = {option for option, found in ways.items() if len(found) > 1}
    assert both <= BOTH_WAYS.keys(), {option: ways[option] for option in both - BOTH_WAYS.keys()}


PARTS = ("unet", "text_encoder")


@pytest.fixture(scope="module")
def files(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of networks with other ranks, layers, kinds and parts than the run's."""
    folder, bundle = tmp_path_factory.mktemp("files"), load(FileSource(toy_checkpoint), default_device()[0])
    ways: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "same": ({}, PARTS),
        "rank": ({"dim": 8}, PARTS),
        "mixed ranks": ({"block_dims": ",".join(["2"] * 12 + ["4"] * 13)}, PARTS),
        "fewer layers": ({"preset": "attn-only"}, PARTS),
        "more layers": ({"type": "locon", "conv_dim": 2}, PARTS),
        "one part": ({}, ("unet",)),
        "loha": ({"type": "loha"}, PARTS),
        "lokr": ({"type": "lokr", "factor": 4}, PARTS),
        "full": ({"type": "full"}, PARTS),
        "dora": ({"type": "dora"}, PARTS),
    }
    made = {}
    for name, (options, parts) in ways.items():
        network = NetworkAdapter(bundle, plan_layers(bundle, NetworkConfig(**{"dim": 4, "alpha": 4.0, **options}), parts))
        made[name] = folder / f"{name}.safetensors"
        write_lora(made[name], network.state_dict(), network.metadata(), "float")
    return made


def problems_of(config: TrainConfig, folder: Path) -> list[Problem]:
    return start_run.find_problems(config, StandaloneHost(folder))


def follow(config: TrainConfig, problem: Problem, choices: dict[str, Any]) -> TrainConfig:
    """The config with what the remedy names done; a remedy that leaves the value to the user takes it from `choices`."""
    fix = problem.fix.text("en")
    match = ORDER.search(fix)
    option = match["option"] if match else next(option for option in choices if option in fix)
    words = {"true": True, "false": False, "more": 1e-4}
    value = words[direction(match)] if match and direction(match) in words else choices[option]
    mapping = to_mapping(config)
    section, name = option.split(".")
    assert mapping[section][name] != value, f"the remedy leads nowhere: {fix}"
    mapping[section][name] = value
    return rebuild(config, mapping)


@pytest.mark.parametrize("name", ["same", "rank", "mixed ranks", "fewer layers", "more layers", "one part", "loha", "lokr", "full", "dora"])
@pytest.mark.parametrize("takes_ranks", [False, True])
def test_following_the_remedies_of_a_file_to_begin_with_ends_at_a_run(files: dict[str, Path], name: str, takes_ranks: bool, tmp_path: Path):
    changes = {"network__network_weights": str(files[name]), "network__dim_from_weights": takes_ranks, "network__factor": 4}
    config, seen = small_config(tmp_path, **changes), set()
    while problems := problems_of(config, tmp_path):
        (problem,) = problems
        assert (problem.path, problem.text()) not in seen, "in a circle"
        seen.add((problem.path, problem.text()))
        config = follow(config, problem, {"network.type": name})
    assert len(seen) <= 2


def test_a_file_without_ranks_ends_at_its_own_type(files: dict[str, Path], tmp_path: Path):
    config = small_config(tmp_path, network__network_weights=str(files["full"]), network__dim_from_weights=True, network__type="full")
    with pytest.raises(Exception, match=r"Turn off network.dim_from_weights"):
        start_run.resolve_paths(config, StandaloneHost(tmp_path))
    assert problems_of(small_config(tmp_path, network__network_weights=str(files["full"]), network__type="full"), tmp_path) == []


@pytest.mark.parametrize("name", ["mixed ranks", "fewer layers", "more layers"])
def test_a_file_of_other_layers_and_ranks_is_continued_and_saved_as_it_is(files: dict[str, Path], name: str, tmp_path: Path):
    from safetensors.torch import load_file

    changes = {"steps__max_train_steps": 1, "schedule__warmup_steps": 1, "sample__every_n_epochs": 0}  # the first step has rate 0
    config = small_config(tmp_path, network__network_weights=str(files[name]), network__dim_from_weights=True, **changes)
    events_of(start_run.resolve_paths(config, StandaloneHost(tmp_path)), tmp_path)
    before, after = load_file(str(files[name])), load_file(str(tmp_path / "loras/small.safetensors"))
    assert {key: tensor.shape for key, tensor in before.items()} == {key: tensor.shape for key, tensor in after.items()}


def test_never_enlarging_is_not_asked_for_and_against(tmp_path: Path):
    """Small pictures ask for it, large ones against it: in one set with both, the remedy is another."""
    for number, size in enumerate([(48, 40), (3072, 3000)]):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
    config = small_config(
        tmp_path / "out",
        data__train_data_dir=str(tmp_path),
        data__resolution=1024,
        data__bucket_no_upscale=True,
        data__min_bucket_reso=64,
    )
    warnings = [warning["message"].text("en") for warning in plans.check_config(config, StandaloneHost(tmp_path))["warnings"]]
    (told,) = [text for text in warnings if "gives up more" in text]
    assert "bucket_no_upscale" not in told and "data.bucket_reso_steps" in told


def test_the_remedies_are_found_where_they_are_written():
    """The walk above sees every template: it is not empty by a change of their form."""
    source = (Path(__file__).parents[2] / "lora_trainer/adapters/initial_fit.py").read_text(encoding="utf-8")
    texts = [str(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    written = [text for text in texts if "Set network.dim" in text]
    assert written and {template for option, _, template in orders() if option == "network.dim_from_weights"} >= set(written)
