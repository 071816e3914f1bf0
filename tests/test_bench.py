"""The benchmarks: every one at tiny size for one round, and what their floors and predictions are made of."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from glm_image_pack.bench import e2e, models
from glm_image_pack.bench import vae as vae_bench
from glm_image_pack.bench.ar import weight_bytes
from glm_image_pack.bench.dit import forward_flops
from glm_image_pack.bench.inputs import GLYPHS
from glm_image_pack.bench.libraries import generate
from glm_image_pack.bench.measure import Stopwatch, alternate, copy_rate, product_rate
from glm_image_pack.bench.models import RandomGlmImage
from glm_image_pack.bench.stages import stage_runs
from glm_image_pack.bench.vae import operations
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image.ar_model import ArVision
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.components import AR, COMPONENTS
from glm_image_pack.glmimage_core.glm_image.memory import dit_bytes
from glm_image_pack.glmimage_core.placement.prediction import Job
from glm_image_pack.glmimage_core.placement.residency import HEADROOM, Residency, model_bytes
from glm_image_pack.glmimage_core.tiny.glm_image import write_layout
from glm_image_pack.glmimage_core.tiny.spec import RELEASED
from glm_image_pack.glmimage_core.tiny.weights import random_weights

CPU, META = torch.device("cpu"), torch.device("meta")
STEPS = ["--steps", "2"]
AGAINST = ["--against", "reference"]


@pytest.fixture
def bench(tmp_path, capsys):
    """Run a benchmark for one round at 256 x 256. Returns its saved tables as lists of rows."""

    def run(name: str, *arguments: str) -> list[list[dict]]:
        file = tmp_path / "saved.json"
        small = ["--width", "256", "--rounds", "1", "--device", "cpu"]
        assert main(["bench", name, *small, "--save", str(file), *arguments]) == 0, capsys.readouterr().err
        saved = json.loads(file.read_text())
        assert saved["environment"]["bench"] == name and saved["environment"]["torch"] == torch.__version__
        printed = capsys.readouterr().out
        assert all(table["title"] in printed for table in saved["tables"])
        return [table["rows"] for table in saved["tables"]]

    return run


def check_ratios(rows: list[dict], unit: str) -> None:
    """That all numbers are finite and that each ratio is of the times beside it."""
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float))
        for ratio, above, below in (("reference / this", "reference", unit), ("this / floor", unit, "floor")):
            if row[ratio] is not None:
                assert row[ratio] == pytest.approx(row[above] / row[below]) and row[ratio] > 0


def test_ar_compares_every_size_and_batch_with_generate_and_with_the_bare_products(bench):
    (rows,) = bench("ar", "--width", "256,320", "--height", "256,256", "--batch", "1,2", *AGAINST)
    assert [(row["picture"], row["batch"]) for row in rows] == [
        ("256x256", 1),
        ("256x256", 2),
        ("320x256", 1),
        ("320x256", 2),
    ]
    check_ratios(rows, "ms/token")
    assert all(row["reference"] and row["floor"] for row in rows)
    assert all(row["tokens/pass"] == pytest.approx((row["tokens"] - 1) / row["passes"]) for row in rows)
    assert all(row["tokens/s"] == pytest.approx(1000 * row["batch"] / row["ms/token"]) for row in rows)
    assert rows[0]["tokens"] == 256 + 64  # the preview's and the picture's own


def test_regrow_keeps_to_its_bound_on_passes(bench):
    (rows,) = bench("regrow")
    assert [(row["run"], row["masked %"]) for row in rows] == [(run, share) for run in ("text", "edit") for share in (10, 50, 90)]
    assert all(row["passes"] <= row["drawn"] + math.ceil(row["tokens"] / 32) for row in rows)
    assert all(row["drawn"] < row["tokens"] and row["whole plan / this"] > 0 for row in rows)


def test_dit_compares_text_to_image_and_edits_with_the_pipeline(bench):
    (rows,) = bench("dit", *STEPS, *AGAINST)
    assert [row["run"] for row in rows] == ["text-to-image", "edit, new reference", "edit, same reference"]
    check_ratios(rows, "s/step")
    assert all(row["reference"] and row["floor"] for row in rows)
    assert rows[1]["floor"] > rows[2]["floor"] > rows[0]["floor"]  # a pass more; more tokens to attend to


def test_vae_measures_both_ways_whole_and_tiled(bench):
    (rows,) = bench("vae", *AGAINST)
    assert [row["run"] for row in rows] == ["encode, whole", "encode, tiled", "decode, whole", "decode, tiled"]
    check_ratios(rows, "s")
    assert all(row["reference"] and row["floor"] for row in rows)


def test_e2e_tells_the_stages_apart_and_what_does_not_run_again(bench):
    stages, runs, python = bench("e2e", *STEPS, *AGAINST)
    names = ["prior", "glyphs", "denoise", "decode", "other nodes and graph", "whole"]
    assert [row["stage"] for row in stages] == names
    check_ratios(stages, "s")
    assert [row["stage"] for row in stages if not row["reference"]] == ["other nodes and graph"]
    assert sum(row["s"] for row in stages[:-1]) == pytest.approx(stages[-1]["s"])
    ran = {row["run"]: {name for name in ("prior", "encode reference", "caches", "denoise") if row[name]} for row in runs}
    assert ran == {
        "text, all new": {"prior", "denoise"},
        "text, new sampler seed": {"denoise"},
        "edit, all new": {"prior", "encode reference", "caches", "denoise"},
        "edit, same reference": {"prior", "denoise"},
        "edit, new sampler seed": {"denoise"},
    }
    assert all(row["reference / this"] == pytest.approx(row["reference"] / row["whole"]) for row in [*runs, *python])
    assert [(row["run"], bool(row[".reference"])) for row in python] == [("text", False), ("edit", True)]
    assert all(row["whole"] == pytest.approx(row[".reference"] + row[".plan"] + row[".paint"]) for row in python)


@pytest.mark.parametrize(
    ("stage", "node", "missing"),
    [("prior", "GLMImageRenamed", "GLMImageRenamed"), ("prior", "GLMImageDescribe", "prior")],
    ids=["no such node", "a node that does not run"],
)
def test_a_stage_whose_node_does_not_run_fails_the_benchmark(monkeypatch, stage, node, missing):
    monkeypatch.setitem(e2e.STAGES, stage, node)
    with pytest.raises(KeyError, match=missing):
        main(["bench", "e2e", "--width", "256", "--rounds", "1", *STEPS, "--device", "cpu"])


def test_a_stopwatch_times_methods_for_the_length_of_a_block():
    class Model:
        def double(self, number):
            return 2 * number

    model, stopwatch = Model(), Stopwatch(CPU)
    with stopwatch.timed_methods({"work": [(model, "double")]}):
        assert model.double(2) == 4
    (seconds,) = stopwatch.times.values()
    assert seconds > 0 and model.double(3) == 6 and stopwatch.times == {"work": seconds}
    with pytest.raises(AttributeError, match="renamed"), stopwatch.timed_methods({"work": [(model, "renamed")]}):
        pass


def test_without_a_name_it_is_e2e_against_the_reference(capsys):
    assert main(["bench", "--width", "256", "--rounds", "1", *STEPS, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "bench e2e, size tiny" in printed and "reference / this" in printed


def test_without_a_reference_its_columns_are_empty(bench):
    (rows,) = bench("dit", *STEPS)
    assert all(row["reference"] is None and row["reference / this"] is None and row["floor"] for row in rows)


@pytest.mark.skipif(torch.__version__.startswith("2.7."), reason="in torch 2.7 the CPU's attention takes other memory")
def test_memory_predicts_each_stage_within_15_percent_and_says_by_how_much(bench):
    (rows,) = bench("memory", "--references", "0,1")
    stages = [(row["stage"], row["references"]) for row in rows]
    assert len(set(stages)) == len(stages) == 8
    for row in rows:
        assert row["predicted / measured"] == pytest.approx(row["predicted"] / row["measured"])
        assert row["predicted / measured"] == pytest.approx(1, abs=0.15)
    weights = {row["stage"]: row["weights"] for row in rows}
    assert weights["Encode Reference, vision"] < 0.5 * weights["Generate Prior"]  # a half each


def test_memory_takes_the_settings_that_fit_under_the_cap(bench):
    pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    cap = str((HEADROOM + 10**6) / 1e9)  # leaves a megabyte
    recommended = ["--width", "192", "--references", "0", "--settings", "recommended"]
    prior, dit, decode = bench("memory", *recommended, "--cap", cap)[0]
    assert (prior["stage"], prior["quantization"], prior["placed"]) == ("Generate Prior", "int8", "whole")
    assert prior["predicted"] < 1 and prior["predicted / measured"] == pytest.approx(1, abs=0.25)
    assert dit["placed"] == "does not fit" and dit["measured"] is None
    assert decode["stage"] == "VAE Decode" and decode["quantization"] == "none"


def test_of_a_streamed_dit_the_blocks_that_are_there_are_predicted(dit, monkeypatch):
    """On the meta device, with room for three of six blocks and two that come and go."""
    config = {key: value for key, value in dit.model.config.items() if not key.startswith("_")}
    dit = replace(dit, model=type(dit.model).from_config(config | {"num_layers": 6}).eval(), device=META)
    block, whole = model_bytes(dit.blocks[0]), model_bytes(dit.model)
    job = Job(256, 256, references=((256, 256),), glyph_tokens=GLYPHS)
    working = dit_bytes(dit.model.config, 4, job, caches_on_device=False)
    residency = Residency(META, lambda: whole - block + working)
    configs = {name: kind.build_from(dit.checkpoint).config for name, kind in COMPONENTS.items()} | {
        "transformer": dit.model.config
    }
    (stage,) = stage_runs("transformer", dit, job, configs=configs, residency=residency, quantization="none")
    assert stage.how == "block by block" and stage.working == working
    with residency.hold(stage.model, stage.working, dit.blocks):
        there = sum(tensor.nbytes for tensor in (*dit.model.parameters(), *dit.model.buffers()) if tensor.device == META)
    assert stage.weights == there + 2 * block == whole - block


def test_a_quantized_dit_is_compared_with_the_pipeline_over_the_same_weights(bench):
    pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    (rows,) = bench("dit", "--quantization", "int8", *STEPS, *AGAINST)
    check_ratios(rows, "s/step")
    assert all(row["reference"] and row["floor"] for row in rows)


def test_a_token_reads_the_bytes_of_quantized_weights(tmp_path):
    pytest.importorskip("comfy_kitchen", reason="quantized weights need comfy-kitchen")
    settings = {"device": CPU, "dtype": "float32", "seed": 0}
    whole, int8 = (RandomGlmImage.make(tmp_path / name, "tiny", **settings, quantization=name).ar for name in ("none", "int8"))
    head = whole.model.lm_head.weight.nbytes
    assert (weight_bytes(int8) - head) / (weight_bytes(whole) - head) == pytest.approx(0.25, abs=0.02)  # and scales


def test_a_vae_that_runs_out_of_memory_on_a_whole_picture_is_measured_in_tiles(bench, monkeypatch):
    def decode_in_tiles(decoder, latents, tiled):
        if not tiled:
            raise torch.OutOfMemoryError
        return decode(decoder, latents, tiled)

    decode = vae_bench.vae.decode
    monkeypatch.setattr(vae_bench.vae, "decode", decode_in_tiles)
    (rows,) = bench("vae")
    assert [row["run"] for row in rows if row["s"] is None] == ["decode, whole"]


def test_a_benchmark_that_is_interrupted_leaves_the_rows_that_it_has(tmp_path, monkeypatch):
    file, measured = tmp_path / "saved.json", []

    def interrupt(*arguments):
        if measured:
            raise KeyboardInterrupt
        measured.append(arguments)
        return {"this": 1.0}

    monkeypatch.setattr("glm_image_pack.bench.vae.medians", interrupt)
    assert main(["bench", "vae", "--width", "256", "--device", "cpu", "--save", str(file)]) == 130
    (table,) = json.loads(file.read_text())["tables"]
    assert [row["run"] for row in table["rows"]] == ["encode, whole"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory", "--cap", "8"], "--cap limits a CUDA device"),
        (["memory", "--settings", "recommended"], "needs --cap"),
        (["checks", "--size", "full"], "would take hours"),
        (["dit", "--width", "500"], "use 480 or 512"),
        (["ar", "--width", "256,512", "--height", "256"], "one height for each width"),
        (["ar", "--batch", "0"], "--batch is 0"),
        (["dit", "--steps", "0"], "--steps is 0"),
        (["ar", "--rounds", "0"], "--rounds is 0"),
        (["vae", "--save", "table.xls"], "must end in one of these: .json or .md"),
        (["ar", "--size", "full"], "needs an accelerator"),
        (["ar", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_what_cannot_be_measured_exits_with_2_and_one_line(arguments, message, capsys):
    name, *options = arguments
    assert main(["bench", name, *([] if "--device" in options else ["--device", "cpu"]), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err


def test_a_table_is_saved_as_markdown_too(tmp_path, capsys):
    file = tmp_path / "saved.md"
    assert main(["bench", "vae", "--width", "256", "--rounds", "1", "--device", "cpu", "--save", str(file)]) == 0
    assert file.read_text() == capsys.readouterr().out


def test_the_full_size_has_the_released_numbers_of_parameters(tmp_path):
    write_layout(tmp_path, RELEASED)
    count = {
        name: sum(parameter.numel() for parameter in COMPONENTS[name].build_from(tmp_path).parameters()) for name in COMPONENTS
    }
    assert count["vision_language_encoder"] == pytest.approx(9.9e9, rel=0.03)
    assert count["transformer"] == pytest.approx(6.8e9, rel=0.03)
    assert count["text_encoder"] < 0.25e9 and count["vae"] < 0.5e9


def test_the_full_size_reads_the_released_bytes_a_token_and_has_the_released_ids(tmp_path):
    write_layout(tmp_path, RELEASED)
    model = AR.build_from(tmp_path).to(torch.bfloat16)
    assert weight_bytes(SimpleNamespace(model=model)) == pytest.approx(16.3e9, rel=0.02)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "processor")
    assert tokenizer.convert_tokens_to_ids(["<|image|>", "<sop>", "<eop>"]) == [167855, 167845, 167846]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (16384, 16385)
    assert len(tokenizer("a house").input_ids) == 7 and max(tokenizer("a house").input_ids) < RELEASED.vocabulary


def test_models_compute_in_the_dtype_and_match_the_checkpoint_of_their_size(tmp_path, folder):
    made = RandomGlmImage.make(tmp_path / "made", "tiny", device=CPU, dtype="float32", seed=0)
    for name, component in (("transformer", made.dit), ("vision_language_encoder", made.ar)):
        loaded = checkpoints.load_dit(folder) if name == "transformer" else checkpoints.load_ar(folder)
        expected = loaded.model.state_dict()
        assert component.model.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in component.model.state_dict().items())
    half = RandomGlmImage.make(tmp_path / "half", "tiny", device=CPU, dtype="bfloat16", seed=0)
    for component in (half.ar, half.glyph_encoder, half.dit, half.vae):
        assert component.dtype == torch.bfloat16 and not component.model.training


def test_a_half_that_is_offloaded_is_left_on_the_cpu(tmp_path, monkeypatch):
    """The meta device plays one that the numbers are moved to."""
    monkeypatch.setattr(models, "random_weights", lambda model, key, device: random_weights(model, key, CPU))
    glm = RandomGlmImage.make(tmp_path, "tiny", device=META, dtype="float32", seed=0)
    glm.offloaded = ArVision.holds
    where = {name: {tensor.device for tensor in (*half.parameters(), *half.buffers())} for name, half in glm.ar.parts.items()}
    assert where == {"language": {META}, "vision": {CPU}}


def test_generate_emits_exactly_the_tokens_of_the_grids(ar):
    ids = torch.tensor([ord("a"), ar.tokenizer.bos_token_id])
    emitted = generate(ar, ids, [Grid(2, 2), Grid(3, 2)], batch=2, seed=0)
    assert emitted.shape == (2, 2 + 4 + 6) and not (emitted[:, 2:] == ar.tokenizer.eos_token_id).any()


def test_the_dits_floor_is_the_products_of_its_layers(dit):
    config = dit.model.config
    width = config.num_attention_heads * config.attention_head_dim
    image, text = torch.randn(1, 256, width), torch.randn(1, 12, width)
    time = torch.randn(1, config.time_embed_dim)
    with torch.no_grad():
        products = sum(operations(lambda block=block: block(image, text, time)) for block in dit.model.transformer_blocks)
    adaln = config.num_layers * 2 * config.time_embed_dim * 12 * width
    assert products - adaln == forward_flops(config, 256 + 12)


def test_ways_take_turns_after_a_round_that_warms_up():
    calls = []
    results = alternate({"a": lambda seed: calls.append(("a", seed)), "b": lambda seed: calls.append(("b", seed))}, 2, seed=5)
    assert calls == [("b", 5), ("a", 5), ("a", 6), ("b", 6), ("b", 7), ("a", 7)]
    assert results == {"a": [None, None], "b": [None, None]}


def test_the_machines_rates_are_measured():
    assert 1e8 < copy_rate(CPU) < 1e13 and 1e8 < product_rate(CPU, torch.float32) < 1e16
