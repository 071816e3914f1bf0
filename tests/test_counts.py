"""What a GPU would be asked for: the counter on small functions, released shapes under ceilings, predictions beside counts."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from glm_image_pack.bench import counts
from glm_image_pack.bench.counter import META, TO_DEVICE, TO_HOST, Counts, Kernel
from glm_image_pack.bench.counting import counting
from glm_image_pack.bench.counts import Card, ar_pass, guided_step, knows_meta, vae_decode, vae_encode
from glm_image_pack.bench.measure import Case
from glm_image_pack.bench.models import MetaGlmImage
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.glm_image.ar_model import vision_tokens
from glm_image_pack.glmimage_core.glm_image.memory import vision_bytes
from glm_image_pack.glmimage_core.tiny import spec
from glm_image_pack.glmimage_core.weights.linear import parameter_bytes, product_bytes
from PIL import Image
from torch import nn
from torch.nn.functional import layer_norm, pad, scaled_dot_product_attention, silu

# What is asked for today, with comfy-kitchen. Lower them with the counts.
AR_PASS_KERNELS = 632
GUIDED_STEP_KERNELS = 1353

FLOAT = 4  # bytes

pytestmark = pytest.mark.skipif(not knows_meta(), reason="needs a newer transformers")


def counted(run, *models: nn.Module) -> Counts:
    with counting(*models) as counter:
        kept = run()  # noqa: F841, alive until it is counted
        return counter.take()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def test_a_product_with_its_bias_is_one_kernel_that_reads_its_weights():
    linear = nn.Linear(4, 5, device=META)
    found = counted(lambda: linear(empty(2, 3, 4)), linear)
    weights = (4 * 5 + 5) * FLOAT
    moved = (6 * 4 + 6 * 5) * FLOAT + weights
    assert found.kernels == {Kernel("addmm", moved, weights, flops=2 * 6 * 4 * 5, products=torch.float32): 1}
    assert not found.waits and not found.copies


def test_a_lookup_reads_the_rows_that_it_takes():
    embedding, rows = nn.Embedding(1000, 4, device=META), empty(3, dtype=torch.int64)
    for run in (lambda: embedding(rows), lambda: embedding.weight[rows], lambda: embedding.weight.index_select(0, rows)):
        (kernel,) = counted(run, embedding).kernels
        assert kernel.moved == 3 * 8 + 2 * 3 * 4 * FLOAT


def test_views_and_allocations_are_no_kernels():
    x = empty(4, 6)

    def run():
        first, _ = x.view(2, 2, 6).transpose(0, 1)[1:].squeeze(0).unsqueeze(-1).chunk(2)
        return first.expand(-1, -1, 3), torch.empty_like(x), x.new_empty(3), x.contiguous(), x.to(torch.float32)

    assert counted(run).launches == 0


@pytest.mark.parametrize(
    ("run", "kernels", "numbers"),
    [
        (lambda x: x + 1, {"add": 1}, 24),
        (lambda x: x.add_(1), {"add_": 1}, 24),
        (lambda x: x + x[:1].expand(3, 4), {"add": 1}, 12 + 4 + 12),
        (lambda x: x.new_zeros(5), {"new_zeros": 1}, 5),
        (lambda x: x[0].copy_(x[1]), {"copy_": 1}, 8),
        (lambda x: torch.cat((x, x)), {"cat": 1}, 48),
        (lambda x: x.masked_fill(x.new_empty(3, 4, dtype=torch.bool), 0.0), {"clone": 1, "masked_fill_": 1}, 24 + 24 + 3),
        (lambda x: pad(x, (1, 2)), {"new_full": 1, "copy_": 1}, 21 + 24),
        (lambda x: layer_norm(x, (4,)), {"native_layer_norm": 1}, 24 + 2 * 3),
        (lambda x: torch.rms_norm(x, (4,), x[0]), {"_fused_rms_norm": 1}, 24 + 4 + 3),
        (lambda x: silu(x).softmax(-1), {"silu": 1, "_softmax": 1}, 48),
    ],
)
def test_what_kernels_move(run, kernels, numbers):
    found = counted(lambda: run(empty(3, 4)))
    assert found.by_name() == kernels and found.moved == numbers * FLOAT


def test_a_group_norm_is_three_kernels_and_a_convolution_adds_its_bias():
    norm, convolution = nn.GroupNorm(2, 4, device=META), nn.Conv2d(4, 8, 3, padding=1, device=META)
    picture = empty(1, 4, 16, 16)
    assert counted(lambda: norm(picture), norm).launches == 3
    found = counted(lambda: convolution(picture), convolution)
    assert found.by_name() == {"convolution": 1, "add_": 1} and found.peak == 8 * 16 * 16 * FLOAT
    assert found.flops == 2 * 16 * 16 * 8 * 4 * 9 and found.weights == (8 * 4 * 9 + 8) * FLOAT


@pytest.mark.parametrize(
    ("mask", "kernels"),
    [
        (None, {"flash_attention": 1}),
        (torch.float32, {"efficient_attention": 1}),
        (torch.bool, {"zeros_like": 1, "masked_fill_": 1, "efficient_attention": 1}),
    ],
)
def test_attention_is_one_kernel_that_reads_shared_keys_once(mask, kernels):
    queries, keys = empty(2, 8, 16, 32), empty(2, 1, 16, 32).expand(-1, 8, -1, -1)
    mask = None if mask is None else empty(16, 16, dtype=mask)
    found = counted(lambda: scaled_dot_product_attention(queries, keys, keys, attn_mask=mask))
    assert found.by_name() == kernels and found.flops == 4 * 2 * 8 * 16 * 16 * 32
    (attention,) = (kernel for kernel in found.kernels if kernel.flops)
    assert attention.moved == FLOAT * (2 * queries.numel() + 2 * 2 * 16 * 32 + (0 if mask is None else 256))


def test_a_mask_whose_rows_are_no_multiple_of_16_is_padded():
    x, mask = empty(1, 2, 17, 32), empty(17, 17)
    found = counted(lambda: scaled_dot_product_attention(x, x, x, attn_mask=mask))
    assert found.by_name() == {"new_full": 1, "copy_": 1, "efficient_attention": 1}


@pytest.mark.parametrize(
    ("run", "name"), [(lambda x, y: x + y, "add"), (lambda x, y: y @ x, "mm"), (lambda x, y: torch.cat((x, y)), "cat")]
)
def test_a_tensor_that_was_left_on_the_cpu_is_found_and_the_operation_named(run, name):
    with pytest.raises(RuntimeError, match=rf"aten\.{name}.* shape \[3, 3\] on the CPU"):
        counted(lambda: run(empty(3, 3), torch.ones(3, 3)))
    assert counted(lambda: empty(3) * torch.tensor(2.0)).launches == 1  # but for a number


@pytest.mark.parametrize(
    ("run", "copies", "waits"),
    [
        (lambda x: torch.ones(2).to(META), {TO_DEVICE: 8}, 1),
        (lambda x: torch.ones(2, dtype=torch.float64).to(META, torch.float32), {TO_DEVICE: 8}, 1),  # the CPU converts
        (lambda x: torch.tensor([1, 2], device=META), {TO_DEVICE: 16}, 1),
        (lambda x: x.copy_(torch.ones(3, 4), non_blocking=True), {TO_DEVICE: 48}, 0),
        (lambda x: x[torch.tensor([0])], {TO_DEVICE: 8}, 1),
        (lambda x: x.cpu(), {TO_HOST: 48}, 1),
        (lambda x: x.tolist(), {TO_HOST: 48}, 1),
        (lambda x: torch.empty(3, 4).copy_(x), {TO_HOST: 48}, 1),
        (lambda x: x[0, 0].item(), {}, 1),
        (lambda x: bool((x > 0).any()), {}, 1),
        (lambda x: x.nonzero(), {}, 1),
        (lambda x: x[x > 0], {}, 1),
        (lambda x: (x + 1).to(torch.bfloat16), {}, 0),
    ],
)
def test_copies_between_cpu_and_device_and_what_waits(run, copies, waits):
    found = counted(lambda: run(empty(3, 4)))
    assert found.copied == copies and found.waits.total() == waits


def test_what_comes_back_to_the_cpu_is_real():
    with counting():
        assert empty(2, 2).cpu().tolist() == [[0, 0], [0, 0]] and empty(1).item() == 1 and bool(empty(1) > 0)
        assert empty(3, dtype=torch.bfloat16).cpu().dtype == torch.bfloat16


def test_integers_from_the_cpu_are_followed_until_something_unknown_is_written_over_them():
    with counting() as counter:
        grid = torch.tensor([[1, 2, 3]], device=META)
        product = (grid[:, 1] * grid[:, 2]).repeat_interleave(grid[:, 0].add_(1))
        assert product.tolist() == [6, 6] and grid.tolist() == [[2, 2, 3]]
        assert torch.tensor([0, 5, 0], device=META).nonzero().tolist() == [[1]]
        assert counter.take().waits.keys() == {f"copy {TO_DEVICE}", f"copy {TO_HOST}", "repeat_interleave", "nonzero"}
        product.copy_(empty(2, dtype=torch.int64))
        assert product.tolist() == [0, 0]


def test_the_peak_is_of_what_is_alive_together():
    def run():
        a = empty(100)
        b = a + 1
        del a
        view = b[:10]
        del b
        return view.clone().add_(1)

    assert counted(run).peak == 200 * FLOAT
    older = empty(100)
    assert counted(lambda: older.add_(1)).peak == 0
    with counting() as counter:
        kept = empty(100)
        counter.take()
        temporary = kept[:50] + 1
        del temporary
        assert counter.take().peak == 150 * FLOAT and counter.now == 100 * FLOAT


def test_one_run_beyond_another():
    def run(steps: int) -> Counts:
        """Three additions in each step, and once a copy of so many numbers as there are steps."""
        return Counts(Counter({Kernel("add", 8): 3 * steps, Kernel("cat", steps): 1}), waits=Counter(item=steps), peak=steps)

    step = run(3) - run(2)
    assert (step.launches, step.moved, step.waits, step.peak, step.by_name()) == (3, 24 + 1, {"item": 1}, 3, {"add": 3})


def test_a_card_takes_the_longer_of_bytes_operations_and_launches():
    card = Card(bandwidth=1e9, half=1e12, float32=1e11, int8=2e12)

    def seconds(*kernels: Kernel, recorded: bool = True) -> float:
        return card.seconds(Counts(Counter(kernels * 10)), recorded=recorded)

    product = {"flops": 10**10, "products": torch.bfloat16}
    assert seconds(Kernel("copy", 10**6)) == pytest.approx(10e-3)
    assert seconds(Kernel("mm", 10**6, **product)) == pytest.approx(100e-3)
    assert seconds(Kernel("mm", 10**6, **product | {"products": torch.int8})) == pytest.approx(50e-3)
    assert seconds(Kernel("mm", 10**6, **product | {"products": torch.float32})) == pytest.approx(1.0)
    assert seconds(Kernel("add", 1)) == pytest.approx(10 * counts.SHORTEST_KERNEL)
    assert seconds(Kernel("add", 1), recorded=False) == pytest.approx(10 * counts.LAUNCH)
    assert seconds(Kernel("copy", 10**6), recorded=False) == pytest.approx(10e-3)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> MetaGlmImage:
    """The released shapes."""
    folder = tmp_path_factory.mktemp("released")
    return MetaGlmImage.make(folder, "full", device=META, dtype="bfloat16", seed=0)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> MetaGlmImage:
    """The released widths, with fewer layers."""
    released = spec.RELEASED
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(spec.SPECS, "tiny", replace(released, ar_layers=16, vision_layers=4, dit_layers=4))
        return MetaGlmImage.make(tmp_path_factory.mktemp("shallow"), "tiny", device=META, dtype="bfloat16", seed=0)


@pytest.mark.parametrize("rows", [1, 8])
def test_an_ar_pass_reads_each_weight_once_and_never_waits(released, rows):
    found, _ = ar_pass(released.ar, Case(1024, 1024, 1), rows)
    pytest.importorskip("comfy_kitchen", reason="counts its operations")
    assert not found.waits and not found.copies
    read = sum(parameter.numel() for parameter in released.ar.halves["language"].parameters()) * 2
    table = released.ar.model.get_input_embeddings().weight.numel() * 2
    assert found.weights == pytest.approx(read - table, rel=1e-3)
    if rows == 1:
        assert found.launches <= AR_PASS_KERNELS, found.by_name()


def test_a_guided_step_has_no_more_kernels_than_it_had_and_never_waits(released):
    """Its layers are alike: counted are three and four of them."""
    pytest.importorskip("comfy_kitchen", reason="counts its operations")
    model, found = released.dit.model, {}
    blocks = model.transformer_blocks
    for layers in (3, 4):
        model.transformer_blocks = blocks[:layers]
        found[layers], _ = guided_step(released.dit, Case(1024, 1024, 1))
    model.transformer_blocks = blocks
    assert not found[4].waits.total() and not found[4].copies.total()
    a_layer = (found[4] - found[3]).by_name()
    launches = found[4].launches + (len(blocks) - 4) * a_layer.total()
    assert launches <= GUIDED_STEP_KERNELS, a_layer


@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_quantized_weights_are_read_as_they_are_stored(shallow, quantization):
    pytest.importorskip("comfy_kitchen")
    quantized = replace(shallow, quantization=quantization)
    case, dense = Case(512, 512, 1), shallow.ar.halves["language"]
    found, _ = ar_pass(quantized.ar, case, 1)
    stored = parameter_bytes(shallow.ar.model, quantization, 2)
    read = sum(size for name, size in stored.items() if "language_model.layers" in name or name == "lm_head.weight")
    assert found.weights == pytest.approx(read, rel=0.01)  # the joined scales of nf4 are no parameters of the model
    assert read < 0.8 * sum(parameter.numel() * 2 for parameter in dense.parameters())
    whole = ar_pass(shallow.ar, case, 1)[0]
    plain = whole.by_name()
    assert found.moved < whole.moved - 0.97 * (whole.weights - found.weights)  # nothing is widened
    if quantization == "int8":
        names, products = found.by_name(), plain["mm"] + plain["addmm"] - 1  # but for the head
        assert names["int8: product"] == names["int8: round rows"] == products
        assert found.launches == plain.total() + products


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("side", [512, 1024, 2048])
def test_predictions_for_a_card_are_within_10_percent_of_the_counts(shallow, side, dtype):
    glm, case = replace(shallow, dtype=dtype), Case(side, side, 1)
    stages = {
        "prior": ar_pass(glm.ar, case, 1),
        "prior, 32 tokens a pass": ar_pass(glm.ar, case, 32),
        "prior, 4 pictures": ar_pass(glm.ar, case._replace(batch=4), 1),
        "sampler": guided_step(glm.dit, case),
        "sampler, a reference": guided_step(glm.dit, case, 1),
        "decode": vae_decode(glm.vae, case),
        "encode": vae_encode(glm.vae, case),
        "vision": vision(glm, side),
    }
    ratios = {stage: predicted / found.peak for stage, (found, predicted) in stages.items()}
    assert all(0.9 < ratio < 1.1 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
def test_predictions_for_quantized_weights_on_a_card(shallow, quantization):
    """What widens a weight is predicted on top of a stage's widest moment, which it need not meet."""
    pytest.importorskip("comfy_kitchen")
    quantized, case = replace(shallow, quantization=quantization), Case(1024, 1024, 1)
    models = ((quantized.ar.model, ar_pass(quantized.ar, case, 1)), (quantized.dit.model, guided_step(quantized.dit, case)))
    for model, (found, predicted) in models:
        spare = product_bytes(model, quantization)
        assert found.peak - 0.1 * found.peak < predicted < 1.1 * found.peak + spare


