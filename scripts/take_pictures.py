"""Retakes the pictures of the shipped workflows in a real ComfyUI with its real front end.

    python scripts/take_pictures.py --comfyui DIR [--python INTERPRETER] [--chromium FILE] [NAME ...]

docs/graphs/NAME.jpg shows the graph, and the template browser shows the picture beside the workflow's file: what was painted,
with what it was made from. A graph that the built-in model can run is filled with a prompt of its world and run. What the picture
shows is read back by training/reading.py and compared with the prompt; a wrong picture is refused and the next seed is tried. The
other graphs need models or a server that are not here: both their pictures show the graph before a run, never a result.

The comment of each JPEG says how it was made, and a test reads it: `{"shows": "the graph alone"}`, or the prompt, the seed of
Generate Prior, and each painted picture as it was read back.

Needs the package playwright here, Chromium, and a ComfyUI that has what requirements.txt lists.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import requests
from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.glmimage_core.images import from_picture, to_pictures
from glm_image_pack.training.captions import Claim, Edit, Request, WordClaim
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.reading import read
from glm_image_pack.training.scoring import does_what_is_asked, is_edited
from glm_image_pack.training.world import Scene, Shape
from glm_image_pack.workflows import FOLDER, TEMPLATES, template_file
from PIL import Image, ImageOps

from make_pictures import PLANNED, SHAPES
from make_workflows import NANO_EDIT, NANO_PROMPT
from plan_workflows import SKETCHED, SMALL_SHAPES

GRAPHS = ROOT / "docs" / "graphs"
WIDTH = 1200  # pixels of every picture of a graph
SIDE = 512  # pixels of a picture in the template browser
MARGIN = 40  # around the graph, in the graph's own units
CANVAS = (33, 33, 33)  # the colour behind a graph
SEEDS = 20  # tried before a workflow is given up
SECONDS = 300  # for one run
BLUEPRINT = "Text to Image (GLM-Image)"  # the title of its node

STAR = Shape("star", "blue", "small", 5, 1)
STARRED = Scene(8, 8, "yellow", (STAR, Shape("circle", "black", "small", 1, 5)))
FIRST, SECOND = "glm-image-shapes.png", "shapes-2.png"  # SHAPES is shipped, STARRED is drawn for one picture


@dataclass(frozen=True)
class Painting:
    """What nano is asked for in a workflow.

    inputs: values of other widgets, by the node's title or type. grounds: how many backgrounds the pictures of a run must have
    at least, so that pictures side by side can be told apart.
    """

    asked: Request | Edit
    inputs: dict[str, dict] = field(default_factory=dict)
    grounds: int = 1


def _request(prompt: str, ground: str | None, *claims: Claim, word: WordClaim | None = None) -> Request:
    """A picture of 256 x 256 pixels. ground: the background's colour, None if the prompt leaves it open."""
    return Request(prompt, Scene(8, 8, ground or "white"), ground, claims, word)


