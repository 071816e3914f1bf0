"""`python . bench`: the pack against diffusers' pipeline, stage by stage, in one process and on the same weights.

Three ways to the same picture: the reference pipeline, the library called directly, and the shipped workflow walked by the
headless runner. Rounds alternate between them, so that a noisy machine disturbs all alike; each figure is a median.
"""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch

from ...glmimage_core import checkpoint as checkpoints
from ...glmimage_core import denoise, glyphs, prior, vae
from ...glmimage_core.geometry import check_size
from ...glmimage_core.tiny import write_checkpoint
from .. import prior as prior_node
from .. import prompt as prompt_node
from .. import references
from .. import vae as vae_node
from ..host import host, standalone
from . import ALL_NODES
from .runner import Runner
from .stock import Folders, SaveImage
from .workflow import Workflow, read_workflow

PROMPT = 'A shop front in the rain with a neon sign that says "OPEN LATE"'
ROOT = Path(__file__).resolve().parents[2]

Times = Counter  # seconds by stage


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure against diffusers", description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "medium"), default="tiny", help="of the random checkpoint")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.set_defaults(run=_bench)


def _bench(options) -> int:
    check_size(options.width, options.height)
    checkpoints.check_libraries()
    with tempfile.TemporaryDirectory() as folder:
        host.models = Path(folder)
        checkpoint = host.models / "diffusers" / "GLM-Image"
        write_checkpoint(checkpoint, options.size)
        print(
            f"{options.size} random checkpoint, {options.width}x{options.height}, {options.steps} steps, cfg 1.5, float32, "
            f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}, transformers {version('transformers')}, "
            f"diffusers {version('diffusers')}; medians of {options.rounds} rounds, in seconds\n"
        )
        ways = {
            "diffusers": _pipeline(checkpoint, options),
            "library": _library(checkpoint, options),
            "graph": _graph(Path(folder), options),
        }
        rounds = {name: [] for name in ways}
        for seed in range(options.rounds + 1):
            for name, run in ways.items() if seed % 2 else reversed(ways.items()):
                times = run(seed)
                if seed:
                    rounds[name].append(times)
        _print_stages(rounds)
        _print_reuse(Path(folder), options)
    return 0


class _Stopwatch(ExitStack):
    """Times functions where they are called from, by replacing each module's name for them while it is open."""

    def __init__(self, stages: dict[str, list[tuple[object, str]]]):
        super().__init__()
        self.times: Times = Counter()
        for stage, places in stages.items():
            for owner, name in places:
                self.enter_context(patch.object(owner, name, self._timed(stage, getattr(owner, name))))

    def _timed(self, stage: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.times[stage] += time.perf_counter() - start

        return run

    def whole(self, function: Callable[[], object]) -> Times:
        """Run a function and give the seconds of all stages and of the whole."""
        with self:
            self._timed("whole", function)()
        return self.times


def _pipeline(checkpoint: Path, options) -> Callable[[int], Times]:
    from diffusers import GlmImagePipeline

    pipe = GlmImagePipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)

    def run(seed: int) -> Times:
        stages = {
            "prior": [(pipe, "generate_prior_tokens")],
            "glyphs": [(pipe, "encode_prompt")],
            "decode": [(pipe.vae, "decode"), (pipe.image_processor, "postprocess")],
        }
        times = _Stopwatch(stages).whole(
            lambda: pipe(
                PROMPT,
                width=options.width,
                height=options.height,
                num_inference_steps=options.steps,
                generator=torch.Generator().manual_seed(seed),
            )
        )
        times["denoise"] = times["whole"] - times["prior"] - times["glyphs"] - times["decode"]
        return times

    return run


