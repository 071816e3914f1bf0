"""End to end: the shipped workflows, walked without ComfyUI, against diffusers' pipeline.

The first table splits text-to-image into its stages. The second has whole runs, also those of which something is there
already: in a graph, what did not change does not run again.
"""

import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ..cli.graph.nodes import ALL_NODES
from ..cli.graph.runner import Runner
from ..cli.graph.stock import Folders, SaveImage
from ..cli.graph.workflow import Nodes, Workflow, read_workflow
from ..glmimage_core.component import Component
from ..glmimage_core.glm_image import reference_cache
from ..glmimage_core.glm_image.ar_model import fit, vision_tokens
from ..glmimage_core.placement.residency import Residency
from ..nodes import prior as prior_node
from ..nodes import prompt as prompt_node
from ..nodes import references as references_node
from ..nodes import vae as vae_node
from ..nodes.host import host, standalone
from .ar import FLOOR_TOKENS, bare_products, emitted_grids
from .dit import step_flops
from .inputs import PROMPT
from .measure import Case, Stopwatch, Times, alternate, product_rate, seconds
from .models import LAYOUT, Models
from .reference import generate_edit, given_prior, given_reference, pipeline
from .table import Table, compared
from .vae import decode_floor

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows" / "api"
CFG = 1.5
SAVING = {"saving": [(SaveImage, "save")]}
STAGES = {
    "prior": [(prior_node, "generate_prior")],
    "glyphs": [(prompt_node, "encode_glyph_texts")],
    "encode reference": [(references_node, "vision_tokens"), (references_node, "latents_of")],
    "denoise": [(standalone, "sample")],
    "decode": [(vae_node, "decode")],
}
CACHES = {"caches": [(reference_cache, "reference_keys_values")]}  # a part of denoise


def check(options: Namespace) -> None:
    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; at least one is needed")


def measure(options: Namespace, models: Models) -> Iterator[Table]:
    parts = []
    for make in (models.ar, models.glyph_encoder, models.dit, models.vae):
        parts.append(make())
        parts[-1].model.to("cpu")  # as loaders leave it; the host brings it to the device
    ar, encoder, dit, vae = parts
    host.models, host.residency = models.models, Residency(options.device)
    pipe = pipeline(models.folder, dit, vae, ar, encoder) if options.against else None
    stages, runs = [], []
    for case in options.cases:
        graphs = _Graphs(_given(parts), dit, models.models, case, options.steps)
        ways = {"text": graphs.text, "edit": graphs.edit}
        if pipe:
            reference = _Reference(pipe, ar, case, options)
            ways |= {"their text": reference.text, "their edit": reference.edit}
        rounds = alternate(ways, options.rounds, options.seed)
        floors = _floors(case, options, ar, dit, vae)
        times = {way: _medians(results) for way, results in rounds.items()}
        stages += _stage_rows(case, times, floors)
        runs += _run_rows(case, times)
    about = f"{options.steps} steps, cfg {CFG}; reference is the pipeline"
    yield Table(f"Text-to-image, {about}, floors as of `ar`, `dit` and `vae`", stages)
    yield Table(f"Whole runs and what ran in them, in seconds, {about}, for which all is new in every run", runs)


def _medians(rounds: list[dict[str, Times]]) -> dict[str, Times]:
    """Runs by name of several rounds -> the median of each stage."""
    return {
        run: Times({stage: statistics.median(each[run][stage] for each in rounds) for stage in times})
        for run, times in rounds[0].items()
    }


def _stage_rows(case: Case, times: dict[str, dict[str, Times]], floors: dict[str, float]) -> Iterator[dict]:
    ours = times["text"]["all new"]
    theirs = times["their text"]["all new"] if "their text" in times else {}
    for stage in ("prior", "glyphs", "denoise", "decode", "nodes and graph", "whole"):
        yield {"stage": stage} | case.columns | compared(ours[stage], theirs.get(stage), floors.get(stage), "s")


def _run_rows(case: Case, times: dict[str, dict[str, Times]]) -> Iterator[dict]:
    for workflow in ("text", "edit"):
        theirs = times.get(f"their {workflow}", {}).get("all new", {}).get("whole")
        for run, each in times[workflow].items():
            whole = each["whole"]
            yield (
                {"run": f"{workflow}, {run}"}
                | case.columns
                | {"whole": whole, "reference": theirs, "reference / this": theirs / whole if theirs else None}
                | {stage: each[stage] for stage in ("prior", "encode reference", "caches", "denoise", "decode")}
            )


def _floors(case: Case, options: Namespace, ar: Component, dit: Component, vae: Component) -> dict[str, float]:
    """Seconds below which each stage cannot be on this machine."""
    tokens = sum(grid.tokens for grid in emitted_grids(case))
    rate = product_rate(options.device, options.dtype)
    floors = {}
    with host.placed(ar, part="language") as placed:
        run = partial(bare_products, placed, case.batch, FLOOR_TOKENS)
        once = statistics.median(seconds(run, options.device) for _ in range(options.rounds))
        floors["prior"] = once / FLOOR_TOKENS * tokens
    floors["denoise"] = options.steps * step_flops(dit.model.config, case) / rate
    with host.placed(vae) as placed:
        floors["decode"] = decode_floor(placed, case, rate)
    return floors | {"whole": sum(floors.values())}


