"""The wizard's advice, held against the figures that it promises."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_trainer import assets
from lora_trainer.config import effective
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.config.checks.option_checks import check_value, options
from lora_trainer.errors import ConfigError, DatasetError, ModelError
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.messages import translations
from lora_trainer.optim.schedules import SCHEDULES
from lora_trainer.wizard.advise import Suggestion, suggest
from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from tests.wizard.advice import advise
from tests.wizard.conftest import MakeFolder, config_for

SUBJECTS = ("person", "character", "style", "object", "scenery")
EXPOSURES = {"person": 100, "character": 80, "style": 40, "object": 80, "scenery": 30}
RANKS = {"person": 32, "character": 16, "style": 32, "object": 16, "scenery": 32}


def suggestion(folder: Path, subject: str = "object", gb: float = 24, typed: tuple[str, ...] = (), **sections: object) -> Suggestion:
    return suggest(config_for(folder, **sections), subject=subject, vram_gb=gb, typed=typed)


def change_of(found: Suggestion, path: str) -> Change:
    return next(change for change in found.changes if change.path == path)


def seen(found: Suggestion) -> int:
    return found.config_after.data.num_repeats * found.config_after.steps.max_train_epochs


@pytest.mark.parametrize("gb", [4, 6, 24])
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("count", [1, 8, 20, 120])
def test_every_change_is_allowed_has_a_reason_in_both_languages_and_a_second_press_changes_nothing(
    pictures: Callable[[int], Path], count: int, subject: str, gb: float
) -> None:
    folder = pictures(count)
    found = suggestion(folder, subject, gb)
    assert found.changes
    for change in found.changes:
        declared = options()[change.path]
        assert list(check_value(declared, change.value)) == []
        template = change.reason.template
        assert template in translations("zh_CN")
        assert {name for _, name, _, _ in string.Formatter().parse(template)} == {
            name for _, name, _, _ in string.Formatter().parse(translations("zh_CN")[template])
        }
        for language in ("en", "zh_CN"):
            assert "{" not in change.reason.text(language)
            assert change.path == "schedule.type" or any(sign.isdigit() for sign in change.reason.text(language))
    assert found.config_after.schedule.type in SCHEDULES.names()
    assert len({change.path for change in found.changes}) == len(found.changes)
    again = suggest(found.config_after, subject=subject, vram_gb=gb)
    assert again.changes == ()
    assert again.config_after == found.config_after


@pytest.mark.parametrize("gb, subject", [(gb, subject) for gb in (6, 24) for subject in ("person", "style", "object")])
@pytest.mark.parametrize("count", [8, 20, 120])
def test_amounts_follow_subject_pictures_and_memory(pictures: Callable[[int], Path], count: int, subject: str, gb: int) -> None:
    found = suggestion(pictures(count), subject, gb)
    config, plan = found.config_after, found.plan
    trained = plan.images
    by_count = trained // 5 if trained <= 50 else -(-trained // 10)
    assert config.data.batch_size == max(1, min({6: 2, 24: 8}[gb], by_count))
    assert config.steps.gradient_accumulation_steps == (2 if config.data.batch_size < 2 else 1)
    together = config.data.batch_size * config.steps.gradient_accumulation_steps
    assert config.memory.gradient_checkpointing is (gb == 6)
    assert (config.network.dim, config.network.alpha) == (RANKS[subject], RANKS[subject] / 2)
    rate = 1e-4 * min(2.0, together**0.5) * (0.7 if subject == "style" else 1.0)
    assert config.optimizer.unet_lr == pytest.approx(rate, rel=0.02)
    assert config.optimizer.text_encoder_lr == (0 if gb == 6 else pytest.approx(rate / 2, rel=0.03))
    assert (config.schedule.type, config.schedule.min_lr_ratio) == ("cosine", 0.1)
    assert plan.warmup_steps == min(100, round(0.05 * plan.total_steps))

    wanted = EXPOSURES[subject] * max(1, 40 / trained) ** 0.25
    wanted = min(max(wanted, 400 * together / trained), 3000 * together / trained)
    assert seen(found) == pytest.approx(wanted, abs=3.5)  # 6 x 11 and 7 x 10 are next to each other
    assert 8 <= config.steps.max_train_epochs <= 12
    assert 400 <= plan.total_steps <= 3000
    assert plan.total_steps == pytest.approx(seen(found) * trained / together, rel=0.05)
    assert 8 <= plan.files - 1 <= 12
    assert config.memory.mixed_precision == "auto"


@pytest.mark.parametrize(
    "gb, batch, recomputes, text_encoder, rank",
    [
        (4, 1, True, False, 8),
        (6, 2, True, False, 32),
        (8, 2, False, True, 32),
        (7.99, 2, False, True, 32),
        (10, 4, False, True, 32),
        (12, 6, False, True, 32),
        (16, 8, False, True, 32),
        (24, 8, False, True, 32),
        (48, 16, False, True, 32),
    ],
)
def test_each_card_gets_its_rung(
    pictures: Callable[[int], Path], gb: float, batch: int, recomputes: bool, text_encoder: bool, rank: int
) -> None:
    after = suggestion(pictures(200), "person", gb).config_after
    assert after.data.batch_size == batch
    assert after.memory.gradient_checkpointing is recomputes
    assert effective.trains_text_encoder(after) is text_encoder
    assert (after.network.dim, after.network.alpha) == (rank, rank / 2)


def test_large_pictures_get_768_where_memory_allows_and_fewer_in_a_step(make_folder: MakeFolder) -> None:
    folder = make_folder(200, sizes=((800, 800),))
    assert suggestion(folder, gb=10).config_after.data.resolution == 512
    found = suggestion(folder, gb=12)
    assert (found.config_after.data.resolution, found.config_after.data.batch_size) == (768, 3)
    assert "800" in str(change_of(found, "data.resolution").reason)
    chosen = suggestion(folder, gb=6, typed=("data.resolution",), data={"resolution": 768}).config_after
    assert (chosen.data.resolution, chosen.data.batch_size) == (768, 1)
    assert chosen.memory.gradient_checkpointing and chosen.steps.gradient_accumulation_steps == 2


def test_a_step_is_never_larger_than_the_largest_group(make_folder: MakeFolder) -> None:
    tall = ((448, 576), (384, 640), (320, 768), (256, 1024))
    found = suggestion(make_folder(18, sizes=((512, 512), *tall, *((height, width) for width, height in tall))), gb=24)
    assert max(count for _, _, count in found.plan.buckets) == found.config_after.data.batch_size == 2
    assert change_of(found, "data.batch_size").reason.values["batch"] == 2
    assert 400 <= found.plan.total_steps <= 3000


def test_one_picture_is_not_collected_with_itself(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(1), steps={"gradient_accumulation_steps": 4})
    assert found.config_after.steps.gradient_accumulation_steps == 1
    assert found.plan.total_steps >= 400


def test_what_the_user_typed_comes_last_is_not_made_and_the_rest_counts_on_it(make_folder: MakeFolder) -> None:
    folder = make_folder(22)
    typed = ("network.dim", "data.num_repeats", "data.batch_size")
    found = suggestion(folder, "object", 24, typed, network={"dim": 64}, data={"num_repeats": 3, "batch_size": 1})
    assert {change.path for change in found.changes[-len(found.typed) :]} == found.typed == {"network.dim", "data.batch_size"}
    after = found.config_after
    assert (after.network.dim, after.network.alpha, after.data.batch_size, after.data.num_repeats) == (64, 32, 1, 3)
    assert after.steps.gradient_accumulation_steps == 2
    assert seen(found) == pytest.approx(95, abs=1.5)
    assert found.plan.total_steps == seen(found) * 20 / 2  # two of 22 are held back
    again = suggest(after, subject="object", vram_gb=24, typed=typed)
    assert {change.path for change in again.changes} == again.typed == found.typed


def test_typed_epochs_stay_and_the_repeats_follow(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(22), typed=("steps.max_train_epochs",), steps={"max_train_epochs": 19})
    assert not found.typed
    assert (found.config_after.data.num_repeats, found.config_after.steps.max_train_epochs) == (5, 19)


def test_typed_steps_are_not_silently_replaced_by_epochs(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(22), typed=("steps.max_train_steps",), steps={"max_train_steps": 700})
    assert found.typed == {"steps.max_train_epochs"}
    assert found.plan.total_steps == 700
    assert suggestion(make_folder(22, "others"), steps={"max_train_steps": 700}).plan.total_steps == 480


@pytest.mark.parametrize("inside", [True, False])
def test_repeats_in_the_folder_name_win_and_the_epochs_follow(make_folder: MakeFolder, inside: bool) -> None:
    folder = make_folder(22, "set/5_sks thing")
    found = suggestion(folder if inside else folder.parent, "object")
    assert "data.num_repeats" not in {change.path for change in found.changes}
    epochs = change_of(found, "steps.max_train_epochs")
    assert epochs.value == 19  # 80 x (40 / 20) ^ 1/4 = 95 times
    assert "said by the folder's name" in str(epochs.reason) and "5" in str(epochs.reason)
    assert found.plan.total_steps == 19 * 20 * 5 / 4


def test_folders_with_different_repeats_count_by_their_mean(make_folder: MakeFolder) -> None:
    root = make_folder(10, "set/2_a").parent
    make_folder(20, "set/5_b")
    found = suggestion(root, "object", typed=("validate.fraction",))
    assert found.config_after.steps.max_train_epochs == 21  # 80 x (40 / 30) ^ 1/4 = 86 times, 4 repeats in the mean
    assert found.plan.total_steps == 21 * 120 / 6


@pytest.mark.parametrize("count, name", [(20, "1_sks"), (400, "30_sks")])
def test_about_ten_files_come_whatever_the_number_of_epochs(make_folder: MakeFolder, count: int, name: str) -> None:
    found = suggestion(make_folder(count, name), "object", sample={"prompts": ["a sks"]})
    assert not 8 <= found.config_after.steps.max_train_epochs <= 12
    assert 7 <= found.plan.files - 1 <= 13
    assert effective.interval_epochs(found.config_after.save) >= 1  # the grid reads the numbers of epochs
    assert suggest(found.config_after, subject="object", vram_gb=24).changes == ()


def test_a_users_own_interval_of_about_ten_stays(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(20), save={"every_n_steps": 40})
    assert not any(change.path.startswith("save.") for change in found.changes)


@pytest.mark.parametrize("count, held", [(11, 0), (12, 1), (19, 1), (20, 2), (39, 2), (40, 4), (120, 12), (300, 20)])
def test_one_or_two_pictures_are_held_back_and_a_tenth_of_plenty(make_folder: MakeFolder, count: int, held: int) -> None:
    found = suggestion(make_folder(count, sizes=((64, 64),)))
    assert (found.plan.validation_images, found.plan.images) == (held, count - held)
    assert suggest(found.config_after, subject="object", vram_gb=24).changes == ()


@pytest.mark.parametrize("count, told", [(11, True), (12, False)])
def test_what_the_loss_cannot_tell_without_validation_is_said(make_folder: MakeFolder, count: int, told: bool) -> None:
    notes = [note.text() for note in suggestion(make_folder(count)).notes]
    assert any(f"No picture of {count} is held back" in note for note in notes) is told


def test_a_subsets_own_share_for_validation_is_enough(make_folder: MakeFolder) -> None:
    folder = make_folder(20)
    found = suggestion(folder, data={"train_data_dir": "", "subsets": [{"image_dir": str(folder), "validation_split": 0.2}]})
    assert found.config_after.validate.fraction == 0
    assert (found.plan.images, found.plan.validation_images) == (16, 4)
    assert not any("held back" in note.text() for note in found.notes)


def test_a_validation_folder_is_enough(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(60), validate={"data_dir": str(make_folder(6, "held"))})
    assert found.config_after.validate.fraction == 0
    assert (found.plan.images, found.plan.validation_images) == (60, 6)


def test_many_repeats_of_very_many_pictures_stay_under_the_cap(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(1500, sizes=((40, 40),)), gb=6)
    assert found.config_after.data.num_repeats == 1
    assert found.plan.total_steps <= 3000
    assert "3000" in str(change_of(found, "steps.max_train_epochs").reason)


def test_the_small_model_gets_its_own_size_from_its_description(make_folder: MakeFolder, toy_checkpoint: Path) -> None:
    folder = make_folder(22, sizes=((900, 900),))
    found = suggest(config_for(folder), subject="object", vram_gb=24, model_path=toy_checkpoint)
    assert found.config_after.data.resolution == 64
    assert "64 x 64" in str(change_of(found, "data.resolution").reason)
    assert found.plan.buckets == ((64, 64, 20),)
    named = build(to_mapping(found.config_after) | {"model": {"pretrained_model_name_or_path": str(toy_checkpoint)}})
    assert suggest(named, subject="object", vram_gb=24).changes == ()


def test_a_processor_gets_small_steps_and_is_told_that_it_is_slow(make_folder: MakeFolder) -> None:
    pictures = DatasetFacts.read(config_for(make_folder(120)))
    roomy, tight = MachineFacts("cpu", 64 * 1024, 60 * 1024), MachineFacts("cpu", 8 * 1024, 6 * 1024)
    changes = {change.path: change for change in advise(config_for(Path("unread")), roomy, pictures, None, "object")}
    assert changes["data.batch_size"].value == 4
    assert "slow" in str(changes["data.batch_size"].reason)
    assert "memory.gradient_checkpointing" not in changes
    tighter = {change.path: change.value for change in advise(config_for(Path("unread")), tight, pictures, None, "object")}
    assert "data.batch_size" not in tighter  # it is 1 already
    assert tighter["memory.gradient_checkpointing"] is True


class _Host:
    """A WebUI that holds a model with clip skip 2, on a processor."""

    name = "a1111"

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def memory(self) -> dict[str, object]:
        return {"device": "CPU", "total_mb": 16000, "free_mb": 9000, "host_mb": 3000}

    def checkpoints(self) -> list[object]:
        from lora_trainer.host.base import Checkpoint

        return [Checkpoint("toy", self.checkpoint, loaded=True)]

    def model_info(self) -> dict[str, object]:
        return {"clip_skip": 2}


def test_a_webui_says_clip_skip_size_and_memory(make_folder: MakeFolder, toy_checkpoint: Path) -> None:
    found = suggest(config_for(make_folder(12)), subject="object", host=_Host(toy_checkpoint))  # type: ignore[arg-type]
    assert found.config_after.model.clip_skip == 2
    assert found.config_after.data.resolution == 64
    assert found.plan.free_mb == 12000
    assert any("no GPU" in str(note) for note in found.notes)
    assert all(note.template in translations("zh_CN") for note in found.notes)


def test_few_pictures_of_a_style_are_remarked_on(make_folder: MakeFolder) -> None:
    assert any("30" in str(note) for note in suggestion(make_folder(8), "style").notes)
    assert not suggestion(make_folder(30, "enough"), "style").notes


def test_advice_changes_nothing_by_itself_and_overrules_what_does_not_suit(make_folder: MakeFolder) -> None:
    config = config_for(
        make_folder(20),
        network={"dim": 256, "alpha": 1.0},
        schedule={"type": "constant", "warmup_steps": 500},
        memory={"gradient_checkpointing": True},
        steps={"max_train_epochs": 300, "gradient_accumulation_steps": 8},
    )
    before = json.dumps(to_mapping(config))
    found = suggest(config, subject="object", vram_gb=24)
    assert json.dumps(to_mapping(config)) == before
    assert all(value_at(config, change.path) != change.value for change in found.changes)
    assert apply_changes(config, found.changes) == found.config_after
    assert found.config_after.memory.gradient_checkpointing is False
    assert (found.config_after.schedule.type, found.config_after.network.dim) == ("cosine", 16)
    assert suggest(found.config_after, subject="object", vram_gb=24).changes == ()


def test_training_the_text_encoder_alone_stays_possible_on_a_small_card(make_folder: MakeFolder) -> None:
    found = suggestion(make_folder(20), gb=6, typed=("optimizer.unet_lr",), optimizer={"unet_lr": 0.0})
    assert found.typed == {"optimizer.unet_lr"}
    assert (effective.trains_unet(found.config_after), effective.trains_text_encoder(found.config_after)) == (False, True)


def test_wrong_questions_are_answered_with_a_remedy(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(2)
    with pytest.raises(ConfigError) as wrong:
        suggestion(folder, "persn")
    assert "person" in wrong.value.problems[0].fix.text()
    with pytest.raises(DatasetError):
        suggestion(tmp_path / "missing")
    with pytest.raises(DatasetError):
        suggest(build({}), subject="person", vram_gb=8)
    with pytest.raises(ModelError):
        suggest(config_for(folder), subject="person", vram_gb=8, model_path=tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("seconds", "said"), [(600.0, "about 10 min (measured here)"), (36_000.0, "about 10 h (measured here)"), (None, "(estimate)")]
)
def test_a_time_that_was_measured_here_is_told_instead_of_the_estimate(
    make_folder: MakeFolder, tmp_path: Path, seconds: float | None, said: str
) -> None:
    config = config_for(make_folder(12, sizes=((64, 64),)), model={"pretrained_model_name_or_path": str(assets.toy_checkpoint())})
    found = suggest(config, subject="object", host=StandaloneHost(tmp_path), measured=lambda _, steps: seconds if steps else None)
    if not any("There is no GPU" in note.text() for note in found.notes):
        pytest.skip("this machine has a GPU")
    assert any(said in note.text() for note in found.notes)
    assert found.plan_json().get("seconds_measured", False) is (seconds is not None)
    assert seconds is None or found.plan_json()["seconds"] == seconds
