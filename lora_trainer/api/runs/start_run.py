"""Starting a run, the same from the routes and from the command line: places, what would go wrong, folder, work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_trainer.api.runs.step_time import work_key
from lora_trainer.config import effective
from lora_trainer.config.build import rebuilt, to_mapping
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.files import INPUTS, TABLE_INPUTS, each_text, write_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.errors import ConfigError, HostBusy, ModelError, Problem, TrainerError
from lora_trainer.events import Event
from lora_trainer.host.base import Host
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.launcher import OwnProcess
from lora_trainer.jobs.process_rank import SINGLE, Rank
from lora_trainer.jobs.resume_point import ResumePoint

if TYPE_CHECKING:
    from lora_trainer.jobs.job import Work
    from lora_trainer.models.detection.detect import ModelFacts


READ = tuple(path.split(".") for path in INPUTS)


def placed(config: TrainConfig, host: Host, *, runs_dir: Path | None = None) -> TrainConfig:
    """The config with output folder, runs folder and result name filled in where they are empty, and every path absolute.

    Runs go to `runs_dir`, else beside the output folder. So a run's config.toml means the same from any working directory.
    """
    if config.network.dim_from_weights:
        from lora_trainer.train.setup import with_rank_of_weights

        config = with_rank_of_weights(config)
    output = Path(config.save.output_dir) if config.save.output_dir else host.paths().lora_dir
    runs = Path(config.save.runs_dir) if config.save.runs_dir else runs_dir or output.absolute().parent / "runs"
    plain = to_mapping(config)
    plain["save"] |= {"output_dir": str(output.absolute()), "runs_dir": str(runs.absolute()), "output_name": effective.output_name(config)}
    for section, name in READ:
        plain[section][name] = each_text(plain[section][name], _absolute)
    if config.log.logging_dir.strip():
        plain["log"]["logging_dir"] = str(Path(config.log.logging_dir).absolute())
    for table in plain["data"]["subsets"]:
        table.update({name: _absolute(table[name]) for name in TABLE_INPUTS if name in table})
    return rebuilt(config, plain)


def _absolute(text: str) -> str:
    path = Path(text)
    return str(path.absolute()) if text.strip() and not path.is_absolute() and _exists(path) else text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long: whoever opens it says so
        return False


def problems_before(
    config: TrainConfig, host: Host, read: Callable[[TrainConfig], object] | None = None, *, resumed: bool = False
) -> list[Problem]:
    """What would stop the run, found before anything is touched: model, pictures, prompts and names, all at once.

    `read` reads the pictures where somebody has a quicker way than reading the folder again. A run that is `resumed` meets its own
    files.
    """
    from lora_trainer.host.devices import device_named
    from lora_trainer.train.inputs.dataset import load_dataset
    from lora_trainer.train.outputs.saving import OutputNames, refuse_overwriting
    from lora_trainer.train.setup import check_optimizer

    names = OutputNames(Path(config.save.output_dir), effective.output_name(config))
    found: list[Problem] = []
    looks: dict[str, Callable[[], object]] = {
        "model.pretrained_model_name_or_path": lambda: check_model(config, host),
        "model.vae": lambda: check_other_vae(config, host),
        "data.train_data_dir": lambda: (read or load_dataset)(config),
        "network.network_weights": lambda: check_networks([config.network.network_weights]),
        "network.base_weights": lambda: check_networks(config.network.base_weights),
        "optimizer.args": lambda: check_optimizer(config),
        "memory.device": lambda: config.memory.device and device_named(config.memory.device),
        "save.output_dir": lambda: check_folder(Path(config.save.output_dir)),
        "save.runs_dir": lambda: check_folder(Path(config.save.runs_dir)),
        "save.output_name": lambda: refuse_overwriting(names, config.save.overwrite or resumed),
    }
    for option, look in looks.items():
        try:
            look()
        except TrainerError as error:
            told = [problem if _is_place(problem.path) else attrs.evolve(problem, path=option) for problem in error.problems]
            found += [problem for problem in told if problem not in found]  # a dataset file is read by several looks
    return found


def _is_place(path: str) -> bool:
    """Whether the path of a problem is an option, or a place inside one (data.subsets[1].num_repeats)."""
    return path in options() or path.startswith(("data.subsets[", "data.dataset_config."))


def check_folder(folder: Path) -> None:
    """Raises TrainerError when a folder is not there and cannot be made, or may not be written; makes nothing."""
    place = next((parent for parent in (folder, *folder.parents) if _exists(parent)), folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise TrainerError("{place} is no folder that may be written to.", place=str(place), fix="Choose another folder.")


def check_networks(files: Iterable[str]) -> None:
    """Raises ModelError when a network's file cannot be read."""
    from lora_trainer.models.detection.detect import read_header

    for text in files:
        if text.strip() and not Path(text).is_file():
            raise ModelError("{path} does not exist.", path=text, fix="Choose a LoRA file.")
        if text.strip():
            read_header(Path(text))


