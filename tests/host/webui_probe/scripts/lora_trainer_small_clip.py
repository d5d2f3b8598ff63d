"""Test extension: the open_clip architecture of the small models of Stable Diffusion 2 and SDXL, which A1111 asks for by its name."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from modules import scripts


def add_architecture():
    import open_clip

    sys.path.append(os.environ["LORA_TRAINER_CHECKOUT"])
    try:
        from tests.host.family_models import OPEN_CLIP, SMALL_CLIP
    finally:
        sys.path.remove(os.environ["LORA_TRAINER_CHECKOUT"])
    described = Path(scripts.basedir()) / f"{SMALL_CLIP}.json"
    described.write_text(json.dumps(OPEN_CLIP), encoding="utf-8")
    open_clip.add_model_config(described)


if importlib.util.find_spec("open_clip") and not importlib.util.find_spec("modules_forge"):
    add_architecture()
