"""Block 7: what a run of a real-sized model takes in each phase, beside the plan; and whole runs on cards that are made small (E2)."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from benchmarks import random_checkpoint
from benchmarks.card.block import Block, Card, Figures, require
from benchmarks.card.meter import MEGABYTE, PhaseMeter, only_free
from benchmarks.card.runs import events_of, warnings
from benchmarks.random_checkpoint import SD15, SDXL, TINY, TINY_SDXL, Widths
from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig
from lora_trainer.events import Sampled, Started, Stepped
from lora_trainer.models.detection.detect import inspect
from lora_trainer.train.planning.memory_plan import CAPTIONS, LOAD, PICTURES, PREVIEW, SAVE, STEP, Machine
from lora_trainer.train.planning.plan import TrainingPlan, make_plan

RANK, STEPS = 16, 3
OVER = 1.15
"""A phase may take so many times what is planned before the plan is called wrong: the plan's own counts are within 6 %."""
COMPARED = (CAPTIONS, PICTURES, STEP)
"""The phases that take what they are planned with; in the others parts of the model stay on the card as long as there is room."""
WORKSPACE = "workspace"
GIGABYTE = 2**30


@attrs.frozen
class Case:
    """A model at a size, pictures a step, and what is recomputed: none, as much as halves the activations (budget), or full."""

    family: str
    side: int
    pictures: int
    recompute: str = "none"
    eight: bool = False
    rank: int = RANK

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.family} {self.side} px, {self.pictures} a step, {self.recompute}{', fp8' if self.eight else ''}"


SD15_CASES = (
    *(Case("sd1", 512, 1, recompute) for recompute in ("none", "budget", "full")),
    Case("sd1", 512, 1, "none", eight=True),
    *(Case("sd1", 512, 4, recompute) for recompute in ("none", "full")),
)
SDXL_CASES = (*(Case("sdxl", 1024, 1, recompute) for recompute in ("none", "budget", "full")), Case("sdxl", 1024, 1, "full", eight=True))
SMALL_CASES = (Case("sd1", 128, 1), Case("sd1", 64, 2, "full"))
"""On a CPU, of tiny models."""
CARDS = ((8.0, 1.2, False), (6.0, 1.2, True))
"""GB of a card, of which so many are another program's, and whether its U-Net has to be in 8 bits (docs/memory.md)."""


def sd15_memory(card: Card) -> Figures:
    """Stable Diffusion 1.5's phases."""
    return _measured(card, SD15_CASES if card.is_cuda else SMALL_CASES)


def sdxl_memory(card: Card) -> Figures:
    """SDXL's phases."""
    return _measured(card, SDXL_CASES)


def _measured(card: Card, cases: tuple[Case, ...]) -> Figures:
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows += _case_rows(card, case)
    over = [
        f"{row['case']}, {row['phase']}: {row['allocated']:.0f} MB where {row['planned']:.0f} are planned"
        for row in rows
        if row["phase"] in COMPARED and row["allocated"] > OVER * row["planned"]
    ]
    require(not over, "; ".join(over))
    return {"unit": "MB", "rows": rows}


def _case_rows(card: Card, case: Case) -> list[dict[str, Any]]:
    """A row a phase. `planned` is without the kernels' own part, which torch's allocator does not hand out; `with kernels` is all of it.

    On CUDA hardly more than what is planned is free, so that parts of the model leave the card as they would on one of that size.
    """
    needed = plan_of(card, config_of(card, case, card.new_folder())).needed_mb
    with only_free(card, OVER * needed * MEGABYTE) if card.is_cuda else nullcontext(0) as ballast:
        meter, rows = PhaseMeter(card, ballast), []
        done = run_case(card, case, meter)
    for phase, megabytes in done.phases.items():
        peak = meter.peaks.get(phase)
        if peak is None or (phase == LOAD and not card.is_cuda):  # on a CPU the mapped file would be counted with the weights
            continue
        row: dict[str, Any] = {"case": case.name, "phase": phase, "planned": megabytes - done.workspace, "allocated": peak.allocated}
        row["of the plan"] = peak.allocated / row["planned"]
        row |= {"with kernels": megabytes, "reserved": peak.reserved, "device": peak.device} if card.is_cuda else {}
        rows.append(row | ({"s a step": done.seconds} if phase == STEP else {}))
    missing = {LOAD, CAPTIONS, PICTURES, STEP, PREVIEW} - meter.peaks.keys() if card.is_cuda else {STEP} - meter.peaks.keys()
    require(not missing, f"{case.name}: nothing was noted of {missing}")
    return rows


@attrs.frozen
class Done:
    """Of a run: MB that it planned for each phase, of which `workspace` for the kernels' own, and seconds of its last step."""

    phases: dict[str, float]
    workspace: float
    seconds: float


def run_case(card: Card, case: Case, meter: PhaseMeter) -> Done:
    """Trains a few steps with a preview in between."""
    folder = card.new_folder()
    with meter.listening():
        events = events_of(card, config_of(card, case, folder), folder, watch=meter.watch, around=meter.around)
    steps = [event for event in events if isinstance(event, Stepped)]
    require(len(steps) == STEPS and not steps[-1].skipped, f"{case.name}: the run did not do its steps")
    drawn = any(isinstance(event, Sampled) for event in events)
    require(drawn, f"{case.name}: no preview was drawn ({warnings(events, 'preview')})")
    memory = next(event for event in events if isinstance(event, Started)).plan["memory"]
    return Done(memory["phases"], memory["parts"][WORKSPACE], steps[-1].seconds)


