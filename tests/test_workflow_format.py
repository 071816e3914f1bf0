"""Workflow files: UI format, API format and PNGs are brought to one graph."""

import json

import pytest
from glm_image_pack.cli.graph.errors import WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.runner import Runner
from glm_image_pack.cli.graph.workflow import parse_workflow, read_file, read_workflow
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pictures import pattern
from shipped import ADDED, ROOT, shipped


def graph(*nodes, links=()) -> dict:
    return {"nodes": list(nodes), "links": list(links), "version": 0.4}


def node(node_id, node_type, inputs=(), values=(), mode=0, outputs=()):
    slots = [{"name": name, "type": kind, "link": link} for name, kind, link in inputs]
    out = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    return {"id": node_id, "type": node_type, "inputs": slots, "widgets_values": list(values), "mode": mode, "outputs": out}


LOAD = node(1, "LoadImage", values=["a.png", "image"], outputs=["IMAGE", "MASK"])
SAVE = node(9, "SaveImage", inputs=[("images", "IMAGE", 2)], values=["out"])


def test_reroutes_notes_and_frontend_primitives_dissolve():
    ui = graph(
        LOAD,
        node(2, "Reroute", inputs=[("", "*", 1)], outputs=["*"]),
        node(3, "Note", values=["hello"]),
        node(4, "PrimitiveNode", values=["typed once", "fixed"], outputs=["STRING"]),
        node(9, "SaveImage", inputs=[("images", "IMAGE", 2), ("filename_prefix", "STRING", 3)], values=["out"]),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 9, 0, "IMAGE"], {"id": 3, "origin_id": 4, "origin_slot": 0}],
    )
    prompt = parse_workflow(ui, ALL_NODES).prompt
    assert set(prompt) == {"1", "9"}
    assert prompt["9"]["inputs"] == {"images": ["1", 0], "filename_prefix": "typed once"}


def test_a_muted_node_drops_out_and_a_bypassed_one_hands_through():
    def middle(mode):
        return node(5, "GLMImageVAEDecode", inputs=[("vae", "VAE", None), ("samples", "IMAGE", 1)], mode=mode, outputs=["IMAGE"])

    links = [[1, 1, 0, 5, 1, "IMAGE"], [2, 5, 0, 9, 0, "IMAGE"]]
    assert parse_workflow(graph(LOAD, middle(4), SAVE, links=links), ALL_NODES).prompt["9"]["inputs"]["images"] == ["1", 0]
    assert "images" not in parse_workflow(graph(LOAD, middle(2), SAVE, links=links), ALL_NODES).prompt["9"]["inputs"]


def test_the_entry_after_a_seed_is_skipped_and_later_inputs_have_their_defaults():
    values = ["p", 512, 640, 2, 77, "randomize", 0.5]
    prompt = parse_workflow(graph(node(3, "GLMImageGeneratePrior", values=values)), ALL_NODES).prompt
    expected = {
        "prompt": "p",
        "width": 512,
        "height": 640,
        "batch_size": 2,
        "seed": 77,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 50,
        "lookahead": "auto",
    }
    assert prompt["3"]["inputs"] == expected


def test_a_subgraph_unfolds_as_in_the_frontend():
    """The image edit with its middle folded into a subgraph, as ComfyUI's frontend saved it and as it queued it."""
    data = json.loads((ROOT / "tests" / "data" / "subgraph.json").read_text("utf-8"))
    prompt = parse_workflow(data["ui"], ALL_NODES).prompt
    assert {node_id: node["inputs"] for node_id, node in prompt.items()} == {
        node_id: node["inputs"] | ADDED.get(node["class_type"], {}) for node_id, node in data["prompt"].items()
    }
    (folded,) = (node for node in data["ui"]["nodes"] if node["id"] == 15)
    folded["widgets_values_named"]["seed"] = 77
    assert parse_workflow(data["ui"], ALL_NODES).prompt["15:10"]["inputs"]["seed"] == 77
    data["ui"]["definitions"]["subgraphs"][0]["nodes"].append({"id": 99, "type": folded["type"], "inputs": []})
    with pytest.raises(WorkflowError, match="holds itself"):
        parse_workflow(data["ui"], ALL_NODES)


def test_a_picture_carries_its_workflow_and_paints_itself_again(runner, folders, tmp_path):
    runner.run(shipped("text_to_image", "ui"))
    with Image.open(folders.written[0]) as picture:
        assert set(picture.text) == {"prompt", "workflow"}
    again = read_workflow(folders.written[0], ALL_NODES)
    Runner(ALL_NODES, folders).run(again)
    first, second = (Image.open(path).tobytes() for path in folders.written)
    assert first == second
    only_ui = tmp_path / "ui.png"
    info = Image.open(folders.written[0])
    text = PngInfo()
    text.add_text("workflow", info.text["workflow"])
    info.save(only_ui, pnginfo=text)
    assert read_workflow(only_ui, ALL_NODES).prompt.keys() == again.prompt.keys()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"a": 1}', '{"1": {"inputs": {}}}', "{", '{"nodes": [{"id": 1}], "links": []}', "\x00"]
)
def test_a_file_that_is_no_workflow_says_so(tmp_path, content):
    path = tmp_path / "workflow.json"
    path.write_text(content)
    with pytest.raises(WorkflowError):
        read_workflow(path, ALL_NODES)


def test_a_picture_without_a_workflow_says_so(tmp_path):
    pattern(64, 64, 3).save(tmp_path / "plain.png")
    with pytest.raises(WorkflowError, match="carries no workflow"):
        read_workflow(tmp_path / "plain.png", ALL_NODES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-8"])
def test_a_file_is_read_in_the_encodings_that_windows_writes(tmp_path, encoding):
    file = tmp_path / "graph.json"
    file.write_text('{"1": {"class_type": "PrimitiveString", "inputs": {"value": "\u68ee"}}}', encoding)
    assert read_file(file).data["1"]["inputs"]["value"] == "\u68ee"


def test_a_file_that_is_nested_too_deep_is_told(tmp_path):
    (tmp_path / "graph.json").write_text("[" * 100_000)
    with pytest.raises(WorkflowError, match="is not JSON: it is nested too deep"):
        read_file(tmp_path / "graph.json")
