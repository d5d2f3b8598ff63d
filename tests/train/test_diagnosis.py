"""What a run says that has lost its numbers: the likely cause and one remedy."""

from __future__ import annotations

import pytest
import torch

from lora_trainer.config.schema import LossConfig
from lora_trainer.errors import TrainingError
from lora_trainer.train.guards import max_abs, remedy
from tests.train.runs import events_of, small_config

CALM = LossConfig()


@pytest.mark.parametrize(
    ("precision", "size", "loss", "words"),
    [
        ("no", 3393.2, CALM, "grown to 3393: the learning rate"),
        ("fp16", float("inf"), CALM, "grown to inf: the learning rate"),
        ("no", 3e30, CALM, "grown to 3e+30"),
        ("fp16", 0.5, CALM, "memory.mixed_precision"),
        ("bf16", 0.5, LossConfig(v_pred_like_loss=1.0), "loss.v_pred_like_loss makes very noisy pictures count 215 times"),
        ("bf16", 0.5, LossConfig(v_pred_like_loss=0.1), "damaged"),
        ("no", 0.5, CALM, "damaged"),
    ],
)
def test_one_likely_cause_is_named(precision: str, size: float, loss: LossConfig, words: str):
    assert words in remedy(precision, size, loss).text()
    assert remedy(precision, size, loss).text("zh_CN") != remedy(precision, size, loss).text()


def test_the_largest_number_of_a_network_is_found_whatever_its_sign():
    assert max_abs([torch.tensor([0.5, -3.0]), torch.zeros(0), torch.ones(2, 2)]) == 3.0
    assert max_abs([torch.tensor([1.0, float("nan")])]) == float("inf") and max_abs([]) == 0.0


def test_a_run_at_an_absurd_rate_ends_with_the_rate_as_its_cause(tmp_path):
    config = small_config(
        tmp_path, optimizer={"learning_rate": 10.0, "max_grad_norm": 0}, schedule__type="constant", steps__max_train_steps=40
    )
    with pytest.raises(TrainingError, match=r"for 10 steps. The network's weights have grown to \d+: the learning rate is far too high"):
        events_of(config, tmp_path)
