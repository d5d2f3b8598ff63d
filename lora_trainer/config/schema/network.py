"""What is trained beside the model."""

from __future__ import annotations

from lora_trainer.config.param import param, section

Size = int | tuple[int, int]


@section
class NetworkConfig:
    type: str = param(
        "lora",
        "Network",
        "What is trained: lora adds two small matrices to each attention layer.",
        choices={"lora": "LoRA"},
        kohya="network_module",
    )
    dim: int = param(
        16,
        "Rank",
        "Size of the added matrices. Higher holds more detail, makes a bigger file, and learns by heart sooner.",
        low=1,
        high=1024,
        kohya="network_dim",
        basic=True,
    )
    alpha: float = param(
        8.0,
        "Alpha",
        "The network's strength is alpha / rank. Rates in guides belong to one such pair: half the rank is usual.",
        above=0.0,
        high=4096.0,
        kohya="network_alpha",
        basic=True,
    )
    network_weights: str = param(
        "",
        "Start from a file",
        "A LoRA file that the training begins with instead of an empty network. Its rank and alpha must be those given here.",
        group="Start",
        kind="lora",
    )
    dim_from_weights: bool = param(
        False,
        "Rank from the file",
        "Takes rank and alpha from the file that the training begins with.",
        group="Start",
        when="network_weights",
    )
