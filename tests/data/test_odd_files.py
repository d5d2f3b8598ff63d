"""Two hundred odd files: none crashes, each has its verdict and remedy, all that can be read is trained on."""

from __future__ import annotations

import pytest

from lora_trainer.data.pictures.decode_check import check_all
from lora_trainer.data.pictures.images import open_picture, thumbnail
from lora_trainer.data.records import nfc
from lora_trainer.errors import DatasetError
from lora_trainer.events import Finished, Started, Warned

from ..train.runs import events_of, small_config
from .odd_files import BROKEN, NO_PICTURE, TOO_SMALL, draw_all
from .scanning import scan

UNUSABLE = (BROKEN, NO_PICTURE, TOO_SMALL)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "数据 集" / "ü {x}" / "[1]"
    return folder, {nfc(name): verdict for name, verdict in draw_all(folder).items()}


def test_every_file_gets_the_verdict_that_it_deserves(odd):
    folder, wanted = odd
    records = check_all(scan(folder).records)
    assert len(wanted) > 200
    assert {record.key: record.verdict for record in records} == wanted
    for record in records:
        assert record.usable == (wanted[record.key] not in UNUSABLE), record.key
        assert record.usable or record.reason.text().strip(), record.key


def test_every_file_opens_or_says_its_name(odd):
    folder, wanted = odd
    for name, verdict in wanted.items():
        if verdict in (BROKEN, NO_PICTURE):
            with pytest.raises(DatasetError) as caught:
                open_picture(folder / name)
            assert name in caught.value.text() and caught.value.problems[0].fix.text()
        else:
            assert open_picture(folder / name).mode == "RGB" and thumbnail(folder / name, 64)


@pytest.mark.slow
def test_the_whole_set_trains(odd, tmp_path):
    folder, wanted = odd
    config = small_config(
        tmp_path,
        data__train_data_dir=str(folder),
        data__batch_size=16,
        data__cache_latents_to_disk=False,
        steps__max_train_steps=0,
        steps__max_train_epochs=1,
        network__dim=1,
    )
    events = events_of(config, tmp_path)
    usable = [name for name, verdict in wanted.items() if verdict not in UNUSABLE]
    started = next(event for event in events if isinstance(event, Started))
    assert started.plan["images"] == len(usable) and isinstance(events[-1], Finished)
    told = " ".join(event.message.text() for event in events if isinstance(event, Warned))
    assert "more files are not used" in told
