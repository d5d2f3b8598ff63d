"""The wizard's advice where there are regularisation pictures or several folders."""

from __future__ import annotations

from PIL import Image

from lora_trainer.config.build import build
from lora_trainer.config.changes import apply_changes
from lora_trainer.train.planning.plan import make_plan
from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from tests.wizard.advice import advise


def folder_of(place, count):
    place.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 64), (number * 20 % 256, 80, number)).save(place / f"{number}.png")
    return str(place)


def advised(config):
    pictures, machine = DatasetFacts.read(config), MachineFacts.from_vram(8)
    after = apply_changes(config, advise(config, machine, pictures, None, "object"))
    return pictures, after, make_plan(after, pictures.bucketed(after), None, machine.to_machine(), pictures.datasets(after))


def test_regularisation_adds_steps_and_no_showings_of_the_subject(tmp_path):
    data = {"train_data_dir": folder_of(tmp_path / "a", 10), "trigger_word": "sks", "resolution": 64}
    without, _, short = advised(build({"data": data}))
    with_them, after, long = advised(build({"data": {**data, "reg_data_dir": folder_of(tmp_path / "b", 30)}}))
    assert without.images == with_them.images == 10
    assert (short.images, long.images, long.reg_images > 0) == (10, 10, True)
    assert long.total_steps == 2 * after.data.num_repeats * 10 // after.data.batch_size * after.steps.max_train_epochs


def test_repeats_of_tables_stay_as_they_are_written(tmp_path):
    tables = [{"image_dir": folder_of(tmp_path / "a", 6), "num_repeats": 3}, {"image_dir": folder_of(tmp_path / "b", 2), "num_repeats": 9}]
    pictures, after, plan = advised(build({"data": {"subsets": tables, "trigger_word": "sks", "resolution": 64}}))
    assert [record.repeats for record in pictures.bucketed(after)] == [3] * 6 + [9] * 2
    assert after.data.num_repeats == 1 and plan.images == 8


def test_what_a_dataset_file_says_is_not_advised_about(tmp_path):
    (tmp_path / "sets.toml").write_text(
        f"[[datasets]]\nresolution = 64\nbatch_size = 6\n[[datasets.subsets]]\nimage_dir = '{folder_of(tmp_path / 'a', 6)}'\n",
        encoding="utf-8",
    )
    config = build({"data": {"dataset_config": str(tmp_path / "sets.toml"), "trigger_word": "sks"}})
    changes = advise(config, MachineFacts.from_vram(8), DatasetFacts.read(config), None, "object")
    assert changes and not [change.path for change in changes if change.path.startswith("data.") and change.path != "data.cache_latents"]
