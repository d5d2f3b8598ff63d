"""Checking and planning a config, the same for the routes and the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.api.runs.start_run import find_problems, model_facts, model_path, resolve_paths
from lora_trainer.api.runs.step_time import measured_seconds
from lora_trainer.config import effective
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.changes import Change, value_at
from lora_trainer.config.choices.network_hosts import support_warning
from lora_trainer.config.choices.prediction_hosts import prediction_warning
from lora_trainer.config.files import read_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.resume_point import user_changes
from lora_trainer.messages import Message, say, translate

if TYPE_CHECKING:
    from lora_trainer.models.detection.detect import ModelFacts
    from lora_trainer.train.inputs.dataset import TrainingDataset
    from lora_trainer.train.planning.memory_plan import Machine
    from lora_trainer.train.planning.plan import TrainingPlan


BADGE = ("title", "family", "prediction", "zero_terminal_snr", "native_size", "because", "notes")
EMPTY_PLAN: dict[str, Any] = {
    "images": 0,
    "reg_images": 0,
    "buckets": [],
    "steps_per_epoch": 0,
    "epochs": 0,
    "total_steps": 0,
    "seconds": 0.0,
    "files": 0,
    "disk_mb": 0.0,
    "network": None,
    "effective": {},
    "schedule": {},
    "memory": {"parts": {}, "phases": {}, "free_mb": 0.0, "fits": True},
}


def check_config(
    config: TrainConfig, host: Host, *, runs_dir: Path | None = None, load: Callable[[TrainConfig], TrainingDataset] | None = None
) -> dict[str, Any]:
    """The plan of a run as JSON, with "model", "problems" (Problem objects) and "warnings".

    As much of the plan as the dataset and the model allow; `load` loads the dataset where a cached one can be used.
    """
    from lora_trainer.train.guards import check_disk

    config = resolve_paths(config, host, runs_dir=runs_dir)
    load = lru_cache(maxsize=1)(load or pictures_of)
    problems = find_problems(config, host, load)
    dataset = _or_none(lambda: load(config))
    facts = _or_none(lambda: facts_of(config, host))
    badge = model_badge(config, host, facts)
    network = None
    try:
        network = network_json(config, facts)
    except TrainerError as error:  # of lists of blocks, patterns
        problems = [*problems, *error.problems]
    plan, warnings = EMPTY_PLAN | {"network": network}, []
    if dataset is not None and network is not None:
        warnings = [*_early_warnings(config, dataset, host), *_prediction_warnings(config, facts, host)]
        try:
            training_plan = _make_plan(config, dataset, facts, machine_of(host))
            plan = training_plan.to_json() | {"network": network}
            disk_warning = check_disk(Path(config.save.output_dir), config.save.output_name, training_plan)
            warnings += [] if disk_warning is None else [_warning_json("save.output_dir", disk_warning)]
        except TrainerError as error:  # of a schedule, of the disk
            problems = [*problems, *error.problems]
    if (seconds := measured_seconds(config, Path(config.save.runs_dir), plan["total_steps"])) is not None:
        plan = plan | {"seconds": round(seconds, 1), "seconds_measured": True}
    return {**plan, "model": badge, "problems": problems, "warnings": warnings}


def measured_on(host: Host, runs_dir: Path | None = None) -> Callable[[TrainConfig, int], float | None]:
    """(config, total steps) -> the seconds that such a run took on this machine."""

    def measured(config: TrainConfig, total_steps: int) -> float | None:
        resolved = _or_none(lambda: resolve_paths(config, host, runs_dir=runs_dir))
        return None if resolved is None else measured_seconds(resolved, Path(resolved.save.runs_dir), total_steps)

    return measured


def change_json(change: Change, config: TrainConfig, typed: Collection[str], language: str) -> dict[str, Any]:
    """{"path", "label", "value", "old", "because", "typed"}; "typed" when the user entered the old value."""
    from lora_trainer.config.checks.option_checks import options

    old = value_at(config, change.path)
    values = {"value": change.value, "old": old}
    return {
        "path": change.path,
        "label": translate(options()[change.path].option.label, language),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
        "because": change.reason.text(language),
        "typed": change.path in typed,
    }


def facts_of(config: TrainConfig, host: Host) -> ModelFacts:
    """The facts of the config's base model. Raises ModelError."""
    return model_facts(config, host)[1]


