"""Graphs that use a shipped blueprint, as ComfyUI's front end saves them."""

import json
from collections.abc import Mapping

from shipped import ROOT

FOLDER = ROOT / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TEXT_TO_IMAGE, EDIT, INPAINT = (f"{kind} (GLM-Image)" for kind in ("Text to Image", "Image Edit", "Image Inpainting"))
COGVIEW3 = "Text to Image (CogView3-Plus)"
LOADED = ("IMAGE", "MASK")  # outputs of Load Image


def file_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def definition_of(name: str) -> dict:
    (definition,) = file_of(name)["definitions"]["subgraphs"]
    return definition


def placed(name: str, pictures: Mapping[str, str] | None = None, **values) -> dict:
    """A blueprint between a Load Image for each of its slots and a Save Image. pictures: by slot. values: of its widgets."""
    ui = file_of(name)
    (host,) = ui["nodes"]
    for slot, picture in (pictures or {}).items():
        place = next(place for place, one in enumerate(host["inputs"]) if one["name"] == slot)
        kind = host["inputs"][place]["type"]
        link = host["inputs"][place]["link"] = len(ui["links"]) + 1
        outputs = [{"name": one, "type": one, "links": [link] if one == kind else []} for one in LOADED]
        loader = {"id": 10 + link, "type": "LoadImage", "mode": 0, "inputs": [], "outputs": outputs}
        ui["nodes"].append(loader | {"widgets_values": [picture, "image"]})
        ui["links"].append([link, loader["id"], LOADED.index(kind), host["id"], place, kind])
    link = len(ui["links"]) + 1
    host["outputs"][0]["links"] = [link]
    host["widgets_values_named"] = values
    saved = {"name": "images", "type": "IMAGE", "link": link}
    ui["nodes"].append({"id": 90, "type": "SaveImage", "mode": 0, "inputs": [saved], "outputs": [], "widgets_values": [name]})
    ui["links"].append([link, host["id"], 0, 90, 0, "IMAGE"])
    return ui
