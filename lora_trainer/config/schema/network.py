"""The network (adapter) that is trained."""

from __future__ import annotations

from lora_trainer.config.choices.networks import DORA_AXES, NETWORK_KINDS, NETWORK_TYPES
from lora_trainer.config.param import param, section

Size = int | tuple[int, int]

PRESETS = {
    "auto": "As the network is usually used",
    "attn-only": "Attention only",
    "attn-mlp": "Attention and feed-forward",
    "blocks": "All blocks",
    "full": "Everything",
    "full-lin": "Everything but wide convolutions",
    "unet-transformer-only": "U-Net: attention and feed-forward",
    "unet-convblock-only": "U-Net: convolution blocks",
}
"""Sets of layers under LyCORIS' names; "blocks" are those that sd-scripts trains with `conv_dim`."""
INITIALISATIONS = {"default": "As usual", "orthogonal": "Orthogonal"}
RANKED = tuple(name for name, row in NETWORK_TYPES.items() if NETWORK_KINDS[row.kind].has_rank)
SCALED = tuple(name for name, row in NETWORK_TYPES.items() if not NETWORK_KINDS[row.kind].reads_weight and not row.fixed.get("dora"))
"""Types whose delta grows with the norm of their parameters, so that a limit of the norm applies."""


def types_reading(option: str, *, fixed: bool = False) -> tuple[str, ...]:
    """Types whose kind reads an option; with `fixed` also those that set it themselves."""
    return tuple(
        name for name, row in NETWORK_TYPES.items() if option in NETWORK_KINDS[row.kind].options and (fixed or option not in row.fixed)
    )