def _given(parts: list[Component]) -> Nodes:
    """The nodes, with loaders that hand out these components."""
    names = ("GLMImageLoadAR", "GLMImageLoadGlyphEncoder", "GLMImageLoadDiT", "GLMImageLoadVAE")

    def loader(name: str, part: Component) -> type:
        def load(self, **inputs):
            return (host.wire(part),)

        return type(name, (ALL_NODES[name],), {"load": load, "VALIDATE_INPUTS": classmethod(lambda cls, checkpoint: True)})

    return ALL_NODES | {name: loader(name, part) for name, part in zip(names, parts, strict=True)}


class _Graphs:
    """The shipped workflows of one case. Loaders are kept from run to run, as ComfyUI keeps them."""

    def __init__(self, nodes: Nodes, dit: Component, folder: Path, case: Case, steps: int):
        self.nodes, self.dit, self.case, self.folder = nodes, dit, case, folder
        self.runner = Runner(nodes, Folders(folder, folder / "output", []), keep=True)
        values = {"width": case.width, "height": case.height, "batch_size": case.batch, "steps": steps, "cfg": CFG}
        values |= {"megapixels": case.width * case.height / 2**20, "checkpoint": LAYOUT.name}
        self.workflows = {name: _workflow(name, nodes, values) for name in ("text_to_image", "image_edit")}

    def text(self, seed: int) -> dict[str, Times]:
        workflow = self.workflows["text_to_image"]
        _set_all(workflow, seed=seed, value=prompt(seed))
        return {"all new": self._run(workflow), "new sampler seed": self._again(workflow, seed)}

    def edit(self, seed: int) -> dict[str, Times]:
        workflow = self.workflows["image_edit"]
        self.dit.cached_references.clear()
        name = f"{self.case.width}x{self.case.height}-{seed}.png"
        picture(self.case, seed).save(self.folder / name)
        _set_all(workflow, seed=seed, value=prompt(seed), image=name)
        new = self._run(workflow)
        _set_all(workflow, seed=seed, value=prompt(seed + 1))
        return {"all new": new, "same reference": self._run(workflow), "new sampler seed": self._again(workflow, seed)}

    def _again(self, workflow: Workflow, seed: int) -> Times:
        for node in workflow.prompt.values():
            if node["class_type"] == "GLMImageSampler":
                node["inputs"]["seed"] = seed + 1
        return self._run(workflow)

    def _run(self, workflow: Workflow) -> Times:
        """Seconds by stage; the whole is without saving."""
        device = host.residency.device
        with Stopwatch(STAGES | CACHES | SAVING, device) as times:
            whole = seconds(lambda: self.runner.run(workflow), device) - times["saving"]
            inside = sum(times[stage] for stage in STAGES)
        return Times({stage: times[stage] for stage in STAGES | CACHES} | {"whole": whole, "nodes and graph": whole - inside})


def prompt(seed: int) -> str:
    """A prompt of the same length for every seed, so that nothing kept fits another one."""
    return f"{PROMPT} {seed:012}"


def picture(case: Case, seed: int) -> Image.Image:
    """A picture of noise, of the case's size."""
    noise = torch.randint(256, (case.height, case.width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _workflow(name: str, nodes: Nodes, values: dict) -> Workflow:
    workflow = read_workflow(WORKFLOWS / f"{name}.json", nodes)
    _set_all(workflow, **values)
    return workflow


def _set_all(workflow: Workflow, **values) -> None:
    """Set inputs of these names wherever a node has one that is a value."""
    for node in workflow.prompt.values():
        node["inputs"] |= {name: value for name, value in values.items() if not isinstance(node["inputs"].get(name, []), list)}


class _Reference:
    """The pipeline's runs of one case, over the same models. Of an edit, only the whole is told apart."""

    def __init__(self, pipe, ar: Component, case: Case, options: Namespace):
        self.pipe, self.ar, self.case, self.options = pipe, ar, case, options

    def text(self, seed: int) -> dict[str, Times]:
        return {"all new": self._run(seed, lambda: {})}

    def edit(self, seed: int) -> dict[str, Times]:
        case, device = self.case, self.options.device

        def given() -> dict:
            fitted = fit(self.ar, picture(case, seed))
            tokens = vision_tokens(self.ar, fitted)
            prior = generate_edit(self.pipe, prompt(seed), fitted, case, seed)
            return given_prior(prior, device) | given_reference(fitted, tokens, case.batch, device)

        return {"all new": self._run(seed, given)}

    def _run(self, seed: int, given: Callable[[], dict]) -> Times:
        """A run with the arguments that given() makes, on the clock."""
        pipe, case, device = self.pipe, self.case, self.options.device
        pipe.to(device)
        stages = {
            "prior": [(pipe, "generate_prior_tokens")],
            "glyphs": [(pipe, "encode_prompt")],
            "decode": [(pipe.vae, "decode"), (pipe.image_processor, "postprocess")],
        }
        with Stopwatch(stages, device) as times:
            whole = seconds(
                lambda: pipe(
                    [prompt(seed)] * case.batch,
                    width=case.width,
                    height=case.height,
                    num_inference_steps=self.options.steps,
                    guidance_scale=CFG,
                    generator=torch.Generator().manual_seed(seed),
                    **given(),
                ),
                device,
            )
        return Times(times | {"whole": whole, "denoise": whole - sum(times.values())})
