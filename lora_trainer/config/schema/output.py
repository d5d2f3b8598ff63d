"""Output of a run: previews, validation, files, logs."""

from __future__ import annotations

from lora_trainer.config.choices import samplers
from lora_trainer.config.param import param, section


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
        also=samplers.ALIASES,
        kohya="sample_sampler",
    )
    flow_shift: float = param(
        3.0,
        "Shift of the sampler",
        "Only for models of rectified flow, where the prompt does not say it with --fs: above 1 more of the steps are spent on much noise.",
        above=0.0,
        high=100.0,
        when={"model.prediction": ("auto", "flow")},
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
        "At most this much is lost when the computer goes off. 0: not by time.",
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
