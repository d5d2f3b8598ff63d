"""Optimizer, learning-rate schedule, length of the run."""

from __future__ import annotations

from lora_trainer.config.choices import optimizers
from lora_trainer.config.param import param, section

Steps = int | str
FALLING_SCHEDULES = tuple(name for name in optimizers.SCHEDULE_CHOICES if name not in ("constant", "piecewise_constant", "adafactor"))
"""Schedules that read the rate at the end."""


@section
class OptimizerConfig:
    type: str = param(
        "AdamW",
        "Optimizer",
        "How the weights follow the gradient. Another class of an installed package can be written with its full name, for "
        "example torch.optim.RMSprop.",
        choices=optimizers.OPTIMIZER_CHOICES,
        also=optimizers.OPTIMIZER_ALIASES,
        kohya="optimizer_type",
        kind="class",
        basic=True,
    )
    learning_rate: float = param(1e-4, "Learning rate", "For every part that has no rate of its own.", low=0.0, high=10.0)
    unet_lr: float | None = param(
        None,
        "U-Net learning rate",
        "Rate of the part that draws. 0: it is not trained. Empty: the learning rate.",
        low=0.0,
        high=10.0,
        basic=True,
    )
    text_encoder_lr: float | tuple[float, ...] | None = param(
        None,
        "Text encoder learning rate",
        "Rate of the part that reads. 0: it is not trained. Empty: the learning rate. Models with two text encoders take a list of two.",
        low=0.0,
        high=10.0,
        basic=True,
    )
    scale_lr: str = param(
        "none",
        "Scale rates by the batch",
        "Multiplies the rates by the number of pictures in a step, or by its square root: a rate that suits one picture per step "
        "then suits more.",
        choices={"none": "As written", "sqrt": "Square root", "linear": "In proportion"},
    )
    args: str = param(
        "",
        "Optimizer arguments",
        "As sd-scripts writes them: weight_decay=0.01 betas=.9,.999",
        kohya="optimizer_args",
        group="Optimizer",
    )
    max_grad_norm: float = param(
        1.0, "Gradient limit", "Longer gradients are shortened to this length. 0: never.", low=0.0, high=1000.0, group="Optimizer"
    )
    loraplus_lr_ratio: float = param(
        0.0,
        "LoRA+ ratio",
        "The upper matrix of each pair learns this many times faster than the lower one (Hayou et al. 2024: 16). 0: both the same.",
        low=0.0,
        high=1000.0,
        group="LoRA+",
    )
    loraplus_unet_lr_ratio: float | None = param(
        None, "LoRA+ ratio of the U-Net", "For the U-Net only. Empty: the ratio for all.", low=0.0, high=1000.0, group="LoRA+"
    )
    loraplus_text_encoder_lr_ratio: float | None = param(
        None, "LoRA+ ratio of the text encoder", "For the text encoder only. Empty: the ratio for all.", low=0.0, high=1000.0, group="LoRA+"
    )


@section
class ScheduleConfig:
    type: str = param(
        "cosine",
        "Schedule",
        "How the learning rate changes after the warm-up. A class of an installed package can be written with its full name, for "
        "example torch.optim.lr_scheduler.OneCycleLR.",
        choices=optimizers.SCHEDULE_CHOICES,
        also=optimizers.SCHEDULE_ALIASES,
        kohya="lr_scheduler",
        kind="class",
    )
    warmup_steps: Steps = param(
        0,
        "Warm-up",
        'Steps in which the rate rises from 0: a number, or a share such as "5%".',
        low=0,
        kohya="lr_warmup_steps",
        kind="steps",
    )
    min_lr_ratio: float = param(
        0.0,
        "Rate at the end",
        "Share of the learning rate below which the schedule does not fall.",
        low=0.0,
        high=1.0,
        kohya="lr_scheduler_min_lr_ratio",
        when={"type": FALLING_SCHEDULES},
    )
    num_cycles: float = param(
        1.0,
        "Cycles",
        "How often the rate starts again from its peak (with restarts), or falls and rises (down and up).",
        above=0.0,
        high=1000.0,
        kohya="lr_scheduler_num_cycles",
        when={"type": ("cosine_with_restarts", "cosine_annealing")},
    )
    power: float = param(
        1.0,
        "Power",
        "1 falls in a straight line; higher falls sooner.",
        above=0.0,
        high=100.0,
        kohya="lr_scheduler_power",
        when={"type": ("polynomial",)},
    )
    decay_steps: Steps = param(
        "20%",
        "Decay",
        'Over how many of the last steps the rate falls: a number, or a share such as "20%".',
        low=0,
        kohya="lr_decay_steps",
        kind="steps",
        when={"type": ("warmup_stable_decay",)},
    )
    timescale: int = param(
        0,
        "Time scale",
        "After this many steps the rate begins to fall with the square root of the steps. 0: after the warm-up, or 10000 without one.",
        low=0,
        high=10_000_000,
        kohya="lr_scheduler_timescale",
        when={"type": ("inverse_sqrt",)},
    )
    args: str = param(
        "",
        "Schedule arguments",
        "For piecewise constant: step_rules=1:100,0.1:200,0.01 (share of the rate, and up to which step). For a class, its own: T_max=100",
        kohya="lr_scheduler_args",
    )


@section
class StepsConfig:
    max_train_epochs: int = param(
        0,
        "Epochs",
        "How often all pictures (with their repeats) are gone through. Wins over the number of steps. With neither: 10.",
        low=0,
        high=100000,
        basic=True,
    )
    max_train_steps: int = param(0, "Steps", "Ends after exactly this many steps where no epochs are given.", low=0, high=10_000_000)
    gradient_accumulation_steps: int = param(
        1,
        "Batches per step",
        "Several batches make one step: like more pictures per step, without the memory. Never crosses the end of an epoch.",
        low=1,
        high=1024,
    )
    pause_after_n_epochs: int = param(
        0, "Rest after n epochs", "The graphics card gets a rest after every so many epochs. 0: never.", low=0, high=100000, group="Rest"
    )
    pause_seconds: float = param(
        60.0, "Seconds of rest", "How long each rest is.", low=0.0, high=86400.0, group="Rest", when="pause_after_n_epochs"
    )
    keep_awake: bool = param(True, "Keep the computer awake", "The computer does not go to sleep while a run goes on.", group="Rest")
