"""Copies of what a run keeps: the same values, nobody else's memory, one transfer for what lies together."""

import torch

from lora_trainer.train.outputs.background_writer import copy_tensors


def test_copies_have_the_values_of_then_in_memory_of_their_own():
    flat = torch.arange(24.0)
    tensors = {"first": flat[:12].view(3, 4), "second": flat[12:].view(4, 3), "turned": flat[:6].view(2, 3).t(), "alpha": torch.tensor(8.0)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    copies = copy_tensors(tensors)
    flat.zero_()
    tensors["alpha"].zero_()
    assert all(torch.equal(copies[name], value) for name, value in before.items())
    assert all(copy.is_contiguous() for copy in copies.values())


def test_what_lies_together_is_copied_at_once():
    flat = torch.arange(24.0)
    copies = copy_tensors({"first": flat[:12], "second": flat[12:]})
    places = {tensor.untyped_storage().data_ptr() for tensor in copies.values()}
    assert len(places) == 1
    assert flat.untyped_storage().data_ptr() not in places


def test_numbers_of_two_kinds_in_one_memory_stay_apart():
    whole = torch.arange(4.0)
    copies = copy_tensors({"numbers": whole, "bits": whole.view(torch.int32)})
    assert copies["numbers"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert torch.equal(copies["bits"], whole.view(torch.int32))
