"""Replayed steps train what steps without replay train; what cannot be recorded goes on without, and says so.

A recorder stands in for CUDA's graphs: like them it runs the work several times before, keeps the tensors of the recording, and a
replay calculates with what lies in these. What would go stale in a graph goes stale here.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest
import torch

from lora_trainer.events import Stepped, Warned
from lora_trainer.host.standalone import FileLease
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.train import setup
from lora_trainer.train.step import accumulate
from lora_trainer.train.step.compiling import CompiledBlocks
from lora_trainer.train.step.cuda_graphs import MAX_GRAPHS, CudaGraphs, CudaRecorder, why_not
from tests.train.runs import events_of, small_config, tensors_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Rehearsal:
    """Does what a graph would do, on any device."""

    def __init__(self, breaks: str = ""):
        self.breaks, self.recorded, self.replayed = breaks, 0, 0

    def record(self, work):
        for _ in range(3):
            work()
        if self.breaks:
            raise RuntimeError(self.breaks)
        result = work().clone()
        self.recorded += 1

        def replay():
            self.replayed += 1
            result.copy_(work())

        return replay, result


@pytest.fixture
def leaf():
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


def squares(leaf):
    def work(numbers, factor):
        answer = ((leaf * numbers) ** 2).sum() * (1.0 if factor is None else factor)
        answer.backward()
        return answer.detach()

    return work


def added_up(leaf, calls, replays=None):
    """Results and the gradient of calls in a row, through `replays` where it takes them."""
    leaf.grad, results = None, []
    for inputs in calls:
        answer = replays(inputs) if replays is not None else None
        results.append(float(squares(leaf)(*inputs) if answer is None else answer))
    return results, leaf.grad.clone()


def test_a_shape_is_recorded_at_its_second_call_and_adds_to_gradients_like_without(leaf):
    calls = [(torch.full((3,), float(number)), torch.tensor(0.5) if number % 2 else None) for number in range(8)]
    expected = added_up(leaf, calls)
    recorder = Rehearsal()
    replays = CudaGraphs(squares(leaf), [leaf], recorder)
    results, gradient = added_up(leaf, calls, replays)
    assert results == expected[0]
    assert torch.equal(gradient, expected[1])
    assert (recorder.recorded, recorder.replayed, replays.replay_count) == (2, 6, 6)


def test_gradients_lie_in_the_same_place_whatever_the_optimizer_drops(leaf):
    replays, numbers = CudaGraphs(squares(leaf), [leaf], Rehearsal()), (torch.ones(3), None)
    added_up(leaf, [numbers] * 3, replays)
    place = leaf.grad.data_ptr()
    _results, gradient = added_up(leaf, [numbers] * 2, replays)  # begins with no gradient at all
    assert leaf.grad.data_ptr() == place
    assert torch.equal(gradient, added_up(leaf, [numbers] * 2)[1])


def test_after_forgetting_nothing_old_is_replayed(leaf):
    recorder = Rehearsal()
    replays, numbers = CudaGraphs(squares(leaf), [leaf], recorder), (torch.ones(3), None)
    added_up(leaf, [numbers] * 2, replays)
    replays.reset()
    leaf.data = leaf.detach() * 2.0
    results, _gradient = added_up(leaf, [numbers] * 3, replays)
    assert results == added_up(leaf, [numbers] * 3)[0]
    assert recorder.recorded == 2


def test_what_cannot_be_recorded_is_told_once_and_loses_no_gradient(leaf):
    replays = CudaGraphs(squares(leaf), [leaf], Rehearsal("operation not permitted when stream is capturing\nmore"))
    calls = [(torch.full((3,), float(number)), None) for number in range(5)]
    results, gradient = added_up(leaf, calls, replays)
    assert (results, gradient.tolist()) == (added_up(leaf, calls)[0], added_up(leaf, calls)[1].tolist())
    assert [message.text() for message in replays.messages] == [
        "CUDA graphs are not used: operation not permitted when stream is capturing"
    ]


def test_only_so_many_shapes_are_recorded(leaf):
    recorder = Rehearsal()
    replays = CudaGraphs(lambda numbers: (leaf.sum() * numbers.sum()).detach(), [leaf], recorder)
    for size in range(1, MAX_GRAPHS + 4):
        for _ in range(2):
            replays([torch.ones(size)])
    assert recorder.recorded == MAX_GRAPHS


def test_why_a_run_is_not_recorded_is_known_before():
    assert why_not(device=CUDA, trains_text=False, compiles=False) is None
    reasons = [
        why_not(device=CPU, trains_text=False, compiles=False),
        why_not(device=CUDA, trains_text=True, compiles=False),
        why_not(device=CUDA, trains_text=False, compiles=True),
    ]
    assert len({reason.text() for reason in reasons}) == 3


class OneOfSeveral:
    """A stand-in for torch.cuda with several GPUs: remembers which was the current one whenever something was asked of it."""

    def __init__(self):
        self.current, self.seen = 0, []

    def install(self, patch):
        for name in ("graph_pool_handle", "current_stream", "Stream", "stream", "CUDAGraph", "graph"):
            patch.setattr(torch.cuda, name, lambda *args, name=name, **kwargs: self._ask(name))
        patch.setattr(torch.cuda, "device", self.device)

    @contextlib.contextmanager
    def device(self, device):
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def _ask(self, name):
        self.seen.append((name, self.current))
        return self

    def wait_stream(self, other):
        self._ask("wait_stream")

    def replay(self):
        self._ask("replay")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_graphs_are_recorded_and_replayed_on_the_gpu_that_trains(monkeypatch):
    gpus = OneOfSeveral()
    gpus.install(monkeypatch)
    replay, result = CudaRecorder(torch.device("cuda", 1)).record(lambda: torch.full((), float(gpus.current)))
    replay()
    assert result == 1.0 and {"replay", "graph", "Stream", "graph_pool_handle"} <= {name for name, _ in gpus.seen}
    assert {current for _, current in gpus.seen} == {1} and gpus.current == 0


def without_text(folder: Path, **changes):
    common = {"optimizer__text_encoder_lr": 0.0, "data__shuffle_caption": True, "loss__min_snr_gamma": 5.0}
    return small_config(folder, **(common | changes))


@pytest.fixture
def rehearsed(monkeypatch):
    """Graphs on the CPU, by the recorder above."""
    recorder = Rehearsal()
    monkeypatch.setattr(accumulate, "why_not", lambda **facts: None)
    monkeypatch.setattr(accumulate, "CudaRecorder", lambda device: recorder)
    return recorder


def losses(events):
    return [event.loss for event in events if isinstance(event, Stepped)]


@pytest.mark.parametrize("changes", [{}, {"steps__gradient_accumulation_steps": 2, "data__batch_size": 5}], ids=["plain", "accumulated"])
def test_a_replayed_run_is_the_run_without_in_every_bit(tmp_path: Path, rehearsed, changes):
    plain = losses(events_of(without_text(tmp_path / "plain", **changes), tmp_path / "plain"))
    assert rehearsed.replayed == 0
    replayed = losses(events_of(without_text(tmp_path / "graphs", memory__cuda_graphs=True, **changes), tmp_path / "graphs"))
    assert rehearsed.replayed > len(plain) // 2
    assert replayed == plain
    files = [tensors_of(tmp_path / name / "loras" / "small.safetensors") for name in ("plain", "graphs")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_while_a_picture_is_drawn_no_graph_holds_memory_and_the_run_stays_the_same(tmp_path: Path, rehearsed, monkeypatch):
    plain = losses(events_of(without_text(tmp_path / "plain"), tmp_path / "plain"))
    breaths = []

    def one_waits(lease, make_room):
        breaths.append(rehearsed.recorded)
        if len(breaths) == 7:
            make_room()
            gc.collect()
            assert not [each for each in gc.get_objects() if isinstance(each, CudaGraphs) and each._recorded]
        return len(breaths) == 7

    monkeypatch.setattr(FileLease, "let_one_through", one_waits)
    replayed = losses(events_of(without_text(tmp_path / "graphs", memory__cuda_graphs=True), tmp_path / "graphs"))
    assert replayed == plain and rehearsed.recorded > breaths[6] > 0


def test_a_run_whose_recording_fails_goes_on_without_and_says_why(tmp_path: Path, rehearsed):
    plain = losses(events_of(without_text(tmp_path / "plain"), tmp_path / "plain"))
    rehearsed.breaks = "planted"
    events = events_of(without_text(tmp_path / "graphs", memory__cuda_graphs=True), tmp_path / "graphs")
    assert losses(events) == plain
    assert [str(event.message) for event in events if isinstance(event, Warned) and "CUDA graphs" in str(event.message)] == [
        "CUDA graphs are not used: planted"
    ]


def test_where_there_is_no_gpu_the_run_says_so_and_trains(tmp_path: Path):
    events = events_of(small_config(tmp_path, memory__cuda_graphs=True, steps__max_train_steps=2), tmp_path)
    assert any("CUDA graphs are not used" in str(event.message) for event in events if isinstance(event, Warned))
    assert len(losses(events)) == 2


def test_compiled_blocks_calculate_the_same_and_come_off_again(toy_checkpoint):
    from lora_trainer.models.load import load
    from lora_trainer.models.source import FileSource

    bundle = load(FileSource(toy_checkpoint), CPU)
    latents, text = torch.randn(1, 4, 8, 8), Conditioning(torch.randn(1, 77, bundle.text_encoder.config.hidden_size))

    def drawn():
        with torch.no_grad():
            return bundle.family.denoise(bundle, latents, torch.tensor([500]), text)

    plain, compiled = drawn(), CompiledBlocks(backend="eager")
    compiled.compile_blocks(bundle.unet)
    assert torch.allclose(drawn(), plain, atol=1e-5)
    assert compiled.messages == []
    compiled.remove()
    assert not [name for name, module in bundle.unet.named_modules() if "forward" in vars(module)]


def test_a_compiler_that_fails_is_told_once_and_the_call_is_done_without(toy_checkpoint):
    from lora_trainer.models.load import load
    from lora_trainer.models.source import FileSource

    bundle = load(FileSource(toy_checkpoint), CPU)
    latents, text = torch.randn(1, 4, 8, 8), Conditioning(torch.randn(1, 77, bundle.text_encoder.config.hidden_size))

    def broken(graph, inputs):
        raise RuntimeError("no compiler is installed")

    with torch.no_grad():
        plain = bundle.family.denoise(bundle, latents, torch.tensor([500]), text)
        compiled = CompiledBlocks(backend=broken)
        compiled.compile_blocks(bundle.unet)
        assert torch.equal(bundle.family.denoise(bundle, latents, torch.tensor([500]), text), plain)
    assert len(compiled.messages) == 1
    assert "no compiler is installed" in compiled.messages[0].text()


@pytest.mark.parametrize(
    "error", [RuntimeError("Windows not yet supported for torch.compile"), ImportError("no triton"), OSError("cl.exe")]
)
def test_where_torch_cannot_compile_at_all_the_run_goes_on_without_and_says_why(tmp_path: Path, monkeypatch, error):
    def refuses(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "compile", refuses)
    events = events_of(small_config(tmp_path, memory__compile=True, steps__max_train_steps=2), tmp_path)
    assert sum(isinstance(event, Stepped) for event in events) == 2
    told = [str(event.message) for event in events if isinstance(event, Warned) and "not compiled" in str(event.message)]
    assert len(told) == 1 and str(error) in told[0]


@pytest.mark.slow
def test_a_compiler_that_fails_at_the_backward_pass_costs_no_step(tmp_path: Path, monkeypatch):
    """Backward is compiled when it comes, outside of every block's forward."""
    from torch._dynamo.backends.common import aot_autograd

    def broken(graph, inputs):
        raise RuntimeError("no room in the temporary folder")

    changes = {"steps__max_train_steps": 3, "optimizer__text_encoder_lr": 0.0}
    plain = losses(events_of(small_config(tmp_path / "plain", **changes), tmp_path / "plain"))
    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    monkeypatch.setattr(setup, "CompiledBlocks", lambda: CompiledBlocks(backend))
    events = events_of(small_config(tmp_path / "compiled", memory__compile=True, **changes), tmp_path / "compiled")
    assert losses(events) == plain
    assert len([event for event in events if isinstance(event, Warned) and "Blocks are not compiled" in str(event.message)]) == 1


