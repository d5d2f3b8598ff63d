"""Starting a run, the same for the routes and the command line: paths, checks, run folder, work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_trainer.api.runs.step_time import extras_key, work_key
from lora_trainer.config import effective
from lora_trainer.config.build import rebuild, to_mapping
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.files import INPUT_PATHS, SUBSET_INPUT_PATHS, map_text, write_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.errors import ConfigError, HostBusy, ModelError, Problem, TrainerError
from lora_trainer.events import Event
from lora_trainer.host.base import Host
from lora_trainer.jobs.claims import Claim
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.launcher import SubprocessRun
from lora_trainer.jobs.process_rank import SINGLE, Rank
from lora_trainer.jobs.resume_point import ResumePoint

if TYPE_CHECKING:
    from lora_trainer.jobs.job import Work
    from lora_trainer.models.detection.detect import ModelFacts


PATH_KEYS = tuple(path.split(".") for path in INPUT_PATHS)


def resolve_paths(config: TrainConfig, host: Host, *, runs_dir: Path | None = None) -> TrainConfig:
    """The config with output folder, runs folder and output name filled in where they are empty, and every path absolute.

    Runs go to `runs_dir`, else beside the output folder. A run's config.toml then means the same in any working directory.
    """
    if config.network.dim_from_weights:
        from lora_trainer.train.setup import with_ranks_of_weights

        config = with_ranks_of_weights(config)
    output = Path(config.save.output_dir) if config.save.output_dir else host.paths().lora_dir
    runs = Path(config.save.runs_dir) if config.save.runs_dir else runs_dir or output.absolute().parent / "runs"
    mapping = to_mapping(config)
    mapping["save"] |= {"output_dir": str(output.absolute()), "runs_dir": str(runs.absolute()), "output_name": effective.output_name(config)}
    for section, name in PATH_KEYS:
        mapping[section][name] = map_text(mapping[section][name], absolute_if_exists)
    if config.log.logging_dir.strip():
        mapping["log"]["logging_dir"] = str(Path(config.log.logging_dir).absolute())
    for table in mapping["data"]["subsets"]:
        table.update({name: absolute_if_exists(table[name]) for name in SUBSET_INPUT_PATHS if name in table})
    return rebuild(config, mapping)


def absolute_if_exists(text: str) -> str:
    """A relative path as an absolute one where it exists from the working directory; any other text unchanged."""
    path = Path(text)
    return str(path.absolute()) if text.strip() and not path.is_absolute() and _exists(path) else text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long: opening it reports that
        return False


def find_problems(
    config: TrainConfig, host: Host, load: Callable[[TrainConfig], object] | None = None, *, resumed: bool = False
) -> list[Problem]:
    """Everything that would stop the run, found before anything is touched: model, dataset, networks, optimizer, device, folders.

    `load` loads the dataset where a cached one can be used. A `resumed` run may overwrite its own files.
    """
    from lora_trainer.host.devices import device_named
    from lora_trainer.train.inputs.dataset import load_dataset
    from lora_trainer.train.outputs.saving import OutputNames, refuse_overwriting
    from lora_trainer.train.setup import check_optimizer

    names = OutputNames(Path(config.save.output_dir), effective.output_name(config))
    problems: list[Problem] = []
    checks: dict[str, Callable[[], object]] = {
        "model.pretrained_model_name_or_path": lambda: check_model(config, host),
        "model.vae": lambda: check_vae_option(config, host),
        "data.train_data_dir": lambda: (load or load_dataset)(config),
        "loss": lambda: check_objective(config, host),
        "network.network_weights": lambda: check_network_weights(config, host, resumed=resumed),
        "network.base_weights": lambda: check_networks(config.network.base_weights),
        "optimizer.args": lambda: check_optimizer(config),
        "memory.device": lambda: config.memory.device and device_named(config.memory.device),
        "save.output_dir": lambda: check_folder(Path(config.save.output_dir)),
        "save.runs_dir": lambda: check_folder(Path(config.save.runs_dir)),
        "save.output_name": lambda: refuse_overwriting(names, config.save.overwrite or resumed),
    }
    for option, check in checks.items():
        try:
            check()
        except TrainerError as error:
            of_option = [problem if _is_option_path(problem.path) else attrs.evolve(problem, path=option) for problem in error.problems]
            problems += [problem for problem in of_option if problem not in problems]  # a dataset file is read by several checks
    return problems


def _is_option_path(path: str) -> bool:
    """Whether a problem's path is an option, or an entry inside one (data.subsets[1].num_repeats)."""
    return path in options() or path.startswith(("data.subsets[", "data.dataset_config."))


