"""demo [--out DIR] [--set a.b=c]... [--json]: a complete run on the small model that ships with the project"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, add_overrides
from lora_trainer.cli.console import Console
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig

PROMPT = "a sks crescent on a white background"
OPTIONS = "--w 64 --h 64 --d 9 --l 5 --s 20"
WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
SAMPLES = 6
"""Seeds drawn without and with the result."""
ENLARGED, GAP = 2, 6


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    folder = say("where everything goes; without: ./demo-out")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help=console.translate(folder))
    add_overrides(parser, console)
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Trains the crescent, draws samples and the grid, writes the report, and prints which cell is best."""
    from lora_trainer.cli.console import FAILED
    from lora_trainer.cli.foreground import exit_status

    started = time.monotonic()
    args.out = args.out.absolute()
    console.note(
        say(
            "Trains a crescent that the small model has never seen, then draws it. About three minutes; everything goes to {folder}.",
            folder=str(args.out),
        )
    )
    config = _config(args.out, args.overrides)
    job = _train(config, args.out, console)
    result: dict[str, Any] = {"run": str(job.folder.path), "outcome": job.status.outcome, "files": _files(job), "grid": None}
    code = exit_status(job.status)
    if code == 0:
        console.note(say("Drawing samples without and with the result"))
        result["samples"] = _samples(config, job, args.out)
        grid = _grid(job, args.out, console)
        code = exit_status(grid.status)
        result |= _grid_result(args.out, console)
        _report(args.out, job, result, time.monotonic() - started)
        for name in ("grid.png", "samples.png", "report.txt"):
            if code != FAILED:
                console.line(str(args.out / name))
        console.line(result["verdict"])
    console.document(result)
    return code


def _config(folder: Path, overrides: Sequence[str]) -> TrainConfig:
    """The demo's config, also written to demo.toml, with a name that no earlier demo used. Raises ConfigError."""
    from lora_trainer import assets
    from lora_trainer.config.build import apply_overrides, build
    from lora_trainer.config.files import config_text
    from lora_trainer.files import write_atomically
    from lora_trainer.train.outputs.saving import OutputNames

    pictures = folder / "pictures"
    loras = folder / "loras"
    name, number = "crescent", 2
    while OutputNames(loras, name).existing():
        name, number = f"crescent-v{number}", number + 1
    mapping = {
        "model": {"pretrained_model_name_or_path": assets.TOY},
        "data": {
            "train_data_dir": str(pictures / "train"),
            "trigger_word": "sks",
            "resolution": 64,
            "batch_size": 4,
            "caption_dropout_rate": 0.1,
        },
        "network": {"dim": 8, "alpha": 8},
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"type": "cosine", "warmup_steps": 10, "min_lr_ratio": 0.1},
        "steps": {"max_train_epochs": 8},
        "sample": {"prompts": [f"{PROMPT} {OPTIONS}"]},
        "validate": {"data_dir": str(pictures / "val")},
        "save": {"output_dir": str(loras), "output_name": name, "runs_dir": str(folder / "runs")},
    }
    config = build(apply_overrides(mapping, overrides))
    shutil.copytree(assets.toy_pictures() / "crescent", pictures, dirs_exist_ok=True)
    write_atomically(folder / "demo.toml", config_text(config).encode("utf-8"))
    return config


def _train(config: TrainConfig, folder: Path, console: Console) -> Any:
    from lora_trainer.api.runs import start_run
    from lora_trainer.cli.common_args import host
    from lora_trainer.cli.foreground import ProgressPrinter, print_outcome, run_job
    from lora_trainer.jobs.job import Job

    own_host = host()
    config = start_run.resolve_paths(config, own_host)
    start_run.raise_problems(start_run.find_problems(config, own_host))
    run_folder = start_run.create_run_folder(config)
    job = Job(start_run.training_work(config, own_host, run_folder), run_folder, [ProgressPrinter(console)])
    run_job(job, console)
    print_outcome(job, console)
    return job


def _files(job: Any) -> list[str]:
    return [file["path"] for file in job.folder.manifest().get("files", [])]


def _samples(config: TrainConfig, job: Any, folder: Path) -> list[str]:
    """Draws the same seeds without the network (top row) and with it (bottom row). Returns the sheet and the single pictures."""
    from PIL import Image

    from lora_trainer.cli.common_args import host
    from lora_trainer.cli.sample import ImageSampler
    from lora_trainer.host.base import find_checkpoint
    from lora_trainer.train.previews.preview_prompts import SampleRequest, parse_prompt_line

    final = Path(next(file["path"] for file in job.folder.manifest()["files"] if file["final"]))
    sampler = ImageSampler(find_checkpoint(config.model.pretrained_model_name_or_path, host().checkpoints()))
    request = parse_prompt_line(f"{PROMPT} {OPTIONS}", SampleRequest(""))
    cell_width, cell_height = request.width * ENLARGED + GAP, request.height * ENLARGED + GAP
    sheet = Image.new("RGB", (SAMPLES * cell_width + GAP, 2 * cell_height + GAP), "#d1d5db")
    paths = []
    for row, weight in enumerate((0.0, 1.0)):
        for column, picture in enumerate(sampler.draw_seeds(request, range(1, SAMPLES + 1), [(final, weight)])):
            path = folder / "samples" / f"weight-{weight:g}-seed-{column + 1}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            paths.append(str(path))
            large = picture.resize((request.width * ENLARGED, request.height * ENLARGED), Image.Resampling.LANCZOS)
            sheet.paste(large, (column * cell_width + GAP, row * cell_height + GAP))
    sheet.save(folder / "samples.png")
    return [str(folder / "samples.png"), *paths]


def _grid(job: Any, folder: Path, console: Console) -> Any:
    from lora_trainer.api.runs.start_grid import new_grid
    from lora_trainer.cli.common_args import host
    from lora_trainer.cli.foreground import ProgressPrinter, print_outcome, run_job
    from lora_trainer.jobs.job import Job

    name = Path(job.folder.manifest()["files"][-1]["path"]).stem
    prompt = f"{PROMPT} <lora:{name}-NUM:STRENGTH> {OPTIONS}"
    grid_folder, work = new_grid(job.folder, host(), prompt=prompt, weights=WEIGHTS, epochs=(), out=folder)
    grid = Job(work, grid_folder, [ProgressPrinter(console)])
    run_job(grid, console)
    print_outcome(grid, console)
    return grid


def _grid_result(folder: Path, console: Console) -> dict[str, Any]:
    from lora_trainer.cli.grid import read_grid, verdict

    grid = read_grid(folder)
    return {"grid": str(folder / "grid.json"), "best": grid["best"], "verdict": verdict(grid, console.language)}


def _report(folder: Path, job: Any, result: dict[str, Any], seconds: float) -> None:
    from lora_trainer.files import write_atomically

    manifest = job.folder.manifest()
    losses = [f"  step {entry['step']:>4}, epoch {entry['epoch']}: {entry['loss']:.4f}" for entry in manifest["validation"]]
    lines = [
        "LoRA Trainer: demo",
        "",
        result["verdict"],
        "",
        f"run        {result['run']}",
        f"took       {seconds:.0f} s",
        "pictures   grid.png (epochs x weights), samples.png (above without the network, below with it)",
        "",
        "validation loss (pictures that were not trained on)",
        *losses,
        "",
        "files",
        *(f"  {path}" for path in result["files"]),
        "",
        job.folder.report_file.read_text(encoding="utf-8"),
    ]
    write_atomically(folder / "report.txt", "\n".join(lines).encode("utf-8"))
