"""Which models are on a small device. cpu:0 plays the device: a place of its own to PyTorch, in the same memory."""

import gc

import pytest
import torch
from glm_image_pack.glmimage_core.placement.residency import Residency, current, model_bytes
from torch.nn import Linear

DEVICE = torch.device("cpu", 0)


class Device:
    """A device of so many bytes."""

    def __init__(self, size: int, make_room=lambda needed: None):
        self.size = size
        self.residency = Residency(DEVICE, self.free, make_room)

    def free(self) -> int:
        return self.size - sum(model_bytes(model) for model in self.residency.resident)


def linear(bytes_: int) -> torch.nn.Module:
    return Linear(bytes_ // 4, 1, bias=False)


def test_models_stay_while_there_is_room_and_the_one_unused_for_longest_leaves():
    device = Device(1000)
    a, b, c = linear(400), linear(400), linear(400)
    for model in (a, b, a):
        with device.residency.hold(model):
            assert model in device.residency.resident
    with device.residency.hold(c):
        assert device.residency.resident == [a, c]
    assert b.weight.device == torch.device("cpu")


def test_working_memory_counts():
    device = Device(1000)
    a, b = linear(400), linear(400)
    with device.residency.hold(a):
        pass
    with device.residency.hold(b, working_bytes=300):
        assert device.residency.resident == [b]
    with device.residency.hold(b, working_bytes=600):
        assert device.residency.resident == [b]


def test_others_are_asked_for_room_before_our_own_models_leave():
    asked = []

    def give_back(needed):
        asked.append(needed)
        device.size += 500

    device = Device(1000, give_back)
    a, b = linear(800), linear(400)
    for model in (a, b):
        with device.residency.hold(model):
            pass
    assert asked == [400]
    assert device.residency.resident == [a, b]


def test_a_model_that_nobody_holds_is_gone():
    device = Device(1000)
    a = linear(400)
    with device.residency.hold(a):
        pass
    del a
    gc.collect()
    assert device.residency.resident == [] and device.free() == 1000


def test_a_move_that_fails_leaves_nothing_behind(monkeypatch):
    device = Device(1000)
    a, move = torch.nn.Sequential(linear(400), linear(400)), torch.nn.Module.to
    before = [(parameter, parameter.data_ptr()) for parameter in a.parameters()]

    def broken(model, place):
        if place == DEVICE:
            model[0].weight.data = model[0].weight.data.clone()  # as far as it came
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.nn.Module, "to", broken)
    with pytest.raises(torch.OutOfMemoryError), device.residency.hold(a):
        pass
    assert [(parameter, parameter.data_ptr()) for parameter in a.parameters()] == before
    assert device.residency.resident == []
    monkeypatch.setattr(torch.nn.Module, "to", move)
    with device.residency.hold(a):
        assert device.residency.resident == [a]


def test_a_model_too_large_for_the_device_says_both_numbers(monkeypatch):
    device = Device(1_500_000_000)
    a = linear(400)

    def full(place):
        if place == DEVICE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(a, "to", full)
    with (
        pytest.raises(torch.OutOfMemoryError, match="Not enough memory on cpu:0: Linear takes 400 B; 1.50 GB is free"),
        device.residency.hold(a),
    ):
        pass


def test_nothing_moves_when_the_device_is_the_cpu():
    residency = Residency(torch.device("cpu"))
    a = linear(400)
    with residency.hold(a) as device:
        assert device == torch.device("cpu")
    assert residency.resident == []
    residency.release(a)


def test_a_released_model_has_the_weights_that_it_left_on_the_cpu():
    device = Device(1000)
    a = linear(400)
    a.register_buffer("table", torch.ones(3))
    before = [(tensor, tensor.data_ptr()) for tensor in (a.weight, a.table)]
    for _ in range(2):
        with device.residency.hold(a), device.residency.hold(a):
            assert a.weight.data_ptr() != before[0][1]
        device.residency.release(a)
        assert device.residency.resident == [] and a.weight.device == torch.device("cpu")
        assert [(tensor, tensor.data_ptr()) for tensor in (a.weight, a.table)] == before


def test_a_device_that_cannot_tell_its_memory_says_so():
    with pytest.raises(ValueError, match="free_bytes"):
        Residency(torch.device("meta")).free_bytes()


def test_a_kind_of_device_of_which_there_is_one_has_no_current_one():
    for device in ("cpu", "cpu:0", "mps:0", "privateuseone:0", "cuda"):
        with current(torch.device(device)):
            pass