CIRCLE, SQUARE = SHAPES.shapes
STAR_AND_CIRCLES = _request(
    NANO_PROMPT, "blue", Claim(1, "star", "red", "large", "centre"), Claim(2, "circle", "yellow", "small", None)
)
RECOLOURED = Edit("recolour", NANO_EDIT, (SHAPES,), SHAPES, replace(SHAPES, shapes=(replace(CIRCLE, colour="blue"), SQUARE)))
STAR_AT_LEFT = Claim(1, "star", "red", "large", "left")
PAINTINGS = {
    "nano": Painting(STAR_AND_CIRCLES),
    "nano_edit": Painting(RECOLOURED),
    "text_to_image": Painting(
        _request(
            'A large red circle in the centre and the word "HI" in black at the top on a white background.',
            "white",
            Claim(1, "circle", "red", "large", "centre"),
            word=WordClaim("HI", "black", "top"),
        )
    ),
    "image_edit": Painting(
        Edit("ground", "Make the background yellow.", (SHAPES,), SHAPES, replace(SHAPES, ground="yellow")),
        {"Reference 1": {"image": FIRST}},
    ),
    "several_references": Painting(
        Edit(
            "second into first",
            "Put the blue star of the second picture into the first picture.",
            (SHAPES, STARRED),
            SHAPES,
            replace(SHAPES, shapes=(*SHAPES.shapes, STAR)),
        ),
        {"Reference 1": {"image": FIRST}, "Reference 2": {"image": SECOND}},
    ),
    "variations": Painting(_request("A large blue star.", None, Claim(1, "star", "blue", "large", None)), grounds=4),
    "same_prior_new_seed": Painting(STAR_AND_CIRCLES),
    "restyle": Painting(
        _request(
            "A large blue circle and a small green square on a white background.",
            "white",
            Claim(1, "circle", "blue", "large", None),
            Claim(1, "square", "green", "small", None),
        ),
        {"Picture": {"image": FIRST}, "GLMImageSize": {"megapixels": 0.06}},  # and the picture's aspect
    ),
    "lora": Painting(
        _request("Two large orange crosses on a blue background.", "blue", Claim(2, "cross", "orange", "large", None))
    ),
    "custom_sampler": Painting(
        _request(
            "A big purple star at the top left and a small red square at the bottom right on a white background.",
            "white",
            Claim(1, "star", "purple", "large", "top left"),
            Claim(1, "square", "red", "small", "bottom right"),
        ),
    ),
    "stock_sampler": Painting(
        _request(
            "A large green triangle on the right on a black background.", "black", Claim(1, "triangle", "green", "large", "right")
        ),
    ),
    "one_node": Painting(
        _request(
            "A large red circle at the left and a small yellow star at the right on a green background.",
            "green",
            Claim(1, "circle", "red", "large", "left"),
            Claim(1, "star", "yellow", "small", "right"),
        )
    ),
    "separate_loaders": Painting(
        _request(
            "A large purple cross in the centre on a yellow background.", "yellow", Claim(1, "cross", "purple", "large", "centre")
        )
    ),
}

RED_STAR, HI = Claim(1, "star", "red", "large", "centre"), WordClaim("HI", "white", "bottom")
PAINTINGS |= {  # the last two have no prompt
    "inpaint": Painting(
        Edit(
            "recolour",
            "Change the red circle to purple.",
            (SHAPES,),
            SHAPES,
            replace(SHAPES, shapes=(replace(CIRCLE, colour="purple"), SQUARE)),
        )
    ),
    "outpaint": Painting(
        _request(
            "Add a small yellow star at the right.",
            "white",
            Claim(1, "circle", "red", "large", None),
            Claim(1, "square", "green", "small", None),
            Claim(1, "star", "yellow", "small", "right"),
        )
    ),
    "edit_untouched": Painting(RECOLOURED),
    "regions": Painting(
        _request(
            "A large red star at the left on a blue background.",
            "blue",
            STAR_AT_LEFT,
            Claim(1, "circle", "yellow", "small", None),
        )
    ),
    "mix_plans": Painting(
        _request(
            "A large red star and a small yellow circle on a blue background.",
            "blue",
            Claim(1, "star", "red", "large", None),
            Claim(1, "circle", "yellow", "small", None),
        )
    ),
    "keep_plan": Painting(_request(PLANNED, "blue", RED_STAR, word=HI)),
    "load_plan": Painting(_request("the plan in glm-image-plan.png", "blue", RED_STAR, word=HI)),
    "picture_plan": Painting(
        _request(
            f"the plan of {FIRST}",
            "white",
            Claim(1, "circle", "red", "large", "top left"),
            Claim(1, "square", "green", "small", "bottom right"),
        )
    ),
}


