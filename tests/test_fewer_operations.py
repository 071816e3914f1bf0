"""Fewer operations, the same results: joined layers, rotation and modulation in one operation each."""

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image import rope
from glm_image_pack.glmimage_core.glm_image.dit_block import modulated
from glm_image_pack.glmimage_core.glm_image.rope import Rotation
from glm_image_pack.glmimage_core.weights.joined import side_by_side
from glm_image_pack.glmimage_core.weights.linear import quantize_weight, set_quantized_weight
from torch.nn import Linear


def three_layers(quantization="none", *, bias=True):
    torch.manual_seed(0)
    layers = [Linear(64, rows, bias=bias) for rows in (96, 32, 32)]
    for layer in layers if quantization != "none" else ():
        set_quantized_weight(layer, quantize_weight(layer.weight.detach(), quantization))
    return layers


def memory(weight):
    return getattr(weight, "_qdata", weight).untyped_storage().data_ptr()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_one_product_gives_what_the_layers_give_and_no_weight_is_held_twice(quantization, bias):
    if quantization != "none":
        pytest.importorskip("comfy_kitchen")
    layers, x = three_layers(quantization, bias=bias), torch.randn(5, 64)
    expected, apart = torch.cat([layer(x) for layer in layers], dim=-1), {memory(layer.weight) for layer in layers}
    memories, parameters = set(), [layer.weight for layer in layers]
    for _ in range(2):  # the second time, the weights are found as the first one left them
        with torch.inference_mode():
            together = side_by_side(layers, join=True)
        torch.testing.assert_close(together(x), expected)
        memories |= {memory(layer.weight) for layer in layers}
    assert all(layer.weight is parameter for layer, parameter in zip(layers, parameters, strict=True))  # others may hold them
    assert len(apart) == 3 and len(memories) == 1 and not memories & apart
    torch.testing.assert_close(torch.cat([layer(x) for layer in layers], dim=-1), expected)
    for layer, before in zip(layers, three_layers(quantization, bias=bias), strict=True):
        assert layer.state_dict().keys() == before.state_dict().keys()
        assert all(torch.equal(value, before.state_dict()[name]) for name, value in layer.state_dict().items())


@torch.no_grad()
def test_a_weight_that_changed_after_it_was_joined_counts():
    layers, x = three_layers(), torch.randn(5, 64)
    side_by_side(layers, join=True)
    layers[1].weight = torch.nn.Parameter(layers[1].weight * 2, requires_grad=False)
    layers[2].weight.data.mul_(3)
    torch.testing.assert_close(side_by_side(layers, join=True)(x), torch.cat([layer(x) for layer in layers], dim=-1))


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("case", ["hook", "class", "patched", "half", "not to be joined", "fp8"])
def test_layers_that_others_changed_are_called_one_by_one(case):
    if case == "fp8":
        pytest.importorskip("comfy_kitchen")
    layers, x = three_layers("fp8" if case == "fp8" else "none"), torch.randn(5, 64)
    if case == "hook":
        layers[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif case == "class":
        for layer in layers:
            layer.__class__ = Doubled
    elif case == "patched":
        forward = layers[1].forward
        layers[1].forward = lambda x: 2 * forward(x)
    elif case == "half":
        layers[1].weight.data = layers[1].weight.data.double()
        layers[1].bias.data = layers[1].bias.data.double()
        layers[1].register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    expected, before = torch.cat([layer(x) for layer in layers], dim=-1), [memory(layer.weight) for layer in layers]
    torch.testing.assert_close(side_by_side(layers, join=case != "not to be joined")(x), expected)
    assert [memory(layer.weight) for layer in layers] == before


@torch.inference_mode()
@pytest.mark.parametrize("rotated", [16, 8], ids=["whole heads", "half of each head"])
@pytest.mark.parametrize("places", [slice(2, 7), torch.tensor([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])], ids=["shared", "own"])
def test_comfy_kitchens_rotation_is_the_formula(monkeypatch, rotated, places):
    """The formula: transformers' and diffusers' x * cos + rotate_half(x) * sin."""
    pytest.importorskip("comfy_kitchen")
    torch.manual_seed(1)
    angles = torch.randn(9, rotated // 2).repeat(1, 2)
    queries, keys = torch.randn(2, 2, 5, 3, 16)
    plain = Rotation.of(angles.cos(), angles.sin())
    monkeypatch.setattr(torch.Tensor, "device", property(lambda tensor: torch.device("cuda")))  # as on an accelerator
    fused = Rotation.of(angles.cos(), angles.sin())
    monkeypatch.undo()
    assert fused.matrices is not None and plain.matrices is None

    at = angles[places] if not isinstance(places, slice) else angles[places][None]

    def expected(x):
        part, rest = x[..., :rotated], x[..., rotated:]
        first, second = part.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return torch.cat((part * at.cos()[:, :, None] + turned * at.sin()[:, :, None], rest), dim=-1)

    for rotation in (plain, fused):
        ours = queries.clone(), keys.clone()
        rotation.at(places).rotate_(*ours)
        alone = keys.clone()
        rotation.at(places).rotate_(alone)
        torch.testing.assert_close(ours, (expected(queries), expected(keys)), atol=1e-6, rtol=0)
        assert torch.equal(alone, ours[1])


def test_without_comfy_kitchen_the_rotation_is_plain(monkeypatch):
    monkeypatch.setattr(rope, "comfy_kitchen_with", lambda operation: None)
    assert Rotation.of(*torch.ones(2, 3, 8, device="meta")).matrices is None


def test_training_on_an_accelerator_takes_operations_that_have_gradients():
    norm, x = torch.nn.LayerNorm(16, elementwise_affine=False, device="meta"), torch.randn(2, 5, 16, device="meta")
    x.requires_grad_()
    modulated(x, norm, *torch.randn(2, 2, 1, 16, device="meta")).sum().backward()
    assert x.grad is not None
    heads = torch.zeros(1, 3, 2, 8, device="meta", requires_grad=True).clone()
    Rotation.of(*torch.ones(2, 3, 8, device="meta")).rotate_(heads)
    heads.sum().backward()


@torch.no_grad()
def test_comfy_kitchens_modulation_is_the_formula(monkeypatch):
    pytest.importorskip("comfy_kitchen")
    norm = torch.nn.LayerNorm(16, elementwise_affine=False, eps=1e-5)
    x, (scale, shift) = torch.randn(2, 5, 16), torch.randn(2, 2, 1, 16)
    expected = norm(x) * (1 + scale) + shift
    torch.testing.assert_close(modulated(x, norm, scale, shift), expected)
    calls, plain = [], torch.addcmul
    monkeypatch.setattr(torch, "addcmul", lambda *tensors: calls.append(tensors) or plain(*tensors))
    monkeypatch.setattr(torch.Tensor, "device", property(lambda tensor: torch.device("cuda")))  # as on an accelerator
    fused = modulated(x, norm, scale, shift)
    monkeypatch.undo()
    torch.testing.assert_close(fused, expected)
    assert not calls
