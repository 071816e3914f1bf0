"""The command line: `python . render | inspect | quantize | convert | tiny | bench | score | train`."""

import argparse
import logging
import sys
from pathlib import Path

import torch

from ..bench import add_bench, with_default_bench
from ..glmimage_core.checkpoints.report import DTYPES, ComponentReport
from ..glmimage_core.cogview3.base import STAGES
from ..glmimage_core.cogview3.convert import convert
from ..glmimage_core.glm_image.ar_model import ArLanguage
from ..glmimage_core.glm_image.files.components import MODEL_CLASSES, is_checkpoint, report_of_part, skeleton
from ..glmimage_core.glm_image.files.inspect import describe
from ..glmimage_core.glm_image.files.load import load_image_processor, reference_limits
from ..glmimage_core.glm_image.files.quantize import quantize_checkpoint
from ..glmimage_core.glm_image.files.single_file import inspect_file
from ..glmimage_core.glm_image.geometry import PRIOR_PX, check_size, reference_grid
from ..glmimage_core.glm_image.memory import dit_bytes, predict
from ..glmimage_core.placement.prediction import Job, Setting, setting_for
from ..glmimage_core.placement.residency import HEADROOM, Residency
from ..glmimage_core.tiny.cogview3_base import write_cogview3_base
from ..glmimage_core.tiny.cogview3_plus import write_cogview3
from ..glmimage_core.tiny.glm_image import write_checkpoint
from ..glmimage_core.tiny.spec import SIZES
from ..glmimage_core.tiny.vlm import write_vlm
from ..glmimage_core.units import human_bytes
from ..glmimage_core.weights.formats import CHOICES
from ..glmimage_core.weights.linear import sizes_when
from ..nodes.host import host
from ..nodes.host.standalone import best_device, usable_device
from .graph.errors import NodeError
from .graph.nodes import ALL_NODES
from .graph.runner import Runner
from .graph.stock import Folders
from .graph.workflow import read_workflow
from .score import add_score
from .train import add_train


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit status: 0, 1 when it failed, 2 when what it was given is wrong."""
    parser = argparse.ArgumentParser(prog="python .", description="GLM-Image without ComfyUI.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_render(commands)
    _add_inspect(commands)
    _add_quantize(commands)
    _add_convert(commands)
    _add_tiny(commands)
    add_bench(commands)
    add_score(commands)
    add_train(commands)
    options = parser.parse_args(with_default_bench(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    _quiet_libraries()
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        cause = error.error if isinstance(error, NodeError) else error
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(cause, ValueError | FileNotFoundError | ImportError) else 1


def _quiet_libraries() -> None:
    """Their loading bars would mix with ours."""
    try:
        import diffusers
        import transformers
    except ImportError:
        return  # the command that needs them says so
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def _add_render(commands) -> None:
    parser = commands.add_parser("render", help="run a workflow file", description="Runs a workflow without ComfyUI.")
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW", help="API or UI format (.json), or a .png that carries one")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="NODE is an id or a title; may be repeated"
    )
    parser.add_argument(
        "--enable", action="append", default=[], metavar="NODE", help="switch on a bypassed or muted node of a file in UI format"
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="as ComfyUI's: DIR/diffusers/NAME is a checkpoint, DIR/LLM/NAME a vision-language model; models by default",
    )
    parser.add_argument(
        "--input", type=Path, default=Path("input"), metavar="DIR", help="where Load Image looks; input by default"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="where Save Image writes; output by default"
    )
    parser.add_argument("--device", default=None, help="cuda, mps or cpu; the best there is by default")
    parser.set_defaults(run=_render)


def _render(options) -> int:
    host.models = options.models
    host.on_progress = _show_progress
    if options.device:
        host.residency = Residency(usable_device(options.device))
    workflow = read_workflow(options.workflow, ALL_NODES, options.enable)
    for assignment in options.set:
        workflow.set(assignment, ALL_NODES)
    folders = Folders(options.input, options.output, written=[])
    runner = Runner(ALL_NODES, folders)
    try:
        runner.run(workflow)
    finally:
        for path in folders.written:
            print(path)
    return 0


def _show_progress(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{label}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done * 10 // total != (done - 1) * 10 // total:  # a log gets a line each tenth
        print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)


def _add_inspect(commands) -> None:
    parser = commands.add_parser(
        "inspect", help="describe a checkpoint", description="Sizes, memory, and what is missing or broken."
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a folder with model_index.json, or one safetensors file"
    )
    parser.add_argument("--width", type=int, default=1024, help="of the picture whose memory is predicted, in pixels")
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--references", type=int, default=1, help="how many references of that size")
    parser.set_defaults(run=_inspect)


def _inspect(options) -> int:
    check_size(options.width, options.height)
    if options.references < 0:
        raise ValueError(f"--references is {options.references}; it must be 0 or above")
    if options.checkpoint.is_file():
        report = inspect_file(options.checkpoint)
        _print_reports([report])
        return _print_problems(report.problems)
    if not options.checkpoint.is_dir():
        raise FileNotFoundError(f"{options.checkpoint} is neither a folder nor a file")
    reports = describe(options.checkpoint)
    _print_reports(reports)
    problems = [problem for report in reports for problem in report.problems]
    if not is_checkpoint(options.checkpoint):
        problems.insert(0, f"{options.checkpoint / 'model_index.json'} is missing or does not name a GlmImagePipeline")
    if not problems:
        _print_prediction(options, {report.name: report for report in reports})
    return _print_problems(problems)


def _print_reports(reports: list[ComponentReport]) -> None:
    print(f"{'component':24} {'parameters':>13} {'on disk':>10} {'bfloat16':>10} {'float16':>10} {'float32':>10}  stored as")
    for report in reports:
        print(_component_line(report))


def _print_problems(problems: list) -> int:
    """Returns the exit status."""
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


def _component_line(report: ComponentReport) -> str:
    sizes = " ".join(f"{human_bytes(report.weight_bytes(dtype)):>10}" for dtype in DTYPES.values())
    stored = [str(dtype).removeprefix("torch.") for dtype in report.dtypes]
    stored += [f"{name} ({parameters:,} in {human_bytes(size)})" for name, (parameters, size) in report.quantized.items()]
    return f"{report.name:24} {report.parameters:>13,} {human_bytes(report.disk_bytes):>10} {sizes}  {', '.join(stored)}"


def _print_prediction(options, reports: dict[str, ComponentReport]) -> None:
    grid = reference_grid(options.width, options.height, *reference_limits(load_image_processor(options.checkpoint)))
    fitted = (grid.width * PRIOR_PX, grid.height * PRIOR_PX)
    job = Job(options.width, options.height, references=(fitted,) * options.references)
    models = {name: skeleton(options.checkpoint, name) for name in MODEL_CLASSES}
    dtypes = {name: reports[name].stored_dtype for name in MODEL_CLASSES}
    itemsizes = {name: dtype.itemsize for name, dtype in dtypes.items()}
    configs = {name: model.config for name, model in models.items()}
    stages = predict(configs, itemsizes, job, on_cpu=best_device().type == "cpu")
    whole = sum(reports[name].weight_bytes(dtypes[name]) for name in MODEL_CLASSES)
    weights = {stage: report_of_part(reports[name], part).weight_bytes(dtypes[name]) for stage, (name, part, _) in stages.items()}
    print(
        f"\nPredicted memory at {options.width}x{options.height} with {options.references} reference(s) of that size "
        f"(fitted to {fitted[0]}x{fitted[1]}), weights as stored, cfg above 1:"
    )
    for stage, (_, _, working) in stages.items():
        print(f"  {stage:24} weights {human_bytes(weights[stage]):>10}  working {human_bytes(working):>10}")
    together = whole + max(needs.working for needs in stages.values())
    apart = max(weights[stage] + needs.working for stage, needs in stages.items())
    print(f"  peak, all models resident        {human_bytes(together):>10}  ({together} bytes)")
    print(f"  peak, one model at a time        {human_bytes(apart):>10}  ({apart} bytes)")
    if any(reports[name].quantized for name in MODEL_CLASSES):
        print("\nSettings for cards are named for checkpoints that are not quantized; this one is loaded as it is stored.")
    else:
        _print_settings(job, models)


CARDS = (8, 12, 16, 24)  # GiB


def _print_settings(job: Job, models: dict[str, torch.nn.Module]) -> None:
    """The loaders' settings for cards, in bfloat16 where nothing is quantized."""
    ar, dit, vae = (models[name] for name in ("vision_language_encoder", "transformer", "vae"))
    stages = predict({name: model.config for name, model in models.items()}, dict.fromkeys(models, 2), job)
    working = {stage: needs.working for stage, needs in stages.items()}
    lean = dit_bytes(dit.config, 2, job, caches_on_device=False)
    vae_weights = sum(sizes_when(vae, "none", 2).values())
    print(
        f"\nSettings for cards at {job.width}x{job.height}, in bfloat16, one model at a time ({human_bytes(HEADROOM)} left free):"
    )
    print(f"  {'card':8} {'AR model':28} {'DiT':42} VAE Decode")
    for card in CARDS:
        room = card * 2**30 - HEADROOM
        plans = [
            setting_for(room, ArLanguage(ar), 2, working["Generate Prior"]),
            setting_for(room, dit, 2, working["Sampler"], lean=lean, blocks="transformer_blocks."),
        ]
        whole = "whole" if vae_weights + working["VAE Decode"] <= room else "in tiles"
        print(f"  {card:2} GB    {_setting(plans[0]):28} {_setting(plans[1]):42} {whole}")


