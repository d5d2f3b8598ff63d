"""Every option of a training run. Labels and helps are English here; locale/zh_CN holds their translation."""

from __future__ import annotations

from typing import Any

import attrs

from lora_trainer.config import optimizers, samplers
from lora_trainer.config.param import param, part, section

Size = int | tuple[int, int]
Steps = int | str


@attrs.frozen
class SubsetConfig:
    """One table of [[data.subsets]]: the names and values that it gives; what it does not give is [data]'s (config.subsets)."""

    given: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """The value that the table gives, else `default`."""
        return dict(self.given).get(name, default)


@section
class ModelConfig:
    pretrained_model_name_or_path: str = param(
        "",
        "Base model",
        "The checkpoint to train on. Empty inside a WebUI: the one that is loaded. A LoRA works best on the model it was trained on.",
        basic=True,
        kind="checkpoint",
    )
    vae: str = param(
        "", "VAE", "Another VAE for reading and drawing pictures. Empty: the checkpoint's own, or the WebUI's choice.", kind="vae"
    )
    clip_skip: int = param(
        1,
        "Clip skip",
        "Which layer of the text encoder is read: 1 the last, 2 the one before. "
        "Use 2 only for models that were trained so (most anime models).",
        low=1,
        high=2,
    )
    max_token_length: int = param(
        75,
        "Caption length",
        "Tokens of a caption that are read: 75, 150 or 225. The WebUI cuts long prompts at other places, so short captions do best.",
        low=75,
        high=225,
    )
    v2: bool | None = param(
        None,
        "Stable Diffusion 2",
        "Only for settings of sd-scripts: the family is told from the file, and a wrong word is refused.",
        kind="hidden",
    )
    v_parameterization: bool | None = param(
        None,
        "Predicts v",
        "Only where neither the file nor its name tells what the model predicts, and it has been trained to predict v. "
        "What contradicts the file is refused.",
        kind="hidden",
    )
    zero_terminal_snr: bool | None = param(
        None,
        "Zero terminal SNR",
        "Only where the file does not tell that the model was trained down to pure noise. Needs a model that predicts v.",
        kind="hidden",
    )


