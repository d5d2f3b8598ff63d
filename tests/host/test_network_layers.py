"""The table of layers and hosts, derived: each host's own code is asked for every layer of a family by every name that programs use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, released_layers
from lora_trainer.config.choices.network_hosts import ALL, LAYERS, LayerInFile, layer_support
from lora_trainer.models import layout
from tests.host.test_network_hosts import host_of

CLIPS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}
OPEN_CLIP = {"layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}


def under(path: str) -> str:
    return path.replace(".", "_")


def unet_names(layer: CheckpointLayer) -> set[str]:
    ldm = layer.weight.key.removeprefix(layout.UNET).removesuffix(".weight")
    processor = (layer.path.removesuffix(".0") if layer.path.endswith("to_out.0") else layer.path).replace(".to_", ".processor.to_")
    dotted = {
        layer.path,
        processor,
        *(f"{prefix}{path}" for prefix in ("unet.", "diffusion_model.") for path in (layer.path, ldm, processor)),
    }
    return dotted | {
        f"base_model.model.{layer.path}",
        *(f"lora_unet_{under(path)}" for path in (layer.path, ldm)),
        f"lycoris_{under(layer.path)}",
    }


def text_names(layer: CheckpointLayer, family: str) -> set[str]:
    second = layer.part == "text_2"
    clip = CLIPS[family][second]
    numbered = "lora_te2_" if second else "lora_te1_"
    names = {
        f"{numbered}{under(layer.path)}",
        f"text_encoder{'_2' if second else ''}.{layer.path}",
        f"text_encoders.{clip}.transformer.{layer.path}",
    }
    return names if second else names | {f"lora_te_{under(layer.path)}"}


def text_keys(layer: CheckpointLayer, family: str) -> set[str]:
    """A text encoder's layer in the checkpoint, by its modules' own names, and as Forge and reForge hold it."""
    second = layer.part == "text_2"
    prefix, own = layout.row(family).text[second], f"{CLIPS[family][second]}.transformer.{layer.path}.weight"
    if not layout.is_open_clip(prefix):
        return {own, f"{prefix}{layer.path}.weight"}
    found = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", layer.path)
    if found is None:
        return {own}
    rest = re.sub(r"self_attn\.[qkv]_proj", "attn", found[2])
    for theirs, native in OPEN_CLIP.items():
        rest = rest.replace(theirs, native)
    return {own, f"{prefix}transformer.resblocks.{found[1]}.{rest}.weight"}


def names_and_keys(family: str) -> dict[str, list[str]]:
    names, keys = set(), set()
    for layer in released_layers(family).values():
        is_unet = layer.part == "unet"
        names |= unet_names(layer) if is_unet else text_names(layer, family)
        keys |= {layer.weight.key} if is_unet else text_keys(layer, family)
    return {"names": sorted(names), "keys": sorted(keys)}


@pytest.mark.needs_webui
def test_the_hosts_own_code_finds_the_layers_that_the_table_says(tmp_path: Path):
    tree = Path(os.environ["LORA_TRAINER_WEBUI_DIR"])
    host = host_of(tree)
    asked = {family: names_and_keys(family) for family in CLIPS if family in LAYERS[host]}
    (tmp_path / "names.json").write_text(json.dumps(asked), encoding="utf-8")
    python = os.environ.get("LORA_TRAINER_WEBUI_PYTHON", sys.executable)
    words = [python, str(Path(__file__).with_name("layer_loader.py")), host, str(tree), str(tmp_path / "names.json")]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=500, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), "")
    assert line, done.stderr[-3000:]
    for family, found in json.loads(line.removeprefix("RESULT ")).items():
        # A1111 cuts a name at its first dot: what it then finds is the whole U-Net, on which it puts nothing
        theirs = {name for name in found if host != "a1111" or "." not in name}
        if family == "sdxl":  # of lora_te_, which stands for the first encoder, Forge makes names for the second one's layers too
            theirs = {name for name in theirs if not re.match(r"lora_te_.*_(1[2-9]|[23]\d)_", name)}
        ours = {name for name in asked[family]["names"] if layer_support([LayerInFile(name, 1)], host, family)[0] == ALL}
        assert (sorted(ours - theirs), sorted(theirs - ours)) == ([], []), family


def test_every_host_and_family_has_its_row():
    assert set(LAYERS) == {"a1111", "forge", "reforge", "neo"}
    families = {row.family for row in layout.ROWS}
    assert all(set(rows) == families - ({"sd2"} if host == "neo" else set()) for host, rows in LAYERS.items())