def check_model(config: TrainConfig, host: Host) -> None:
    """Raises TrainerError when the base model cannot be trained."""
    if not config.model.pretrained_model_name_or_path and host.name != "standalone":
        info = host.model_info()
        if not info.get("trainable", True):
            raise TrainerError("{reason}", reason=info.get("reason", ""), path="model.pretrained_model_name_or_path")
        return
    from lora_trainer.models.files.hub import NotFetched

    path = None
    with contextlib.suppress(NotFetched):  # the run fetches it
        path = model_path(config, host)
    if host.name != "standalone" and not apart(config) and (path is None or path.resolve() not in _lendable(host)):
        raise ModelError(
            "{name} is not in the WebUI's list of checkpoints, so the WebUI cannot lend it.",
            name=config.model.pretrained_model_name_or_path,
            path="model.pretrained_model_name_or_path",
            fix="Put it into the WebUI's folder of models, or switch on memory.own_process: such a run reads it from where it is.",
        )


def _lendable(host: Host) -> set[Path]:
    return {checkpoint.path.resolve() for checkpoint in host.checkpoints()}


def model_path(config: TrainConfig, host: Host) -> Path:
    """The checkpoint's file, looked at: raises ModelError when it is missing or of a family that cannot be trained."""
    return model_facts(config, host)[0]


def model_facts(config: TrainConfig, host: Host) -> tuple[Path, ModelFacts]:
    """The checkpoint's file and what it tells with the config's flags. Raises ModelError, also for a flag that it contradicts."""
    from lora_trainer.host.base import find_checkpoint
    from lora_trainer.models.detection.detect import inspect_with

    value = config.model.pretrained_model_name_or_path
    info = {} if value else host.model_info()
    path = find_checkpoint(value, host.checkpoints()) if value else Path(str(info.get("path") or ""))
    return path, inspect_with(path, config.model, sha256=host.known_sha256(path))


def check_other_vae(config: TrainConfig, host: Host) -> None:
    """Raises ModelError when the VAE that the config names is missing, or is none."""
    from lora_trainer.host.base import find_vae, no_such_vae
    from lora_trainer.models.files.hub import NotFetched
    from lora_trainer.models.files.vae_file import check_vae

    lent = host.name != "standalone" and not apart(config)  # a WebUI takes files only
    try:
        path = find_vae(config.model.vae, host.vaes())
    except NotFetched as missing:
        if lent:
            raise no_such_vae(config.model.vae) from missing
        return  # the run fetches it
    if path is not None and path.is_dir() and lent:
        raise no_such_vae(config.model.vae)
    if path is not None:
        check_vae(path)


def new_folder(config: TrainConfig) -> RunFolder:
    """The folder of a run that is about to begin, with its config.toml. Raises TrainerError."""
    folder = RunFolder.create(Path(config.save.runs_dir), effective.output_name(config))
    folder.describe(work=work_key(config))
    write_config(config, folder.config_file)
    return folder


def require_free(host: Host) -> None:
    """Raises HostBusy with the host's reason while it cannot lend its model."""
    if (reason := host.busy_reason()) is not None:
        raise HostBusy("{reason}", reason=reason, fix="Start again when it is over.")


@contextlib.contextmanager
def beginning(folder: RunFolder) -> Iterator[None]:
    """Takes the new folder away again where the run does not begin: somebody was faster, or no process can be started."""
    try:
        yield
    except (HostBusy, OSError):
        folder.remove()
        raise


def training(config: TrainConfig, host: Host, folder: RunFolder, place: Rank = SINGLE, since: ResumePoint | None = None) -> Work:
    """The work of a training run, for a Job; of the first one where several processes train together. `since`: it goes on there."""

    def work(control: Control) -> Generator[Event, None, None]:
        from lora_trainer.train.loop import run

        yield from run(config, host, control, folder.path, place, since)

    return work


def apart(config: TrainConfig) -> bool:
    """Whether a run that is started from the tab gets a process of its own."""
    return config.memory.own_process or bool(config.memory.device)


def on_files(config: TrainConfig, host: Host) -> TrainConfig:
    """For a process that cannot ask the host: the model that is loaded, and the VAE's name, as paths of their files."""
    if host.name == "standalone" and not config.model.pretrained_model_name_or_path:
        return config  # there it means the same
    from lora_trainer.models.files.hub import NotFetched

    named, vae = config.model.pretrained_model_name_or_path, config.model.vae
    with contextlib.suppress(NotFetched):  # the process fetches it
        named = str(model_path(config, host))
    vae = next((str(path) for path in host.vaes() if vae in (path.name, path.stem)), vae) if vae else ""
    return attrs.evolve(config, model=attrs.evolve(config.model, pretrained_model_name_or_path=named, vae=vae))


def process_of(folder: RunFolder, host: Host, words: Sequence[str] = (), *, token: str = "") -> OwnProcess:
    """The process that trains what the folder's config.toml says; or what other `words` behind `train` say.

    The Hub's `token`, which no file holds, is handed to it in its environment.
    """
    words = ("train", *(words or (str(folder.config_file), "--into", str(folder.path))))
    secrets = {"HF_TOKEN": token} if token else {}
    return OwnProcess(folder, words, cache=host.paths().cache_dir, at_end=host.refresh_networks, secrets=secrets)


def refuse(problems: list[Problem]) -> None:
    """Raises ConfigError when there is a problem."""
    if problems:
        raise ConfigError(problems)
