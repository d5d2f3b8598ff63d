"""What the made-up server of mock_server.py knows: pictures, plans, a run of 1 320 steps, a grid."""

from __future__ import annotations

import math
import random
from typing import Any

from lora_trainer.api.options import default_config

from .drawn import PLACES

BEGAN = 1_795_500_000.0
EACH, EPOCHS = 132, 10
TAGS = ["girl", "solo", "red scarf", "looking at viewer", "coat", "smile", "upper body", "day", "beach", "ocean"]
SCENARIOS = (
    "idle",
    "empty",
    "training",
    "paused",
    "changed",
    "failed",
    "interrupted",
    "finished",
    "grid",
    "halfgrid",
    "long",
    "nofit",
    "many",
    "refused",
)
DONE = {
    "training": 766,
    "changed": 766,
    "paused": 766,
    "failed": 838,
    "interrupted": 838,
    "resumed": 900,
    "finished": 1320,
    "grid": 1320,
    "halfgrid": 1320,
    "long": 10_000,
}
STATE_AT = 792
RATES = {"unet": 1.4e-4, "text_encoder": 7e-5}
MODELS = [
    {
        "title": "v1-5-pruned-emaonly.safetensors",
        "family": "sd1",
        "prediction": "epsilon",
        "zero_terminal_snr": False,
        "native_size": 512,
        "because": "the WebUI's configuration",
    },
    {
        "title": "noobai-v.safetensors",
        "family": "sdxl",
        "prediction": "v",
        "zero_terminal_snr": True,
        "native_size": 1024,
        "because": "the checkpoint's key v_pred",
    },
]
"""What is loaded, and whatever else is chosen."""
WARMUP = 66


def rate_at(step: int, total: int, base: float) -> float:
    """Warm-up, then a cosine; `step` 1 is the first."""
    progress = max(0.0, (step - WARMUP) / max(1, total - WARMUP))
    return base * (step / WARMUP if step < WARMUP else 0.5 * (1 + math.cos(math.pi * progress)))


