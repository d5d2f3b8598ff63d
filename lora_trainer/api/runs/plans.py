"""What will happen, and what the wizard suggests, the same from the routes and from the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from lora_trainer.api.runs.start_run import model_facts, model_path, placed, problems_before
from lora_trainer.api.runs.step_time import measured_step
from lora_trainer.config.changes import Change, value_at
from lora_trainer.config.choices.network_hosts import doubt
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.messages import Message, say, translate
from collections.abc import Iterable, Mapping
from typing import Any
from lora_trainer.config import effective
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import read_config
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.resume_point import changes_of

if TYPE_CHECKING:
    from lora_trainer.models.detection.detect import ModelFacts
    from lora_trainer.train.inputs.dataset import TrainingDataset
    from lora_trainer.train.planning.plan import Machine, TrainingPlan


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
    "memory": {"parts": {}, "free_mb": 0.0, "fits": True},
}


def check(
    config: TrainConfig, host: Host, *, runs_dir: Path | None = None, read: Callable[[TrainConfig], TrainingDataset] | None = None
) -> dict[str, Any]:
    """The `check` shape; its problems are Problem objects. As much of the plan as the pictures and the model allow."""
    from lora_trainer.train.guards import check_disk

    config = placed(config, host, runs_dir=runs_dir)
    read = lru_cache(maxsize=1)(read or pictures_of)
    problems = problems_before(config, host, read)
    pictures = _try(lambda: read(config))
    facts = _try(lambda: facts_of(config, host))
    badge = model_badge(config, host, facts)
    network = None
    try:
        network = network_of(config, facts)
    except TrainerError as error:  # of lists of blocks, patterns
        problems = [*problems, *error.problems]
    plan, warnings = EMPTY_PLAN | {"network": network}, []
    if pictures is not None and network is not None:
        warnings = _warnings(config, pictures, host)
        try:
            made = _plan(config, pictures, facts, machine_of(host))
            plan = made.to_json() | {"network": network}
            full = check_disk(Path(config.save.output_dir), config.save.output_name, made)
            warnings += [] if full is None else [_warning("save.output_dir", full)]
        except TrainerError as error:  # of a schedule, of the disk
            problems = [*problems, *error.problems]
    if (seconds := measured_step(config, Path(config.save.runs_dir))) is not None:
        plan = plan | {"seconds": round(seconds * plan["total_steps"], 1), "seconds_measured": True}
    return {**plan, "model": badge, "problems": problems, "warnings": warnings}


def change_json(change: Change, config: TrainConfig, typed: Collection[str], language: str) -> dict[str, Any]:
    """{"path", "label", "value", "old", "because", "typed"}; `typed` where the user wrote the old value."""
    from lora_trainer.config.checks.option_checks import options

    old = value_at(config, change.path)
    plain = {"value": change.value, "old": old}
    return {
        "path": change.path,
        "label": translate(options()[change.path].option.label, language),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()},
        "because": change.because.text(language),
        "typed": change.path in typed,
    }


def facts_of(config: TrainConfig, host: Host) -> ModelFacts:
    """Of the checkpoint that the config means. Raises ModelError."""
    return model_facts(config, host)[1]


def model_badge(config: TrainConfig, host: Host, facts: ModelFacts | None) -> dict[str, Any] | None:
    """What is trained on: title and what is known of it, with the reason; None where it is missing or cannot be trained on.

    Of a WebUI's loaded model the WebUI's own word counts.
    """
    value = config.model.pretrained_model_name_or_path
    if not value:
        info = host.model_info()
        if host.name != "standalone" and info.get("trainable"):
            return (facts.badge() if facts is not None else {}) | {key: info[key] for key in BADGE if info.get(key)}
        value = str(info.get("title") or "")
    return None if facts is None else {"title": Path(value).name, **facts.badge()}


def network_of(config: TrainConfig, facts: ModelFacts | None) -> dict[str, Any]:
    """The network before there is one, and how many layers each pattern hits. Raises ConfigError."""
    from lora_trainer.train.planning.network_plan import pattern_hits, planned_network

    return {**planned_network(config, facts).to_json(), "patterns": pattern_hits(config, facts)}


def pictures_of(config: TrainConfig) -> TrainingDataset:
    """The pictures that the config means. Raises DatasetError."""
    from lora_trainer.train.inputs.dataset import load_dataset

    return load_dataset(config)


def machine_of(host: Host) -> Machine:
    """What a plan needs to know of the host's device: what the host itself holds there counts as free."""
    from lora_trainer.wizard import probe

    return probe.machine(host, None).for_plan()


def _plan(config: TrainConfig, pictures: TrainingDataset, facts: ModelFacts | None, machine: Machine) -> TrainingPlan:
    from lora_trainer.train.planning.plan import make_plan

    return make_plan(config, pictures.records, facts, machine, pictures.datasets)


def _warnings(config: TrainConfig, pictures: TrainingDataset, host: Host) -> list[Any]:
    from lora_trainer.train.planning.preflight import early_warnings

    checkpoint = _try(lambda: model_path(config, host)) or Path()
    found = [_warning(warned.path, warned.message) for warned in early_warnings(config, pictures, checkpoint)]
    asked = {"network.type": config.network.type, **({"network.train_norm": "norm"} if config.network.train_norm else {})}
    unread = {path: doubt(kind, host.name, config.network.dora_axis) for path, kind in asked.items()}
    return [*(_warning(path, message) for path, message in unread.items() if message is not None), *found]


def _warning(path: str, message: Message) -> dict[str, Any]:
    return {"path": path, "message": message, "fix": say("")}


def _try(look: Callable[[], Any]) -> Any:
    """What it returns, or None where it raises a TrainerError: problems_before has told of it."""
    try:
        return look()
    except TrainerError:
        return None


DECIDING = ("optimizer", "schedule", "steps")
"""Sections that decide on the rates."""


def course(folder: RunFolder) -> dict[str, Any]:
    """{"total_steps", "epochs", "schedule": {group: [[step, rate], ...]}} of a run as it is planned now. Raises TrainerError."""
    from lora_trainer.optim.schedules import curve, schedule_of

    plan = folder.plan()
    config = with_changes(read_config(folder.config_file), folder.events())
    epochs, total = effective.train_length(config, int(plan.get("steps_per_epoch") or 0))
    if not plan or total < 1:
        return {"total_steps": 0, "epochs": 0, "schedule": {}}
    warmup, decay = effective.warmup_steps(config, total), effective.decay_steps(config, total)
    schedule, scale = schedule_of(config.schedule, total, warmup, decay), float(plan.get("rate_scale") or 1.0)
    curves = {name: curve(schedule, rate * scale) for name, rate in effective.rates(config).items()}
    return {"total_steps": total, "epochs": epochs, "schedule": curves}


def with_changes(config: TrainConfig, events: Iterable[Mapping[str, Any]]) -> TrainConfig:
    """The config with the changes that events tell of, as far as they decide on the rates."""
    mapping = to_mapping(config)
    for change in changes_of(events):
        section, _, name = str(change["path"]).partition(".")
        if section in DECIDING:
            mapping[section][name] = change["new"]
    return build(mapping)
