import pytest
import torch

from lora_trainer.host.fingerprint import changed_tensors, fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_one_changed_bit_is_seen_in_any_format(dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    before = fingerprint({"a": tensor, "b": tensor.clone()})
    last = tensor.view(torch.uint8)[-1, -1, -1:]
    last ^= 1
    assert changed_tensors(before, fingerprint({"a": tensor, "b": before and tensor.clone()})) == ["a", "b"]
    last ^= 1
    assert fingerprint({"a": tensor, "b": tensor}) == before


def test_memory_format_does_not_matter():
    tensor = torch.randn(2, 3, 4, 5)
    assert fingerprint({"a": tensor}) == fingerprint({"a": tensor.to(memory_format=torch.channels_last)})
    assert fingerprint({"a": tensor[:, 1]}) == fingerprint({"a": tensor[:, 1].clone()})


def test_tensors_that_came_or_went_are_named():
    one = fingerprint({"a": torch.ones(2), "b": torch.ones(2)})
    other = fingerprint({"b": torch.ones(2), "c": torch.tensor(1.0)})
    assert changed_tensors(one, other) == ["a", "c"]
