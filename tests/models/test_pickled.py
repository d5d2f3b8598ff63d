"""torch's own files: read without running anything, and refused when anything is to be run."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.errors import ModelError
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.files import pickled, tensor_file
from lora_trainer.models.load import load, read_vae
from lora_trainer.models.source import FileSource
from tests.models.conftest import CPU


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that every payload would write."""
    return tmp_path / "it-was-run"


def packed(path: Path, instructions: bytes, entries: dict[str, bytes] | None = None, *, packing: int = zipfile.ZIP_STORED) -> Path:
    """A torch file with these instructions."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("archive/data.pkl", instructions)
        for name, content in (entries or {}).items():
            archive.writestr(f"archive/{name}", content)
    return path


class Calls:
    """Pickles to a call of `function` with these values, inside what looks like a checkpoint."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.function, self.values = function, values

    def __reduce__(self) -> Any:
        return self.function, self.values


def call(module: str, name: str, argument: str) -> bytes:
    """Instructions of protocol 0: import a name, call it with a text."""
    return b"(dp0\nS'state_dict'\nc" + f"{module}\n{name}\n(S'{argument}'\ntRs.".encode()


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def payloads(canary: Path) -> dict[str, bytes]:
    shell, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    inner = pickle.dumps({"state_dict": Calls(eval, code)})
    attribute = b"\x80\x04" + text("builtins") + text("getattr") + b"\x93" + text("os") + text("system") + b"\x86R."
    dotted = b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93."
    instance = f"(S'{shell}'\nios\nsystem\n.".encode()
    extension = b"\x80\x02\x82\x01."
    rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + b"X\x08\x00\x00\x00__call__" + b"cos\nsystem\nsb."
    return {
        "os.system": call("os", "system", shell),
        "posix.system": call("posix", "system", shell),
        "nt.system": call("nt", "system", shell),
        "eval": pickle.dumps({"state_dict": Calls(eval, code)}),
        "exec": pickle.dumps({"state_dict": {"x": Calls(exec, code)}}),
        "exec in a list": pickle.dumps([1, 2, Calls(exec, code)], protocol=2),
        "subprocess": call("subprocess", "getoutput", shell),
        "import_module": call("importlib", "import_module", "antigravity"),
        "runpy": call("runpy", "run_path", str(canary)),
        "pickle in a pickle": pickle.dumps(Calls(pickle.loads, inner)),
        "torch.load in a pickle": call("torch.serialization", "load", str(canary)),
        "torch.hub": call("torch.hub", "load", "someone/something"),
        "torch storage": pickle.dumps(Calls(torch.storage._load_from_bytes, inner)),
        "getattr": attribute,
        "dotted name": dotted,
        "old instance": instance,
        "attributes of a known name": rebuild,
        "names of a lightning module": call("pytorch_lightning.os", "system.x", shell),
        "extension registry": extension,
        "shutil": call("shutil", "rmtree", str(canary.parent)),
        "webbrowser": call("webbrowser", "open", "http://127.0.0.1"),
        "numpy": call("numpy.testing._private.utils", "runstring", code),
        "partial": call("functools", "partial", code),
        "type": call("builtins", "type", "x"),
        "open": call("builtins", "open", str(canary)),
    }


@pytest.mark.parametrize("name", sorted(payloads(Path("x"))))
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path, canary: Path, name: str):
    path = packed(tmp_path / "model.ckpt", payloads(canary)[name])
    for read in (inspect, tensor_file.contents, tensor_file.tensors, read_vae):
        with pytest.raises(ModelError) as caught:
            read(path)
        assert "model.ckpt" in str(caught.value)
    assert not canary.exists()
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_refusal_names_what_would_have_been_run(tmp_path: Path, canary: Path):
    path = packed(tmp_path / "model.ckpt", payloads(canary)["os.system"])
    with pytest.raises(ModelError, match=r"would run os\.system .* Nothing of it was run"):
        inspect(path)


def test_the_same_payload_runs_with_pythons_own_reader(canary: Path):
    """Else the tests above would prove nothing."""
    pickle.loads(payloads(canary)["eval"])
    assert canary.exists()


def test_attributes_cannot_be_set_on_what_stands_for_torchs_functions():
    for stand_in in (pickled._Rebuild(), pickled._Parameter()):
        with pytest.raises(AttributeError):
            stand_in.__call__ = print  # type: ignore[method-assign]
        assert not hasattr(stand_in, "__dict__")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_torch_saved_them(tmp_path: Path, dtype: torch.dtype):
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    saved = {"whole": base, "turned": base.transpose(0, 2), "part": base[1, 1:], "one": base[0, 0, 3], "none": torch.zeros(0, 4).to(dtype)}
    torch.save({"state_dict": {**saved, "parameter": torch.nn.Parameter(base, requires_grad=False)}, "epoch": 3}, tmp_path / "x.ckpt")
    found = tensor_file.tensors(tmp_path / "x.ckpt")
    assert set(found) == {*saved, "parameter"}
    assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in saved.items())
    assert torch.equal(found["parameter"], base)
    assert tensor_file.contents(tmp_path / "x.ckpt").tensors["turned"].shape == (4, 3, 2)
    assert set(tensor_file.tensors(tmp_path / "x.ckpt", lambda name: name == "part")) == {"part"}