def vision(glm: MetaGlmImage, side: int) -> tuple[Counts, int]:
    found = counted(lambda: vision_tokens(glm.ar, Image.new("RGB", (side, side))), glm.ar.model)
    return found, vision_bytes(glm.ar.model.config, glm.ar.dtype.itemsize, side, side)


def test_the_benchmark_counts_every_stage_and_says_that_it_computes(tmp_path, capsys):
    file = tmp_path / "saved.json"
    small = ["--size", "tiny", "--width", "256", "--quantization", "none", "--lookahead", "1,8", "--batch", "1,2"]
    assert main(["bench", "counts", *small, "--save", str(file)]) == 0, capsys.readouterr().err
    saved = json.loads(file.read_text())
    assert "rounds" not in saved["environment"] and saved["environment"]["dtype"] == "bfloat16"
    kernels, times = saved["tables"]
    assert all("computed, not measured" in table["title"] for table in saved["tables"])
    assert [(row["run"], row["batch"]) for row in kernels["rows"]] == [
        ("AR pass, 1 token", 1),
        ("AR pass, 1 token", 2),
        ("AR pass, 8 tokens", 1),
        ("guided step, text", 1),
        ("guided step, edit", 1),
        ("VAE decode", 1),
        ("VAE encode", 1),
    ]
    for row in kernels["rows"]:
        assert row["predicted / counted"] == pytest.approx(row["predicted GB"] / row["peak GB beside weights"])
        assert row["kernels"] > 0 and row["GB moved"] > row["GB of weights read"] > 0
    for row in times["rows"]:
        assert (row["H100 recorded"] is not None) == row["run"].startswith("AR")
        assert 0 < (row["H100 recorded"] or 1e-9) <= row["H100 launched"] <= row["RTX 3060 launched"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lookahead", "0"], "--lookahead 0 leaves"),
        (["--lookahead", "65"], "lookahead is 65"),
        (["--batch", "0"], "--batch is 0"),
        (["--width", "500"], "use 480 or 512"),
    ],
)
def test_what_cannot_be_counted_exits_with_2_and_one_line(arguments, message, capsys):
    assert main(["bench", "counts", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err


@pytest.mark.parametrize("option", [["--device", "cpu"], ["--rounds", "2"], ["--quantization", "int4"]])
def test_counts_take_no_options_of_a_measurement(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "counts", *option])
    assert option[0] in capsys.readouterr().err
