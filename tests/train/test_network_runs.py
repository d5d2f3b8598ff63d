"""Whole runs with shares of the rate by block, dropout, a limit of norms, and on top of another network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.adapters.network_file import delta_of, empty_weight, modules_of
from lora_trainer.events import Started, Stepped, Warned
from tests.train.resume_runs import Killed, folder_of, resume, same, train
from tests.train.runs import events_of, small_config

EVERYTHING: dict[str, Any] = {
    "network__type": "locon",
    "network__down_lr_weight": "zeros",
    "network__up_lr_weight": "linear+0.1",
    "network__rank_dropout": 0.3,
    "network__module_dropout": 0.2,
    "network__scale_weight_norms": 0.02,
    "network__exclude": ["attn1"],
    "optimizer__loraplus_unet_lr_ratio": 4,
    "steps__max_train_steps": 5,
    "save__state_every_n_steps": 1,
    "save__state_every_minutes": 0.0,
    "data__batch_size": 4,
}


def final(root: Path) -> Path:
    return root / "loras" / "small.safetensors"


def test_a_resumed_run_draws_the_same_dropout_and_ends_with_the_same_bits(tmp_path: Path):
    whole, cut = (small_config(tmp_path / name, **EVERYTHING) for name in ("whole", "cut"))
    seen = train(whole, folder_of(whole))
    folder = folder_of(cut)

    def killed(job: Any, event: Any) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            raise Killed

    train(cut, folder, watch=killed)
    resume(folder)
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))

    steps = [event for event in seen if isinstance(event, Stepped)]
    names = {name for name in steps[0].rates if name.startswith("unet")}
    assert {"unet", "unet plus"} <= names and any(" x0." in name for name in names)
    file = final(tmp_path / "whole")
    modules = modules_of(load_file(str(file)), str(file))
    assert modules and not any("down_blocks" in name or "attn1" in name for name in modules)
    with safe_open(str(file), framework="pt") as held:
        sizes = [tuple(held.get_slice(name).get_shape()) for name in held.keys()]  # noqa: SIM118
        assert held.metadata()["ss_scale_weight_norms"] == "0.02"
    started = next(event for event in seen if isinstance(event, Started))
    told = started.plan["network"]
    assert told["file_bytes"] == 4 * sum(torch.Size(size).numel() for size in sizes)
    limit = 0.02 * 1.001
    assert all(float(delta_of(state, empty_weight(_shape(state))).norm()) <= limit for state in modules.values())


def _shape(state: Any) -> tuple[int, ...]:
    down, up = state.tensors["lora_down.weight"], state.tensors["lora_up.weight"]
    return (up.shape[0], *down.shape[1:])


def test_a_run_on_top_of_another_network_learns_from_where_that_one_is_and_says_so(tmp_path: Path):
    short = {"steps__max_train_steps": 2, "optimizer__text_encoder_lr": 0, "data__batch_size": 4}
    events_of(small_config(tmp_path / "first", **{**short, "steps__max_train_steps": 4}), tmp_path / "first")
    below = {"network__base_weights": [str(final(tmp_path / "first"))]}
    without = events_of(small_config(tmp_path / "plain", **short), tmp_path / "plain")
    nothing = events_of(small_config(tmp_path / "none", **short, **below, network__base_weights_multiplier=0.0), tmp_path / "none")
    events = events_of(small_config(tmp_path / "second", **short, **below), tmp_path / "second")
    losses = [[event.loss for event in run if isinstance(event, Stepped)] for run in (without, nothing, events)]
    assert losses[0] == losses[1] and losses[0][0] != losses[2][0]
    warned = [event.message.text() for event in events if isinstance(event, Warned) and event.path == "network.base_weights"]
    assert len(warned) == 1 and "small.safetensors" in warned[0]