def _setting(setting: Setting | None) -> str:
    if setting is None:
        return "does not fit; smaller picture"
    how = ", block by block" if setting.streamed else ""
    return f"{setting.quantization}{how} (peak {human_bytes(setting.peak)})"


def _add_quantize(commands) -> None:
    parser = commands.add_parser(
        "quantize",
        help="write a smaller checkpoint",
        description="Writes a checkpoint anew with quantized weights. Made again after an interruption, it goes on.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder with model_index.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="is made; must be empty or unfinished")
    parser.add_argument("--ar", choices=CHOICES, default="none", help="of the AR model")
    parser.add_argument("--dit", choices=CHOICES, default="none", help="of the DiT")
    parser.set_defaults(run=_quantize)


def _quantize(options) -> int:
    if not options.checkpoint.is_dir():
        raise FileNotFoundError(f"{options.checkpoint} is not a folder; a checkpoint folder is quantized as a whole")
    formats = {"vision_language_encoder": options.ar, "transformer": options.dit}

    def show(done: int, total: int, preview=None) -> None:
        _show_progress("tensors", done, total)

    quantize_checkpoint(options.checkpoint, options.out, formats, show)
    print(options.out)
    return 0


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="bring CogView3-Base into a folder to load",
        description="Writes a published checkpoint of CogView3-Base, full or distilled, in the layout of diffusers.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the published folder, with a file `latest`, or its .pt file")
    parser.add_argument("out", type=Path, metavar="OUT", help="is made; must be empty")
    parser.add_argument("--stage", choices=list(STAGES), required=True, help="which of the two it is; the weights do not tell")
    parser.add_argument("--vae", type=Path, metavar="VAE", help="sdxl_vae.safetensors, or a folder of diffusers with SDXL's VAE")
    parser.set_defaults(run=_convert)


