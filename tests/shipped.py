"""The shipped workflows, at a size for tests."""

from pathlib import Path

from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner, in_parts
from glm_image_pack.cli.graph.stock import Folders
from glm_image_pack.cli.graph.workflow import Workflow, read_workflow
from glm_image_pack.workflows import TEMPLATES, template_file

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(TEMPLATES)
# With the built-in model
NANO = [
    "nano",
    "nano_edit",
    "keep_plan",
    "load_plan",
    "picture_plan",
    "mix_plans",
    "regions",
    "sketch_plans",
    "enlarge",
    "inpaint",
    "outpaint",
    "edit_untouched",
]
# Whose plan is not Generate Prior's alone
UNPLANNED = ["load_plan", "picture_plan", "mix_plans", "sketch_plans", "enlarge", "inpaint", "outpaint"]
WITH_SERVER = ["enhance_prompt_api", "remote"]  # which run in tests/test_language.py and tests/test_remote.py
STOCK_SAMPLERS = ["custom_sampler", "stock_sampler"]
WITH_VLM = ["enhance_prompt", "describe"]
COGVIEW3 = ["cogview3_plus", "cogview3_base"]
SMALL = {"width": 256, "height": 288, "steps": 2, "megapixels": 0.25, "fit": False, "max_tokens": 64, "relay_steps": 1}
SMALL_ASPECTS = {"1728 x 960": "16:9", "1088 x 1472": "3:4"}  # for sizes in pixels, which heed no megapixels
SIZES = {
    "cogview3_plus": (512, 544),
    "cogview3_base": (512, 576),
    "restyle": (576, 448),
    "stock_sampler": (672, 384),
    "custom_sampler": (448, 576),
    "load_plan": (256, 256),
    "edit_untouched": (256, 256),
    "inpaint": (256, 256),
    "outpaint": (384, 256),
    "enlarge": (384, 384),
}  # of the others: 256 x 288
BY_SIZE = ["restyle", "stock_sampler", "custom_sampler"]  # where the node GLM-Image Size sets more than the plan's
ADDED = {  # since version 1
    "GLMImageSampler": {"sampler_name": "euler", "cfg_start": 0.0, "cfg_end": 1.0, "step_cache": 0.0},
    "GLMImageGeneratePrior": {"lookahead": "auto"},
    "GLMImageRemote": {"negative_prompt": ""},
    "GLMImageLoadDiT": {"attention": "auto", "compile": False, "device": "default"},
} | {f"GLMImageLoad{model}": {"device": "default"} for model in ("AR", "GlyphEncoder", "VAE")}


def api_file(name: str) -> Path:
    """A shipped workflow in API format."""
    return ROOT / "workflows" / "api" / f"{name}.json"


def shipped(name: str, kind: str = "api") -> Workflow:
    """A shipped workflow at a size for tests."""
    return smaller(read_workflow(api_file(name) if kind == "api" else template_file(name), ALL_NODES), name)


def smaller(workflow: Workflow, name: str) -> Workflow:
    """The shipped workflow of that name with values for tests."""
    for node in workflow.prompt.values():
        small = dict(SMALL)
        if node["class_type"] == "GLMImageCogView3Sampler":
            small |= dict(zip(("width", "height"), SIZES["cogview3_plus"], strict=True))
        if node["class_type"] == "GLMImagePriorFromImage":
            small |= dict(zip(("width", "height"), SIZES.get(name, (SMALL["width"], SMALL["height"])), strict=True))
        if node["class_type"] == "GLMImageSize":
            small["aspect"] = SMALL_ASPECTS.get(node["inputs"]["aspect"], node["inputs"]["aspect"])
        for key, value in small.items():
            if not isinstance(node["inputs"].get(key, []), list):  # neither absent nor linked
                node["inputs"][key] = value
        if node["class_type"] in ("GLMImageGeneratePrior", "GLMImageSketchPriors") and name not in BY_SIZE:
            width, height = SIZES.get(name, (SMALL["width"], SMALL["height"]))
            node["inputs"] |= {"width": width, "height": height}  # in place of links from GLM-Image Size
    return workflow


def saved(folders: Folders) -> list[Path]:
    """The pictures that were written, without previews."""
    return [path for path in folders.written if path.parent.name != "preview"]


def set_input(workflow: Workflow, class_type: str, **values) -> None:
    """Set inputs of every node of a class."""
    for node in workflow.prompt.values():
        if node["class_type"] == class_type:
            node["inputs"] |= values


def executed(runner: Runner, workflow: Workflow) -> set[str]:
    """The classes of the nodes that ran in the last run."""
    prompt = in_parts(workflow, ALL_NODES).prompt
    return {prompt[node_id]["class_type"] for node_id in runner.executed}
