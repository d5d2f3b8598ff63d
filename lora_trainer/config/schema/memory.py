"""Precision, and options that trade time for memory."""

from __future__ import annotations

from lora_trainer.config.param import param, section


@section
class MemoryConfig:
    mixed_precision: str = param(
        "auto",
        "Precision",
        "Number format for the calculation. auto: the one that the model is stored in.",
        choices={"auto": "automatic", "no": "no (fp32)", "fp16": "", "bf16": ""},
        kohya="mixed_precision",
    )
    fp8_base_unet: bool = param(
        False,
        "U-Net in 8 bits",
        "The frozen U-Net's matrices are kept in float8 (e4m3) and cast to the calculation's format one at a time: half the "
        "memory of fp16, less precise, slower. Only where the run reads its model from a file; what a WebUI lends is used as it "
        "is.",
    )
    gradient_checkpointing: bool = param(
        False, "Save memory by recomputing", "Gradient checkpointing: much less memory, about a fifth slower, the same result."
    )
    checkpointing_budget_gb: float = param(
        0.0,
        "Memory for a step's activations",
        "In GB. Only as much is recomputed as is needed to stay within this, starting with what saves the most memory for the "
        "least time. 0: as much as possible.",
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
        "Number format in which pictures are encoded and drawn. auto: as the VAE is stored, and float32 where the result is not finite.",
        choices={"auto": "automatic", "fp32": "float32 (exact)", "bf16": "bfloat16 (half the memory)"},
    )
    retry: bool = param(
        True,
        "Go on when memory runs out",
        "The step is done again with less memory (other parts off the GPU, recomputing, smaller pieces); each change is "
        "reported. Off: the run ends.",
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
        "The run does not share the WebUI's model: it reads the checkpoint's file, and pictures can be drawn meanwhile if there "
        "is enough memory for both.",
        group="Where it is calculated",
    )
    device: str = param(
        "",
        "Device",
        "For example cuda:1 for the second GPU, or cpu. Empty: the WebUI's, or the first GPU. A device other than the WebUI's "
        "needs a process of its own, and gets one.",
        group="Where it is calculated",
    )