def _convert(options) -> int:
    for left_out in convert(options.source, options.out, options.stage, options.vae):
        print(f"left out: {left_out}", file=sys.stderr)
    print(options.out)
    return 0


FAMILIES = {
    "glm-image": lambda options: write_checkpoint(options.folder, options.size, options.seed),
    "glmga": lambda options: write_vlm(options.folder, options.seed),
    "cogview3-plus": lambda options: write_cogview3(options.folder, options.seed),
    "cogview3-base": lambda options: write_cogview3_base(options.folder, options.seed),
}


def _add_tiny(commands) -> None:
    parser = commands.add_parser(
        "tiny", help="write a random checkpoint", description="Writes a small random checkpoint in the released layout."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="is made; must be empty")
    parser.add_argument(
        "--size",
        choices=list(SIZES),
        default="tiny",
        help="of glm-image; tiny: a few MB; small, 60 MB, and medium, 1.6 GB: for benchmarks",
    )
    parser.add_argument(
        "--family",
        choices=list(FAMILIES),
        default="glm-image",
        help="glm-image by default; glmga is a vision-language model; cogview3-base is written as published, to be converted",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.set_defaults(run=_tiny)


def _tiny(options) -> int:
    FAMILIES[options.family](options)
    print(options.folder)
    return 0
