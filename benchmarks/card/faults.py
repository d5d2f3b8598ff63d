"""Faults that were found by reading, each with its proof on the device: remedies, spilling, fallbacks, other cards, skipped steps."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.card.block import Block, Card, Figures, require
from benchmarks.card.meter import Room, only_free
from benchmarks.card.precision import plant_overflows
from benchmarks.card.runs import crescent, ended_well, events_of, losses, prepared, seen_trainers, warnings
from lora_trainer.config import effective
from lora_trainer.errors import ConfigError
from lora_trainer.events import Event, Finished, Phase, Started, Stepped
from lora_trainer.host import devices
from lora_trainer.host.memory import MemoryLimit
from lora_trainer.host.out_of_memory import LITTLE_BYTES, is_out_of_memory
from lora_trainer.host.standalone import FileLease
from lora_trainer.install_command import BITSANDBYTES, install_command
from lora_trainer.models.source import FileSource
from lora_trainer.train.guards import SlowStepGuard
from lora_trainer.train.memory import placement
from lora_trainer.train.planning.memory_plan import Machine
from lora_trainer.train.step.cuda_graphs import CudaGraphs, CudaRecorder

MEGABYTE, GIGABYTE = 2**20, 2**30
LOSSES_OFF = 1e-2
BOTH = 0.9
"""With two models at once a whole one more is there; a file that is read into another number format counts as half of one on a CPU."""


def remedies_keep_torch(card: Card) -> Figures:
    """E3: the command that installs bitsandbytes names a version for this torch, and takes no dependency along."""
    command = install_command("bitsandbytes")
    installed = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    expected = next(bound for since, bound in BITSANDBYTES if installed >= since)
    require("--no-deps" in command and expected in command, f"torch {torch.__version__}: {command}")
    require(sys.executable in command, "the command is for another Python")
    return {"command": command.replace(sys.executable, "python")}


def windows_limit(card: Card) -> Figures:
    """E4: what a run on Windows is kept within. On this system the limit is set as there: past it torch raises, afterwards it does not."""
    figures: Figures = {}
    if card.is_cuda:
        with only_free(card, 3 * GIGABYTE):
            with patch.object(sys, "platform", "win32"):
                limit = MemoryLimit(card.device)
            with limit:
                figures["within the limit"] = _allocates(card, 2 * GIGABYTE)
                figures["past the limit"] = _allocates(card, int(2.9 * GIGABYTE))
                limit.lift()
                figures["lifted"] = _allocates(card, int(2.9 * GIGABYTE))
                limit.set()
            figures["afterwards"] = _allocates(card, int(2.9 * GIGABYTE))
        wanted = {"within the limit": True, "past the limit": False, "lifted": True, "afterwards": True}
        require(figures == wanted, f"{figures}")
    guard, seconds = SlowStepGuard(expected=0.5), 0.5 * 10
    messages = [guard.check(seconds, lambda: 0.01) for _ in range(25)]
    require(sum(message is not None for message in messages) == 1, "steps that are slow from the first on are not noticed")
    require(SlowStepGuard(expected=0.5).check(0.6, lambda: 0.01) is None, "a step as planned is called slow")
    return figures | {"slow from the first step on": "noticed once"}


def _allocates(card: Card, size: int) -> bool:
    """Whether so many bytes can be had at once."""
    torch.cuda.empty_cache()
    try:
        torch.empty(size, dtype=torch.uint8, device=card.device)
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def compiling_never_ends_a_run(card: Card) -> Figures:
    """E5: with compiled blocks the losses are the eager ones; where compiling fails, at whatever call, the run says so and goes on."""
    plain = _losses(card)
    figures: Figures = {}
    if card.is_cuda:
        compiled, said = _compiled(card)
        figures |= {"compiled": said or "yes", "losses off": _off(plain, compiled)}
        require(figures["losses off"] <= LOSSES_OFF, f"compiled losses are {figures['losses off']:.2g} off")

    def refuses(*args: object, **kwargs: object) -> object:
        raise RuntimeError("torch.compile is not supported here")

    with patch.object(torch, "compile", refuses):
        fallen_back, said = _compiled(card)
    require(len(said) == 1, f"what was said of a compiler that fails: {said}")
    require(_off(plain, fallen_back) <= (LOSSES_OFF if card.is_cuda else 0.0), "without the compiler the losses are others")
    return figures | {"without a compiler": said[0]}


def _compiled(card: Card) -> tuple[list[float], list[str]]:
    folder = card.new_folder()
    events = events_of(card, crescent(folder, steps__max_train_steps=4, memory__compile=True), folder)
    require(isinstance(events[-1], Finished), "the run did not finish")
    return losses(events), warnings(events, "not compiled")


def _losses(card: Card, **changes: Any) -> list[float]:
    folder = card.new_folder()
    return losses(events_of(card, crescent(folder, **{"steps__max_train_steps": 4, **changes}), folder))


def _off(plain: list[float], other: list[float]) -> float:
    return max(abs(one / two - 1) for one, two in zip(other, plain, strict=True))


def eight_bits_refuse_by_name(card: Card) -> Figures:
    """E5: what calculates with the frozen weights themselves is refused over 8 bits, with the option's name and a remedy."""
    cases: dict[str, dict[str, Any]] = {
        "dora": {"network__type": "dora"},
        "full": {"network__type": "full"},
        "lokr + dora": {"network__type": "lokr", "network__dora_wd": True},
        "loha + dora": {"network__type": "loha", "network__dora_wd": True},
    }
    for name, changes in cases.items():
        try:
            config = crescent(card.new_folder(), memory__fp8_base_unet=True, **changes)
        except ConfigError as error:
            problem = next((one for one in error.problems if one.path == "memory.fp8_base_unet"), None)
            require(problem is not None and problem.fix.text(), f"{name}: {error}")
        else:
            require(False, f"{name} over 8 bits is not refused ({effective.uses_of_unet_weights(config)})")
    return {"refused": list(cases)}


