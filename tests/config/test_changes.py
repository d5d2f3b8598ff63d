"""Changes with reasons, put into a config."""

from __future__ import annotations

import pytest

from lora_trainer.config.build import build
from lora_trainer.config.changes import Change, apply_changes, value_at, with_value
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError
from lora_trainer.messages import say


def test_changes_are_made_together_and_the_old_config_stays():
    old = build({"data": {"batch_size": 2}})
    new = apply_changes(old, [Change("network.dim", 8, say("small")), Change("data.resolution", (64, 128), say("small"))])
    assert (new.network.dim, new.data.resolution, new.data.batch_size) == (8, (64, 128), 2)
    assert old.network.dim == 16


def test_changes_that_are_wrong_one_after_the_other_but_right_together_are_taken():
    old = build({"data": {"min_bucket_reso": 256, "max_bucket_reso": 512}})
    reason = say("because")
    new = apply_changes(old, [Change("data.min_bucket_reso", 768, reason), Change("data.max_bucket_reso", 1024, reason)])
    assert new.data.min_bucket_reso == 768


def test_a_change_to_a_value_that_is_not_allowed_is_refused():
    with pytest.raises(ConfigError, match=r"network\.dim"):
        apply_changes(TrainConfig(), [Change("network.dim", 0, say("because"))])
    with pytest.raises(ConfigError, match=r"network\.rank"):
        with_value(TrainConfig(), "network.rank", 4)


def test_a_value_is_read_and_set_by_its_path():
    config = with_value(TrainConfig(), "optimizer.unet_lr", 0.5)
    assert value_at(config, "optimizer.unet_lr") == 0.5 and value_at(config, "seed") == 1
    assert value_at(with_value(config, "optimizer.unet_lr", None), "optimizer.unet_lr") is None
