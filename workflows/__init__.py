"""The shipped workflows: what each is called in ComfyUI's template browser.

The browser shows a file's name and searches in it, so the names begin with what people look for. A number puts those first that
need no download. Each workflow also has a short name, which does not change: that of its file in API format, and
of its file in UI format before the numbers came. Old links and commands use it.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TEMPLATES = {
    "nano": "GLM-Image 01 nano, no download",
    "nano_edit": "GLM-Image 02 nano edit, no download",
    "one_node": "GLM-Image 10 text to image in one node",
    "text_to_image": "GLM-Image 11 text to image",
    "variations": "GLM-Image 12 variations",
    "same_prior_new_seed": "GLM-Image 13 same composition, new details",
    "lora": "GLM-Image 14 LoRA",
    "separate_loaders": "GLM-Image 15 a loader for each part",
    "image_edit": "GLM-Image 21 image edit",
    "several_references": "GLM-Image 22 several references",
    "restyle": "GLM-Image 23 restyle, image to image",
    "inpaint": "GLM-Image 24 inpaint, no download",
    "outpaint": "GLM-Image 25 outpaint, no download",
    "edit_untouched": "GLM-Image 26 edit, the rest untouched, no download",
    "keep_plan": "GLM-Image 31 keep a plan, no download",
    "load_plan": "GLM-Image 32 paint a kept plan, no download",
    "picture_plan": "GLM-Image 33 variation of a picture, no download",
    "mix_plans": "GLM-Image 34 mix and cut plans, no download",
    "regions": "GLM-Image 35 regional prompts, no download",
    "sketch_plans": "GLM-Image 36 sketch, choose, expand, no download",
    "enlarge": "GLM-Image 37 upscale in tiles, no download",
    "stock_sampler": "GLM-Image 41 KSampler",
    "custom_sampler": "GLM-Image 42 SamplerCustomAdvanced",
    "enhance_prompt": "GLM-Image 51 enhance prompt",
    "enhance_prompt_api": "GLM-Image 52 enhance prompt with an API",
    "describe": "GLM-Image 53 describe a picture",
    "remote": "GLM-Image 54 on another machine",
    "cogview3_plus": "GLM-Image 61 CogView3-Plus",
    "cogview3_base": "GLM-Image 62 CogView3-Base and relay",
}
"""Short name -> file name without its ending."""


def template_file(name: str) -> Path:
    """The file in UI format of the workflow with that short name."""
    return FOLDER / f"{TEMPLATES[name]}.json"


def shipped_picture(name: str) -> Path | None:
    """The picture of that name that a shipped workflow loads, or None: for who has not put it into the input folder."""
    return next((file for file in (FOLDER / "input").iterdir() if file.name == name), None)


def find_workflow(path: Path) -> Path:
    """That file, or the shipped workflow that it names, where there is no file so called: "nano", "workflows/nano.json"."""
    shipped = path.suffix in ("", ".json") and path.parent.name in ("", FOLDER.name) and path.stem in TEMPLATES
    return template_file(path.stem) if shipped and not path.is_file() else path
