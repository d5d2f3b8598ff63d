"""A real run on the small model at the wizard's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer import assets
from lora_trainer.events import Finished, Stepped, Validated
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.wizard.advise import suggest
from tests.train.runs import events_of
from tests.wizard.conftest import config_for


@pytest.mark.slow
def test_the_crescent_is_learned_at_the_wizards_settings(tmp_path: Path) -> None:
    pictures = assets.toy_pictures() / "crescent"
    config = config_for(
        pictures / "train",
        model={"pretrained_model_name_or_path": str(assets.toy_checkpoint())},
        validate={"data_dir": str(pictures / "val")},
        save={"output_dir": str(tmp_path / "loras")},
    )
    found = suggest(config, subject="object", host=StandaloneHost(tmp_path))
    events = events_of(found.config_after, tmp_path)
    losses = [event.loss for event in events if isinstance(event, Validated)]
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Stepped) for event in events) == found.plan.total_steps
    assert losses[-1] < 0.7 * losses[0]
