"""Opens the shipped workflows as templates in a real ComfyUI, in both renderers, and says what lies over what there.

    python scripts/look_at_layouts.py --comfyui DIR [--python INTERPRETER] [--chromium FILE] [--pictures DIR] [NAME ...]

It asks for the front end's own geometry, for the scale at which a window of 1600 x 900 pixels shows the graph, and for what the
front end would queue. Ends with 1 if a node lies over another or reaches out of its group, if the graph is drawn without text, or
if what is queued is not the shipped file in API format. --pictures keeps what the window shows.
"""

import json
import sys
import time
from itertools import combinations
from pathlib import Path

from _pack import ROOT
from glm_image_pack.workflows import TEMPLATES, template_file

from take_pictures import CHROMIUM_FLAGS, SECONDS, SETTINGS, comfyui, parser

RENDERERS = {"classic": False, "Nodes 2.0": True}
OPEN = "([graph, name]) => window.app.loadGraphData(graph, true, true, name, { openSource: 'template' })"
GEOMETRY = """() => {
    const view = window.app.canvas.ds, canvas = window.app.canvas.canvas.getBoundingClientRect();
    const inGraph = rect => [(rect.x - canvas.x) / view.scale - view.offset[0], (rect.y - canvas.y) / view.scale - view.offset[1],
                             rect.width / view.scale, rect.height / view.scale];
    return {
        scale: view.scale,
        textless: window.app.canvas.low_quality,
        nodes: window.app.graph.nodes.map(node => {
            const element = document.querySelector(`[data-node-id="${node.id}"]`);
            return [node.title, element ? inGraph(element.getBoundingClientRect()) : [...node.getBounding()]];
        }),
        groups: window.app.graph.groups.map(group => [group.title, [...group._bounding]]),
    };
}"""
EXPORT = "async () => (await window.app.graphToPrompt()).output"
ROUNDING = 1  # of the geometry on a page, in the graph's units


def overlap(one: list[float], other: list[float]) -> bool:
    """Whether two rectangles [left, top, width, height] share more than an edge."""
    return all(
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]) > ROUNDING for axis in (0, 1)
    )


def within(one: list[float], other: list[float]) -> bool:
    """Whether a rectangle lies in another."""
    return all(
        one[axis] >= other[axis] - ROUNDING and one[axis] + one[axis + 2] <= other[axis] + other[axis + 2] + ROUNDING
        for axis in (0, 1)
    )


def faults(geometry: dict) -> list[str]:
    """What lies over what, and whether text is missing, in words."""
    over = [
        f"{one} lies over {other}" for (one, box), (other, beside) in combinations(geometry["nodes"], 2) if overlap(box, beside)
    ]
    out = [
        f"{node} reaches out of {group}"
        for node, box in geometry["nodes"]
        for group, frame in geometry["groups"]
        if overlap(box, frame) and not within(box, frame)
    ]
    return over + out + ["no text is drawn"] * geometry["textless"]


def exported_otherwise(name: str, exported: dict) -> list[str]:
    """What the front end would queue otherwise than the shipped file in API format does, in words."""
    shipped = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    described = [{key: (one["class_type"], one["inputs"]) for key, one in graph.items()} for graph in (exported, shipped)]
    differing = [key for key in described[0] | described[1] if described[0].get(key) != described[1].get(key)]
    return [f"node {key} is queued otherwise than in workflows/api" for key in differing]


def main() -> int:
    arguments = parser("Says what lies over what in the shipped workflows, in both renderers of a real ComfyUI.")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="a workflow's short name; all by default")
    arguments.add_argument("--pictures", type=Path, metavar="DIR", help="keep pictures of the windows there")
    options = arguments.parse_args()

    from playwright.sync_api import sync_playwright

    found = 0
    for renderer, vue in RENDERERS.items():
        shown = {
            name: value for name, value in SETTINGS.items() if not name.startswith("Comfy.NodeBadge")
        }  # Nodes 2.0 makes room
        settings = shown | {"Comfy.VueNodes.Enabled": vue, "Comfy.UseNewMenu": "Top"}
        with comfyui(options, settings) as (address, _), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.goto(address)
            page.wait_for_function("() => window.app?.graph && window.app.canvas", timeout=SECONDS * 1000)
            time.sleep(5)  # the extensions load after the app
            for name in options.names or TEMPLATES:
                title = TEMPLATES[name]
                graph = json.loads(template_file(name).read_text("utf-8"))
                page.evaluate(OPEN, [graph, title])
                time.sleep(3)
                geometry = page.evaluate(GEOMETRY)
                wrong = faults(geometry) + exported_otherwise(name, page.evaluate(EXPORT))
                found += len(wrong)
                print(f"{renderer}: {title}: at {geometry['scale']:.2f}: {'; '.join(wrong) or 'nothing'}", flush=True)
                if options.pictures:
                    options.pictures.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=options.pictures / f"{renderer} {name}.png")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