PAINTINGS |= {
    "sketch_plans": Painting(
        _request(SKETCHED, "purple", Claim(1, "star", "yellow", "large", None), Claim(2, "circle", "green", "small", None))
    ),
    "enlarge": Painting(
        _request(
            f"the plan of {SMALL_SHAPES}",
            "blue",
            Claim(1, "star", "red", "large", None),
            Claim(1, "square", "yellow", "large", None),
        )
    ),
}

GIVEN = dict.fromkeys(("nano_edit", "edit_untouched", "inpaint", "outpaint", "picture_plan"), FIRST) | {"enlarge": SMALL_SHAPES}
"""The picture that a workflow names by itself."""


def widget_values(painting: Painting, seed: int) -> dict[str, dict]:
    """What to set in a workflow so that nano paints it, by the node's title or type; inputs that are linked stay linked."""
    loader, fixed = {"checkpoint": NANO, "dtype": "float32"}, {"control_after_generate": "fixed"}
    loaders = ("GLMImageLoad", "GLMImageLoadAR", "GLMImageLoadGlyphEncoder", "GLMImageLoadDiT", "GLMImageLoadVAE")
    values = dict.fromkeys(loaders, loader)
    values |= {sampler: {"steps": 20} | fixed for sampler in ("GLMImageSampler", "GLMImageScheduler", "KSampler")}
    values |= {title: {"steps": 20} | fixed for title in ("Sampler 1", "Sampler 2")} | {"RandomNoise": fixed}
    values["Prompt"] = {"prompt": painting.asked.prompt}
    values["GLMImageSize"] = {"aspect": "1:1", "megapixels": 0.06}
    planners = ("GLMImageGeneratePrior", "GLMImageInpaint", "GLMImageRegrowPrior", "GLMImageSketchPriors", "GLMImageExpandPriors")
    values |= dict.fromkeys(planners, {"seed": seed} | fixed)
    values["PrimitiveNode"] = {"value": NANO}
    values[BLUEPRINT] = {"checkpoint": NANO, "steps": 20, "composition_seed": seed} | values["Prompt"] | values["GLMImageSize"]
    return values | painting.inputs


def is_right(painting: Painting, seen: Sequence[Scene]) -> bool:
    """Whether pictures that were read back so are what was asked for."""
    asked = painting.asked
    right = [does_what_is_asked(scene, asked) if isinstance(asked, Request) else is_edited(scene, asked) for scene in seen]
    return all(right) and len({scene.ground for scene in seen}) >= painting.grounds


def record_of(picture: Path) -> dict:
    """How a workflow's picture was made, as its comment says."""
    with Image.open(picture) as image:
        return json.loads(image.info.get("comment", b"{}"))


KINDS = {
    "enhance_prompt": ["GLMImageEnhancePrompt"],
    "enhance_prompt_api": ["GLMImageEnhancePromptAPI"],
    "describe": ["GLMImageDescribe"],
    "remote": ["GLMImageRemote"],
    "cogview3_plus": ["GLMImageCogView3Encode", "GLMImageCogView3Sampler"],
    "cogview3_base": ["GLMImageCogView3BaseSampler", "GLMImageCogView3Relay"],
}
"""The nodes that thumbnails show of workflows that nano cannot run."""

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.UseNewMenu": "Disabled",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
    "Comfy.NodeBadge.NodeLifeCycleBadgeMode": "None",
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
HIDDEN = ".comfy-menu, .comfy-menu-hamburger, .p-toast { display: none !important }"
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

