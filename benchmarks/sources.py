"""What it costs to get a model from each source, beside diffusers' own loading of the same file: seconds, and memory at its peak.

    python benchmarks/sources.py                            the small shape of Stable Diffusion 1, a minute
    python benchmarks/sources.py --shapes sd1 sdxl          full size: 2 and 7 GB are written three times, and read from the disk's cache

Each way is a process of its own that has imported what it needs; seconds are those of the CPU, memory is what the process holds at the
peak more than before, pages of a mapped file that were read among it. The VAE is in 32 bits in every way but the shared one.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import random_checkpoint
from benchmarks.step import machine
from lora_trainer.models import layout
from lora_trainer.models.files import tensor_file
from lora_trainer.models.load import clip_tokenizer, load
from lora_trainer.models.source import FileSource, LiveSource

CPU = torch.device("cpu")
WAYS = ("shared", "file", "file, 32 bits", "ckpt", "folder")
WORDS = {
    "shared": "a loaded model, shared",
    "file": "safetensors, in its own 16 bits",
    "file, 32 bits": "safetensors, in 32 bits",
    "ckpt": ".ckpt, in its own 16 bits",
    "folder": "diffusers' folder, in its own 16 bits",
}
SHARED_SECONDS, SHARED_MB = 0.2, 8.0
"""What lending a loaded model may cost: 8 MB are the modules' own objects."""


def write(folder: Path, family: str, *, tiny: bool) -> None:
    """The same random model as a file, as a .ckpt and as a folder of diffusers."""
    widths = random_checkpoint.SHAPES[family][tiny]
    file = random_checkpoint.write(folder / "model.safetensors", widths, marks=("v_pred",) if family == "sd2" else ())
    torch.save({"state_dict": tensor_file.tensors(file)}, folder / "model.ckpt")
    bundle = load(FileSource(file), CPU, torch.float16)
    bundle.vae.half()
    names = ["text_encoder", "text_encoder_2"]
    for name, module in [("unet", bundle.unet), ("vae", bundle.vae), *zip(names, bundle.text_encoders, strict=False)]:
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        module.save_pretrained(folder / "folder" / name, state_dict=state) if name in names else module.save_pretrained(
            folder / "folder" / name
        )
    (folder / "folder" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")


def ours(way: str, folder: Path, family: str) -> Callable[[], object]:
    """The work of one way, ready to be done."""
    if way == "shared":
        held = _held(folder / "model.safetensors", family)
        return lambda: load(held, CPU)
    path = {"ckpt": folder / "model.ckpt", "folder": folder / "folder"}.get(way, folder / "model.safetensors")
    return lambda: load(FileSource(path), CPU, torch.float32 if "32" in way else torch.float16)


def _held(file: Path, family: str) -> LiveSource:
    """The model as a WebUI holds it: in memory of its own."""
    held = {name: tensor.clone() for name, tensor in tensor_file.tensors(file).items()}
    parts = {
        part: {name: held[f"{layout.part_prefixes(family)[part]}{name}"] for name in names}
        for part, names in layout.split_keys(held, family).items()
    }
    texts = {"text_state": parts["text"], "text_2_state": parts.get("text_2", {})}
    heads = {"unet_heads": layout.row(family).unet_heads, "text_heads": 0}
    return LiveSource(parts["unet"], parts["vae"], **texts, **heads, tokenizer=clip_tokenizer(), path=file, family=family)


def theirs(way: str, folder: Path, family: str) -> Callable[[], object]:
    """The same by diffusers, module by module; it cannot share, so beside "shared" stands its loading of the file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    formats = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), torch.float32 if "32" in way else torch.float16)
    formats["vae"] = torch.float32  # as ours: in 16 bits it overflows
    texts = [(CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")][: 2 if family == "sdxl" else 1]
    if way == "folder":
        kinds = [(UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), *texts]
        return lambda: [
            clip_tokenizer(),
            *(kind.from_pretrained(str(folder / "folder" / name), torch_dtype=formats[name]) for kind, name in kinds),
        ]
    file, ready = (
        folder / ("model.ckpt" if way == "ckpt" else "model.safetensors"),
        {"config": str(folder / "folder"), "local_files_only": True},
    )

    def work() -> object:
        held = load_single_file_checkpoint(str(file))
        made: list[object] = [clip_tokenizer()]
        made += [
            create_diffusers_clip_model_from_ldm(kind, held, subfolder=name, torch_dtype=formats[name], **ready) for kind, name in texts
        ]
        for kind, name in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet")):
            made.append(kind.from_single_file(dict(held), subfolder=name, torch_dtype=formats[name], **ready))
        return made

    return work


def measured(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds, and MB that the process holds at the peak more than before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    begin, before = time.process_time(), _resident("VmRSS")
    kept = work()
    seconds, peak = time.process_time() - begin, _resident("VmHWM") - before
    del kept
    return {"seconds": seconds, "mb": max(0.0, peak)}


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def apart(words: Sequence[str]) -> dict[str, float]:
    """Figures of a process of its own. Raises RuntimeError with its last words when it fails."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-800:])
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def rows_of(family: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way of one model: medians of the rounds, ours and the others turn by turn."""
    own = [str(Path(__file__)), "--of", family]
    with tempfile.TemporaryDirectory() as text:
        apart([*own, "--way", "tiny" if chosen.tiny else "full size", "--who", "nobody", "--folder", text])
        found = []
        for way in chosen.ways:
            rounds: dict[str, list[dict[str, float]]] = {"ours": [], "diffusers": []}
            for _ in range(chosen.rounds):
                for who in ("ours", "diffusers"):
                    rounds[who].append(apart([*own, "--way", way, "--who", who, "--folder", text]))
            found.append({"name": f"{family}: {WORDS[way]}", **{who: _middle(figures) for who, figures in rounds.items()}})
    return found


def _middle(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(median(one[name] for one in figures), 3 if name == "seconds" else 0) for name in ("seconds", "mb")}


def table(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [heading, "", "| | ours | diffusers |", "|---|---|---|"]
    for row in rows:
        cells = [f"{row[who]['seconds']:g} s, {row[who]['mb']:g} MB" for who in ("ours", "diffusers")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def missed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is over its limit: sharing costs nothing, and no other way more than diffusers'."""
    shared = [row for row in rows if row["name"].endswith(WORDS["shared"])]
    found = [row["name"] for row in shared if row["ours"]["seconds"] > SHARED_SECONDS or row["ours"]["mb"] > SHARED_MB]
    return found + [row["name"] for row in rows if row["ours"]["mb"] > row["diffusers"]["mb"] * 1.05 + 16]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the shapes that were asked for and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=random_checkpoint.SHAPES, default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.of:
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401 - what is imported is imported
        from transformers import CLIPTextModel  # noqa: F401

        if chosen.who == "nobody":
            write(chosen.folder, chosen.of, tiny=chosen.way == "tiny")
            print("{}")
        else:
            print(json.dumps(measured((ours if chosen.who == "ours" else theirs)(chosen.way, chosen.folder, chosen.of))))
        return
    chosen.tiny = not chosen.shapes
    found = [row for family in chosen.shapes or ["sd1"] for row in rows_of(family, chosen)]
    if chosen.json:
        print(json.dumps({"machine": machine(), "rows": found}))
        return
    print(table(machine(), found))
    for name in missed(found):
        print(f"over its limit: {name}")


if __name__ == "__main__":
    main()
