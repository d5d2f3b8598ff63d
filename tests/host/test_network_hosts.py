"""The table of kinds and hosts, derived: each host's own loader puts a file of each kind on a model, and every weight is compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, checkpoint_layers
from lora_trainer.adapters.network_file import bias_delta_of, delta_of, modules_of
from lora_trainer.config.choices.network_hosts import ALL, NO, PARTLY, SUPPORT, file_kind, host_support, support_warning
from lora_trainer.config.choices.networks import NETWORK_TYPES
from tests.host.real_webui import is_neo
from tests.models.conftest import checkpoint
from tests.network_tools.made import state_of, write

__all__ = ["checkpoint"]

MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "locon": ("lora", {}),
    "locon, tucker": ("lora", {"tucker": True}),
    "loha": ("loha", {}),
    "lokr": ("lokr", {"factor": 4}),
    "lokr, both": ("lokr", {"factor": 8, "decompose_both": True}),
    "lokr, whole": ("lokr", {"factor": 4, "full_matrix": True}),
    "full": ("full", {}),
    "norm": ("norm", {}),
    "dora": ("lora", {"dora": "in"}),
    "dora, loha": ("loha", {"dora": "in"}),
    "dora_out": ("lora", {"dora": "out"}),
    "oft": ("oft", {}),
    "oft, rescaled": ("oft", {"rescaled": True}),
}
"""Name of the row, and after a comma which form of it -> kind and options."""


def layers_for(kind: str, layers: dict[str, CheckpointLayer]) -> dict[str, CheckpointLayer]:
    """What our own networks of a kind are put on."""
    if kind == "norm":
        return {name: layer for name, layer in layers.items() if len(layer.shape) == 1 and layer.part == "unet"}
    wanted = {name: layer for name, layer in layers.items() if len(layer.shape) > 1 and "position" not in name and "projection" not in name}
    return wanted if kind != "lora" else {name: layer for name, layer in wanted.items() if layer.part != "unet" or "attentions" in name}


def made_files(model: Path, folder: Path) -> dict[str, Path]:
    """A file of every kind, and beside it the weights that it should give."""
    layers, weights = checkpoint_layers(model)[1], load_file(str(model))
    files = {}
    for row, (kind, options) in MADE.items():
        own = layers_for(row.partition(",")[0], layers)
        path = write(folder / f"{row.replace(', ', '-')}.safetensors", state_of(own, kind, **options))
        expected = {}
        for name, state in modules_of(load_file(str(path)), str(path)).items():
            place, bias = own[name].weight, own[name].bias
            expected[place.key] = weights[place.key] + delta_of(state, weights[place.key])
            if (added := bias_delta_of(state)) is not None:
                expected[bias.key] = weights[bias.key] + added
        save_file({key: tensor.contiguous() for key, tensor in expected.items()}, f"{path}.expected")
        files[row] = path
    return files


def derived(told: dict[str, Any]) -> str:
    """all, partly or no, from what the loader did."""
    if "error" in told or len(told["untouched"]) == told["weights"]:
        return NO
    return PARTLY if told["wrong"] or told["untouched"] else ALL


@pytest.mark.needs_webui
def test_the_hosts_own_loader_does_with_each_kind_what_the_table_says(checkpoint: Callable[[str], Path], tmp_path: Path):
    tree = Path(os.environ["LORA_TRAINER_WEBUI_DIR"])
    host = host_of(tree)
    files = made_files(checkpoint("sd1"), tmp_path)
    python = os.environ.get("LORA_TRAINER_WEBUI_PYTHON", sys.executable)
    words = [python, str(Path(__file__).with_name("network_loader.py")), host, str(tree), str(checkpoint("sd1")), *map(str, files.values())]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=500, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), "")
    assert line, done.stderr[-3000:]
    told = json.loads(line.removeprefix("RESULT "))
    found = {row: derived(told[str(path)]) for row, path in files.items()}
    notes = {row: {key: value for key, value in told[str(path)].items() if value} for row, path in files.items() if found[row] != ALL}
    worst = {row.partition(",")[0]: NO for row in found}
    order = (NO, PARTLY, ALL)
    for kind in worst:
        worst[kind] = min((found[row] for row in found if row.partition(",")[0] == kind), key=order.index)
    assert worst == {kind: host_support(kind, host)[0] for kind in worst}, json.dumps(notes, indent=1)
    assert all(told[str(path)].get("restored", True) for path in files.values())


def host_of(tree: Path) -> str:
    """Which WebUI a folder holds."""
    if (tree / "modules_forge").is_dir():
        if is_neo(tree):
            return "neo"
        return "forge" if (tree / "backend" / "patcher").is_dir() else "reforge"
    return "a1111"


def test_every_type_has_its_row_and_every_gap_a_reason():
    for name in NETWORK_TYPES:
        assert file_kind(name) in SUPPORT
    for row in SUPPORT.values():
        assert all(loads in (NO, PARTLY) and why is not None for loads, why in row.values())


def test_only_a_type_that_the_host_does_not_read_whole_raises_a_doubt():
    assert support_warning("lora", "forge") is None
    assert support_warning("oft", "standalone") is None
    assert "Forge does not read" in str(support_warning("oft", "forge"))
    assert "only in part" in str(support_warning("dora", "a1111", "out"))
    assert support_warning("dora", "a1111", "in") is None
