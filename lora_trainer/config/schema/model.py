"""The base model, and how it reads text."""

from __future__ import annotations

from lora_trainer.config.param import param, section


@section
class ModelConfig:
    pretrained_model_name_or_path: str = param(
        "",
        "Base model",
        "The checkpoint to train on. Empty inside a WebUI: the one that is loaded. A LoRA works best on the model it was trained on.",
        basic=True,
        kind="checkpoint",
    )
    hub_token: str = param(
        "",
        "Hub token",
        "Only for models of a Hub that ask for permission. It is sent to the Hub and written nowhere: give it again for the next run, "
        "or set HF_TOKEN once.",
        kind="secret",
    )
    vae: str = param(
        "",
        "VAE",
        "Another VAE for reading and drawing pictures: a file, a folder, or a Hub's owner/name. Empty: the checkpoint's own, or the "
        "WebUI's choice.",
        kind="vae",
    )
    clip_skip: int = param(
        1,
        "Clip skip",
        "Which layer of the text encoder is read: 1 the last, 2 the one before. Use 2 only for models that were trained that way "
        "(most anime models).",
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
        "Only for settings of sd-scripts: the family is detected from the file, and a value that contradicts it is refused.",
        kind="hidden",
    )
    prediction: str = param(
        "auto",
        "Prediction type",
        "What the model was trained to predict. Only where the file does not tell, as many files of rectified flow do not; "
        "what contradicts the file is refused.",
        choices={"auto": "As detected (usual)", "epsilon": "The noise (epsilon)", "v": "v-prediction", "flow": "Rectified flow"},
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
