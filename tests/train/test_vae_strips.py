"""The VAE on strips of a picture: what it gives on the whole, in under half of the memory, where there is no room for more."""

from __future__ import annotations

import contextlib
from pathlib import Path

import attrs
import pytest
import torch
from diffusers import AutoencoderKL

from benchmarks.memory import Allocations
from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.events import Finished, Stepped, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.inputs import vae
from lora_trainer.train.memory import placement, vae_strips
from lora_trainer.train.planning.memory_plan import (
    DECODE_BYTES,
    ENCODE_BYTES,
    PICTURES,
    PREVIEW,
    STRIPS_DECODE_BYTES,
    STRIPS_ENCODE_BYTES,
    Machine,
    memory_phases,
)
from tests.train.runs import small_config
from tests.train.shortage import Card
from tests.train.test_oom import CUDA_OOM, under

IN_STRIPS = "Memory ran out: the VAE works on strips of a picture; the result stays the same but for rounding."
CPU = torch.device("cpu")


@pytest.fixture
def bundle():
    return load(FileSource(assets.toy_checkpoint()), CPU)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


@pytest.mark.parametrize("cells", [1, 64 * 5, 64 * 33, 10**6], ids=["single rows", "five rows", "two uneven strips", "one strip"])
@pytest.mark.parametrize("side", [(64, 64), (96, 40)])
def test_pictures_are_encoded_and_drawn_as_on_the_whole(cells, side, bundle, monkeypatch):
    monkeypatch.setattr(vae_strips, "STRIP_CELLS", cells)
    pixels, latents = numbers(2, 3, *side), 3 * numbers(2, 4, side[0] // 8, side[1] // 8)
    whole = vae.encode(bundle, pixels), vae.decode(bundle, latents)
    vae_strips.apply(bundle.vae)
    kept = pixels.clone()
    torch.testing.assert_close((vae.encode(bundle, pixels), vae.decode(bundle, latents)), whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(pixels, kept)
    vae_strips.remove(bundle.vae)
    assert torch.equal(vae.encode(bundle, pixels), whole[0])


def test_strips_need_under_half_of_the_memory_for_encoding_and_less_for_drawing(monkeypatch):
    monkeypatch.setattr(vae_strips, "STRIP_CELLS", 4 * 128)
    model = AutoencoderKL(  # a quarter of the width of Stable Diffusion's
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
    ).requires_grad_(False)
    whole = peaks(model)
    assert [peak / 128**2 for peak in whole] == pytest.approx([ENCODE_BYTES / 4, DECODE_BYTES / 4], rel=0.03)
    vae_strips.apply(model)
    strips = peaks(model)
    assert strips[0] < 0.5 * whole[0] and strips[1] < 0.75 * whole[1]
    assert all(peak / 128**2 < 1.1 * planned / 4 for peak, planned in zip(strips, (STRIPS_ENCODE_BYTES, STRIPS_DECODE_BYTES), strict=True))


def peaks(model: AutoencoderKL) -> list[float]:
    """Bytes that encoding and drawing a picture of 128 x 128 keep at a time."""
    found = []
    for work, value in ((model.encode, numbers(1, 3, 128, 128)), (model.decode, numbers(1, 4, 16, 16))):
        count = Allocations()
        count.already([value, *model.parameters()])
        with torch.no_grad(), count:
            work(value)
        found.append(count.peak)
    return found


def in_strips(bundle) -> bool:
    return any("forward" in module.__dict__ for module in bundle.vae.modules())


def test_a_run_whose_pictures_do_not_fit_encodes_them_in_strips_and_trains_the_same(tmp_path: Path, monkeypatch):
    def losses(folder: Path):
        config = small_config(folder, steps__max_train_steps=2, data__cache_latents_to_disk=False)
        events = under(contextlib.nullcontext(), StandaloneHost(folder), config, folder)
        assert isinstance(events[-1], Finished)
        return [event.loss for event in events if isinstance(event, Stepped)], [str(e.message) for e in events if isinstance(e, Warned)]

    roomy, _ = losses(tmp_path / "roomy")
    real = vae.encode

    def fits_in_strips_only(bundle, pixels):
        if not in_strips(bundle):
            raise torch.cuda.OutOfMemoryError(CUDA_OOM)
        return real(bundle, pixels)

    monkeypatch.setattr(vae, "encode", fits_in_strips_only)
    short, warnings = losses(tmp_path / "short")
    assert IN_STRIPS in warnings
    assert short == pytest.approx(roomy, rel=1e-4)


@pytest.mark.parametrize(("room", "strips"), [(0.9, True), (1.5, False)])
def test_a_card_without_room_for_a_whole_picture_is_never_asked_for_it(room, strips, bundle, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(placement, "CAPTION_BYTES", 0)
    monkeypatch.setattr(placement, "STEP_BYTES", 0)
    card = Card(placement.weight_bytes(bundle.modules()) + room * placement.DECODE_BYTES * 64 * 64)
    card.install(monkeypatch)
    real, found = vae.encode, []
    monkeypatch.setattr(vae, "encode", lambda bundle, pixels: found.append(in_strips(bundle)) or real(bundle, pixels))
    monkeypatch.setattr(placement, "needed_parts", lambda kind, **_: frozenset({"unet", "text_encoder", "vae"}))  # nothing can make room
    config = small_config(tmp_path, steps__max_train_steps=1, data__cache_latents_to_disk=False)
    events = under(contextlib.nullcontext(), StandaloneHost(tmp_path), config, tmp_path)
    assert isinstance(events[-1], Finished) and found and set(found) == {strips}
    assert IN_STRIPS not in [str(event.message) for event in events if isinstance(event, Warned)]


def test_the_plan_counts_strips_where_there_is_no_room_for_the_whole():
    config = build({"data": {"train_data_dir": "x", "resolution": 1024}, "sample": {"prompts": ["a house"]}})
    needed = {}
    for name, free_mb in (("wide", 80_000.0), ("narrow", 3000.0)):
        phases = memory_phases(config, (config.data,), None, Machine("cuda", free_mb, 10.0), 10**6)
        needed[name] = {phase.name: dict(phase.parts)["activations"] for phase in phases}
    assert needed["narrow"][PICTURES] < 0.5 * needed["wide"][PICTURES]
    assert needed["narrow"][PREVIEW] < needed["wide"][PREVIEW]
    unknown = memory_phases(config, (config.data,), None, attrs.evolve(Machine("cuda"), free_mb=0.0), 10**6)
    assert {phase.name: dict(phase.parts)["activations"] for phase in unknown} == needed["wide"]