def test_what_training_programs_leave_beside_the_weights_is_passed_over(tmp_path: Path):
    import argparse
    import datetime

    import numpy

    beside = {
        "epoch": 1,
        "loss": numpy.float64(0.1),
        "hyper_parameters": argparse.Namespace(lr=1),
        "seen": {1, 2},
        "where": torch.device("cpu"),
    }
    torch.save({"state_dict": {"x": torch.ones(2)}, **beside}, tmp_path / "x.ckpt")
    assert torch.equal(tensor_file.tensors(tmp_path / "x.ckpt")["x"], torch.ones(2))
    lightning = b"\x80\x02}(X\x01\x00\x00\x00acpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\nX\x01\x00\x00\x00b}u."
    assert tensor_file.contents(packed(tmp_path / "y.ckpt", lightning)).tensors == {}
    torch.save({"state_dict": {"x": torch.ones(2)}, "when": datetime.timedelta(1)}, tmp_path / "z.ckpt")
    with pytest.raises(ModelError, match=r"datetime\.timedelta"):
        tensor_file.contents(tmp_path / "z.ckpt")


def tensor_of(storage: bytes, numbers: str) -> bytes:
    """Instructions for a tensor whose storage is told by `storage`, with "first, shape, strides" as protocol 0 writes them."""
    return b"(dp0\nS'x'\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers.encode() + b"I00\n(dtRs."


STORAGE = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI%d\ntQ"


@pytest.mark.parametrize(
    ("storage", "numbers"),
    [
        (STORAGE % 4, "I0\n(I5\nt(I1\nt"),
        (STORAGE % 4, "I3\n(I2\nt(I1\nt"),
        (STORAGE % 4, "I0\n(I2\nt(I9\nt"),
        (STORAGE % 4, "I0\n(I2\nt(I-1\nt"),
        (STORAGE % 4, "I0\n(I2\nI2\nt(I1\nt"),
        (STORAGE % 5, "I0\n(I2\nt(I1\nt"),
        (STORAGE % -1, "I0\n(I2\nt(I1\nt"),
        (b"(S'storage'\nctorch\nFloatStorage\nS'7'\nS'cpu'\nI4\ntQ", "I0\n(I2\nt(I1\nt"),
        (b"(S'other'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ", "I0\n(I2\nt(I1\nt"),
        (b"S'x'\n", "I0\n(I2\nt(I1\nt"),
    ],
)
def test_a_tensor_that_reaches_outside_its_bytes_is_refused(tmp_path: Path, storage: bytes, numbers: str):
    path = packed(tmp_path / "x.ckpt", tensor_of(storage, numbers), {"data/0": b"\0" * 16})
    with pytest.raises(ModelError, match="damaged"):
        tensor_file.tensors(path)


def test_a_tensor_inside_its_bytes_is_read(tmp_path: Path):
    path = packed(tmp_path / "x.ckpt", tensor_of(STORAGE % 4, "I1\n(I3\nt(I1\nt"), {"data/0": struct.pack("<4f", 1, 2, 3, 4)})
    assert tensor_file.tensors(path)["x"].tolist() == [2, 3, 4]


def test_packed_entries_are_refused(tmp_path: Path):
    """torch never packs; a packed entry can be a thousand times as large as its file."""
    path = packed(tmp_path / "x.ckpt", tensor_of(STORAGE % 4, "I1\n(I3\nt(I1\nt"), {"data/0": bytes(16)}, packing=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="damaged"):
        tensor_file.tensors(path)


def test_a_file_cut_short_is_named(tmp_path: Path):
    torch.save({"x": torch.randn(1000)}, tmp_path / "x.ckpt")
    content = (tmp_path / "x.ckpt").read_bytes()
    (tmp_path / "x.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="ends early"):
        tensor_file.contents(tmp_path / "x.ckpt")


def test_torch_files_of_before_2020_are_refused_with_the_remedy(tmp_path: Path):
    torch.save({"x": torch.randn(4)}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="before 2020") as caught:
        tensor_file.contents(tmp_path / "x.ckpt")
    assert "safetensors" in caught.value.problems[0].fix.text()


@pytest.mark.parametrize("noise", range(40))
def test_damaged_instructions_raise_nothing_but_our_own_error(tmp_path: Path, noise: int):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"x": torch.ones(3), "y": torch.zeros(2, 2)}}, buffer)
    script = bytearray(zipfile.ZipFile(buffer).read(next(name for name in zipfile.ZipFile(buffer).namelist() if name.endswith("data.pkl"))))
    generator = torch.Generator().manual_seed(noise)
    for _ in range(3):
        script[int(torch.randint(len(script), (1,), generator=generator))] = int(torch.randint(256, (1,), generator=generator))
    path = packed(tmp_path / "x.ckpt", bytes(script), {"data/0": bytes(12), "data/1": bytes(16)})
    try:
        tensor_file.tensors(path)
    except ModelError as error:
        assert error.problems[0].fix.text()


def test_a_checkpoint_of_torch_is_the_same_model_as_its_safetensors(tmp_path: Path, checkpoint, bundle_of):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensor_file.tensors(checkpoint("sd1")), "global_step": 470000}, path)
    facts, model = inspect(path), load(FileSource(path), CPU)
    assert (facts.family, facts.prediction) == ("sd1", "epsilon")
    for own, other in zip(model.modules(), bundle_of("sd1").modules(), strict=True):
        others = dict(other.named_parameters())
        assert all(torch.equal(value, others[name]) for name, value in own.named_parameters())