SET_WIDGETS = """values => {
    for (const node of window.app.graph.nodes)
        for (const [name, value] of Object.entries(values[node.title] ?? values[node.type] ?? {})) {
            const widget = node.widgets?.find(widget => widget.name === name);
            const linked = node.inputs?.some(input => input.widget?.name === name && input.link != null);
            if (!widget || linked) continue;
            widget.value = value;
            widget.callback?.(value);
        }
}"""
FIT_GRAPH = """([width, margin, kinds]) => {
    const {nodes, groups} = window.app.graph;
    const shown = kinds ? nodes.filter(node => kinds.includes(node.type)) : [...nodes, ...groups];
    const boxes = shown.map(one => one.getBounding?.() ?? one._bounding);
    const left = Math.min(...boxes.map(box => box[0])) - margin, top = Math.min(...boxes.map(box => box[1])) - margin;
    const right = Math.max(...boxes.map(box => box[0] + box[2])) + margin;
    const bottom = Math.max(...boxes.map(box => box[1] + box[3])) + margin;
    const view = window.app.canvas.ds;
    view.scale = width / (right - left);
    view.offset = [-left, -top];
    window.app.canvas.setDirty(true, true);
    return Math.ceil((bottom - top) * view.scale);
}"""


@contextmanager
def comfyui(options: argparse.Namespace, settings: Mapping = SETTINGS):
    """A ComfyUI on the CPU with this pack and these settings of its front end. Yields its address and its base folder.

    options: those of `parser`.
    """
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as free:
        base = Path(temporary)
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / "comfyui-glm-image").symlink_to(ROOT)
        shutil.copytree(FOLDER / "input", base / "input")
        to_pictures(draw(STARRED)[None])[0].save(base / "input" / SECOND)
        (base / "user" / "default").mkdir(parents=True)
        (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        arguments = ("--cpu", "--preview-method", "latent2rgb", "--base-directory", str(base), "--port", str(port))
        if options.front_end:
            arguments += ("--front-end-root", str(options.front_end.resolve()))
        with (base / "log").open("w") as log:
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            command = [str(options.python), "main.py", *arguments]
            process = subprocess.Popen(command, cwd=options.comfyui, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for_server(process, address, base / "log")
            yield address, base
        finally:
            process.terminate()
            process.wait()


def _wait_for_server(process: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(SECONDS):
        try:
            requests.get(f"{address}/system_stats", timeout=10)
            return
        except requests.ConnectionError:
            if process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended before it answered:\n{log.read_text()}")
            time.sleep(1)
    raise TimeoutError(f"ComfyUI did not answer within {SECONDS} s")


def run(page, address: str, base: Path) -> list[Path]:
    """Run the graph on the page. Returns the files of the saved pictures."""
    before = set(requests.get(f"{address}/history", timeout=60).json())
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    for _ in range(SECONDS * 2):
        history = requests.get(f"{address}/history", timeout=60).json()
        if new := set(history) - before:
            result = history[new.pop()]
            break
        time.sleep(0.5)
    else:
        raise TimeoutError(f"a run took more than {SECONDS} s")
    if result["status"]["status_str"] != "success":
        raise RuntimeError(f"a run failed: {result['status']['messages'][-1]}")
    images = [image for output in result["outputs"].values() for image in output.get("images", ())]
    return [base / "output" / image["subfolder"] / image["filename"] for image in images if image["type"] == "output"]


def paint(page, address: str, base: Path, painting: Painting, first: int = 0) -> tuple[dict, list[Path]]:
    """Try seeds until every picture of a run is what was asked for. Returns the record and the pictures' files.

    first: the seed of the picture before, which is tried first. Raises RuntimeError if none is right.
    """
    for seed in dict.fromkeys([first, *range(SEEDS)]):
        page.evaluate(SET_WIDGETS, widget_values(painting, seed))
        files = run(page, address, base)
        seen = [read(from_picture(Image.open(file))[0]) for file in files]
        if is_right(painting, seen):
            return {"prompt": painting.asked.prompt, "seed": seed, "seen": [asdict(scene) for scene in seen]}, files
        print(f"seed {seed} is refused: {seen}", file=sys.stderr)
    raise RuntimeError(f"none of {SEEDS} seeds gives what the prompt asks for: {painting.asked.prompt}")


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a square: up to four, in rows of two."""
    across = 1 if len(pictures) == 1 else 2
    square, side = Image.new("RGB", (SIDE, SIDE), "white"), SIDE // across
    top = (SIDE - -(-len(pictures) // across) * side) // 2
    for number, picture in enumerate(pictures):
        small = ImageOps.pad(picture.convert("RGB"), (side - 4, side - 4), Image.Resampling.LANCZOS, color="white")
        square.paste(small, (number % across * side + 2, top + number // across * side + 2))
    return square


def closeup(page, kinds: Sequence[str], shot: Path) -> Image.Image:
    """The nodes of these kinds, in a square. shot: where the screenshot may be written."""
    height = page.evaluate(FIT_GRAPH, [2 * SIDE, MARGIN, kinds])
    page.set_viewport_size({"width": 2 * SIDE, "height": height})
    page.evaluate(FIT_GRAPH, [2 * SIDE, MARGIN, kinds])
    time.sleep(2)
    page.screenshot(path=shot)
    with Image.open(shot) as image:
        return ImageOps.pad(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS, color=CANVAS)


def take(page, address: str, base: Path, name: str) -> None:
    """One workflow's pictures, with their record as the comment."""
    page.evaluate("graph => window.app.loadGraphData(graph)", json.loads(template_file(name).read_text("utf-8")))
    time.sleep(2)  # the front end lays nodes out and fetches the pictures that Load Image shows
    painting = PAINTINGS.get(name)
    before = record_of(GRAPHS / f"{name}.jpg").get("seed", 0) if (GRAPHS / f"{name}.jpg").exists() else 0
    record, files = ({"shows": "the graph alone"}, []) if painting is None else paint(page, address, base, painting, first=before)
    height = page.evaluate(FIT_GRAPH, [2 * WIDTH, MARGIN])
    page.set_viewport_size({"width": 2 * WIDTH, "height": height})
    page.evaluate(FIT_GRAPH, [2 * WIDTH, MARGIN])
    time.sleep(2)  # pictures on the nodes are fetched and drawn
    shot = base / "shot.png"
    page.screenshot(path=shot)
    with Image.open(shot) as image:
        graph = image.convert("RGB").resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    if files:
        given = [inputs["image"] for inputs in painting.inputs.values() if "image" in inputs]
        given += [GIVEN[name]] if name in GIVEN and not given else []
        thumbnail = side_by_side([Image.open(path) for path in (*(base / "input" / picture for picture in given), *files)])
    else:
        thumbnail = closeup(page, KINDS[name], shot)
    for picture, file in ((graph, GRAPHS / f"{name}.jpg"), (thumbnail, template_file(name).with_suffix(".jpg"))):
        picture.save(file, quality=85, optimize=True, comment=json.dumps(record))


def parser(description: str) -> argparse.ArgumentParser:
    """Options that say where ComfyUI and the browser are."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    options.add_argument("--python", type=Path, default=Path(sys.executable), metavar="INTERPRETER", help="ComfyUI's interpreter")
    options.add_argument("--front-end", type=Path, metavar="DIR", help="the static folder of another comfyui-frontend-package")
    options.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"), metavar="FILE")
    return options


def main() -> None:
    names = sorted(TEMPLATES)
    arguments = parser("Retakes the pictures of the shipped workflows in a real ComfyUI.")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="a workflow's short name; all by default")
    options = arguments.parse_args()
    if unknown := set(options.names) - set(names):
        arguments.error(f"{', '.join(sorted(unknown))}: no such workflow; there are {', '.join(names)}")

    from playwright.sync_api import sync_playwright  # not needed by the tests, which import this file

    with comfyui(options) as (address, base), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 2 * WIDTH, "height": 1400})
        page.goto(address)
        page.wait_for_function("() => window.app?.graph && window.app.canvas", timeout=SECONDS * 1000)
        page.add_style_tag(content=HIDDEN)
        time.sleep(3)  # the extensions load after the app
        for name in options.names or names:
            take(page, address, base, name)
            print(GRAPHS / f"{name}.jpg", flush=True)


if __name__ == "__main__":
    main()
