"""End to end: the shipped workflows, run without ComfyUI, against diffusers' pipeline.

The first table splits text-to-image into its stages. The second has whole runs, some of which find results of the run before: as
in ComfyUI, a node runs again only if its inputs changed.
The third runs the same pictures from Python, through `GlmImage`.
"""

import asyncio
import inspect
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ..cli.graph.declared import Nodes
from ..cli.graph.nodes import ALL_NODES
from ..cli.graph.runner import Runner
from ..cli.graph.stock import Folders
from ..cli.graph.workflow import Workflow, read_workflow
from ..glmimage_core import GlmImage
from ..glmimage_core.component import Component
from ..glmimage_core.glm_image.ar_model import fit, vision_tokens
from ..glmimage_core.glm_image.dit import Dit
from ..nodes.host import host
from .ar import FLOOR_TOKENS, OTHER_PLANS, bare_products, emitted_grids
from .dit import step_flops
from .inputs import PROMPT
from .libraries import generate_edit, pipeline, prior_arguments, reference_arguments
from .measure import Case, Stopwatch, Times, alternate, product_rate, seconds
from .models import LAYOUT, RandomGlmImage
from .table import Table, compared
from .vae import decode_floor

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows" / "api"
CFG = 1.5
LOADERS = ("GLMImageLoadAR", "GLMImageLoadGlyphEncoder", "GLMImageLoadDiT", "GLMImageLoadVAE")
STAGES = {
    "prior": "GLMImageGeneratePrior",
    "glyphs": "GLMImageEncodePrompt",
    "encode reference": "GLMImageEncodeReference",
    "denoise": "GLMImageSampler",
    "decode": "GLMImageVAEDecode",
    "saving": "SaveImage",
}
"""The node that runs each stage. Node ids are part of the workflow format and never change; an unknown one is a KeyError."""


def check(options: Namespace) -> None:
    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; use 1 or more")


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    components = ar, encoder, dit, vae = glm.ar, glm.glyph_encoder, glm.dit, glm.vae
    for component in components:
        component.model.to("cpu")  # as loaders leave it; the host brings it to the device
    models = glm.checkpoint.parents[1]
    host.models, host.residency = models, glm.residency
    pipe = pipeline(glm.checkpoint, dit, vae, ar=ar, encoder=encoder) if options.against else None
    nodes = ALL_NODES | {name: _loader(name, component) for name, component in zip(LOADERS, components, strict=True)}
    stages, runs, python = [], [], []
    for case in options.cases:
        graphs = _Graphs(nodes, dit, case, folder=models, steps=options.steps)
        ways = {"text": graphs.text, "edit": graphs.edit, "from Python": partial(_from_python, glm, case, options)}
        if pipe:
            theirs = _Pipeline(pipe, ar, case, options)
            ways |= {"their text": theirs.text, "their edit": theirs.edit}
        rounds = alternate(ways, options.rounds, options.seed)
        times = {way: _medians(results) for way, results in rounds.items()}
        stages += _stage_rows(case, times, _floors(case, options, ar=ar, dit=dit, vae=vae))
        runs += _run_rows(case, times)
        python += _python_rows(case, times)
    about = f"{options.steps} steps, cfg {CFG}; reference is the pipeline"
    yield Table(f"Text-to-image, {about}, floors as of `ar`, `dit` and `vae`", stages)
    yield Table(f"Whole runs and the stages that ran in them, in seconds, {about}, which runs everything every time", runs)
    yield Table(f"From Python, without nodes: GlmImage.reference, .plan and .paint in seconds, {about}", python)


def _medians(rounds: list[dict[str, Times]]) -> dict[str, Times]:
    """Runs by name, of several rounds -> the median of each stage."""
    return {
        run: {stage: statistics.median(times[run][stage] for times in rounds) for stage in stages}
        for run, stages in rounds[0].items()
    }


def _stage_rows(case: Case, times: dict[str, dict[str, Times]], floors: Times) -> Iterator[dict]:
    ours = times["text"]["all new"]
    theirs = times["their text"]["all new"] if "their text" in times else {}
    for stage in ("prior", "glyphs", "denoise", "decode", "other nodes and graph", "whole"):
        yield {"stage": stage} | case.columns | compared(ours[stage], theirs.get(stage), floors.get(stage), "s")