@section
class DataConfig:
    train_data_dir: str = param(
        "", "Folder", "A folder of pictures, a folder of `N_name class` folders, or one such folder.", basic=True, kind="folder"
    )
    reg_data_dir: str = param(
        "",
        "Regularisation folder",
        "Pictures of what the subject is in general (`1_girl`), so that the model does not forget it; shown as often as the others.",
        kind="folder",
    )
    in_json: str = param(
        "",
        "Metadata file",
        "A JSON file with captions and tags of the pictures, as sd-scripts' tools write it. Its names are looked for in the folder.",
        kind="file",
    )
    dataset_config: str = param(
        "",
        "Dataset file",
        "sd-scripts' dataset TOML: several folders, each with its own options. The folders above are not used then.",
        kind="file",
    )
    trigger_word: str = param(
        "",
        "Trigger word",
        "Stands in front of every caption that lacks it; you write it in a prompt to call the subject. Rare and short is best.",
        basic=True,
        kind="trigger",
        group="Subject",
    )
    class_tokens: str = param(
        "",
        "Class word",
        "What the subject is in general (girl, dog, building). Used with the trigger word where a picture has no caption.",
        basic=True,
        group="Subject",
    )
    num_repeats: int = param(
        1,
        "Repeats",
        "How often each picture is seen in one epoch. A folder called `N_name` says it for itself.",
        low=1,
        high=10000,
        basic=True,
        group="Subject",
    )
    caption_extension: str = param(
        "", "Caption files", "Ending of the caption files. Empty: .txt and .caption are both found.", group="Subject"
    )
    leave_out: tuple[str, ...] = param(
        (), "Left out", "Pictures of the folder that are not trained on (paths inside the folder).", kind="hidden"
    )
    resolution: Size = param(
        512,
        "Training size",
        "Width and height in pixels that pictures are brought to; with buckets the area. One number is a square.",
        low=64,
        high=4096,
        basic=True,
        kind="size",
        group="Sizes",
    )
    batch_size: int = param(
        1,
        "Pictures per step",
        "More is steadier and faster per picture, and needs more memory.",
        low=1,
        high=256,
        kohya="train_batch_size",
        basic=True,
        group="Sizes",
    )
    enable_bucket: bool = param(
        True,
        "Group by shape",
        "Keeps the shape of pictures: they are grouped into sizes of about the same area instead of cut square.",
        group="Sizes",
    )
    min_bucket_reso: int = param(
        256,
        "Smallest side of a group",
        "No group of pictures has a side shorter than this many pixels.",
        low=32,
        high=4096,
        group="Sizes",
        when="enable_bucket",
    )
    max_bucket_reso: int = param(
        1024,
        "Longest side of a group",
        "No group of pictures has a side longer than this many pixels.",
        low=64,
        high=8192,
        group="Sizes",
        when="enable_bucket",
    )
    bucket_reso_steps: int = param(
        64,
        "Step between group sizes",
        "Sides of groups are multiples of this many pixels; a multiple of 8.",
        low=8,
        high=512,
        group="Sizes",
        when="enable_bucket",
    )
    bucket_no_upscale: bool = param(
        False, "Never enlarge", "Pictures smaller than the training size keep their own size.", group="Sizes", when="enable_bucket"
    )
    resize_interpolation: str = param(
        "lanczos",
        "Resizing",
        "How pictures are brought to their size.",
        choices=("lanczos", "area", "bicubic", "cubic", "bilinear", "linear", "box", "nearest"),
        group="Sizes",
    )
    cache_latents: bool = param(
        True,
        "Keep pictures encoded",
        "Each picture is encoded once and kept: faster, and the VAE is not needed while training.",
        group="Encoded pictures",
    )
    cache_latents_to_disk: bool = param(
        True,
        "Keep them for later runs",
        "Encoded pictures are kept on disk, named after what they hold: a later run begins at once, and a changed picture, VAE or size is "
        "encoded anew. Off: in memory only.",
        group="Encoded pictures",
        when="cache_latents",
    )
    vae_batch_size: int = param(
        1,
        "Pictures encoded together",
        "More is faster on a GPU and needs more memory. With 1 a kept picture equals one that is encoded anew in every bit.",
        low=1,
        high=64,
        group="Encoded pictures",
        when="cache_latents",
    )
    npz_caches: bool = param(
        False,
        "Use sd-scripts' caches",
        "Reads the .npz files that sd-scripts left beside pictures, where they are newer than the picture and fit in size. They do not say "
        "which VAE made them: one is compared with this one.",
        group="Encoded pictures",
        when="cache_latents",
    )
    shuffle_caption: bool = param(
        False,
        "Shuffle tags",
        "Mixes the comma-separated parts of a caption anew each time, behind those that are kept in front.",
        group="Captions",
    )
    keep_tokens: int = param(
        0,
        "Parts kept in front",
        "How many comma-separated parts stay in place when tags are shuffled. The trigger word counts in by itself.",
        low=0,
        high=255,
        group="Captions",
    )
    caption_dropout_rate: float = param(
        0.0, "Drop captions", "Share of times that a picture is seen without its caption.", low=0.0, high=1.0, group="Captions"
    )
    caption_dropout_every_n_epochs: int = param(
        0,
        "Drop captions every n epochs",
        "In each n-th epoch all pictures are seen without their captions. 0: never.",
        low=0,
        high=100000,
        group="Captions",
    )
    caption_tag_dropout_rate: float = param(
        0.0,
        "Drop tags",
        "Share of times that each comma-separated part is left out, except those kept in front and the trigger word.",
        low=0.0,
        high=1.0,
        group="Captions",
    )
    caption_prefix: str = param(
        "",
        "Put in front",
        "Stands before every caption, with a space between. It is shuffled with the rest unless its parts are kept in front.",
        group="Captions",
    )
    caption_suffix: str = param("", "Put behind", "Stands behind every caption, with a space between.", group="Captions")
    caption_separator: str = param(
        ",", "Separator", "What stands between the parts of a caption that are shuffled or dropped.", group="Captions"
    )
    keep_tokens_separator: str = param(
        "",
        "Mark of kept parts",
        "For example |||: what stands before it in a caption is kept in front, what stands behind a second one is kept at the end. "
        "It counts instead of the number of parts, where parts are shuffled or dropped.",
        group="Captions",
    )
    secondary_separator: str = param(
        "",
        "Second separator",
        "For example ;;;: parts that it joins are shuffled and dropped as one, and read with the usual separator between.",
        group="Captions",
    )
    enable_wildcard: bool = param(
        False,
        "Lines and {a|b}",
        "Of several lines in a caption one is drawn, and one of the words in {red|blue}; {{ and }} are plain brackets. "
        "The first line gets what is put in front, the last what is put behind. Off: the first line is read.",
        group="Captions",
    )
    token_warmup_min: int = param(
        1,
        "Parts at first",
        "How many parts behind the kept ones are read at the first step, when captions grow.",
        low=0,
        high=1000,
        group="Captions",
        when="token_warmup_step",
    )
    token_warmup_step: float = param(
        0.0,
        "Growing captions",
        "Captions grow to their full length until this step; below 1 it is a share of all steps. 0: whole from the beginning.",
        low=0.0,
        high=10_000_000.0,
        group="Captions",
    )
    flip_aug: bool = param(
        False,
        "Mirror at random",
        "Half of the times a picture is seen mirrored. Not for subjects whose left and right differ.",
        group="Variation",
    )
    color_aug: bool = param(
        False,
        "Vary colours",
        "A third of the times hue or brightness is changed a little. Pictures then cannot be kept encoded.",
        group="Variation",
    )
    random_crop: bool = param(
        False,
        "Cut at random",
        "What does not fit the group's shape is cut at a random place instead of the middle. Pictures then cannot be kept encoded.",
        group="Variation",
    )
    face_crop_aug_range: str = param(
        "",
        "Face crop range",
        'For example "2.0,4.0": cuts around the face, between 2 and 4 times its size. The file name gives its middle and size, '
        "NAME_x_y_width_height. Pictures then cannot be kept encoded.",
        group="Variation",
    )
    alpha_mask: bool = param(
        False,
        "Transparency is a mask",
        "What is transparent in a picture is not learned; a picture without transparency counts whole.",
        group="Masks",
    )
    mask_dir: str = param(
        "",
        "Folder of masks",
        "Pictures with the same names: white is learned, black is not, grey partly.",
        kohya="conditioning_data_dir",
        kind="folder",
        group="Masks",
    )
    masks_beside: bool = param(
        False,
        "Masks beside pictures",
        "A file NAME-masklabel.png beside a picture is its mask: white is learned, black is not.",
        group="Masks",
    )
    mask_threshold: float = param(
        0.0,
        "Mask threshold",
        "Above 0: a mask is all or nothing, and what is brighter than this share counts whole.",
        low=0.0,
        high=1.0,
        group="Masks",
    )
    mask_min_value: float = param(
        0.0,
        "Weight outside masks",
        "What lies outside masks counts this much; a little keeps the model from drawing nonsense there.",
        low=0.0,
        high=1.0,
        group="Masks",
    )
    crops: tuple[str, ...] = param(
        (),
        "Chosen parts",
        "The part of a picture that is trained on: key=left,top,right,bottom as shares from 0 to 1. The file is not changed.",
        kind="hidden",
    )
    subsets: tuple[SubsetConfig, ...] = param(
        (), "Folders with their own options", "Tables [[data.subsets]]: image_dir, and whatever differs there from [data].", kind="hidden"
    )


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


