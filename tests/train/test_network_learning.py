"""Every type of network learns: the validation loss on pictures that were not trained falls by a fifth."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.events import Stepped, Validated
from tests.train.resume_runs import folder_of, resume, same, train
from tests.train.runs import assets, events_of, small_config
from tests.train.test_resume import final, killed_at

STEPS = 100
RATE = 2e-3
"""The small model's; whole weights want a tenth of it, as the wizard has it, rotations and products of two pairs learn with the same."""
SETTINGS = {"full": {"optimizer__learning_rate": RATE / 10}, "loha": {"network__dim": 4, "network__alpha": 4}}


def losses_of(folder: Path, kind: str) -> dict[int, float]:
    """Validation loss by step of a short run with one type."""
    pictures = assets.toy_pictures() / "crescent"
    settings = {"optimizer__learning_rate": RATE, "network__dim": 8, "network__alpha": 8, **SETTINGS.get(kind, {})}
    config = small_config(
        folder,
        data__train_data_dir=str(pictures / "train"),
        data__batch_size=4,
        network__type=kind,
        schedule__warmup_steps=10,
        steps__max_train_steps=STEPS,
        validate__data_dir=str(pictures / "val"),
        validate__every_n_steps=STEPS,
        save__every_n_epochs=0,
        **settings,
    )
    return {event.step: event.loss for event in events_of(config, folder) if isinstance(event, Validated)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORK_TYPES)
def test_each_type_of_network_lowers_the_validation_loss_by_a_fifth(tmp_path: Path, kind: str):
    losses = losses_of(tmp_path, kind)
    assert losses[STEPS] <= 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        {"network__type": "dylora", "network__unit": 1, "network__module_dropout": 0.2},
        {"network__type": "dora", "network__dropout": 0.2, "network__rank_dropout": 0.2, "network__scale_weight_norms": 0.01},
        {"network__type": "lokr", "network__train_norm": True, "save__ema_decay": 0.9},
    ],
    ids=["dylora", "dora", "lokr"],
)
def test_a_resumed_run_draws_and_ends_as_the_whole_one(tmp_path: Path, network):
    changes = {"steps__max_train_steps": 7, "save__state_every_n_steps": 2, **network}
    one, other = (small_config(tmp_path / name, **changes) for name in ("whole", "cut"))
    whole = train(one, folder_of(one))
    folder = folder_of(other)
    train(other, folder, watch=killed_at(5))
    rest = resume(folder)
    losses = [[event.loss for event in events if isinstance(event, Stepped)] for events in (whole, rest)]
    assert losses[1] == losses[0][-len(losses[1]) :] and len(losses[1]) < 7
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