def schedule(total: int, share: float = 1.0) -> dict[str, list[list[float]]]:
    """The curves of check's "schedule"."""
    steps = sorted({1, WARMUP, total, *range(1, total, max(1, total // 100))})
    return {group: [[step, share * rate_at(step, total, base)] for step in steps] for group, base in RATES.items()}


def loss_at(step: int, noise: random.Random) -> float:
    return 0.105 + 0.05 * math.exp(-step / 420) + noise.gauss(0, 0.017)


def held_at(epoch: int) -> float:
    return 0.104 + 0.0022 * (epoch - 6) ** 2 * (0.64 if epoch < 6 else 0.36) + (0.021 if epoch == 0 else 0)


def picture(number: int, many: bool = False) -> dict[str, Any]:
    noise = random.Random(number)
    width, height = noise.choice([(1200, 1600), (1200, 1600), (1024, 1024), (1600, 1200), (1080, 1920)])
    place = list(PLACES)[number % len(PLACES)]
    notes: list[str] = []
    reason, usable, kept = "", True, 1.0
    crop = [0.0, 0.0, 1.0, 1.0]
    if number % 34 == 10:
        notes, usable, reason = ["broken"], False, "file ends early"
    elif number % 34 == 14:
        notes, width, height = ["small"], 380, 380
    elif number % 34 == 17:
        notes, reason = ["copy"], "like mika_07, used"
    elif number % 34 in (9, 20):
        notes, width, height = ["rotated"], 1080, 1920
    elif number % 34 == 6:
        notes, width, height = ["transparent"], 1024, 1024
    if number % 34 in (13, 18, 22, 27, 30):
        kept, crop = 0.9, [0.05, 0.0, 0.95, 1.0]
    bucket = [448, 576] if height > width else [512, 512] if height == width else [576, 448]
    captioned = number % 6 != 0
    tags = noise.sample(TAGS[2:], 5)
    return {
        "key": f"mika_{number:02d}.jpg",
        "path": f"/photos/mika/{place}/{number}/{width}x{height}",
        "name": f"mika_{number:02d}.jpg",
        "width": width,
        "height": height,
        "bucket": bucket,
        "crop": crop,
        "kept": kept,
        "notes": notes,
        "usable": usable,
        "reason": reason,
        "validation": False,
        "caption": ", ".join(["girl", "solo", *tags]) if captioned else "",
        "has_caption": captioned,
        "repeats": 8,
        "group": 0,
        "dataset": 0,
        **({"like": "mika_07.jpg"} if "copy" in notes else {}),
    }


class World:
    """What the made-up server knows."""

    def __init__(self) -> None:
        self.scenario = "idle"
        self.now = BEGAN + 425
        self.captions: dict[str, str] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.looks = 0
        self.resumable = True
        self.changed_at = 500

    def path_of(self, number: int) -> str:
        """Path of a picture by its number."""
        return str(picture(number)["path"])

    def write_caption(self, path: str, text: str) -> str:
        """Keeps a caption; returns the old one."""
        old = self.captions.get(path, picture(int(path.split("/")[4]))["caption"])
        self.captions[path] = text
        return str(old)

    # -- pictures

    def pictures(self, config: dict[str, Any]) -> dict[str, Any]:
        data = config.get("data", {})
        out = set(data.get("leave_out", []))
        found = [picture(number) for number in range(1, (2000 if self.scenario == "many" else 34) + 1)]
        for one in found:
            if one["key"] in out:
                one.update(usable=False, notes=[*one["notes"], "left-out"])
        for text in data.get("crops", []):
            key, _, shares = text.rpartition("=")
            frame = [float(share) for share in shares.split(",")]
            kept = (frame[2] - frame[0]) * (frame[3] - frame[1])
            for one in found:
                if one["key"] == key:
                    one.update(frame=frame, crop=frame, kept=kept)
        groups = [{"number": 0, "name": "mika", "folder": "D:\\photos\\mika", "kind": "trained", "count": 34, "used": 33, "captions": 28}]
        groups[0] |= {"repeats": 8, "words": "", "size": None, "batch": None}
        if data.get("reg_data_dir"):
            regular = [picture(number) | {"regularisation": True, "notes": [], "group": 1, "reason": ""} for number in range(40, 52)]
            found += [one | {"key": f"regularisation/{one['key']}", "usable": True, "kept": 1.0} for one in regular]
            groups.append(
                groups[0]
                | {"number": 1, "name": "1_girl", "kind": "regularisation", "count": 12, "captions": 0, "repeats": 1, "words": "girl"}
            )
        used = [one for one in found if one["usable"] and not one.get("regularisation")]
        buckets: dict[tuple[int, int], int] = {}
        for one in used:
            buckets[tuple(one["bucket"])] = buckets.get(tuple(one["bucket"]), 0) + 1
        captions = sum(one["has_caption"] for one in used)
        return {
            "groups": groups,
            "shapes": [[[384, 640], [448, 576], [512, 512], [576, 448], [640, 384]]],
            "problems": [],
            "masks": None,
            "understood": f"One folder: {len(found)} pictures, {captions} captions (.txt)",
            "pictures": found,
            "counts": {
                "all": len(found),
                "used": len(used),
                "needs_look": 3,
                "cropped": 5,
                "left_out": len(found) - len(used),
                "captions": captions,
                "without": len(used) - captions,
            },
            "buckets": [{"width": w, "height": h, "count": n} for (w, h), n in buckets.items()],
            "validation": {"count": 4 if config.get("validate") else 0, "source": "folder"},
            "warnings": [],
            "trigger": {
                "tokens": 2,
                "warning": "" if data.get("trigger_word", "") != "girl" else "An ordinary word: the model knows it already.",
            },
        }

    def caption_list(self, config: dict[str, Any]) -> dict[str, Any]:
        trigger = config.get("data", {}).get("trigger_word", "")
        shuffled = config.get("data", {}).get("shuffle_caption", False)
        listed, counts = [], {}
        for number in range(1, 35):
            one = picture(number)
            if not one["usable"]:
                continue
            raw = self.captions.get(one["path"], one["caption"])
            tags = [tag for tag in raw.split(", ") if tag]
            for tag in tags:
                counts[tag] = counts.get(tag, 0) + 1
            parts = [{"text": trigger, "kind": "trigger"}] if trigger else []
            parts += [
                {"text": tag, "kind": "shuffled" if shuffled else "plain"}
                for tag in (random.Random(number).sample(tags, len(tags)) if shuffled else tags)
            ] or [{"text": "girl", "kind": "class"}]
            listed.append(
                {
                    **{key: one[key] for key in ("key", "name", "path")},
                    "parts": parts,
                    "tokens": 4 + 3 * len(tags),
                    "limit": 75,
                    "has_caption": bool(raw),
                    "raw": raw,
                    "caption_file": "",
                }
            )
        with_caption = sum(one["has_caption"] for one in listed)
        tags = [{"text": trigger, "count": len(listed), "kind": "trigger"}] if trigger else []
        tags += [{"text": text, "count": count, "kind": "plain"} for text, count in sorted(counts.items(), key=lambda item: -item[1])]
        return {
            "line": f"{with_caption} of {len(listed)} have captions (.txt) · {len(listed) - with_caption} will use: {trigger}, girl",
            "tags": tags,
            "pictures": listed,
        }

    # -- settings

    def plan(self, config: dict[str, Any]) -> dict[str, Any]:
        batch = config.get("data", {}).get("batch_size", 1)
        if not isinstance(batch, int) or batch < 1:
            return {
                "problems": [
                    {
                        "path": "data.batch_size",
                        "message": "Pictures per step must be a whole number from 1 to 256.",
                        "fix": "Write 1, 2 or 4.",
                    }
                ]
            }
        epochs = config.get("steps", {}).get("max_train_epochs", 10) or 10
        repeats = config.get("data", {}).get("num_repeats", 1)
        each = math.ceil(33 * repeats / batch)
        rank = config.get("network", {}).get("dim", 16)
        saving = config.get("memory", {}).get("gradient_checkpointing", False)
        active = 1300 * batch * (0.3 if saving else 1)
        parts = {"model": 2150.0, "network": 6.4 * rank, "activations": active, "workspace": 614.0}
        free = 3500.0 if self.scenario == "nofit" else 6963.0
        warning = {"path": "network.alpha", "message": "Alpha is larger than rank: it acts 2 times as strong.", "fix": "Half is usual."}
        warnings = [warning] if config.get("network", {}).get("alpha", 8) > rank else []
        return {
            "images": 33,
            "buckets": [],
            "steps_per_epoch": each,
            "epochs": epochs,
            "total_steps": each * epochs,
            "seconds": each * epochs * 0.31 * (1 + batch),
            "files": epochs + 1,
            "disk_mb": 1.18 * rank * (epochs + 1),
            "memory": {
                "parts": parts,
                "phases": {"load": 900.0, "step": sum(parts.values()), "save": 950.0},
                "needed_mb": sum(parts.values()),
                "free_mb": free,
                "fits": sum(parts.values()) <= free,
                "estimate": True,
            },
            "model": MODELS[bool(config.get("model", {}).get("pretrained_model_name_or_path"))],
            "schedule": schedule(each * epochs),
            "effective": {group: {"rate": rate, "with_network": rate / 2, "least": 0.0} for group, rate in RATES.items()},
            "problems": [],
            "warnings": warnings,
        }

    def wizard(self, config: dict[str, Any], typed: list[str]) -> dict[str, Any]:
        wanted = [
            ("data.batch_size", "Pictures per step", 2, 1, "6.8 GB are free; two need 5.4 GB"),
            ("network.dim", "Rank", 16, 32, "a character needs no more; half the file"),
            ("network.alpha", "Alpha", 8.0, 32.0, "half the rank: the pair these rates belong to"),
            ("optimizer.unet_lr", "U-Net learning rate", 1.4e-4, 1e-4, "two pictures per step: × √2"),
            ("optimizer.text_encoder_lr", "Text encoder learning rate", 7e-5, 5e-5, "two pictures per step: × √2"),
            ("schedule.min_lr_ratio", "Rate at the end", 0.1, 0.0, "a cosine that ends at a tenth keeps learning"),
            ("schedule.warmup_steps", "Warm-up", 66, 0, "5 % of 1 320"),
            ("data.num_repeats", "Repeats", 7, 8, "few pictures"),
            ("steps.max_train_epochs", "Epochs", 12, 10, "few pictures"),
        ]
        changes = []
        for path, label, value, _, because in wanted:
            section, _, name = path.partition(".")
            old = config.get(section, {}).get(name, default_config({})[section][name])
            if old != value:
                changes.append({"path": path, "label": label, "value": value, "old": old, "because": because, "typed": path in typed})
        return {"changes": changes, "plan": {}}

    # -- runs

    def steps_done(self) -> int:
        return DONE.get(self.scenario, 0)

    def events(self) -> list[dict[str, Any]]:
        done = self.steps_done()
        if not done:
            return []
        long = self.scenario == "long"
        each, epochs = (1000, 10) if long else (EACH, EPOCHS)
        total = each * epochs
        plan = self.plan({"data": {"num_repeats": 8, "batch_size": 2}}) | {"steps_per_epoch": each, "epochs": epochs, "total_steps": total}
        noise = random.Random(4)
        second = 0.55
        listed: list[dict[str, Any]] = [
            {"event": "started", "plan": plan, "device": "cuda", "dtype": "float16", "processes": 1, "time": BEGAN}
        ]
        add = lambda time_, **event: listed.append({**event, "time": BEGAN + time_})  # noqa: E731
        add(1, event="phase", name="caching", total=33)
        add(9, event="validated", step=0, epoch=0, loss=held_at(0))
        add(10, event="sampled", step=0, epoch=0, path="samples/0-0.png", prompt="photo of sks mika, by the sea --s 20", seed=1337, index=0)
        add(10, event="sampled", step=0, epoch=0, path="samples/0-1.png", prompt="photo of sks mika, in a café --s 20", seed=1337, index=1)
        add(10, event="sampled", step=0, epoch=0, path="samples/0-2.png", prompt="photo of a girl, by the sea --s 20", seed=1337, index=2)
        average = 0.152
        steps = [*range(1, 839), *range(STATE_AT + 1, done + 1)] if self.scenario == "resumed" else range(1, done + 1)
        second_time = False
        for step, before in zip(steps, [0, *steps], strict=False):
            if step < before:
                add(12 + 838 * second, event="resumed", step=STATE_AT, reason="state", epoch=6)
                second_time = True
            if second_time and step == 850:
                add(12 + step * second, event="changed", path="memory.gradient_checkpointing", old=False, new=True, step=step)
            epoch = (step - 1) // each + 1
            loss = max(0.03, loss_at(step * (1320 / total), noise))
            average = 0.97 * average + 0.03 * loss
            rate = rate_at(step, total, RATES["unet"]) * self.share(step)
            at = 12 + step * second
            add(
                at,
                event="stepped",
                step=step,
                epoch=epoch,
                loss=loss,
                loss_average=average,
                lr=rate,
                grad_norm=0.2,
                seconds=second,
                vram_mb=5427,
                rates={},
                skipped=2 if second_time else 0,
                loss_scale=16384.0 if self.scenario == "resumed" else 0.0,
            )
            if self.scenario == "changed" and step == self.changed_at:
                add(at, event="changed", path="optimizer.unet_lr", old=1.4e-4, new=7e-5, step=step)
                add(at, event="changed", path="save.every_n_epochs", old=None, new=2, step=step)
            if step % each == 0:
                add(at, event="validated", step=step, epoch=epoch, loss=held_at(epoch))
                add(
                    at,
                    event="saved",
                    step=step,
                    epoch=epoch,
                    path=f"C:\\sd\\models\\Lora\\mika-{epoch:06d}.safetensors",
                    sha256="0" * 64,
                    bytes=19_818_086,
                    final=False,
                )
                for index, prompt in enumerate(
                    ("photo of sks mika, by the sea", "photo of sks mika, in a café", "photo of a girl, by the sea")
                ):
                    add(
                        at,
                        event="sampled",
                        step=step,
                        epoch=epoch,
                        path=f"samples/{epoch}-{index}.png",
                        prompt=prompt + " --s 20",
                        seed=1337,
                        index=index,
                    )
        end = 12 + done * second
        if self.scenario == "paused":
            add(end + 1, event="paused", step=done, reason="user")
        elif self.scenario == "failed":
            add(end - 1, event="warned", message="another program took 1.6 GB: 5.2 GB left for the run", path="")
            add(end, event="failed", step=done, problems=self.problems())
        elif self.scenario in ("finished", "grid", "halfgrid", "long"):
            add(end, event="finished", step=done, files=[])
        for number, event in enumerate(listed, 1):
            event["n"] = number
        return listed

    def share(self, step: int) -> float:
        """How much of the planned rate a change left."""
        return 0.5 if self.scenario == "changed" and step > self.changed_at else 1.0

    def problems(self) -> list[dict[str, str]]:
        message = "The run needed 5.3 GB of memory and 5.2 GB were left: another program had just taken 1.6 GB."
        fix = "Turn on gradient checkpointing: 3.4 GB instead of 5.3, about 20 % slower."
        return [{"path": "memory.gradient_checkpointing", "message": message, "fix": fix}]

    def run(self) -> dict[str, Any] | None:
        done = self.steps_done()
        if not done or self.scenario == "interrupted":
            return None
        if self.scenario == "halfgrid":
            return {
                "id": "mika-grid",
                "name": "mika-grid",
                "kind": "grid",
                "state": "sampling",
                "phase": "rendering",
                "done": 23,
                "total": 50,
                "step": 0,
                "total_steps": 0,
                "problems": [],
                "error": "",
            }
        state = {"training": "training", "changed": "training", "resumed": "training", "paused": "paused", "failed": "failed"}.get(
            self.scenario, "finished"
        )
        total = 10_000 if self.scenario == "long" else 1320
        return {
            "id": "mika",
            "name": "mika",
            "kind": "train",
            "state": state,
            "phase": "training",
            "done": 0,
            "total": 0,
            "step": done,
            "total_steps": total,
            "epoch": (done - 1) * 10 // total + 1,
            "epochs": 10,
            "steps_per_epoch": total // 10,
            "speed": 0.55,
            "seconds_left": (total - done) * 0.55 if state == "training" else None,
            "loss": 0.093,
            "loss_average": 0.109,
            "vram_mb": 5427,
            "problems": self.problems() if state == "failed" else [],
            "error": "",
            "outcome": None if state in ("training", "paused") else state,
            "paused_because": "user" if state == "paused" else "",
            "device": "cuda",
            "n": 0,
        }

    def status(self) -> dict[str, Any]:
        self.looks += 1
        busy = self.scenario in ("training", "changed", "resumed")
        used = 6656 if busy else 3379
        body = {
            "host": {"name": "a1111", "version": "1.10.1"},
            "model": {
                "title": "v1-5-pruned-emaonly.safetensors [6ce0161689]",
                "path": "D:\\sd\\models\\Stable-diffusion\\v1-5-pruned-emaonly.safetensors",
                "family": "sd1",
                "prediction": "epsilon",
                "clip_skip": 1,
                "native_size": 512,
                "trainable": True,
                "reason": "",
                "because": "the key structure",
            },
            "memory": {"device": "cuda:0", "total_mb": 8192, "free_mb": 8192 - used, "host_mb": 1229 if busy else used},
            "windows": 2,
            "run": self.run(),
            "language": "en",
        }
        if self.scenario == "refused":
            body["model"] = {
                "title": "sd_xl_base_1.0",
                "path": "",
                "family": "sdxl",
                "prediction": "epsilon",
                "trainable": False,
                "reason": "This is an SDXL model; SD 1.x can be trained here.",
            }
        return {"version": f"{self.scenario}-{self.run() and self.run()['step']}", **body}

    def history(self) -> list[dict[str, Any]]:
        old = {
            "id": "mika-old",
            "name": "mika, first try",
            "kind": "train",
            "of": "",
            "state": "stopped",
            "outcome": "stopped",
            "started": BEGAN - 90_000,
            "step": 400,
            "total_steps": 2640,
            "epoch": 2,
            "best_epoch": 2,
            "mb": 12.4,
            "files": 2,
        }
        run = self.run()
        if not run and self.scenario != "interrupted":
            return [old]
        state = {"halfgrid": "finished", "interrupted": "interrupted"}.get(self.scenario) or (run or {})["state"]
        return [
            {
                "id": "mika",
                "name": "mika",
                "kind": "train",
                "of": "",
                "state": state,
                "outcome": None,
                "started": BEGAN,
                "step": self.steps_done(),
                "total_steps": 1320,
                "state_step": (1320 if state == "finished" else STATE_AT) if self.resumable else None,
                "epoch": 6,
                "best_epoch": 6,
                "mb": 31.5,
                "files": 10,
            },
            old,
        ]

    def manifest(self) -> dict[str, Any]:
        saved = self.steps_done() // EACH
        files = [
            {
                "epoch": epoch,
                "step": epoch * EACH,
                "path": f"C:\\sd\\models\\Lora\\mika-{epoch:06d}.safetensors",
                "sha256": "",
                "bytes": 19_818_086,
                "final": False,
                "validation": held_at(epoch),
            }
            for epoch in range(1, min(10, saved) + 1)
        ]
        return {"name": "mika", "files": files}

    def grid(self) -> dict[str, Any]:
        weights = [0.2, 0.4, 0.6, 0.8, 1.0]
        cells = [
            {"epoch": e, "weight": w, "prompt": "", "image": f"grid/{e}-{w}.png", "scores": None} for e in range(1, 11) for w in weights
        ]
        if self.scenario not in ("grid", "halfgrid"):
            return {"cells": [], "best": None}
        for cell in cells:
            if cell["epoch"] in (5, 6, 7) and cell["weight"] in (0.8, 1.0):
                cell["scores"] = {"likeness": 0.71, "keeping": 0.88, "copies": False}
            cell["nearest"] = "/photos/mika/sea/1/1200x1600"
        about = {
            "prompt": "photo of <lora:mika-NUM:STRENGTH> sks mika, by the sea",
            "weights": weights,
            "epochs": list(range(1, 11)),
            "seed": 1337,
            "steps": 20,
            "cfg": 7,
            "sampler": "ddim",
            "width": 512,
            "height": 512,
            "base": "grid/0-0.png",
        }
        if self.scenario == "halfgrid":
            return {**about, "cells": cells[:23], "best": None}
        best = {
            "epoch": 6,
            "weight": 0.8,
            "because": "Best product of the two, and the lowest validation loss. From epoch 8 on, pictures copy the training set.",
            "sure": True,
        }
        return {**about, "cells": cells, "best": best}