@section
class NetworkConfig:
    type: str = param(
        "lora",
        "Network",
        "What is trained beside the model, which itself stays as it is.",
        choices={name: row.label for name, row in NETWORK_TYPES.items()},
        kohya="network_module",
        basic=True,
    )
    dim: int = param(
        16,
        "Rank",
        "Size of the added matrices. Higher holds more detail, makes a bigger file, and overfits sooner.",
        low=1,
        high=1024,
        kohya="network_dim",
        basic=True,
        when={"type": RANKED},
    )
    alpha: float = param(
        8.0,
        "Alpha",
        "The network's strength is alpha / rank. Rates in guides belong to one such pair: half the rank is usual.",
        above=0.0,
        high=4096.0,
        kohya="network_alpha",
        basic=True,
        when={"type": RANKED},
    )
    preset: str = param(
        "auto",
        "Trained layers",
        "Which layers get an adapter. With auto those of attention and the feed-forward layers after it, and the wide "
        "convolutions where the kind of network, or a rank for them, says so.",
        choices=PRESETS,
        kohya="LyCORIS_preset",
        group="Layers",
    )
    include: tuple[str, ...] = param(
        (),
        "Only these layers",
        "One pattern a line: of the layers above only those whose name holds one of them. A pattern is a regular expression: attn2, "
        "up_blocks_[12], to_[qk]$.",
        group="Layers",
    )
    exclude: tuple[str, ...] = param(
        (),
        "Not these layers",
        "One pattern a line: layers whose name holds one of them are left as they are.",
        kohya="exclude_patterns",
        group="Layers",
    )
    train_norm: bool = param(
        False, "Norms", "Trains the norms between the layers as well: small, but not every host reads them.", group="Layers"
    )
    conv_dim: int | None = param(
        None,
        "Rank of convolutions",
        "For convolutions larger than 1x1. Empty: the rank above where they are trained. 0: they are not trained.",
        low=0,
        high=1024,
        group="Ranks",
        when={"type": RANKED},
    )
    conv_alpha: float | None = param(
        None,
        "Alpha of convolutions",
        "Empty: as strong for their rank as the other layers are.",
        above=0.0,
        high=4096.0,
        group="Ranks",
        when={"type": RANKED},
    )
    text_encoder_dim: int | None = param(
        None, "Rank in the text encoder", "Empty: the rank above.", low=1, high=1024, group="Ranks", when={"type": RANKED}
    )
    text_encoder_alpha: float | None = param(
        None,
        "Alpha in the text encoder",
        "Empty: as strong for its rank as in the U-Net.",
        above=0.0,
        high=4096.0,
        group="Ranks",
        when={"type": RANKED},
    )
    rs_lora: bool = param(
        False,
        "Strength by the square root of the rank",
        "The strength is alpha divided by the square root of the rank, so that high ranks are not weaker (rsLoRA).",
        group="Kind",
        when={"type": types_reading("rs_lora")},
    )
    dora_wd: bool = param(
        False,
        "Direction and magnitude apart",
        "Learns the magnitude of the weights apart from their direction (DoRA): more faithful at low ranks, slower.",
        group="Kind",
        when={"type": types_reading("dora")},
    )
    dora_axis: str = param(
        "in",
        "Axis of the magnitude",
        "Along the inputs all hosts calculate DoRA correctly; along the outputs (LyCORIS' own) only some do.",
        choices={axis: {"in": "Inputs", "out": "Outputs"}[axis] for axis in DORA_AXES},
        group="Kind",
        when={"type": types_reading("dora", fixed=True)},
    )
    use_tucker: bool = param(
        False,
        "Tucker decomposition",
        "Wide convolutions are decomposed along their kernel too: fewer parameters.",
        group="Kind",
        when={"type": types_reading("tucker")},
    )
    factor: int = param(
        -1,
        "Factor",
        "Size of the smaller matrix of the Kronecker product. -1: as close to the square root as possible, the smallest file.",
        low=-1,
        high=1024,
        group="Kind",
        when={"type": types_reading("factor")},
    )
    decompose_both: bool = param(
        False,
        "Decompose both matrices",
        "The smaller matrix is a product of two matrices of this rank too.",
        group="Kind",
        when={"type": types_reading("decompose_both")},
    )
    full_matrix: bool = param(
        False,
        "Whole larger matrix",
        "The larger matrix is not limited by the rank: more faithful, a larger file.",
        group="Kind",
        when={"type": types_reading("full_matrix")},
    )
    unit: int = param(
        4,
        "Ranks of a slice",
        "This many ranks are trained together in a step: the file can be cut to multiples of it.",
        low=1,
        high=1024,
        group="Kind",
        when={"type": types_reading("block_size")},
    )
    constraint: float = param(
        0.0,
        "Limit of the rotation",
        "How far the blocks may turn. 0: without a limit.",
        low=0.0,
        high=1000.0,
        group="Kind",
        when={"type": types_reading("constraint")},
    )
    rescaled: bool = param(
        False,
        "Scale of the outputs too",
        "Learns a scale for each output besides the rotation.",
        group="Kind",
        when={"type": types_reading("rescaled")},
    )
    initialization: str = param(
        "default",
        "Initialisation",
        "How the lower matrices are initialised. Orthogonal rows do not repeat each other.",
        choices=INITIALISATIONS,
        group="Kind",
        when={"type": types_reading("init")},
    )
    dropout: float = param(
        0.0,
        "Dropout",
        "Share of the values between the two matrices that are dropped at random, against overfitting.",
        low=0.0,
        high=0.95,
        kohya="network_dropout",
        group="Dropout",
        when={"type": types_reading("dropout")},
    )
    rank_dropout: float = param(
        0.0,
        "Rank dropout",
        "Share of the ranks that are dropped at random at each step.",
        low=0.0,
        high=0.95,
        group="Dropout",
        when={"type": types_reading("rank_dropout")},
    )
    module_dropout: float = param(
        0.0,
        "Layer dropout",
        "Share of the layers whose adapter is dropped at random at each step.",
        low=0.0,
        high=0.95,
        group="Dropout",
        when={"type": types_reading("module_dropout")},
    )
    scale_weight_norms: float = param(
        0.0,
        "Limit of each layer's norm",
        "An adapter whose norm grows beyond this is scaled back after the step: keeps layers from overshooting. 1 is usual. 0: no limit.",
        low=0.0,
        high=1000.0,
        group="Dropout",
        when={"type": SCALED},
    )
    block_dims: str = param(
        "",
        "Ranks by block",
        "A rank for each block of the U-Net, from the first on: 25 numbers, for SDXL 23 or 20. 0: that block is not trained.",
        group="Blocks",
        when={"type": RANKED},
    )
    block_alphas: str = param(
        "", "Alphas by block", "As many numbers. Empty: as strong for its rank as alpha is.", group="Blocks", when="block_dims"
    )
    conv_block_dims: str = param(
        "", "Ranks of convolutions by block", "As many numbers, for wide convolutions.", group="Blocks", when={"type": RANKED}
    )
    conv_block_alphas: str = param("", "Alphas of convolutions by block", "As many numbers.", group="Blocks", when="conv_block_dims")
    down_lr_weight: str = param(
        "",
        "Rates on the way down",
        "What the U-Net's rate is multiplied by in each block: 12 numbers (9 of SDXL), or cosine, sine, linear, reverse_linear or zeros, "
        "with something added: cosine+0.25. 0: that block is not trained.",
        group="Blocks",
    )
    mid_lr_weight: str = param("", "Rate in the middle", "One number; three for SDXL.", group="Blocks")
    up_lr_weight: str = param("", "Rates on the way up", "As on the way down.", group="Blocks")
    block_lr_zero_threshold: float = param(
        0.0, "Rates taken as 0", "Shares of the rate up to this are taken as 0.", low=0.0, high=100.0, group="Blocks"
    )
    network_weights: str = param(
        "",
        "Start from a file",
        "A file, of any program, that the training begins with instead of an empty network. Its layers keep the strength that it says.",
        group="Start",
        kind="lora",
    )
    dim_from_weights: bool = param(
        False,
        "Rank from the file",
        "Trains the layers of the file that the training begins with, each at its own rank. Off: they must be those chosen here.",
        group="Start",
        when="network_weights",
    )
    base_weights: tuple[str, ...] = param(
        (),
        "On top of other networks",
        "Files that are added to the model for the training and stay as they are, one a line: what is learned comes on top of them.",
        group="Start",
        kind="loras",
    )
    base_weights_multiplier: float | tuple[float, ...] = param(
        1.0,
        "Strength of these",
        "How much these files count: one number for all, or a list with one for each.",
        low=-10.0,
        high=10.0,
        group="Start",
        when="base_weights",
    )