def library_failures(card: Card) -> Figures:
    """E5: an error of cuDNN or cuBLAS means that memory ran out where little is free, and only there."""
    errors = [RuntimeError(text) for text in ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "Unable to find an engine to execute")]
    total = torch.cuda.mem_get_info(card.device)[1] if card.is_cuda else 0
    plenty = card.is_cuda and torch.cuda.mem_get_info(card.device)[0] > max(LITTLE_BYTES, 0.1 * total) + GIGABYTE
    if not card.is_cuda or plenty:
        require(not any(is_out_of_memory(error, card.device) for error in errors), "an error of a library counts although much is free")
    if not card.is_cuda:
        return {"with much free": "another error"}
    with only_free(card, LITTLE_BYTES // 4):
        require(all(is_out_of_memory(error, card.device) for error in errors), "an error of a library does not count on a full card")
        folder = card.new_folder()
        config = crescent(folder, data__resolution=512, data__batch_size=8, steps__max_train_steps=2)
        _, error = ended_well(card, config, folder)
    return {"with much free": "another error", "on a full card": "out of memory", "a run there": str(error) if error else "finished"}


def graphs_on_their_device(card: Card) -> Figures:
    """E6: graphs are recorded and replayed on the card that trains, here the last one, while the first is the current one."""
    count = torch.cuda.device_count()
    device = torch.device("cuda", count - 1)
    leaf = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], device=device))

    def work(numbers: torch.Tensor) -> torch.Tensor:
        loss = ((leaf * numbers) ** 2).sum()
        loss.backward()
        return loss.detach()

    with torch.cuda.device(0):
        graphs = CudaGraphs(work, [leaf], CudaRecorder(device))
        for number in range(5):
            numbers = torch.full((3,), float(number), device=device)
            result = graphs([numbers])
            result = work(numbers) if result is None else result
            require(float(result) == number**2 * 14, f"call {number} gives {float(result)}")
    require(graphs.replay_count == 4 and not graphs.messages, f"{graphs.replay_count} replays, {graphs.messages}")
    expected = sum(2.0 * number**2 for number in range(5)) * leaf.detach()
    require(leaf.grad is not None and torch.equal(leaf.grad, expected), "the gradient is not the sum of all calls")
    return {"cards": count, "used": str(device), "others": "one card only" if count == 1 else "the first is current"}


def a_new_model_replaces_the_old(card: Card) -> Figures:
    """E6: a model that is read anew is loaded after the old one has gone: never are both there."""
    folder, room = card.new_folder(), Room(card)
    with room.around(), prepared(card, crescent(folder), folder) as trainer:
        model = placement.weight_bytes(trainer.bundle.modules())
        source = trainer.source
        require(isinstance(source, FileSource), "the small model is no file")
        assert isinstance(source, FileSource)
        kept = room.begin_peak()
        trainer.rebuild(FileSource(source.path))
        trainer.make_ready(placement.STEP)
        peak = room.peak - kept
        require(peak <= BOTH * model, f"both models were there: {peak / MEGABYTE:.1f} MB besides the {model / MEGABYTE:.1f} of one")
    return {"model, MB": model / MEGABYTE, "more while replacing, MB": peak / MEGABYTE}


