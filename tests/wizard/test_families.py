"""What the wizard advises for Stable Diffusion 2 and SDXL, on cards of every size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from benchmarks import random_checkpoint
from lora_trainer.config import effective
from lora_trainer.models.detection.detect import ModelFacts, inspect
from lora_trainer.wizard.advise import Suggestion, suggest
from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from lora_trainer.wizard.rule_context import RuleContext
from tests.wizard.advice import advise
from tests.wizard.conftest import MakeFolder, config_for
from tests.wizard.test_advise import change_of, seen

EXPOSURES = {"person": 80, "character": 60, "style": 30, "object": 60, "scenery": 25}


@pytest.fixture(scope="session")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """hollow(family, *marks): a file of a released model's shapes that holds no numbers."""
    folder = tmp_path_factory.mktemp("hollow")

    def made(family: str, *marks: str) -> Path:
        path = folder / f"{family}{''.join(marks)}.safetensors"
        return path if path.exists() else random_checkpoint.hollow(path, random_checkpoint.SHAPES[family][0], marks=marks)

    return made


def advice(
    folder: Path, model: Path, subject: str = "object", gb: float = 24, typed: tuple[str, ...] = (), **sections: object
) -> Suggestion:
    return suggest(config_for(folder, **sections), subject=subject, vram_gb=gb, model_path=model, typed=typed)


def again(found: Suggestion, model: Path, subject: str, gb: float) -> tuple[object, ...]:
    return suggest(found.config_after, subject=subject, vram_gb=gb, model_path=model).changes


@pytest.mark.parametrize(("gb", "subject"), [(6, "person"), (8, "style"), (24, "person")])
def test_sdxl_is_trained_at_its_size_without_text_encoders_and_a_second_press_changes_nothing(pictures, hollow, subject, gb):
    model = hollow("sdxl")
    found = advice(pictures(40), model, subject, gb)
    after = found.config_after
    assert not effective.trains_text_encoder(after) and effective.trains_unet(after)
    assert after.data.cache_text_encoder_outputs and after.memory.gradient_checkpointing
    assert (after.data.resolution, after.data.max_bucket_reso) == ((1024, 2048) if gb > 6 else (768, 1024))
    together = after.data.batch_size * after.steps.gradient_accumulation_steps
    assert after.optimizer.unet_lr == pytest.approx(1e-4 * min(2.0, together**0.5) * (0.7 if subject == "style" else 1), rel=0.02)
    low, high = (steps * together / found.plan.images for steps in (400, 4000))
    wanted = EXPOSURES[subject] * max(1, 40 / found.plan.images) ** 0.25
    assert seen(found) == pytest.approx(min(max(wanted, low), high), abs=3)
    assert again(found, model, subject, gb) == ()


@pytest.mark.parametrize(("gb", "side", "batch", "rank"), [(8, 1024, 1, 8), (10, 1024, 2, 16), (12, 1024, 2, 32), (16, 1024, 3, 32)])
def test_each_card_gets_its_rung_for_sdxl(pictures, hollow, gb, side, batch, rank):
    after = advice(pictures(200), hollow("sdxl"), "person", gb).config_after
    assert (after.data.resolution, after.network.dim) == (side, rank)
    assert 1 <= after.data.batch_size <= batch


@pytest.mark.parametrize(("gb", "eight"), [(6, True), (12, False), (24, False)])
def test_eight_bits_are_advised_for_sdxl_only_where_it_does_not_fit_without(pictures, hollow, gb, eight):
    found = advice(pictures(20), hollow("sdxl"), "object", gb)
    assert found.config_after.memory.fp8_base_unet is eight
    assert found.plan.needed_mb <= found.plan.free_mb
    if eight:
        assert "Not tried on a GPU yet" in str(change_of(found, "memory.fp8_base_unet").reason)
    roomy = advice(pictures(20), hollow("sdxl"), "object", 24, memory={"fp8_base_unet": True})
    assert roomy.config_after.memory.fp8_base_unet is False


def test_where_a_host_lends_its_model_nothing_is_advised_that_only_a_model_of_ones_own_allows(pictures, hollow):
    config, card = config_for(pictures(20)), attrs.evolve(MachineFacts.from_vram(8), lent=True)
    facts, found = inspect(hollow("sdxl")), DatasetFacts.read(config)
    own = {change.path for change in advise(config, attrs.evolve(card, lent=False), found, facts, "object")}
    lent = {change.path for change in advise(config, card, found, facts, "object")}
    assert own - lent == {"data.cache_text_encoder_outputs"}
    assert "memory.fp8_base_unet" not in lent


def test_a_text_encoder_that_the_user_wants_trained_stays_so_and_its_captions_are_not_kept(pictures, hollow):
    typed = ("optimizer.text_encoder_lr",)
    found = advice(pictures(20), hollow("sdxl"), "object", 24, typed, optimizer={"text_encoder_lr": 1e-5})
    assert found.typed == {"optimizer.text_encoder_lr"}
    assert effective.trains_text_encoder(found.config_after) and not found.config_after.data.cache_text_encoder_outputs


