"""Words, trigger and preview of a file: its tensors stay byte by byte, and so does the file that was read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from lora_trainer.errors import ConfigError, ModelError
from lora_trainer.network_tools.edit import EditOptions, edit
from lora_trainer.network_tools.info import hashes


def words_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata())


def test_only_the_header_changes(lora: Path, tmp_path: Path):
    before = hashlib.sha256(lora.read_bytes()).hexdigest()
    edit(lora, tmp_path / "new.safetensors", EditOptions({"ss_training_comment": "对 the cat"}, ["ss_sd_model_name"]))
    words = words_of(tmp_path / "new.safetensors")
    assert words["ss_training_comment"] == "对 the cat"
    assert "ss_sd_model_name" not in words
    assert words["ss_network_dim"] == "4"
    assert hashes(lora)[1] == hashes(tmp_path / "new.safetensors")[1]
    assert hashlib.sha256(lora.read_bytes()).hexdigest() == before


def test_trigger_and_description_are_also_on_the_webuis_card(lora: Path, tmp_path: Path):
    named = {"trigger": "sks cat", "description": "A cat.", "title": "Cat"}
    (tmp_path / "new.json").write_text('{"notes": "mine"}', encoding="utf-8")
    edit(lora, tmp_path / "new.safetensors", EditOptions(named=named))
    words = words_of(tmp_path / "new.safetensors")
    assert (words["modelspec.trigger_phrase"], words["modelspec.title"]) == ("sks cat", "Cat")
    card = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert card == {"activation text": "sks cat", "description": "A cat.", "notes": "mine"}


def test_a_preview_goes_into_the_header_and_beside_the_file(lora: Path, tmp_path: Path):
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "cat.png")
    edit(lora, tmp_path / "new.safetensors", EditOptions(preview=tmp_path / "cat.png"))
    url = words_of(tmp_path / "new.safetensors")["modelspec.thumbnail"]
    assert url.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (512, 256)
    assert Image.open(tmp_path / "new.preview.png").size == (1200, 600)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (EditOptions({"sshs_model_hash": "0"}), "computed from the tensors"),
        (EditOptions({"made up": "x"}), "not a metadata key"),
        (EditOptions(removed=["ss_nothing"]), "the header has no ss_nothing"),
    ],
)
def test_keys_that_may_not_be_changed_are_refused(lora: Path, tmp_path: Path, wanted: EditOptions, said: str):
    with pytest.raises(ConfigError, match=said):
        edit(lora, tmp_path / "new.safetensors", wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_preview_that_is_no_picture_is_refused_before_anything_is_written(lora: Path, tmp_path: Path):
    (tmp_path / "cat.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ModelError, match="not an image that can be read"):
        edit(lora, tmp_path / "new.safetensors", EditOptions(preview=tmp_path / "cat.png"))
    assert not (tmp_path / "new.safetensors").exists()
