"""The measuring tools: what they count is there, and a random model is taken for a real one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import pytest
import torch

from benchmarks import random_checkpoint, step
from benchmarks.random_checkpoint import SD15, TINY
from lora_trainer.adapters.lora_file import LoraAdapter, read_lora, write_lora
from lora_trainer.models import layout
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection import detect
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource

CPU = torch.device("cpu")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measured(tmp_path, one_thread):
    shape = attrs.evolve(step.SHAPES["tiny"], steps=2)
    return shape, *step.measure(shape, 1, tmp_path)


def test_both_loops_do_two_steps_of_about_the_same_operations(measured):
    shape, ours, reference = measured
    assert [len(times) for times in (*ours.steps, *ours.bare, *reference.steps, *reference.bare)] == [2, 2, 2, 2]
    fused = hasattr(torch.amp, "GradScaler")  # torch 2.1's AdamW is fused on CUDA only, else it reads 384 step counts, twice
    assert 2300 < reference.operations <= (2700 if fused else 3600)
    assert ours.operations <= reference.operations * 1.05
    assert ours.forward_and_backward > 0
    assert {tuple(row) for row in step.rows(shape, ours, reference)} == {("name", "ours", "reference", "ratio", "unit")}


def test_a_run_that_fails_is_no_measurement(tmp_path, monkeypatch):
    def broken(self) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(step.ReferenceLoop, "step", broken)
    with pytest.raises(RuntimeError, match="planted"):
        step.measure(attrs.evolve(step.SHAPES["tiny"], steps=1), 1, tmp_path)


def test_views_are_not_counted():
    with step.Operations() as operations:
        torch.ones(4, 4).t().view(4, 2, 2).unsqueeze(0) + 1
    assert operations.count == 2


def test_the_command_prints_machine_and_rows(capsys, monkeypatch, one_thread):
    figures = step.Figures([[0.2]], [[0.15]], 2600), step.Figures([[0.2]], [[0.1]], 2500)
    monkeypatch.setattr(step, "measure", lambda shape, rounds, folder: figures)
    step.main(["--shapes", "tiny", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert f"torch {torch.__version__}" in said["machine"]
    by_name = {row["name"].rpartition(": ")[2]: row for row in said["rows"]}
    assert by_name["fixed cost"] == {"name": "tiny, 64 px, fp32: fixed cost", "ours": 50.0, "reference": 100.0, "ratio": 0.5, "unit": "ms"}
    assert by_name["operations"]["ratio"] == 1.04


def test_a_random_checkpoint_is_read_as_stable_diffusion(tmp_path):
    path = random_checkpoint.write(tmp_path / "random.safetensors", TINY)
    facts = detect.inspect(path)
    assert (facts.family, facts.model_channels, facts.context_width, facts.text_layers, facts.dtype) == ("sd1", 32, 64, 4, "float16")
    bundle = load(FileSource(path), CPU)
    drawn = bundle.family.denoise(bundle, torch.randn(1, 4, 8, 8), torch.tensor([500]), Conditioning(torch.randn(1, 77, 64)))
    assert torch.isfinite(drawn).all()
    assert 0.01 < drawn.std() < 100


def test_its_names_are_those_of_the_model_that_ships(tmp_path, toy_checkpoint: Path):
    """The small model is read by a real WebUI. It lacks what its equal widths need not: some shortcuts and VAE blocks."""
    own = set(detect.read_header(random_checkpoint.write(tmp_path / "random.safetensors", TINY)))
    shipped = {name for name in detect.read_header(toy_checkpoint) if not name.endswith(("__metadata__", "position_ids"))}
    assert all("nin_shortcut" in name for name in shipped - own)
    assert all(re.search(r"skip_connection|first_stage_model\.(de|en)coder\.(up|down)\.\d\.block", name) for name in own - shipped)


@pytest.mark.slow
def test_a_lora_on_a_model_of_full_size_has_192_and_72_layers(tmp_path):
    path = random_checkpoint.write(tmp_path / "random.safetensors", SD15)
    parts = layout.split_keys(detect.read_header(path))
    assert {part: len(names) for part, names in parts.items()} == {"unet": 686, "vae": 248, "text": 196}  # as in the released file
    facts = detect.inspect(path)
    assert (facts.unet_parameters, facts.text_parameters, facts.vae_parameters) == (859_520_964, 123_060_480, 83_653_863)
    adapter = LoraAdapter(load(FileSource(path), CPU, torch.float16), rank=16, alpha=8.0, parts=("unet", "text_encoder"))
    write_lora(tmp_path / "lora.safetensors", adapter.state_dict(), adapter.metadata(), "fp16")
    tensors, _ = read_lora(tmp_path / "lora.safetensors")
    layers = {name.partition(".")[0] for name in tensors}
    assert sum(name.startswith("lora_unet_") for name in layers) == 192
    assert sum(name.startswith("lora_te_text_model_encoder_layers_") for name in layers) == 72
    assert len(tensors) == 3 * (192 + 72)
    assert sum(tensor.numel() * 2 for tensor in tensors.values()) == pytest.approx(18.87e6, rel=0.005)  # the file of sd-scripts
