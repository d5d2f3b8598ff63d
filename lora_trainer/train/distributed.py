"""Several processes that train as one: each calculates a part of every batch, and the gradients are added up.

W processes of batch b take the steps of one process of batch W * b: the plan makes batches of all their pictures together, each
process takes its part (which may be empty where a bucket ends), and each picture counts by the size of the whole step.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from lora_trainer.control import Control
from lora_trainer.errors import TrainingError
from lora_trainer.jobs.process import process_alive, process_mark
from lora_trainer.jobs.process_rank import SINGLE, Rank
from lora_trainer.messages import Message, say

Item = TypeVar("Item")
GROUP_TIMEOUT = timedelta(days=7)
"""The others wait while the first validates, draws, or is paused."""


def shard_of(batch: Sequence[Item], rank: int, count: int) -> Sequence[Item]:
    """The part of one of `count` processes; parts differ by at most one picture."""
    return batch[len(batch) * rank // count : len(batch) * (rank + 1) // count]


class SingleProcess:
    """One process that does it all."""

    rank: Rank = SINGLE
    synced: bool = False
    """Whether the others have this step's gradient already: it cannot be calculated anew by one process alone."""

    def shard(self, batch: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a batch; may be empty."""
        return batch

    def all_reduce(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """The sum over all processes of the parameters' gradients, in place, and of `loss`."""
        return loss

    def shared_control(self, asked: Control) -> Control:
        """What the run asks for commands instead of `asked`."""
        return asked

    def broadcast(self, word: Any) -> Any:
        """The first process's `word`."""
        return word

    def require_same(self, digest: str) -> None:
        """Raises TrainingError where another process has other settings or pictures."""

    def barrier(self) -> None:
        """Waits until every process is here."""


class DistributedGroup(SingleProcess):
    """One of several processes, connected by torch.distributed (gloo between CPUs and for words, nccl between GPUs)."""

    def __init__(self, place: Rank, device: torch.device) -> None:
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.device = place, device
        nccl = device.type == "cuda" and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        store, rank, count = next(iter(rendezvous("env://", place.rank, place.world_size, timeout=timedelta(minutes=10))))
        self._store = dist.PrefixStore("lora_trainer", store)
        dist.init_process_group(backend, store=dist.PrefixStore("group", self._store), rank=rank, world_size=count, timeout=GROUP_TIMEOUT)
        self._store.set(f"pid/{rank}", f"{socket.gethostname()} {os.getpid()} {process_mark(os.getpid())}")

    def shard(self, batch: Sequence[Item]) -> Sequence[Item]:
        """Parts differ by at most one picture."""
        return shard_of(batch, self.rank.rank, self.rank.world_size)

    def all_reduce(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """One sum over everything. A gradient that no process has stays None, so that its parameter is left alone as it would be."""
        there = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=loss.device)
        parts = [
            parameter.new_zeros(parameter.numel(), dtype=torch.float32) if parameter.grad is None else parameter.grad.reshape(-1).float()
            for parameter in parameters
        ]
        flat = torch.cat([*parts, there, loss.detach().reshape(1).float()])
        with self._named():
            dist.all_reduce(flat)
        self.synced = True
        *sums, counts, total = flat.split([*(parameter.numel() for parameter in parameters), len(parameters), 1])
        for parameter, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient.view_as(parameter))
            elif count:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return total.reshape(()).to(loss.dtype)

    def shared_control(self, asked: Control) -> Control:
        """Commands reach every process between the same two steps."""
        return SharedControl(self, asked)

    def require_same(self, digest: str) -> None:
        """Compares with the first process."""
        first = self.broadcast(digest)
        if first != digest:
            self.note(other := say("it has other settings or pictures than the first process"))
            raise TrainingError(
                "process {rank} cannot train along: {reason}.",
                rank=self.rank.rank,
                reason=other,
                fix="Start all processes with the same config, and with the same pictures at the same places.",
            )

    def barrier(self) -> None:
        """A sum that nobody needs."""
        with self._named():
            dist.all_reduce(torch.zeros(1))

    def broadcast(self, word: Any) -> Any:
        """The first process's `word` (plain JSON values) in every process; waits for it."""
        content = json.dumps(word).encode() if self.rank.is_main else b""
        size = torch.tensor([len(content)])
        with self._named():
            dist.broadcast(size, 0)
            data = torch.tensor(list(content), dtype=torch.uint8) if self.rank.is_main else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def broadcast_if_set(self, word: Any) -> Any:
        """As `told`, and None in every process where the first one's word is None: that costs a single number."""
        news = torch.tensor([int(word is not None)])
        with self._named():
            dist.broadcast(news, 0)
        return self.broadcast(word) if int(news) else None

    def note(self, reason: Message | str) -> None:
        """Leaves word for the others why this process ends."""
        self._store.set(f"end/{self.rank.rank}", str(reason)[:500])
        self._store.add(f"ended/{self.rank.rank}", 1)

    def leave(self) -> None:
        """Cuts the connection."""
        dist.destroy_process_group()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A connection that breaks is told by the process that ended, not by its socket."""
        try:
            yield
        except RuntimeError as error:
            rank, reason = self._ended()
            raise TrainingError(
                "process {rank} of {count} has ended: {reason}",
                rank=rank,
                count=self.rank.world_size,
                reason=reason,
                fix="What was saved is whole. Look at that process's last lines, then start again or resume from the last state.",
            ) from error

    def _ended(self) -> tuple[int | str, Message | str]:
        """Which process is gone and what it said."""
        others = [rank for rank in range(self.rank.world_size) if rank != self.rank.rank]
        try:
            for rank in others:
                if self._store.add(f"ended/{rank}", 0):  # torch 2.1 has no other way to ask for a word that may not be there
                    return rank, self._store.get(f"end/{rank}").decode()
            gone = next((rank for rank in others if not self._alive(rank)), None)
        except RuntimeError:  # the store went with the process that kept it
            return "?", say("the connection broke.")
        return "?" if gone is None else gone, say("it was killed, or its machine cannot be reached.")

    def _alive(self, rank: int) -> bool:
        machine, pid, mark = (self._store.get(f"pid/{rank}").decode().split(" ") + [""])[:3]
        return machine != socket.gethostname() or process_alive(int(pid), mark)


class SharedControl(Control):
    """The commands of a run of several processes. `asked` is what the user says to the first one; the others are told.

    `agree` is called by all between the same two steps; what is asked after it counts at the next. Saves and previews are the first
    one's own.
    """

    def __init__(self, together: DistributedGroup, asked: Control) -> None:
        super().__init__()
        self.group, self.asked = together, asked
        self._told: dict[str, Any] = {}

    def agree(self) -> None:
        """Takes over what was asked of the first process by now."""
        self.group.synced = False
        news = None
        if self.group.rank.is_main:
            stop, changes = self.asked.stopping, self.asked.take_changes()
            now = {"stop": stop, "save": self.asked.save_on_stop, "pause": self.asked.pausing}
            news = {**now, "changes": changes} if changes or now != self._told else None
            self._told = now
        if (word := self.group.broadcast_if_set(news)) is not None:
            self._stop, self._save_on_stop, self._pause = word["stop"], word["save"], word["pause"]
            for wanted in word["changes"]:
                self.change(wanted)

    @property
    def now(self) -> Control:
        """What the user asked by now, on the first process; no other one asks for itself."""
        return self.asked if self.group.rank.is_main else self

    def command(self, word: str) -> None:
        """Goes the same way as the user's own."""
        self.asked.command(word)

    def take(self, word: str) -> bool:
        """Only the first process is asked to save or draw."""
        return self.group.rank.is_main and self.asked.take(word)

    def wait_while_paused(self, poll: float = 0.2) -> None:
        """Until the first process goes on."""
        while self.pausing:
            if self.group.rank.is_main:
                self.asked.wait_while_paused(poll)
            self.agree()

    def rest(self, seconds: float) -> bool:
        """The first process rests; the others wait for it where they meet next."""
        return self.group.rank.is_main and self.asked.rest(seconds)


@contextmanager
def process_group(place: Rank, device: torch.device) -> Iterator[SingleProcess]:
    """The connection of this process to those that it trains with, for the time of a `with`."""
    if place.is_single:
        yield SingleProcess()
        return
    together = DistributedGroup(place, device)
    try:
        yield together
    except Exception as error:
        together.note(str(error).strip().split("\n")[0] or type(error).__name__)
        raise
    finally:
        together.leave()
