"""CUDA graphs: forward and backward of a micro-batch, recorded once for each shape and replayed with new inputs.

On a fast GPU the thousands of small kernels of a step take longer to launch than to run. A graph is launched once. It may contain only
tensors at fixed addresses, no value that Python reads, and no random numbers. So noise and conditioning are made outside and copied in,
the adapter's gradients have static buffers, and the all-reduce, clipping and the optimizer come after it, as without graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from lora_trainer.messages import Message, say

WARMUP_STEPS = 3
"""Runs before the recording, as PyTorch asks for: libraries choose their kernels in the first ones."""
MAX_GRAPHS = 16
"""Shapes that are recorded; further ones are rare and run eagerly."""
Work = Callable[..., Tensor]


class GraphRecorder(Protocol):
    """Records the kernels that a function launches."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """A function that replays `work`, and the tensor that then holds the result. Raises RuntimeError when it cannot be recorded."""
        ...


class CudaRecorder:
    """Records torch.cuda.CUDAGraphs on one GPU. All share one memory pool: nothing of one is needed when the next is replayed.

    Streams and graphs are those of the current GPU, which need not be the one that trains: both record and replay make it that.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """Warms up on a side stream, then records; other threads of the host may go on using the GPU."""
        with torch.cuda.device(self._device):
            replay, result = self._record(work)

        def replay_on_device() -> None:
            with torch.cuda.device(self._device):
                replay()

        return replay_on_device, result

    def _record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                work()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


@attrs.frozen(eq=False)
class _Recorded:
    """The graph of one shape: `replay` reads the static `inputs` and writes `result`."""

    inputs: Sequence[Tensor | None]
    replay: Callable[[], Any]
    result: Tensor


class CudaGraphs:
    """Calls of one `work(*inputs)` that accumulates the gradients of `leaves`: recorded at the second call of a shape, then replayed.

    `work` may depend only on its inputs and on the values of tensors that stay in place. After recording has failed nothing is replayed
    any more, and `messages` says why; the caller then calls `work` itself.
    """

    def __init__(self, work: Work, leaves: Sequence[Tensor], recorder: GraphRecorder) -> None:
        self.work, self.leaves, self.recorder = work, tuple(leaves), recorder
        self.messages: list[Message] = []
        self.replay_count = 0
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._gradients: list[Tensor] = []
        self._is_disabled = False

    def __call__(self, inputs: Sequence[Tensor | None]) -> Tensor | None:
        """The result, valid until the next call; the gradients are added to the leaves. None: the caller has to call `work` itself."""
        if self._is_disabled:
            return None
        shape = tuple(None if one is None else (tuple(one.shape), one.dtype) for one in inputs)
        recorded = self._recorded.get(shape)
        if recorded is None:
            self._seen[shape] += 1
            if self._seen[shape] < 2 or len(self._recorded) >= MAX_GRAPHS:
                return None
            recorded = self._record(shape, inputs)
            if recorded is None:
                return None
        self._place_gradients()
        for static_input, value in zip(recorded.inputs, inputs, strict=True):
            if static_input is not None and value is not None:
                static_input.copy_(value, non_blocking=True)
        recorded.replay()
        self.replay_count += 1
        return recorded.result

    def reset(self) -> None:
        """Drops all graphs: model or adapter have been moved, and the graphs would read the old addresses."""
        self._recorded.clear()
        self._seen.clear()
        self._gradients.clear()

    def _record(self, shape: tuple[Any, ...], inputs: Sequence[Tensor | None]) -> _Recorded | None:
        self._place_gradients()
        gradients = [gradient.clone() for gradient in self._gradients]
        static_inputs = [None if one is None else one.detach().clone() for one in inputs]
        cache_was_enabled = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a weight that was cast inside one graph is not there in another
        try:
            replay, result = self.recorder.record(lambda: self.work(*static_inputs))
        except RuntimeError as error:
            self._disable(str(error))
            return None
        finally:
            torch.set_autocast_cache_enabled(cache_was_enabled)
            for gradient, before in zip(self._gradients, gradients, strict=True):
                gradient.copy_(before)
        self._recorded[shape] = _Recorded(static_inputs, replay, result)
        return self._recorded[shape]

    def _place_gradients(self) -> None:
        """Makes the leaves' gradients the static buffers that the graphs add to, with the values that they have."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(leaf) for leaf in self.leaves]
        for leaf, gradient in zip(self.leaves, self._gradients, strict=True):
            if leaf.grad is gradient:
                continue
            if leaf.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(leaf.grad)
            leaf.grad = gradient

    def _disable(self, reason: str) -> None:
        self._is_disabled = True
        self._recorded.clear()
        self.messages.append(say("CUDA graphs are not used: {reason}", reason=reason.strip().split("\n")[0][:200]))


def why_not(*, device: torch.device, trains_text: bool, compiles: bool, is_random: bool = False) -> Message | None:
    """Why the steps of a run cannot be recorded, or None. Other obstacles show only when recording is tried."""
    if device.type != "cuda":
        return say("the run is not on an NVIDIA or AMD GPU.")
    if trains_text:
        return say("the text encoder is trained too, and its captions change their length.")
    if compiles:
        return say("blocks are compiled already.")
    if is_random:
        return say("the network makes random choices in each step.")
    return None