def _run_rows(case: Case, times: dict[str, dict[str, Times]]) -> Iterator[dict]:
    for workflow in ("text", "edit"):
        theirs = times.get(f"their {workflow}", {}).get("all new", {}).get("whole")
        for run, stages in times[workflow].items():
            whole = stages["whole"]
            yield (
                {"run": f"{workflow}, {run}"}
                | case.columns
                | {"whole": whole, "reference": theirs, "reference / this": theirs / whole if theirs else None}
                | {stage: stages.get(stage, 0.0) for stage in ("prior", "encode reference", "caches", "denoise", "decode")}
            )


def _python_rows(case: Case, times: dict[str, dict[str, Times]]) -> Iterator[dict]:
    for run, methods in times["from Python"].items():
        whole = sum(methods.values())
        theirs = times.get(f"their {run}", {}).get("all new", {}).get("whole")
        ratio = {"reference": theirs, "reference / this": theirs / whole if theirs else None}
        yield {"run": run} | case.columns | {"whole": whole} | ratio | {f".{name}": time for name, time in methods.items()}


def _from_python(glm: GlmImage, case: Case, options: Namespace, seed: int) -> dict[str, Times]:
    """The seconds of each method of a text-to-image and of an edit whose reference is new."""
    glm.dit.cached_references.clear()
    seed += OTHER_PLANS
    runs = {}
    for run in ("text", "edit"):
        stopwatch = Stopwatch(options.device)
        reference, plan, paint = (stopwatch.timed(name, getattr(glm, name)) for name in ("reference", "plan", "paint"))
        references = [reference(picture(case, seed))] if run == "edit" else []
        planned = plan(prompt(seed), case.width, case.height, seed=seed, batch=case.batch, references=references)
        paint(planned, seed=seed, steps=options.steps, cfg=CFG, references=references)
        runs[run] = {"reference": 0.0} | stopwatch.times
    return runs


def _floors(case: Case, options: Namespace, *, ar: Component, dit: Component, vae: Component) -> Times:
    """The seconds that each stage needs at least on this machine."""
    tokens = sum(grid.tokens for grid in emitted_grids(case))
    rate = product_rate(options.device, options.dtype)
    floors = {}
    with host.placed(ar, part="language") as placed:
        run = partial(bare_products, placed, case.batch, FLOOR_TOKENS)
        measured = statistics.median(seconds(run, options.device) for _ in range(options.rounds))
        floors["prior"] = measured / FLOOR_TOKENS * tokens
    floors["denoise"] = options.steps * step_flops(dit.model.config, case) / rate
    with host.placed(vae) as placed:
        floors["decode"] = decode_floor(placed, case, rate)
    return floors | {"whole": sum(floors.values())}


def _loader(name: str, component: Component) -> type:
    """A loader node that hands out this component."""

    def load(self, **inputs):
        return (host.wire(component),)

    return type(name, (ALL_NODES[name],), {"load": load, "VALIDATE_INPUTS": classmethod(lambda cls, checkpoint: True)})


def _timed_node(node_class: type, stage: str, stopwatch: Stopwatch) -> type:
    """The same node, on the clock as a stage."""
    function = getattr(node_class, node_class.FUNCTION)

    def run(self, **inputs):
        results = function(self, **inputs)
        return asyncio.run(results) if inspect.iscoroutine(results) else results

    return type(node_class.__name__, (node_class,), {node_class.FUNCTION: stopwatch.timed(stage, run)})


