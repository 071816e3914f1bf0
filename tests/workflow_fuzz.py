"""Workflow files that are wrong in random ways, the same ones for a seed."""

import copy
import json
import random
import struct
import zlib
from io import BytesIO
from typing import Any

from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.ui_format import LINK_FIELDS
from glm_image_pack.workflows import template_file
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shipped import ROOT

ODD = [None, True, False, 0, 1, -1, 7, 0.5, 10**30, -(10**30), float("nan"), float("inf"), 2**63, -10, -20]
ODD += ["", " ", "0", "7", "fixed", "nano (built in)", "\x1b[31m\x07", "\ud800", "\u202e", "x" * 5000, "{" * 300, "../..", "a\\b"]
ODD += ["{a|b}", "%date:yyyy%", [], {}, [[]], [None], ["2", 0], ["2", 99], ["2", -1], ["nowhere", 0], [1, 2, 3], {"a": 1}]
ODD += ["SaveImage", "GetNode", "SetNode", "Reroute", "PrimitiveNode", "workflow>x", "PreviewAny", "LoadImage"]
SUBGRAPH = "0b6c1c1e-0000-4000-8000-000000000001"


def api() -> dict:
    return json.loads((ROOT / "workflows" / "api" / "nano_edit.json").read_text("utf-8"))


def ui() -> dict:
    return json.loads((template_file("nano_edit")).read_text("utf-8"))


def folded() -> dict:
    """The shipped workflow of nano with all but its output in a subgraph, which promotes prompt, seed and steps."""
    whole = json.loads((template_file("nano")).read_text("utf-8"))
    (save,) = (node for node in whole["nodes"] if node["type"] == "SaveImage")
    inside = [node for node in whole["nodes"] if node is not save]
    links = [dict(zip(LINK_FIELDS, link, strict=True)) for link in whole["links"]]
    for link in links:
        if link["target_id"] == save["id"]:
            link |= {"target_id": -20, "target_slot": 0}
    inputs = []
    promoted = [("GLMImagePrompt", "prompt"), ("GLMImageGeneratePrior", "seed"), ("GLMImageSampler", "steps")]
    for place, (kind, name) in enumerate(promoted):
        (node,) = (node for node in inside if node["type"] == kind)
        slot = next(slot for slot in node["inputs"] if slot["name"] == name)
        slot["link"] = 900 + place
        ends = {"target_id": node["id"], "target_slot": node["inputs"].index(slot), "type": slot["type"]}
        links.append({"id": 900 + place, "origin_id": -10, "origin_slot": place} | ends)
        inputs.append({"id": f"i{place}", "name": name, "type": slot["type"], "linkIds": [900 + place]})
    outputs = [{"id": "o0", "name": "image", "type": "IMAGE", "linkIds": []}]
    definition = {"id": SUBGRAPH, "name": "Nano", "inputs": inputs, "outputs": outputs, "nodes": inside, "links": links}
    host = ui_node(
        50, SUBGRAPH, {slot["name"]: (slot["type"], None) for slot in inputs}, ["A green star.", 77, 6], outputs=outputs
    )
    save["inputs"][0]["link"] = 1
    return {"nodes": [host, save], "links": [[1, 50, 0, save["id"], 0, "IMAGE"]], "definitions": {"subgraphs": [definition]}}


def small() -> dict:
    """A graph in UI format that runs in a moment."""
    nodes = [
        ui_node(1, "LoadImage", values=["glm-image-shapes.png", "image"]),
        ui_node(2, "PrimitiveInt", values=[40, "fixed"]),
        ui_node(3, "ImageScale", {"image": ("IMAGE", 1), "width": ("INT", 2)}, ["bilinear", 32, 24, "disabled"]),
        ui_node(4, "SaveImage", {"images": ("IMAGE", 3)}, ["a_%date:yyyy%"]),
        ui_node(5, "PreviewAny", {"source": ("*", 4)}),
    ]
    links = [[1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 3, 1, "INT"], [3, 3, 0, 4, 0, "IMAGE"], [4, 2, 0, 5, 0, "INT"]]
    return {"nodes": nodes, "links": links, "version": 0.4}


def ui_node(node_id, node_type: str, inputs: dict | None = None, values=(), **more) -> dict:
    """A node of a file in UI format. inputs: name -> (type, link)."""
    slots = [
        {"name": name, "type": kind, "link": link, "widget": {"name": name}} for name, (kind, link) in (inputs or {}).items()
    ]
    kinds = getattr(ALL_NODES.get(node_type), "RETURN_TYPES", ())
    outputs = [{"name": kind, "type": kind, "links": []} for kind in kinds]
    return {"id": node_id, "type": node_type, "inputs": slots, "outputs": outputs, "widgets_values": list(values)} | more


