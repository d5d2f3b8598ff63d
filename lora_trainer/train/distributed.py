"""Data-parallel training: each process computes a shard of every batch, and the gradients are summed (all-reduced).

W processes of batch size b take the same steps as one process of batch size W * b: the plan makes batches of W * b pictures, each
process takes its shard (which may be empty where a bucket ends), and losses are divided by the pictures of the whole step.
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
from lora_trainer.jobs.process import is_process_alive, process_start_time
from lora_trainer.jobs.process_rank import SINGLE, Rank
from lora_trainer.messages import Message, say

Item = TypeVar("Item")
GROUP_TIMEOUT = timedelta(days=7)
"""The others wait while the first one validates, draws previews, or is paused."""


def shard_of(batch: Sequence[Item], rank: int, world_size: int) -> Sequence[Item]:
    """The shard of process `rank` of `world_size`; shards differ by at most one item."""
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


class SingleProcess:
    """The communication of a run of one process: nothing to exchange."""

    rank: Rank = SINGLE
    synced: bool = False
    """Whether this step's gradient was all-reduced already: one process alone cannot compute it again."""

    def shard(self, batch: Sequence[Item]) -> Sequence[Item]:
        """This process's shard of a batch; may be empty."""
        return batch

    def all_reduce(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Sums the parameters' gradients over all processes, in place; returns the sum of `loss` (scalar)."""
        return loss

    def shared_control(self, control: Control) -> Control:
        """The control that the run reads instead of `control`."""
        return control

    def broadcast(self, value: Any) -> Any:
        """The first process's `value`."""
        return value

    def require_same(self, digest: str) -> None:
        """Raises TrainingError when this process has other settings or pictures than the first one."""

    def barrier(self) -> None:
        """Waits until every process has reached this point."""


class DistributedGroup(SingleProcess):
    """One of several processes, connected by torch.distributed (gloo between CPUs and for commands, nccl between GPUs)."""

    def __init__(self, rank: Rank, device: torch.device) -> None:
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.device = rank, device
        nccl = device.type == "cuda" and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        store, own_rank, world_size = next(iter(rendezvous("env://", rank.rank, rank.world_size, timeout=timedelta(minutes=10))))
        self._store = dist.PrefixStore("lora_trainer", store)
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", self._store), rank=own_rank, world_size=world_size, timeout=GROUP_TIMEOUT
        )
        self._store.set(f"pid/{own_rank}", f"{socket.gethostname()} {os.getpid()} {process_start_time(os.getpid())}")

    def shard(self, batch: Sequence[Item]) -> Sequence[Item]:
        """Shards differ by at most one picture."""
        return shard_of(batch, self.rank.rank, self.rank.world_size)

    def all_reduce(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """One all-reduce of everything. A gradient that no process has stays None, so that the optimizer skips its parameter as usual."""
        has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=loss.device)
        gradients = [
            parameter.new_zeros(parameter.numel(), dtype=torch.float32) if parameter.grad is None else parameter.grad.reshape(-1).float()
            for parameter in parameters
        ]
        flat = torch.cat([*gradients, has_gradient, loss.detach().reshape(1).float()])
        with self._naming_the_ended_process():
            dist.all_reduce(flat)
        self.synced = True
        *sums, counts, total = flat.split([*(parameter.numel() for parameter in parameters), len(parameters), 1])
        for parameter, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient.view_as(parameter))
            elif count:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return total.reshape(()).to(loss.dtype)

    def shared_control(self, control: Control) -> Control:
        """A control whose commands reach every process between the same two steps."""
        return SharedControl(self, control)

    def require_same(self, digest: str) -> None:
        """Compares with the first process."""
        first_digest = self.broadcast(digest)
        if first_digest != digest:
            self.report_end(reason := say("it has other settings or pictures than the first process"))
            raise TrainingError(
                "process {rank} cannot join the run: {reason}.",
                rank=self.rank.rank,
                reason=reason,
                fix="Start all processes with the same config, and with the same pictures at the same places.",
            )

    def barrier(self) -> None:
        """An all-reduce of nothing."""
        with self._naming_the_ended_process():
            dist.all_reduce(torch.zeros(1))

    def broadcast(self, value: Any) -> Any:
        """The first process's `word` (plain JSON values) in every process; waits for it."""
        content = json.dumps(value).encode() if self.rank.is_main else b""
        size = torch.tensor([len(content)])
        with self._naming_the_ended_process():
            dist.broadcast(size, 0)
            data = torch.tensor(list(content), dtype=torch.uint8) if self.rank.is_main else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def broadcast_if_set(self, value: Any) -> Any:
        """As `broadcast`; None in every process when the first one's value is None, at the cost of a single integer."""
        is_set = torch.tensor([int(value is not None)])
        with self._naming_the_ended_process():
            dist.broadcast(is_set, 0)
        return self.broadcast(value) if int(is_set) else None

    def report_end(self, reason: Message | str) -> None:
        """Leaves a note for the other processes why this one ends."""
        self._store.set(f"end/{self.rank.rank}", str(reason)[:500])
        self._store.add(f"ended/{self.rank.rank}", 1)

    def close(self) -> None:
        """Leaves the process group."""
        dist.destroy_process_group()

    @contextmanager
    def _naming_the_ended_process(self) -> Iterator[None]:
        """Raises TrainingError naming the process that ended when the connection breaks inside."""
        try:
            yield
        except RuntimeError as error:
            rank, reason = self._ended_process()
            raise TrainingError(
                "process {rank} of {count} has ended: {reason}",
                rank=rank,
                count=self.rank.world_size,
                reason=reason,
                fix="What was saved is whole. Look at that process's last lines, then start again or resume from the last state.",
            ) from error

    def _ended_process(self) -> tuple[int | str, Message | str]:
        """The rank of the process that ended, and why."""
        others = [rank for rank in range(self.rank.world_size) if rank != self.rank.rank]
        try:
            for rank in others:
                if self._store.add(f"ended/{rank}", 0):  # torch 2.1 has no other way to ask for a key that may not exist
                    return rank, self._store.get(f"end/{rank}").decode()
            killed = next((rank for rank in others if not self._is_alive(rank)), None)
        except RuntimeError:  # the store ended with the process that hosted it
            return "?", say("the connection broke.")
        return "?" if killed is None else killed, say("it was killed, or its machine cannot be reached.")

    def _is_alive(self, rank: int) -> bool:
        machine, pid, mark = (self._store.get(f"pid/{rank}").decode().split(" ") + [""])[:3]
        return machine != socket.gethostname() or is_process_alive(int(pid), mark)


