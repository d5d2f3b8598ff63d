"""The loss: loss function, weights, noise, timesteps."""

from __future__ import annotations

from lora_trainer.config.param import param, section

Steps = int | str
SNR_WEIGHTS = ("min_snr_gamma", "debiased_estimation_loss", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss")
"""Options that weigh a step by its signal-to-noise ratio: made for models that predict the noise or v."""


@section
class LossConfig:
    prior_loss_weight: float = param(
        1.0,
        "Weight of regularisation",
        "How much regularisation pictures count compared with the others. 0: they are not used.",
        low=0.0,
        high=100.0,
    )
    loss_type: str = param(
        "l2",
        "Loss function",
        "How the error of a prediction is measured. Huber and smooth L1 are less sensitive to pictures that do not fit the others.",
        choices={"l2": "L2 (squared, usual)", "l1": "L1 (absolute)", "huber": "Huber", "smooth_l1": "Smooth L1"},
        group="Loss function",
    )
    huber_schedule: str = param(
        "snr",
        "Huber threshold",
        "The error above which Huber and smooth L1 behave like L1: by the timestep's signal-to-noise ratio, falling with the "
        "noise, or always the same.",
        choices={"snr": "By signal-to-noise ratio", "exponential": "Falling with the noise", "constant": "The same at all steps"},
        group="Loss function",
        when={"loss_type": ("huber", "smooth_l1")},
    )
    huber_c: float = param(
        0.1,
        "Huber c",
        "The smallest threshold. Lower is nearer to L1.",
        above=0.0,
        high=10.0,
        group="Loss function",
        when={"loss_type": ("huber", "smooth_l1")},
    )
    huber_scale: float = param(
        1.0,
        "Huber scale",
        "The threshold is multiplied by this, except by signal-to-noise ratio.",
        above=0.0,
        high=100.0,
        group="Loss function",
        when={"loss_type": ("huber", "smooth_l1"), "huber_schedule": ("exponential", "constant")},
    )
    min_snr_gamma: float = param(
        0.0,
        "Min-SNR gamma",
        "Gives nearly clean pictures less weight (Hang et al. 2023). 5 is usual; 0 is off.",
        low=0.0,
        high=100.0,
        group="Weight of the steps",
    )
    debiased_estimation_loss: bool = param(
        False,
        "Debiased estimation",
        "Gives very noisy pictures more weight and nearly clean ones less (Yu et al. 2023). Instead of min-SNR, not with it.",
        group="Weight of the steps",
    )
    scale_v_pred_loss_like_noise_pred: bool = param(
        False,
        "Weight v like epsilon",
        "For models that predict v: their loss is weighted as if they predicted the noise.",
        group="Weight of the steps",
    )
    v_pred_like_loss: float = param(
        0.0,
        "Add loss like v",
        "For models that predict the noise: adds this much of a loss that is weighted as if they predicted v. 0 is off.",
        low=0.0,
        high=100.0,
        group="Weight of the steps",
    )
    noise_offset: float = param(
        0.0,
        "Noise offset",
        "Shifts the noise of a whole picture, for very dark or bright results. 0.05 to 0.1 is usual; 0 is off.",
        low=0.0,
        high=1.0,
        group="Noise",
    )
    noise_offset_random_strength: bool = param(
        False,
        "Noise offset of any strength",
        "Each time a picture is seen its offset is drawn between 0 and the noise offset.",
        group="Noise",
        when="noise_offset",
    )
    adaptive_noise_scale: float = param(
        0.0,
        "Offset by brightness",
        "The mean of each channel of the encoded picture, without its sign, is multiplied by this and added to the noise offset. 0 is off.",
        low=-10.0,
        high=10.0,
        group="Noise",
        when="noise_offset",
    )
    multires_noise_iterations: int = param(
        0,
        "Coarse noise",
        "How many coarser layers of noise are added (multi-resolution noise). 6 to 10 is usual; 0 is off.",
        low=0,
        high=64,
        group="Noise",
    )
    multires_noise_discount: float = param(
        0.3,
        "Weight of coarse noise",
        "Each coarser layer counts this many times the one before it.",
        low=0.0,
        high=1.0,
        group="Noise",
        when="multires_noise_iterations",
    )
    ip_noise_gamma: float = param(
        0.0,
        "Input perturbation",
        "The model sees a little more noise than it has to predict (Ning et al. 2023). 0.1 is usual; 0 is off.",
        low=0.0,
        high=1.0,
        group="Noise",
    )
    ip_noise_gamma_random_strength: bool = param(
        False,
        "Input perturbation of any strength",
        "Each time a picture is seen its strength is drawn between 0 and the input perturbation.",
        group="Noise",
        when="ip_noise_gamma",
    )
    min_timestep: int = param(
        0,
        "First timestep",
        "Pictures are never seen with less noise than this timestep of 1000 has.",
        low=0,
        high=999,
        group="Timesteps",
    )
    max_timestep: int = param(
        1000,
        "Timestep to stop before",
        "Pictures are never seen with as much noise as this timestep of 1000 has. 500: details are learned, and hardly any composition.",
        low=1,
        high=1000,
        group="Timesteps",
    )
    timestep_sampling: str = param(
        "uniform",
        "Timestep sampling",
        "Which amounts of noise are seen more often.",
        choices={"uniform": "All alike", "logit_normal": "Around one amount", "mode": "More of the middle, or of both ends"},
        group="Timesteps",
    )
    logit_mean: float = param(
        0.0,
        "Middle of the timesteps",
        "0 is half of the noise; higher means more noise, lower less (Esser et al. 2024).",
        low=-10.0,
        high=10.0,
        group="Timesteps",
        when={"timestep_sampling": ("logit_normal",)},
    )
    logit_std: float = param(
        1.0,
        "Spread of the timesteps",
        "How far timesteps spread around the middle.",
        above=0.0,
        high=10.0,
        group="Timesteps",
        when={"timestep_sampling": ("logit_normal",)},
    )
    mode_scale: float = param(
        1.29,
        "Pull to the middle",
        "Above 0 the middle is seen more often, below 0 both ends; 0 is all alike (Esser et al. 2024).",
        low=-1.0,
        high=1.75,
        group="Timesteps",
        when={"timestep_sampling": ("mode",)},
    )
    discrete_flow_shift: float = param(
        1.0,
        "Shift of the timesteps",
        "Only for models of rectified flow: above 1 more noise is seen, below 1 less. 1: as drawn; 2 to 3.5 is usual for SDXL.",
        above=0.0,
        high=100.0,
        group="Timesteps",
        when={"model.prediction": ("auto", "flow")},
    )