def check_folder(folder: Path) -> None:
    """Raises TrainerError when a folder cannot be created or is not writable; creates nothing."""
    place = next((parent for parent in (folder, *folder.parents) if _exists(parent)), folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise TrainerError("{place} is not a writable folder.", place=str(place), fix="Choose another folder.")


def check_objective(config: TrainConfig, host: Host) -> None:
    """Raises ConfigError with the options that do not fit what the base model predicts."""
    from lora_trainer.train.planning.flow_checks import require_fitting_options
    from lora_trainer.train.setup import preview_prompts

    with contextlib.suppress(ModelError):  # another check reports it, or the run fetches the model
        require_fitting_options(config, model_facts(config, host)[1].prediction, preview_prompts(config))


def check_network_weights(config: TrainConfig, host: Host, *, resumed: bool = False) -> None:
    """Raises ModelError when the file that the training begins with cannot be read, or does not fit the network that is trained."""
    from lora_trainer.adapters.files.checked_network import open_network
    from lora_trainer.adapters.initial_fit import require_fit, trained_layers
    from lora_trainer.train.planning.network_plan import selected_layers

    text = config.network.network_weights
    check_networks([text])
    if not text.strip() or resumed:
        return
    file = open_network(Path(text))
    try:
        facts = model_facts(config, host)[1]
        layers = trained_layers(selected_layers(config, facts)) if facts.layers else {}
    except TrainerError:
        return  # another check reports it, or the run fetches the model
    if layers:
        require_fit(file, layers, facts.family, takes_ranks=config.network.dim_from_weights)


def check_networks(files: Iterable[str]) -> None:
    """Raises ModelError when a network file cannot be read, or holds values that are not finite."""
    from lora_trainer.models.files.finite import require_finite

    for text in files:
        if text.strip() and not Path(text).is_file():
            raise ModelError("{path} does not exist.", path=text, fix="Choose a LoRA file.")
        if text.strip():
            require_finite(Path(text))


def check_model(config: TrainConfig, host: Host) -> None:
    """Raises TrainerError when the base model cannot be trained."""
    if not config.model.pretrained_model_name_or_path and host.name != "standalone":
        info = host.model_info()
        if not info.get("trainable", True):
            raise TrainerError("{reason}", reason=info.get("reason", ""), path="model.pretrained_model_name_or_path")
        return
    from lora_trainer.models.files.hub import NotDownloaded

    path = None
    with contextlib.suppress(NotDownloaded):  # the run fetches it
        path = model_path(config, host)
    if host.name != "standalone" and not uses_own_process(config) and (path is None or path.resolve() not in _lendable_paths(host)):
        raise ModelError(
            "{name} is not in the WebUI's list of checkpoints, so the WebUI cannot lend it.",
            name=config.model.pretrained_model_name_or_path,
            path="model.pretrained_model_name_or_path",
            fix="Put it into the WebUI's folder of models, or switch on memory.own_process: such a run reads it from where it is.",
        )


def _lendable_paths(host: Host) -> set[Path]:
    return {checkpoint.path.resolve() for checkpoint in host.checkpoints()}


def model_path(config: TrainConfig, host: Host) -> Path:
    """The checkpoint's path. Raises ModelError when it is missing or of a family that cannot be trained."""
    return model_facts(config, host)[0]


def model_facts(config: TrainConfig, host: Host) -> tuple[Path, ModelFacts]:
    """The checkpoint's path and its facts, given the config's flags. Raises ModelError, also for a flag that the file contradicts."""
    from lora_trainer.host.base import find_checkpoint
    from lora_trainer.models.detection.detect import inspect_with_flags

    value = config.model.pretrained_model_name_or_path
    info = {} if value else host.model_info()
    path = find_checkpoint(value, host.checkpoints()) if value else Path(str(info.get("path") or ""))
    return path, inspect_with_flags(path, config.model, sha256=host.known_sha256(path))


def check_vae_option(config: TrainConfig, host: Host) -> None:
    """Raises ModelError when the config's VAE is missing, or is not a VAE."""
    from lora_trainer.host.base import find_vae, no_such_vae
    from lora_trainer.models.files.hub import NotDownloaded
    from lora_trainer.models.files.vae_file import check_vae

    from_host = host.name != "standalone" and not uses_own_process(config)  # a WebUI takes files only
    try:
        path = find_vae(config.model.vae, host.vaes())
    except NotDownloaded as missing:
        if from_host:
            raise no_such_vae(config.model.vae) from missing
        return  # the run fetches it
    if path is not None and path.is_dir() and from_host:
        raise no_such_vae(config.model.vae)
    if path is not None:
        check_vae(path)


def create_run_folder(config: TrainConfig) -> RunFolder:
    """Creates the folder of a run that is about to start, with its config.toml. Raises TrainerError."""
    folder = RunFolder.create(Path(config.save.runs_dir), effective.output_name(config))
    with remove_unless_started(folder):
        folder.update_info(work=work_key(config), extras=extras_key(config))
        write_config(config, folder.config_file)
    return folder


def require_host_free(host: Host) -> None:
    """Raises HostBusy with the host's reason while it cannot lend its model."""
    if (reason := host.busy_reason()) is not None:
        raise HostBusy("{reason}", reason=reason, fix="Start again when it is over.")


@contextlib.contextmanager
def remove_unless_started(folder: RunFolder) -> Iterator[None]:
    """Removes the new folder when the run does not start: another run was faster, the disk is full, no process can be started."""
    try:
        yield
    except (TrainerError, OSError):
        folder.remove()
        raise


def training_work(config: TrainConfig, host: Host, folder: RunFolder, rank: Rank = SINGLE, resume_from: ResumePoint | None = None) -> Work:
    """A training run as the work of a Job (of rank 0 where several processes train together); `resume_from`: where it resumes."""

    def work(control: Control) -> Generator[Event, None, None]:
        from lora_trainer.train.loop import run

        yield from run(config, host, control, folder.path, rank, resume_from)

    return work


def uses_own_process(config: TrainConfig) -> bool:
    """Whether a run started from the tab gets its own process."""
    return effective.uses_own_process(config)


def with_file_paths(config: TrainConfig, host: Host) -> TrainConfig:
    """The config for a process without the host: the loaded model and the VAE's name replaced by file paths."""
    if host.name == "standalone" and not config.model.pretrained_model_name_or_path:
        return config  # an empty model means the same there
    from lora_trainer.models.files.hub import NotDownloaded

    checkpoint, vae = config.model.pretrained_model_name_or_path, config.model.vae
    with contextlib.suppress(NotDownloaded):  # the process fetches it
        checkpoint = str(model_path(config, host))
    vae = next((str(path) for path in host.vaes() if vae in (path.name, path.stem)), vae) if vae else ""
    return attrs.evolve(config, model=attrs.evolve(config.model, pretrained_model_name_or_path=checkpoint, vae=vae))


def training_process(
    folder: RunFolder, host: Host, arguments: Sequence[str] = (), *, token: str = "", claim: Claim | None = None
) -> SubprocessRun:
    """The process that trains the folder's config.toml, or that runs `train` with other `arguments`.

    The Hub's `token`, which no file holds, is passed in its environment. `claim`: the caller's claim on the folder.
    """
    arguments = ("train", *(arguments or (str(folder.config_file), "--into", str(folder.path))))
    secrets = {"HF_TOKEN": token} if token else {}
    return SubprocessRun(
        folder, arguments, cache_dir=host.paths().cache_dir, on_end=host.refresh_networks, secrets=secrets, claim=claim
    )


def raise_problems(problems: list[Problem]) -> None:
    """Raises ConfigError when there is any problem."""
    if problems:
        raise ConfigError(problems)
