"""A grid as the host's own X/Y/Z plot makes it: the text that its paste button reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_trainer.config.choices.samplers import webui_names
from lora_trainer.grid.tags import Recipe
from lora_trainer.train.previews.preview_prompts import SampleRequest

EPOCH, WEIGHT = "[LoRA Trainer] Epoch", "[LoRA Trainer] Weight"


def plot_text(recipe: Recipe, request: SampleRequest, numbers: Sequence[str], weights: Sequence[float], *, own_axes: bool) -> str:
    """Infotext of the whole grid: weights along X, epochs along Y. `numbers` as in file names, "000001".

    With `own_axes` the prompt keeps `<lora:NAME-NUM:STRENGTH>` and the trainer's axes fill it. Without, the prompt names the
    first file and weight, and Prompt S/R replaces them: its first value is real, so that no cell is wasted.
    `recipe.prompt` is without `--` options here. Script and axis labels are those of A1111.
    """
    if own_axes:
        prompt = recipe.prompt
        axes = {"X Type": WEIGHT, "X Values": _csv(f"{weight:g}" for weight in weights), "Y Type": EPOCH, "Y Values": _csv(numbers)}
    else:
        prompt, by_weight, by_file = _searched(recipe, request, numbers, weights)
        axes = {"X Type": "Prompt S/R", "X Values": by_weight, "Y Type": "Prompt S/R", "Y Values": by_file}
    return infotext(prompt, request, {"Script": "X/Y/Z plot", **axes})


def picture_text(recipe: Recipe, request: SampleRequest, stem: str, weight: float) -> str:
    """Infotext of one cell, for "Send to txt2img" and for the picture's own file."""
    return infotext(recipe.filled(stem, weight), request, {})


def infotext(prompt: str, request: SampleRequest, more: Mapping[str, Any]) -> str:
    """Prompt, negative prompt and one line of parameters, quoted as the host does."""
    pairs = {
        "Steps": request.steps,
        "Sampler": webui_names(request.sampler)[0],
        "CFG scale": f"{request.cfg:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        **({"Clip skip": request.clip_skip} if request.clip_skip > 1 else {}),
        **more,
    }
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items())
    return "\n".join([prompt, *([f"Negative prompt: {request.negative}"] if request.negative else []), last])


def _searched(recipe: Recipe, request: SampleRequest, numbers: Sequence[str], weights: Sequence[float]) -> tuple[str, str, str]:
    """Prompt with the first file and weight in it, and the values that Prompt S/R puts in their places.

    What is searched is the shortest form that stands only once in what S/R looks through: in "<lora:x-000001:0.2>" that is
    "000001" and "0.2", unless the prompt holds them elsewhere too.
    """
    stems = [f"{recipe.name}-{number}" if number else recipe.name for number in numbers]
    prompt = recipe.filled(stems[0], weights[0])
    looked = f"{prompt}\n{request.negative}"
    by_file = [list(numbers), stems, [f"<lora:{stem}" for stem in stems]]
    by_weight = [[f"{weight:g}" for weight in weights], [f":{weight:g}>" for weight in weights]]
    by_weight.append([f"{stems[0]}:{weight:g}>" for weight in weights])
    return prompt, _csv(_single(by_weight, looked)), _csv(_single(by_file, looked))


def _single(forms: Sequence[Sequence[str]], looked: str) -> Sequence[str]:
    return next((form for form in forms if form[0] and looked.count(form[0]) == 1), forms[-1])


def _csv(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(list(values))
    return text.getvalue()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text
