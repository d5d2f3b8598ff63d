"""A rate, a schedule or an argument that does not fit its optimizer is named before the start, and one that fits is not."""

from __future__ import annotations

from typing import Any

import pytest

from lora_trainer.config import effective
from lora_trainer.config.build import build
from lora_trainer.config.checks.learning_rate_checks import learning_rate_warnings, require_single_rate
from lora_trainer.config.choices.optimizers import OPTIMIZER_SPECS
from lora_trainer.errors import ConfigError, TrainerError


def notes(pictures: int = 1, **options: Any) -> dict[str, str]:
    """Option -> what is said of it; options of [optimizer], and `schedule` of its own section."""
    schedule = options.pop("schedule", {})
    config = build({"optimizer": options, "schedule": schedule})
    return {path: message.text("en") for path, message in learning_rate_warnings(config, pictures)}


@pytest.mark.parametrize("known", OPTIMIZER_SPECS, ids=lambda known: known.name)
def test_each_family_is_warned_of_rates_of_another_and_not_of_its_own(known):
    constant = {"type": "constant"}
    if known.name == "AdaFactor":
        return
    assert "optimizer.learning_rate" not in notes(type=known.name, learning_rate=known.rate_range.hint, schedule=constant)
    high = notes(type=known.name, learning_rate=10.0, schedule=constant)
    low = notes(type=known.name, learning_rate=1e-9, schedule=constant)
    hint = f"{known.rate_range.hint:g}"
    if known.rate_range.high < 10.0:
        assert hint in high["optimizer.learning_rate"]
    assert hint in low["optimizer.learning_rate"]


def test_the_mistakes_that_users_make():
    assert "write 1" in notes(type="Prodigy", learning_rate=1e-4)["optimizer.learning_rate"]
    assert "far too high for AdamW" in notes(type="AdamW", learning_rate=1.0)["optimizer.learning_rate"]
    assert "far too high for Lion" in notes(type="Lion", learning_rate=2e-3)["optimizer.learning_rate"]
    assert "far too high" in notes(type="AdamW", unet_lr=1e-4, text_encoder_lr=0.5)["optimizer.text_encoder_lr"]
    assert notes(type="AdamW", learning_rate=2e-3) == {} and notes(type="AdamW", learning_rate=0.0) == {}


def test_the_rate_that_counts_is_the_one_with_batch_and_lora_plus():
    assert notes(type="AdamW", unet_lr=2e-3, pictures=64) == {}
    assert "0.128" in notes(type="AdamW", unet_lr=2e-3, scale_lr="linear", pictures=64)["optimizer.unet_lr"]
    assert "0.016" in notes(type="AdamW", unet_lr=2e-3, scale_lr="sqrt", pictures=64)["optimizer.unet_lr"]
    assert "0.032" in notes(type="AdamW", unet_lr=2e-3, loraplus_lr_ratio=16)["optimizer.unet_lr"]


def test_adafactor_says_whose_rates_count():
    found = notes(type="AdaFactor", learning_rate=1e-4)
    assert "relative_step" in found["optimizer.args"] and "optimizer.max_grad_norm" in found and "optimizer.learning_rate" not in found
    fixed = notes(type="AdaFactor", learning_rate=1e-4, args="relative_step=False")
    assert "scale_parameter=False" in fixed["optimizer.args"]
    assert notes(type="AdaFactor", learning_rate=1e-4, args="relative_step=False scale_parameter=False warmup_init=False") == {}


@pytest.mark.parametrize(
    ("name", "schedule", "told"),
    [
        ("AdamWScheduleFree", "cosine", "needs no schedule"),
        ("ProdigyPlus", "cosine", "needs no schedule"),
        ("DAdaptation", "cosine", "constant schedule"),
        ("Prodigy", "cosine_with_restarts", "rises again"),
        ("DAdaptAdam", "cosine_with_restarts", "rises again"),
        ("Prodigy", "cosine", ""),
        ("AdamW", "cosine_with_restarts", ""),
        ("AdamW", "adafactor", "constant with AdamW"),
    ],
)
def test_a_schedule_that_the_optimizer_does_not_want_is_named(name: str, schedule: str, told: str):
    rate = next(known.rate_range.hint for known in OPTIMIZER_SPECS if known.name == name)
    assert told in notes(type=name, learning_rate=rate, schedule={"type": schedule}).get("schedule.type", "")
    assert bool(told) == ("schedule.type" in notes(type=name, learning_rate=rate, schedule={"type": schedule}))


def test_a_warm_up_with_prodigy_wants_its_guard():
    warm = {"type": "cosine", "warmup_steps": "5%"}
    assert "safeguard_warmup" in notes(type="Prodigy", learning_rate=1.0, schedule=warm)["optimizer.args"]
    assert notes(type="Prodigy", learning_rate=1.0, args="safeguard_warmup=True", schedule=warm) == {}


@pytest.mark.parametrize("rates", [{"text_encoder_lr": 0.5}, {"loraplus_lr_ratio": 16.0}])
def test_one_size_of_steps_takes_no_different_rates(rates: dict[str, float]):
    with pytest.raises(TrainerError, match="cannot use different rates"):
        require_single_rate(build({"optimizer": {"type": "Prodigy", "learning_rate": 1.0, **rates}}))
    require_single_rate(build({"optimizer": {"type": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 0.0}}))
    require_single_rate(build({"optimizer": {"type": "ProdigyPlus", "learning_rate": 1.0, **rates}}))


def test_arguments_are_read_as_sd_scripts_writes_them_and_nothing_is_run():
    def read(text: str) -> dict[str, Any]:
        return effective.optimizer_args(build({"optimizer": {"args": text}}))

    assert read("weight_decay=0.01 betas=.9,.999") == {"weight_decay": 0.01, "betas": (0.9, 0.999)}
    assert read("betas=(0.9, 0.99) eps=1e-8 decouple=True d0=1e-5") == {"betas": (0.9, 0.99), "eps": 1e-8, "decouple": True, "d0": 1e-5}
    assert read("""safeguard_warmup=true "weight_decay=0.1" mode='a b' beta3=None""") == {
        "safeguard_warmup": True,
        "weight_decay": 0.1,
        "mode": "a b",
        "beta3": None,
    }
    assert read("value=__import__('os').getcwd()") == {"value": "__import__('os').getcwd()"}
    with pytest.raises(ConfigError, match="name=value"):
        read("weight_decay: 0.01")


def test_rates_by_part_encoder_and_batch():
    config = build(
        {"optimizer": {"learning_rate": 1e-4, "text_encoder_lr": [5e-5, 1e-5], "loraplus_unet_lr_ratio": 16, "scale_lr": "sqrt"}}
    )
    assert effective.learning_rates(config) == pytest.approx({"unet": 1e-4, "unet plus": 16e-4, "text_encoder": 5e-5})
    assert (effective.text_encoder_lr(config, 1), effective.text_encoder_lr(config, 2)) == (1e-5, 1e-5)
    assert (effective.lr_batch_scale(config, 1), effective.lr_batch_scale(config, 4)) == (1.0, 2.0)
    assert "text_encoder" not in effective.learning_rates(build({"optimizer": {"text_encoder_lr": [0.0, 0.0]}}))