@pytest.mark.needs_gpu
def test_a_real_graph_trains_like_eager(tmp_path: Path):
    plain = losses(events_of(without_text(tmp_path / "plain", steps__max_train_steps=30), tmp_path / "plain"))
    events = events_of(without_text(tmp_path / "graphs", steps__max_train_steps=30, memory__cuda_graphs=True), tmp_path / "graphs")
    assert not [event for event in events if isinstance(event, Warned) and "CUDA graphs" in str(event.message)]
    assert losses(events) == pytest.approx(plain, rel=1e-3)


@pytest.mark.needs_gpu
def test_a_real_recorder_adds_to_gradients_like_without():
    leaf = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], device="cuda"))
    calls = [(torch.full((3,), float(number), device="cuda"), None) for number in range(6)]
    replays = CudaGraphs(squares(leaf), [leaf], CudaRecorder(CUDA))
    results, gradient = added_up(leaf, calls, replays)
    assert replays.messages == []
    assert replays.replay_count == 5
    assert results == pytest.approx(added_up(leaf, calls)[0])
    assert torch.allclose(gradient, added_up(leaf, calls)[1])


@pytest.mark.slow
def test_a_run_of_compiled_blocks_learns_what_one_without_learns(tmp_path: Path, monkeypatch):
    changes = {"steps__max_train_steps": 4, "memory__gradient_checkpointing": True}
    plain = losses(events_of(small_config(tmp_path / "plain", **changes), tmp_path / "plain"))
    monkeypatch.setattr(setup, "CompiledBlocks", lambda: CompiledBlocks("eager"))  # traced and guarded, not turned into C++
    events = events_of(small_config(tmp_path / "compiled", memory__compile=True, **changes), tmp_path / "compiled")
    assert losses(events) == pytest.approx(plain, rel=1e-5)
    assert not [event for event in events if isinstance(event, Warned) and "compiled" in str(event.message)]