def peak_is_the_runs_own(card: Card) -> Figures:
    """E6: the peak that a run reports begins with the run."""
    before = torch.empty(2 * GIGABYTE, dtype=torch.uint8, device=card.device)
    del before
    torch.cuda.empty_cache()
    folder = card.new_folder()
    peaks = [event.vram_mb for event in events_of(card, crescent(folder), folder) if isinstance(event, Stepped)]
    require(max(peaks) < 1024, f"the run reports {max(peaks):.0f} MB, which the process took before it")
    return {"before the run, MB": 2048, "reported, MB": max(peaks)}


def planned_as_run(card: Card) -> Figures:
    """E6: the number format that the plan counts with is the one that the run computes in; a run of its own counts no host's model."""
    folder = card.new_folder()
    started = next(event for event in events_of(card, crescent(folder), folder) if isinstance(event, Started))
    automatic = devices.auto_precision(card.device)
    expected = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[automatic]
    require(started.dtype == expected, f"planned as {automatic}, run in {started.dtype}")
    memory = {"free_mb": 4000.0, "host_mb": 3000.0}
    machine = Machine.of(card.device.type, memory, lent=True, auto_precision=automatic)
    shared, own = (machine.for_run(crescent(folder, memory__own_process=own)).free_mb for own in (False, True))
    require((shared, own) == (7000.0, 4000.0), f"free for a run that shares the model: {shared}, in a process of its own: {own}")
    return {"automatic": automatic, "run in": started.dtype}


def skipped_at_the_start(card: Card) -> Figures:
    """E7: ten and more steps that overflow at the start of an fp16 run end in no "please report this"; the run goes on to its end."""
    folder = card.new_folder()
    precision, count = ("fp16", 11) if card.is_cuda else ("no", 8)  # without a scaler the tenth in a row ends the run
    config = crescent(folder, memory__mixed_precision=precision, steps__max_train_steps=count + 12)

    def watch(event: Event) -> None:
        if isinstance(event, Phase) and event.name == "training":
            plant_overflows(trainers[0], count)

    with seen_trainers() as trainers:
        events = events_of(card, config, folder, watch=watch)
    last = [event for event in events if isinstance(event, Stepped)][-1]
    require(isinstance(events[-1], Finished) and last.skipped >= count, f"{last.skipped} steps were skipped")
    return {"skipped": last.skipped, "steps": last.step, "scale at the end": last.loss_scale}


def drawing_gets_the_graphs_memory(card: Card) -> Figures:
    """E7: while somebody draws between two steps, graphs hold no memory; the steps after it are the same."""
    changes = {"memory__cuda_graphs": True, "memory__mixed_precision": "no", "steps__max_train_steps": 12, "data__resolution": 256}
    plain = _losses(card, **{**changes, "memory__cuda_graphs": False})
    reserved: list[tuple[int, int]] = []
    calls: list[int] = []

    def one_waits(lease: FileLease, make_room: Callable[[], object]) -> bool:
        calls.append(len(calls))
        if len(calls) != 8:
            return False
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(card.device)
        make_room()
        card.synchronize()
        torch.cuda.empty_cache()
        reserved.append((before, torch.cuda.memory_reserved(card.device)))
        return True

    with patch.object(FileLease, "let_one_through", one_waits):
        replayed = _losses(card, **changes)
    require(bool(reserved), "nobody drew")
    require(reserved[0][1] < reserved[0][0], "the graphs' memory was not given back")
    require(_off(plain, replayed) <= LOSSES_OFF, "the run is another one")
    return {"reserved with graphs, MB": reserved[0][0] / MEGABYTE, "while drawing, MB": reserved[0][1] / MEGABYTE}


BLOCKS = (
    Block("E3-remedies", "the advised command installs a bitsandbytes for this torch, and no torch", remedies_keep_torch, 0.2, 0.2),
    Block("E4-spilling", "a limit as on Windows, and steps that are slow from the first on", windows_limit, 3.0, 0.2),
    Block("E5-fp8", "what cannot be trained over 8 bits is refused by name", eight_bits_refuse_by_name, 0.5, 0.5),
    Block("E5-libraries", "errors of cuDNN and cuBLAS on a full card", library_failures, 6.0, 0.2),
    Block("E6-graphs-device", "graphs on the card that trains", graphs_on_their_device, 2.0),
    Block("E6-replacing", "a model that is read anew replaces the old one", a_new_model_replaces_the_old, 3.0, 2.0),
    Block("E6-peak", "the reported peak is the run's own", peak_is_the_runs_own, 4.0),
    Block("E6-planned", "planned in the format in which it runs", planned_as_run, 4.0, 3.0),
    Block("E7-skipped", "ten overflows at the start end no run", skipped_at_the_start, 6.0, 5.0),
    Block("E7-drawing", "graphs give their memory back while somebody draws", drawing_gets_the_graphs_memory, 12.0),
    Block("E5-compile", "compiled blocks, and a compiler that fails", compiling_never_ends_a_run, 60.0, 5.0),
)