def model_badge(config: TrainConfig, host: Host, facts: ModelFacts | None) -> dict[str, Any] | None:
    """The base model's title, family, prediction type and how they were detected; None when it is missing or cannot be trained.

    For a WebUI's loaded model, what the WebUI reports takes precedence.
    """
    value = config.model.pretrained_model_name_or_path
    if not value:
        info = host.model_info()
        if host.name != "standalone" and info.get("trainable"):
            return (facts.badge() if facts is not None else {}) | {key: info[key] for key in BADGE if info.get(key)}
        value = str(info.get("title") or "")
    return None if facts is None else {"title": Path(value).name, **facts.badge()}


def network_json(config: TrainConfig, facts: ModelFacts | None) -> dict[str, Any]:
    """The planned network (layers, parameters, size), and how many layers each pattern matches. Raises ConfigError."""
    from lora_trainer.train.planning.network_plan import pattern_hits, planned_network

    return {**planned_network(config, facts).to_json(), "patterns": pattern_hits(config, facts)}


def pictures_of(config: TrainConfig) -> TrainingDataset:
    """The config's dataset. Raises DatasetError."""
    from lora_trainer.train.inputs.dataset import load_dataset

    return load_dataset(config)


def machine_of(host: Host) -> Machine:
    """The host's device as a plan needs it: memory that the host itself uses counts as free."""
    from lora_trainer.wizard import probe

    return probe.machine(host, None).to_machine()


def _make_plan(config: TrainConfig, dataset: TrainingDataset, facts: ModelFacts | None, machine: Machine) -> TrainingPlan:
    from lora_trainer.train.planning.plan import make_plan

    return make_plan(config, dataset.records, facts, machine, dataset.datasets)


def _early_warnings(config: TrainConfig, dataset: TrainingDataset, host: Host) -> list[Any]:
    from lora_trainer.train.planning.preflight import early_warnings
    from lora_trainer.train.previews.prompt_networks import notes_of_host, notes_of_trainer
    from lora_trainer.train.setup import preview_networks, preview_prompts

    checkpoint = _or_none(lambda: model_path(config, host)) or Path()
    warnings = [_warning_json(warned.path, warned.message) for warned in early_warnings(config, dataset, checkpoint)]
    notes = notes_of_trainer if host.name == "standalone" or effective.uses_own_process(config) else notes_of_host
    networks = preview_networks(config, host.paths())
    warnings += [_warning_json("sample.prompts", note) for note in notes(preview_prompts(config), networks)]
    network_types = {"network.type": config.network.type, **({"network.train_norm": "norm"} if config.network.train_norm else {})}
    doubts = {path: support_warning(kind, host.name, config.network.dora_axis) for path, kind in network_types.items()}
    return [*(_warning_json(path, message) for path, message in doubts.items() if message is not None), *warnings]


def _prediction_warnings(config: TrainConfig, facts: ModelFacts | None, host: Host) -> list[Any]:
    message = None
    if facts is not None and (path := _or_none(lambda: model_path(config, host))) is not None:
        message = prediction_warning(facts.prediction, facts.family, path, host.name)
    return [] if message is None else [_warning_json("model.pretrained_model_name_or_path", message)]


def _warning_json(path: str, message: Message) -> dict[str, Any]:
    return {"path": path, "message": message, "fix": say("")}


def _or_none(look: Callable[[], Any]) -> Any:
    """The result, or None when it raises a TrainerError, which find_problems has reported."""
    try:
        return look()
    except TrainerError:
        return None


RATE_SECTIONS = ("optimizer", "schedule", "steps")
"""Sections that determine the learning rates."""


def planned_schedule(folder: RunFolder) -> dict[str, Any]:
    """{"total_steps", "epochs", "schedule": {group: [[step, rate], ...]}} of a run as planned now. Raises TrainerError."""
    from lora_trainer.optim.schedules import lr_curve, make_schedule

    plan = folder.plan()
    config = with_changes(read_config(folder.config_file), folder.events())
    epochs, total = effective.train_length(config, int(plan.get("steps_per_epoch") or 0))
    if not plan or total < 1:
        return {"total_steps": 0, "epochs": 0, "schedule": {}}
    warmup, decay = effective.warmup_steps(config, total), effective.decay_steps(config, total)
    schedule, scale = make_schedule(config.schedule, total, warmup, decay), float(plan.get("rate_scale") or 1.0)
    curves = {name: lr_curve(schedule, rate * scale) for name, rate in effective.learning_rates(config).items()}
    return {"total_steps": total, "epochs": epochs, "schedule": curves}


def with_changes(config: TrainConfig, events: Iterable[Mapping[str, Any]]) -> TrainConfig:
    """The config with those changes made while the run was going on that affect the learning rates."""
    mapping = to_mapping(config)
    for change in user_changes(events):
        section, _, name = str(change["path"]).partition(".")
        if section in RATE_SECTIONS:
            mapping[section][name] = change["new"]
    return build(mapping)