class SharedControl(Control):
    """The commands of a run of several processes: those of `control` on the first one, broadcast to the others.

    All call `sync` between the same two steps; later commands take effect at the next call. Only the first one saves and draws.
    """

    def __init__(self, group: DistributedGroup, control: Control) -> None:
        super().__init__()
        self.group, self.control = group, control
        self._last_sent: dict[str, Any] = {}

    def sync(self) -> None:
        """Takes the commands that the first process has received by now."""
        self.group.synced = False
        message = None
        if self.group.rank.is_main:
            stop, changes = self.control.stopping, self.control.take_changes()
            now = {"stop": stop, "save": self.control.save_on_stop, "pause": self.control.pausing}
            message = {**now, "changes": changes} if changes or now != self._last_sent else None
            self._last_sent = now
        if (commands := self.group.broadcast_if_set(message)) is not None:
            self._stop, self._save_on_stop, self._pause = commands["stop"], commands["save"], commands["pause"]
            for values in commands["changes"]:
                self.change(values)

    @property
    def local(self) -> Control:
        """The user's own control on the first process; this one on the others."""
        return self.control if self.group.rank.is_main else self

    def command(self, command: str) -> None:
        """Passes a command on as if the user had given it."""
        self.control.command(command)

    def take(self, command: str) -> bool:
        """Only the first process saves and draws previews."""
        return self.group.rank.is_main and self.control.take(command)

    def wait_while_paused(self, poll: float = 0.2) -> None:
        """Waits until the first process continues."""
        while self.pausing:
            if self.group.rank.is_main:
                self.control.wait_while_paused(poll)
            self.sync()

    def rest(self, seconds: float) -> bool:
        """The first process rests; the others wait for it at their next exchange."""
        return self.group.rank.is_main and self.control.rest(seconds)


@contextmanager
def process_group(rank: Rank, device: torch.device) -> Iterator[SingleProcess]:
    """This process's connection to the others of its run, for the time of a `with`."""
    if rank.is_single:
        yield SingleProcess()
        return
    group = DistributedGroup(rank, device)
    try:
        yield group
    except Exception as error:
        group.report_end(str(error).strip().split("\n")[0] or type(error).__name__)
        raise
    finally:
        group.close()