def _library(checkpoint: Path, options) -> Callable[[int], Times]:
    ar, encoder = checkpoints.load_ar(checkpoint), checkpoints.load_glyph_encoder(checkpoint)
    dit, decoder = checkpoints.load_dit(checkpoint), checkpoints.load_vae(checkpoint)

    def paint(seed: int) -> None:
        plan = prior.generate_prior(ar, PROMPT, options.width, options.height, seed)
        texts = glyphs.find_glyph_texts(PROMPT)
        positive, negative = (glyphs.encode_glyph_texts(encoder, some) for some in (texts, []))
        vae.decode(decoder, denoise.sample(dit, plan, positive, negative, [seed], options.steps, 1.5))

    stages = {
        "prior": [(prior, "generate_prior")],
        "glyphs": [(glyphs, "encode_glyph_texts")],
        "denoise": [(denoise, "sample")],
        "decode": [(vae, "decode")],
    }
    return lambda seed: _Stopwatch(stages).whole(lambda: paint(seed))


LIBRARY_CALLS: dict[str, list[tuple[ModuleType | type, str]]] = {
    "library": [
        (prompt_node, "encode_glyph_texts"),
        (prior_node, "generate_prior"),
        (standalone, "sample"),
        (vae_node, "decode"),
        (references, "vision_tokens"),
        (references, "latents_of"),
    ],
    "prior": [(prior_node, "generate_prior")],
    "caches": [(denoise, "reference_keys_values")],
    "saving": [(SaveImage, "save")],
}


def _graph(folder: Path, options) -> Callable[[int], Times]:
    """The text-to-image workflow. Loaders are kept from round to round, as ComfyUI keeps them; all else runs again."""
    runner = Runner(ALL_NODES, Folders(folder, folder / "output", []), keep=True)
    workflow = _workflow("text_to_image", options)

    def run(seed: int) -> Times:
        _set_all(workflow, seed=seed, value=PROMPT + " " * seed)
        return _Stopwatch(LIBRARY_CALLS).whole(lambda: runner.run(workflow))

    return run


def _workflow(name: str, options) -> Workflow:
    workflow = read_workflow(ROOT / "workflows" / "api" / f"{name}.json", ALL_NODES)
    _set_all(workflow, width=options.width, height=options.height, steps=options.steps)
    return workflow


def _set_all(workflow: Workflow, **values) -> None:
    """Set inputs of these names wherever a node has one that is a value."""
    for node in workflow.prompt.values():
        node["inputs"] |= {name: value for name, value in values.items() if not isinstance(node["inputs"].get(name, []), list)}


def _median(rounds: list[Times], stage: str) -> float:
    return statistics.median(times[stage] for times in rounds)


def _print_stages(rounds: dict[str, list[Times]]) -> None:
    print(f"{'stage':22} {'diffusers':>10} {'library':>10} {'ratio':>8}")
    for stage in ("prior", "glyphs", "denoise", "decode", "whole"):
        theirs, ours = (_median(rounds[name], stage) for name in ("diffusers", "library"))
        print(f"{stage:22} {theirs:10.4f} {ours:10.4f} {theirs / ours:7.2f}x")
    graph = [times["whole"] - times["saving"] for times in rounds["graph"]]
    added = [whole - times["library"] for whole, times in zip(graph, rounds["graph"], strict=True)]
    share = statistics.median(extra / whole for extra, whole in zip(added, graph, strict=True))
    print(f"\ngraph without saving {statistics.median(graph):.4f}, of which nodes and graph add {share:.2%}")


def _print_reuse(folder: Path, options) -> None:
    """What a second run of a graph skips when only the sampler's seed is new."""
    runner = Runner(ALL_NODES, Folders(ROOT / "workflows" / "input", folder / "output", []), keep=True)

    def timed(workflow: Workflow) -> Times:
        return _Stopwatch(LIBRARY_CALLS).whole(lambda: runner.run(workflow))

    for name in ("text_to_image", "image_edit"):
        workflow = _workflow(name, options)
        first = timed(workflow)
        for node in workflow.prompt.values():
            if node["class_type"] == "GLMImageSampler":
                node["inputs"]["seed"] += 1
        second = timed(workflow)
        print(
            f"{name}, new sampler seed: {first['whole']:.4f} then {second['whole']:.4f}; "
            f"AR stage {first['prior']:.4f} then {second['prior']:.4f}, "
            f"reference caches {first['caches']:.4f} then {second['caches']:.4f}"
        )