def subgraph(values: Any = ("A green star.", 77, 6), *, slots=("text", "seed", "steps"), nested: int = 0, **host) -> dict:
    """Plan and sampler in a subgraph that promotes text (to two widgets), seed and steps; nested: in as many more subgraphs.

    values: the host's widgets_values. slots: those of its inputs that the file holds. host: more of the host.
    """
    names = {"text": "STRING", "seed": "INT", "steps": "INT"}
    prior = ["inner text", 256, 256, 1, 11, "fixed", 0.9, 0.75, 50]
    inner = [
        ui_node(7, "GLMImageEncodePrompt", {"prompt": ("STRING", 20)}, ["inner text", "", ""]),
        ui_node(8, "GLMImageGeneratePrior", {"prompt": ("STRING", 21), "seed": ("INT", 22)}, prior),
        ui_node(10, "GLMImageSampler", {"steps": ("INT", 23)}, [0, "fixed", 4, 1.5, 1.0]),
    ]
    ends = [(20, 0, 7, 0), (21, 0, 8, 0), (22, 1, 8, 1), (23, 2, 10, 0)]
    definitions = [_definition(SUBGRAPH, names, (inner, ends))]
    for level in range(nested):
        inside = ui_node(
            50, definitions[-1]["id"], {name: (kind, 30 + place) for place, (name, kind) in enumerate(names.items())}
        )
        inside["widgets_values"] = ["nested text", 12, 5]
        definitions.append(
            _definition(f"nested-{level}", names, ([inside], [(30 + place, place, 50, place) for place in range(3)]))
        )
    node = ui_node(50, definitions[-1]["id"], {name: (names.get(name, "*"), None) for name in slots}, mode=0)
    node |= {"widgets_values": list(values) if isinstance(values, tuple) else values} | host
    return {"nodes": [node], "links": [], "definitions": {"subgraphs": definitions}}


def _definition(definition: str, names: dict[str, str], inside: tuple[list, list]) -> dict:
    nodes, ends = inside
    links = [
        {"id": link, "origin_id": -10, "origin_slot": place, "target_id": node, "target_slot": slot, "type": "*"}
        for link, place, node, slot in ends
    ]
    inputs = [
        {"id": f"i{place}", "name": name, "type": kind, "linkIds": [link["id"] for link in links if link["origin_slot"] == place]}
        for place, (name, kind) in enumerate(names.items())
    ]
    return {"id": definition, "name": "Nano", "inputs": inputs, "outputs": [], "nodes": nodes, "links": links}


def mutated(data: Any, generator: random.Random) -> Any:
    """The data with one or two changes: a value replaced, removed, doubled, moved, or exchanged with another."""
    data = copy.deepcopy(data)
    for _ in range(generator.randint(1, 2)):
        places = list(_places(data))
        if not places:
            break
        holder, key = generator.choice(places)
        other_holder, other_key = generator.choice(places)
        change = generator.random()
        if change < 0.5:
            holder[key] = copy.deepcopy(generator.choice(ODD))
        elif change < 0.7:
            del holder[key]
        elif change < 0.8 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(other_holder[other_key])
    return data


def _places(data: Any):
    """Every (container, key) of JSON."""
    waiting = [data]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def carrier(generator: random.Random) -> tuple[str, bytes]:
    """A picture that carries a workflow, as a file name and bytes, with the workflow or the bytes changed."""
    name, data = generator.choice([("prompt", api()), ("workflow", ui())])
    data = mutated(data, generator) if generator.random() < 0.7 else data
    text, buffer = json.dumps(data), BytesIO()
    if generator.random() < 0.2:
        text = text[: generator.randrange(len(text))]
    picture, kind = Image.new("RGB", (8, 8)), generator.choice(["PNG", "WEBP", "JPEG"])
    if kind == "PNG":
        info = PngInfo()
        info.add_text(name, text, zip=generator.random() < 0.5)
        picture.save(buffer, kind, pnginfo=info)
    else:
        exif = Image.Exif()
        exif[0x0110 if name == "prompt" else 0x010F] = f"{name}:{text}"
        picture.save(buffer, kind, exif=exif if len(text) < 60_000 else b"Exif\0\0nothing")
    content = bytearray(buffer.getvalue())
    if generator.random() < 0.5:
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if kind == "PNG" and generator.random() < 0.5:
            content = _with_checksums(bytes(content))
    if generator.random() < 0.1:
        del content[generator.randrange(len(content)) :]
    return f"picture.{kind.lower()}", bytes(content)


def _with_checksums(content: bytes) -> bytearray:
    """A PNG whose chunks' checksums are right again, so that the change is not found by them."""
    fixed, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        body = content[at + 4 : at + 8 + length]
        fixed += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return fixed