def test_wide_groups_keep_the_area_of_a_large_training_size(make_folder: MakeFolder, hollow):
    folder = make_folder(12, sizes=((1600, 900), (900, 1600)))
    found = advice(folder, hollow("sdxl"), "object", 24)
    assert {(width, height) for width, height, _ in found.plan.buckets} == {(1344, 768), (768, 1344)}
    kept = advice(folder, hollow("sdxl"), "object", 24, data={"max_bucket_reso": 1536, "bucket_reso_steps": 32})
    assert (kept.config_after.data.max_bucket_reso, kept.config_after.data.bucket_reso_steps) == (1536, 32)


@pytest.mark.parametrize(("family", "steps", "wanted"), [("sdxl", 48, 32), ("sdxl", 96, 96), ("sd2", 32, 64), ("sd2", 128, 128)])
def test_steps_between_groups_are_what_the_u_net_can_halve(pictures, hollow, family, steps, wanted):
    found = advice(pictures(20), hollow(family), "object", 24, data={"bucket_reso_steps": steps})
    assert found.config_after.data.bucket_reso_steps == wanted


@pytest.mark.parametrize(("gb", "size"), [(4, 512), (12, 768)])
def test_sd2_is_trained_at_its_models_size_where_the_card_allows_it(pictures, hollow, gb, size):
    model = hollow("sd2", "v_pred")
    found = advice(pictures(20), model, "object", gb)
    assert found.config_after.data.resolution == size
    assert effective.trains_text_encoder(found.config_after) is (gb == 12)
    assert not found.config_after.data.cache_text_encoder_outputs
    assert again(found, model, "object", gb) == ()


@pytest.mark.parametrize(("family", "wanted"), [("sd1", 2), ("sd2", 1), ("sdxl", 1)])
def test_a_clip_skip_is_advised_only_where_the_family_reads_it(pictures, hollow, family, wanted):
    from lora_trainer.wizard.advise import suggest_changes
    from lora_trainer.wizard.facts import DatasetFacts
    from lora_trainer.wizard.subjects import find_subject

    config = config_for(pictures(20))
    facts, card = inspect(hollow(family)), MachineFacts.from_vram(24)
    offered, _ = suggest_changes(RuleContext(config, card, DatasetFacts.read(config), facts, find_subject("object"), (), 2))
    assert {change.path: change.value for change in offered}.get("model.clip_skip", 1) == wanted


def test_an_offset_of_noise_is_taken_off_where_the_model_was_trained_to_pure_noise(pictures, hollow):
    zero, other = hollow("sdxl", "v_pred", "ztsnr"), hollow("sdxl")
    offset = {"loss": {"noise_offset": 0.05}}
    assert advice(pictures(20), zero, **offset).config_after.loss.noise_offset == 0
    assert advice(pictures(20), other, **offset).config_after.loss.noise_offset == 0.05


def test_what_is_made_for_other_objectives_is_taken_off_for_rectified_flow_and_sdxl_gets_its_shift(pictures, hollow):
    model, loss = hollow("sdxl", "rectified"), {"noise_offset": 0.05, "min_snr_gamma": 5.0, "debiased_estimation_loss": True}
    found = advice(pictures(20), model, loss=loss)
    after = found.config_after.loss
    assert (after.noise_offset, after.min_snr_gamma, after.debiased_estimation_loss, after.discrete_flow_shift) == (0, 0, False, 2.5)
    assert again(found, model, "object", 24) == ()
    kept = advice(pictures(20), model, loss={"discrete_flow_shift": 3.0}).config_after.loss
    assert kept.discrete_flow_shift == 3.0
    other = advice(pictures(20), hollow("sdxl"), loss=loss).config_after.loss
    assert (other.noise_offset, other.min_snr_gamma, other.discrete_flow_shift) == (0.05, 5.0, 1.0)


def test_plans_of_each_family_grow_as_their_models_do(hollow, pictures):
    from lora_trainer.train.planning.plan import make_plan

    def plan(facts: ModelFacts, size: int, **memory: object):
        config = config_for(pictures(20), data={"resolution": size}, optimizer={"text_encoder_lr": 0}, memory=memory)
        records = []
        return make_plan(config, records, facts, MachineFacts.from_vram(24).to_machine())

    sd1, sd2, sdxl = (inspect(hollow(family)) for family in ("sd1", "sd2", "sdxl"))
    needed = [plan(facts, 512).needed_mb for facts in (sd1, sd2, sdxl)]
    assert needed == sorted(needed) and needed[2] > 2 * needed[0]
    assert plan(sd2, 768).step_memory["activations"] > plan(attrs.evolve(sd2, family="sd1"), 768).step_memory["activations"]
    assert plan(sdxl, 1024, gradient_checkpointing=True).step_memory["activations"] < 1000
    card = MachineFacts.from_vram(24).to_machine()
    kept = config_for(pictures(20), data={"cache_text_encoder_outputs": True}, optimizer={"text_encoder_lr": 0})
    own, lent = (make_plan(kept, [], sdxl, machine).step_memory["model"] for machine in (card, attrs.evolve(card, lent=True)))
    assert lent - own == pytest.approx(sdxl.text_parameters * 2 / 2**20, rel=1e-6)
    eight, half = (plan(sdxl, 1024, fp8_base_unet=on).step_memory["model"] for on in (True, False))
    assert half - eight == pytest.approx(sdxl.unet_parameters / 2**20, rel=1e-6)
