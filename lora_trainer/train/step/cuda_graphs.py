"""CUDA-graph replay: forward and backward of a batch, recorded once for each shape and replayed with new numbers.

On a fast GPU the thousands of small operations of a step take longer to be told than to be done. A graph is told once. What may stand
inside is bounded: only tensors that stay where they are, no number that Python reads, nothing drawn at random. So the pictures' noise
and captions are made outside and copied in, the network's gradients stay in buffers of their own, and clipping, optimizer and the sum
over processes come after it, as without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from lora_trainer.messages import Message, say

WARM_UPS = 3
"""Runs before the recording, as PyTorch asks for: libraries choose their ways in the first ones."""
ROOM = 16
"""Shapes that are recorded; further ones are rare and go without."""
Work = Callable[..., Tensor]


class GraphRecorder(Protocol):
    """Records what a function launches; `work` takes nothing and returns a tensor that stays in place."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """What replays it, and the tensor that holds the result after each replay. Raises RuntimeError when it cannot be recorded."""
        ...


class CudaRecorder:
    """torch.cuda.CUDAGraph. All graphs share one pool of memory: nothing of one is needed when the next is replayed."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """Warms up beside the current stream, then records; other threads of the host may go on using the GPU."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


@attrs.frozen(eq=False)
class _Recorded:
    """One shape: `replay` calculates with what lies in `inputs`, and leaves its answer in `result`."""

    inputs: Sequence[Tensor | None]
    replay: Callable[[], Any]
    result: Tensor


class CudaGraphs:
    """Calls of one `work(*inputs)` that adds to the gradients of `leaves`: recorded at the second call of a shape, then replayed.

    `work` may depend on nothing that changes but its inputs and what the leaves and other tensors hold in place. When recording fails
    there is no replay any more, and `told` says why; nothing is lost then, the caller does the call itself.
    """

    def __init__(self, work: Work, leaves: Sequence[Tensor], recorder: GraphRecorder) -> None:
        self.work, self.leaves, self.recorder = work, tuple(leaves), recorder
        self.told: list[Message] = []
        self.count = 0
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._gradients: list[Tensor] = []
        self._off = False

    def __call__(self, inputs: Sequence[Tensor | None]) -> Tensor | None:
        """The result, with the gradients added to the leaves; None where the caller is to call `work` itself. Valid until the next."""
        if self._off:
            return None
        shape = tuple(None if one is None else (tuple(one.shape), one.dtype) for one in inputs)
        recorded = self._recorded.get(shape)
        if recorded is None:
            self._seen[shape] += 1
            if self._seen[shape] < 2 or len(self._recorded) >= ROOM:
                return None
            recorded = self._record(shape, inputs)
            if recorded is None:
                return None
        self._settle()
        for own, given in zip(recorded.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given, non_blocking=True)
        recorded.replay()
        self.count += 1
        return recorded.result

    def forget(self) -> None:
        """Model or network lie elsewhere now: what was recorded would calculate with what lay there."""
        self._recorded.clear()
        self._seen.clear()
        self._gradients.clear()

    def _record(self, shape: tuple[Any, ...], inputs: Sequence[Tensor | None]) -> _Recorded | None:
        self._settle()
        kept = [gradient.clone() for gradient in self._gradients]
        own = [None if one is None else one.detach().clone() for one in inputs]
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a weight that was cast inside one graph is no memory of another's
        try:
            replay, result = self.recorder.record(lambda: self.work(*own))
        except RuntimeError as error:
            self._give_up(str(error))
            return None
        finally:
            torch.set_autocast_cache_enabled(cached)
            for gradient, before in zip(self._gradients, kept, strict=True):
                gradient.copy_(before)
        self._recorded[shape] = _Recorded(own, replay, result)
        return self._recorded[shape]

    def _settle(self) -> None:
        """The leaves' gradients lie where the graphs add to them: what is there already is taken along."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(leaf) for leaf in self.leaves]
        for leaf, own in zip(self.leaves, self._gradients, strict=True):
            if leaf.grad is own:
                continue
            if leaf.grad is None:
                own.zero_()
            else:
                own.copy_(leaf.grad)
            leaf.grad = own

    def _give_up(self, reason: str) -> None:
        self._off = True
        self._recorded.clear()
        self.told.append(say("Steps are not replayed: {reason}", reason=reason.strip().split("\n")[0][:200]))


def why_not(*, device: torch.device, text_encoder: bool, compiled: bool, draws: bool = False) -> Message | None:
    """Why the steps of a run cannot be recorded, or None. What is not known beforehand shows when it is tried."""
    if device.type != "cuda":
        return say("the run is not on an NVIDIA or AMD GPU.")
    if text_encoder:
        return say("the text encoder is trained too, and its captions change their length.")
    if compiled:
        return say("blocks are compiled already.")
    if draws:
        return say("the network draws at random in each step.")
    return None