def plan_of(card: Card, config: TrainConfig) -> TrainingPlan:
    """The plan of the run as it begins on this card."""
    from lora_trainer.host.memory import device_memory
    from lora_trainer.train.inputs.dataset import load_dataset

    dataset, facts = load_dataset(config), inspect(Path(config.model.pretrained_model_name_or_path))
    precision = config.memory.mixed_precision
    machine = Machine.of(card.device.type, device_memory(card.device), lent=False, auto_precision=precision)
    return make_plan(config, dataset.records, facts, machine, dataset.datasets)


def config_of(card: Card, case: Case, folder: Path) -> TrainConfig:
    """The U-Net alone is trained; a preview of the training size is drawn after the second step."""
    pictures = folder / "pictures" / "8_sks pictures"
    pictures.mkdir(parents=True)
    for number in range(2):
        Image.effect_noise((case.side, case.side), 60 + number).convert("RGB").save(pictures / f"{number}.png")
    mapping: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(checkpoint(card, case.family))},
        "data": {
            "train_data_dir": str(pictures.parent),
            "trigger_word": "sks",
            "resolution": case.side,
            "batch_size": case.pictures,
            "enable_bucket": False,
            "cache_text_encoder_outputs": True,
            "cache_latents_to_disk": False,
        },
        "network": {"dim": case.rank, "alpha": case.rank / 2},
        "optimizer": {"text_encoder_lr": 0.0},
        "steps": {"max_train_steps": STEPS},
        "memory": {
            "mixed_precision": "bf16" if card.is_cuda else "no",
            "gradient_checkpointing": case.recompute != "none",
            "fp8_base_unet": case.eight,
        },
        "sample": {"prompts": [f"a house --w {case.side} --h {case.side} --s 2"], "every_n_steps": 2, "every_n_epochs": 0},
        "save": {"output_dir": str(folder / "loras"), "output_name": "card", "every_n_epochs": 0, "state": False},
    }
    if case.recompute == "budget":
        everything = attrs.evolve(case, recompute="none")
        activations = plan_of(card, config_of(card, everything, card.new_folder())).step_memory["activations"]
        mapping["memory"]["checkpointing_budget_gb"] = round(activations / 2 / 1024, 3)
    return build(mapping)


def checkpoint(card: Card, family: str) -> Path:
    """A checkpoint of random numbers in the shapes of the family's released model, on a CPU in tiny ones; written once."""
    widths: Widths = {"sd1": (TINY, SD15), "sdxl": (TINY_SDXL, SDXL)}[family][card.is_cuda]
    key = f"checkpoint {family}"
    if key not in card.kept:
        card.kept[key] = random_checkpoint.write(card.folder / f"{family}.safetensors", widths)
    path: Path = card.kept[key]
    return path


def small_cards(card: Card) -> Figures:
    """SDXL at 1024 px on cards of 8 and 6 GB, made of this one: it finishes, draws its preview, and never takes more than is free."""
    rows = []
    for gigabytes, others, eight in CARDS:
        case = Case("sdxl", 1024, 1, "full", eight=eight, rank=8)
        with only_free(card, (gigabytes - others) * GIGABYTE) as ballast:
            meter = PhaseMeter(card, ballast)
            done = run_case(card, case, meter)
        name, most = max(((name, peak.reserved) for name, peak in meter.peaks.items()), key=lambda pair: pair[1])
        planned = max(done.phases, key=lambda phase: done.phases[phase])
        row = {"card GB": gigabytes, "free GB": gigabytes - others, "most MB": most, "in": name}
        rows.append(row | {"planned MB": done.phases[planned], "planned in": planned, "s a step": done.seconds})
        require(most <= (gigabytes - others) * 1024, f"{most:.0f} MB were taken on a card with {gigabytes - others:g} GB free")
    return {"rows": rows}


def plan_is_its_largest_phase(card: Card) -> Figures:
    """E2 on any device: what a run needs is the largest of load, captions, pictures, step, preview and save, each listed."""
    case = Case("sdxl", 1024 if card.is_cuda else 128, 1, "full")
    plan = plan_of(card, config_of(card, case, card.new_folder()))
    names = [phase.name for phase in plan.memory_phases]
    require(names == [LOAD, CAPTIONS, PICTURES, STEP, PREVIEW, SAVE], f"the plan's phases are {names}")
    require(plan.needed_mb == max(phase.needed_mb for phase in plan.memory_phases), "the plan is not its largest phase")
    return {phase.name: phase.needed_mb for phase in plan.memory_phases}


BLOCKS = (
    Block("E2-plan", "the plan of SDXL is the largest of its phases", plan_is_its_largest_phase, 25.0, 2.0),
    Block("memory-sd15", "Stable Diffusion 1.5 at 512 px: each phase beside the plan", sd15_memory, 60.0, 6.0),
    Block("E2-small-cards", "SDXL on 8 and 6 GB: captions, then pictures, then the U-Net", small_cards, 50.0),
    Block("memory-sdxl", "SDXL at 1024 px: each phase beside the plan", sdxl_memory, 70.0),
)