class _Graphs:
    """The shipped workflows of one case. Loaders keep their results from run to run, as in ComfyUI."""

    def __init__(self, nodes: Nodes, dit: Dit, case: Case, *, folder: Path, steps: int):
        self.dit, self.case, self.folder = dit, case, folder
        self.stopwatch = Stopwatch(host.residency.device)
        timed = {name: _timed_node(nodes[name], stage, self.stopwatch) for stage, name in STAGES.items()}
        self.runner = Runner(nodes | timed, Folders(folder, folder / "output", []), keep=True)
        values = {"width": case.width, "height": case.height, "batch_size": case.batch, "steps": steps, "cfg": CFG}
        values["checkpoint"] = LAYOUT.name
        self.workflows = {name: _workflow(name, nodes, values) for name in ("text_to_image", "image_edit")}

    def text(self, seed: int) -> dict[str, Times]:
        workflow = self.workflows["text_to_image"]
        _set_all(workflow, seed=seed, prompt=prompt(seed))
        return {"all new": self._run(workflow), "new sampler seed": self._with_another_sampler_seed(workflow, seed)}

    def edit(self, seed: int) -> dict[str, Times]:
        workflow = self.workflows["image_edit"]
        self.dit.cached_references.clear()
        name = f"{self.case.width}x{self.case.height}-{seed}.png"
        picture(self.case, seed).save(self.folder / name)
        _set_all(workflow, seed=seed, prompt=prompt(seed), image=name)
        times = {"all new": self._run(workflow)}
        _set_all(workflow, seed=seed, prompt=prompt(seed + 1))
        times["same reference"] = self._run(workflow)
        return times | {"new sampler seed": self._with_another_sampler_seed(workflow, seed)}

    def _with_another_sampler_seed(self, workflow: Workflow, seed: int) -> Times:
        for node in workflow.prompt.values():
            if node["class_type"] == "GLMImageSampler":
                node["inputs"]["seed"] = seed + 1
        return self._run(workflow)

    def _run(self, workflow: Workflow) -> Times:
        """The seconds of each stage that ran, and of the whole run without saving."""
        self.stopwatch.times = times = {}
        model = self.dit.model
        forward = model.forward
        model.forward = self._timing_caches(forward)  # on the object; part of denoise
        try:
            whole = seconds(lambda: self.runner.run(workflow), self.stopwatch.device) - times["saving"]
        finally:
            del model.forward
        in_stages = sum(times.get(stage, 0.0) for stage in STAGES if stage != "saving")
        return times | {"whole": whole, "other nodes and graph": whole - in_stages}

    def _timing_caches(self, forward: Callable) -> Callable:
        """The DiT's forward, on the clock as `caches` where it writes the keys and values of a reference."""
        signature, timed = inspect.signature(forward), self.stopwatch.timed("caches", forward)

        def run(*args, **kwargs):
            layers = signature.bind(*args, **kwargs).arguments.get("kv_caches")
            return (timed if layers and layers[0].mode == "write" else forward)(*args, **kwargs)

        return run


def prompt(seed: int) -> str:
    """Another prompt for each seed, of the same length, so that no kept result fits."""
    return f"{PROMPT} {seed:012}"


def picture(case: Case, seed: int) -> Image.Image:
    """A picture of noise of the case's size."""
    noise = torch.randint(256, (case.height, case.width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _workflow(name: str, nodes: Nodes, values: dict) -> Workflow:
    workflow = read_workflow(WORKFLOWS / f"{name}.json", nodes)
    for node in workflow.prompt.values():
        if node["class_type"] == STAGES["prior"]:
            node["inputs"] |= {side: values[side] for side in ("width", "height")}  # in place of links from GLM-Image Size
    _set_all(workflow, **values)
    return workflow


def _set_all(workflow: Workflow, **values) -> None:
    """Set the inputs of these names in all nodes, except inputs that are links."""
    for node in workflow.prompt.values():
        node["inputs"] |= {name: value for name, value in values.items() if not isinstance(node["inputs"].get(name, []), list)}


class _Pipeline:
    """The pipeline's runs of one case, over the same models. An edit is not split into stages."""

    def __init__(self, pipe, ar: Component, case: Case, options: Namespace):
        self.pipe, self.ar, self.case, self.options = pipe, ar, case, options

    def text(self, seed: int) -> dict[str, Times]:
        return {"all new": self._run(seed, dict)}

    def edit(self, seed: int) -> dict[str, Times]:
        case, device = self.case, self.options.device

        def arguments() -> dict:
            fitted = fit(self.ar, picture(case, seed))
            tokens = vision_tokens(self.ar, fitted)
            prior = generate_edit(self.pipe, prompt(seed), fitted, case, seed=seed)
            return prior_arguments(prior, device) | reference_arguments(fitted, tokens, batch=case.batch, device=device)

        return {"all new": self._run(seed, arguments)}

    def _run(self, seed: int, arguments: Callable[[], dict]) -> Times:
        """The seconds of a run, of which arguments() is a part."""
        pipe, case, device = self.pipe, self.case, self.options.device
        pipe.to(device)
        stages = {
            "prior": [(pipe, "generate_prior_tokens")],
            "glyphs": [(pipe, "encode_prompt")],
            "decode": [(pipe.vae, "decode"), (pipe.image_processor, "postprocess")],
        }
        stopwatch = Stopwatch(device)
        with stopwatch.timed_methods(stages):
            whole = seconds(
                lambda: pipe(
                    [prompt(seed)] * case.batch,
                    width=case.width,
                    height=case.height,
                    num_inference_steps=self.options.steps,
                    guidance_scale=CFG,
                    generator=torch.Generator().manual_seed(seed),
                    **arguments(),
                ),
                device,
            )
        return stopwatch.times | {"whole": whole, "denoise": whole - sum(stopwatch.times.values())}