@section
class OptimizerConfig:
    type: str = param(
        "AdamW",
        "Optimizer",
        "How the weights follow the gradient. Another class of an installed package can be written with its whole name, "
        "for example torch.optim.RMSprop.",
        choices=optimizers.OPTIMIZER_CHOICES,
        also=optimizers.OPTIMIZER_ALSO,
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
        "Multiplies the rates by the pictures of a step, or by their square root: a rate that suits one picture per step then suits more.",
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
        "The upper matrix of each pair learns this many times faster than the lower one (Hayou et al. 2024: 16). 0: alike.",
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
        "How the learning rate goes on after the warm-up. A class of an installed package can be written with its whole name, "
        "for example torch.optim.lr_scheduler.OneCycleLR.",
        choices=optimizers.SCHEDULE_CHOICES,
        also=optimizers.SCHEDULE_ALSO,
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
    )
    num_cycles: float = param(
        1.0,
        "Cycles",
        "How often the rate starts anew at its height (with restarts), or falls and rises (down and up).",
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
        'In how many last steps the rate falls: a number, or a share such as "20%".',
        low=0,
        kohya="lr_decay_steps",
        kind="steps",
        when={"type": ("warmup_stable_decay",)},
    )
    timescale: int = param(
        0,
        "Time scale",
        "After this many steps the rate begins to fall with the root of the steps. 0: after the warm-up, or 10000 without one.",
        low=0,
        high=10_000_000,
        kohya="lr_scheduler_timescale",
        when={"type": ("inverse_sqrt",)},
    )
    args: str = param(
        "",
        "Schedule arguments",
        "For pieces: step_rules=1:100,0.1:200,0.01 (the rate's share, and until which step). For a class its own: T_max=100",
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


@section
class LossConfig:
    prior_loss_weight: float = param(
        1.0,
        "Weight of regularisation",
        "How much regularisation pictures count beside the others. 0: they are not used.",
        low=0.0,
        high=100.0,
    )
    loss_type: str = param(
        "l2",
        "Loss function",
        "How far off an answer is. Huber and smooth L1 are less moved by pictures that do not fit the others.",
        choices={"l2": "L2 (squared, usual)", "l1": "L1 (absolute)", "huber": "Huber", "smooth_l1": "Smooth L1"},
        group="Loss function",
    )
    huber_schedule: str = param(
        "snr",
        "Huber threshold",
        "From which error on Huber and smooth L1 count like L1: by the noise of the step, falling with it, or always the same.",
        choices={"snr": "By signal to noise", "exponential": "Falling with the noise", "constant": "The same at all steps"},
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
        "The threshold is multiplied by this, except by signal to noise.",
        above=0.0,
        high=100.0,
        group="Loss function",
        when={"loss_type": ("huber", "smooth_l1"), "huber_schedule": ("exponential", "constant")},
    )
    min_snr_gamma: float = param(
        0.0,
        "Min-SNR gamma",
        "Weighs nearly clean pictures less (Hang et al. 2023). 5 is usual; 0 is off.",
        low=0.0,
        high=100.0,
        group="Weight of the steps",
    )
    debiased_estimation_loss: bool = param(
        False,
        "Debiased estimation",
        "Weighs very noisy pictures more and nearly clean ones less (Yu et al. 2023). Instead of min-SNR, not with it.",
        group="Weight of the steps",
    )
    scale_v_pred_loss_like_noise_pred: bool = param(
        False,
        "Weigh v like epsilon",
        "For models that predict v: their loss is weighed as if they predicted the noise.",
        group="Weight of the steps",
    )
    v_pred_like_loss: float = param(
        0.0,
        "Add loss like v",
        "For models that predict the noise: adds this much of a loss that is weighed as if they predicted v. 0 is off.",
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
        "Each showing draws its offset between 0 and the noise offset.",
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
        "The model sees a little more noise than it is asked for (Ning et al. 2023). 0.1 is usual; 0 is off.",
        low=0.0,
        high=1.0,
        group="Noise",
    )
    ip_noise_gamma_random_strength: bool = param(
        False,
        "Input perturbation of any strength",
        "Each showing draws its strength between 0 and the input perturbation.",
        group="Noise",
        when="ip_noise_gamma",
    )
    min_timestep: int = param(
        0,
        "First step of noise",
        "Pictures are never shown with less noise than this step of 1000 has.",
        low=0,
        high=999,
        group="Steps of noise",
    )
    max_timestep: int = param(
        1000,
        "Step of noise to stop before",
        "Pictures are never shown with as much noise as this step of 1000 has. 500: details are learned, and hardly composition.",
        low=1,
        high=1000,
        group="Steps of noise",
    )
    timestep_sampling: str = param(
        "uniform",
        "How steps are drawn",
        "Which amounts of noise are seen more often.",
        choices={"uniform": "All alike", "logit_normal": "Around one amount", "mode": "More of the middle, or of both ends"},
        group="Steps of noise",
    )
    logit_mean: float = param(
        0.0,
        "Middle of the steps",
        "0 is half of the noise; higher means more noise, lower less (Esser et al. 2024).",
        low=-10.0,
        high=10.0,
        group="Steps of noise",
        when={"timestep_sampling": ("logit_normal",)},
    )
    logit_std: float = param(
        1.0,
        "Spread of the steps",
        "How far steps lie around the middle.",
        above=0.0,
        high=10.0,
        group="Steps of noise",
        when={"timestep_sampling": ("logit_normal",)},
    )
    mode_scale: float = param(
        1.29,
        "Pull to the middle",
        "Above 0 the middle is seen more often, below 0 both ends; 0 is all alike (Esser et al. 2024).",
        low=-1.0,
        high=1.75,
        group="Steps of noise",
        when={"timestep_sampling": ("mode",)},
    )


@section
class MemoryConfig:
    mixed_precision: str = param(
        "auto",
        "Precision",
        "Number format for the calculation. auto: the one that the model is held in.",
        choices={"auto": "automatic", "no": "no (fp32)", "fp16": "", "bf16": ""},
        kohya="mixed_precision",
    )
    gradient_checkpointing: bool = param(
        False, "Save memory by recomputing", "Gradient checkpointing: much less memory, about a fifth slower, the same result."
    )
    checkpointing_budget_gb: float = param(
        0.0,
        "Memory for a step's activations",
        "In GB. Only as much is recomputed as this asks for, what saves most for least time first. 0: as much as can be.",
        low=0.0,
        high=1024.0,
        when="gradient_checkpointing",
    )
    attention: str = param(
        "auto",
        "Attention",
        "How attention is calculated. auto tries each way forward and backward at the start and takes the first that works.",
        choices={
            "auto": "automatic",
            "xformers": "xformers",
            "sdpa": "PyTorch's own",
            "sliced": "in slices (least memory, slow)",
        },
    )
    pictures_at_once: int = param(
        0,
        "Pictures calculated together",
        "The pictures of a step go through the model in pieces of at most so many: less memory, a little slower, the same result but for "
        "rounding. 0: all together.",
        low=0,
        high=256,
    )
    vae_precision: str = param(
        "auto",
        "VAE precision",
        "Number format in which pictures are encoded and drawn. auto: as the VAE is held, and float32 where that gives no finite numbers.",
        choices={"auto": "automatic", "fp32": "float32 (exact)", "bf16": "bfloat16 (half the memory)"},
    )
    retry: bool = param(
        True,
        "Go on when memory runs out",
        "The step is done again with less memory (other parts off the GPU, recomputing, smaller pieces); each change is told. "
        "Off: the run ends.",
    )
    cuda_graphs: bool = param(
        False,
        "Replay recorded steps",
        "CUDA graphs: the work of a step is recorded once for each size of pictures and replayed, which frees small models on fast GPUs "
        "from waiting for Python. Where it cannot be done the run goes on without, and says why.",
        group="Speed",
    )
    compile: bool = param(
        False,
        "Compile blocks",
        "torch.compile for the blocks of the U-Net: some minutes at the start for a somewhat faster step, so for long runs only. "
        "Where it fails the run goes on without, and says why.",
        kohya="torch_compile",
        group="Speed",
    )
    own_process: bool = param(
        False,
        "A process of its own",
        "The run does not share the WebUI's model: it reads the checkpoint's file, and pictures can be drawn meanwhile where the memory "
        "suffices for both.",
        group="Where it is calculated",
    )
    device: str = param(
        "",
        "Device",
        "For example cuda:1 for the second GPU, or cpu. Empty: the WebUI's, or the first GPU. Another one than the WebUI's needs a process "
        "of its own, and gets it.",
        group="Where it is calculated",
    )


@section
class SampleConfig:
    prompts: tuple[str, ...] = param(
        (),
        "Preview prompt",
        "Pictures drawn while training. Options behind the prompt as in sd-scripts: --n negative --w --h --d seed --l CFG --s steps "
        "--ss sampler.",
        kohya="sample_prompts",
        basic=True,
        kind="prompts",
    )
    prompt_file: str = param(
        "",
        "Prompt file",
        "More preview prompts, in a .txt, .toml or .json file as sd-scripts reads it. It is read anew at each preview, so it can be "
        "edited while the run goes on.",
        kind="file",
    )
    every_n_epochs: int | None = param(
        None,
        "Preview every n epochs",
        "0: none by epochs. Empty: each epoch, unless steps are given. Where both are given, epochs win.",
        low=0,
        high=100000,
        kohya="sample_every_n_epochs",
    )
    every_n_steps: int = param(0, "Preview every n steps", "0: none by steps.", low=0, high=10_000_000, kohya="sample_every_n_steps")
    at_first: bool = param(
        True, "Preview before training", "Draws each prompt once before the first step, to compare with.", kohya="sample_at_first"
    )
    sampler: str = param(
        "ddim",
        "Sampler",
        "How previews are drawn, where the prompt does not say it. In a WebUI its own sampler of that name draws.",
        choices=samplers.CHOICES,
        also=samplers.ALSO,
        kohya="sample_sampler",
    )


@section
class ValidateConfig:
    data_dir: str = param(
        "", "Validation folder", "Pictures that are never trained on; their loss tells which epoch is best.", kind="folder"
    )
    fraction: float = param(
        0.0,
        "Held back",
        "Share of the pictures that is held back for validation when there is no validation folder.",
        low=0.0,
        high=0.5,
        kohya="validation_split",
    )
    every_n_epochs: int | None = param(
        None,
        "Validate every n epochs",
        "0: not by epochs. Empty: each epoch, unless steps are given.",
        low=0,
        high=100000,
        kohya="validate_every_n_epochs",
    )
    every_n_steps: int = param(0, "Validate every n steps", "0: not by steps.", low=0, high=10_000_000, kohya="validate_every_n_steps")
    seed: int | None = param(
        None,
        "Seed of what is held back",
        "Another seed holds other pictures back. Empty: the run's seed.",
        low=0,
        high=2**32 - 1,
        kohya="validation_seed",
        when="fraction",
    )
    max_pictures: int = param(
        0,
        "Pictures at most",
        "At most this many of the validation pictures are looked at, always the same ones. 0: all.",
        low=0,
        high=1_000_000,
    )
    early_stop_patience: int = param(
        0,
        "Stop when it gets no better",
        "Ends the run after this many validations in a row without a lower loss than before. 0: never.",
        low=0,
        high=10_000,
        group="Early end",
    )
    early_stop_min_delta: float = param(
        0.0,
        "What counts as better",
        "The validation loss must fall by more than this to count as lower.",
        low=0.0,
        high=1.0,
        group="Early end",
        when="early_stop_patience",
    )


@section
class SaveConfig:
    output_dir: str = param(
        "", "Output folder", "Where the LoRA files go. Empty: the WebUI's LoRA folder, or `output` here.", kind="folder"
    )
    output_name: str = param(
        "",
        "Result name",
        "Name of the LoRA, as written in <lora:NAME:1>. Empty: made from the trigger word or the folder.",
        basic=True,
        kind="name",
    )
    every_n_epochs: int | None = param(
        None,
        "Save every n epochs",
        "0: none by epochs. Empty: each epoch, unless steps are given. "
        "Each saved epoch is numbered; the last is also saved without a number.",
        low=0,
        high=100000,
        kohya="save_every_n_epochs",
    )
    every_n_steps: int = param(0, "Save every n steps", "0: none by steps.", low=0, high=10_000_000, kohya="save_every_n_steps")
    precision: str = param(
        "fp16",
        "File precision",
        "Number format of the saved file.",
        choices={"float": "float32", "fp16": "", "bf16": ""},
        kohya="save_precision",
    )
    runs_dir: str = param(
        "", "Runs folder", "Where each run keeps its log and previews. Empty: `runs` beside the output folder.", kind="folder"
    )
    overwrite: bool = param(False, "Overwrite", "Files of an earlier run with the same name may be replaced.")
    ema_decay: float = param(
        0.0,
        "Running average",
        "Files, previews and validation use an average of the weights over the last steps: 0.999 is about the last thousand. 0: none.",
        low=0.0,
        high=0.99999,
        group="Average",
    )
    state: bool = param(
        True,
        "Keep what a resume needs",
        "With the files, when the run is paused or stopped, and at its end: network, optimizer and position in the run's folder.",
        kohya="save_state",
        group="Resuming",
    )
    state_every_n_steps: int = param(0, "State every n steps", "0: not by steps.", low=0, high=10_000_000, group="Resuming", when="state")
    state_every_minutes: float = param(
        10.0,
        "State every n minutes",
        "So much is lost at most when the computer goes off. 0: not by time.",
        low=0.0,
        high=10000.0,
        group="Resuming",
        when="state",
    )
    last_n_states: int = param(2, "States that are kept", "Older ones are deleted.", low=1, high=1000, group="Resuming", when="state")


@section
class LogConfig:
    csv: bool = param(True, "Table of steps", "steps.csv in the run's folder: a line a step, for a spreadsheet.")
    logging_dir: str = param(
        "",
        "TensorBoard folder",
        "Each run writes a folder of its own there, named after the time, for `tensorboard --logdir FOLDER`. Nothing needs to be "
        "installed for writing it. Empty: none, or `logs` in the run's folder where TensorBoard is chosen.",
        kind="folder",
    )
    log_with: str = param(
        "auto",
        "Also log to",
        "Where losses, rates and previews go besides the run's own log. auto: to TensorBoard, where its folder is given.",
        choices={"auto": "automatic", "none": "nowhere", "tensorboard": "TensorBoard"},
        also={"all": "tensorboard"},
    )
    log_prefix: str = param("", "TensorBoard prefix", "Stands in front of the time in the name of a run's folder.", kind="name")
    log_tracker_name: str = param(
        "", "TensorBoard name", "Name of the folder inside a run's folder. Empty: the result's name.", kind="name"
    )


@section
class TrainConfig:
    seed: int = param(1, "Seed", "The same seed, settings and pictures give the same result.", low=0, high=2**32 - 1)
    method: str = param("lora", "Train", "What comes out: a LoRA file.", choices={"lora": "LoRA"}, basic=True)
    model: ModelConfig = part(ModelConfig)
    data: DataConfig = part(DataConfig)
    network: NetworkConfig = part(NetworkConfig)
    optimizer: OptimizerConfig = part(OptimizerConfig)
    schedule: ScheduleConfig = part(ScheduleConfig)
    steps: StepsConfig = part(StepsConfig)
    loss: LossConfig = part(LossConfig)
    memory: MemoryConfig = part(MemoryConfig)
    sample: SampleConfig = part(SampleConfig)
    validate: ValidateConfig = part(ValidateConfig)
    save: SaveConfig = part(SaveConfig)
    log: LogConfig = part(LogConfig)
