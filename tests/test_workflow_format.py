"""Workflow files: UI format, API format and PNGs are brought to one graph."""

import json
import time

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


# Links


def stale(links: list, link=2) -> dict:
    """Load Image to Save Image by link 2, and a text for the name by link 3, where the links are there."""
    save = node(9, "SaveImage", inputs=[("images", "IMAGE", link), ("filename_prefix", "STRING", 3)], values=["out"])
    return graph(LOAD, save, links=links)


GOOD = [2, 1, 0, 9, 0, "IMAGE"]


@pytest.mark.parametrize(
    "links",
    [
        [GOOD],
        [None, GOOD, None],
        [GOOD, [3, 77, 0, 9, 1, "STRING"]],
        [GOOD, [3], "x", 5, {}, {"id": 3}, [3, None, None, 9, 1]],
        [["2", "1", "0", "9", "0", "IMAGE"]],
        [{"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": 9, "target_slot": 0}],
    ],
)
def test_a_link_that_leads_nowhere_leaves_the_widget_its_value(links):
    inputs = parse_workflow(stale(links), ALL_NODES).prompt["9"]["inputs"]
    assert inputs == {"images": ["1", 0], "filename_prefix": "out"}


@pytest.mark.parametrize("links", [[], [None], [[2, 77, 0, 9, 0, "IMAGE"]]])
@pytest.mark.parametrize("link", [2, "2", [2], {"id": 2}, True, 2.5])
def test_an_input_without_a_widget_whose_link_leads_nowhere_is_told_by_name(links, link, folders):
    workflow = parse_workflow(stale(links, link), ALL_NODES)
    with pytest.raises(WorkflowError, match=r"node 9 \(Save Image\): images is not connected"):
        Runner(ALL_NODES, folders).run(workflow)


def test_a_node_that_connects_inputs_in_the_browser_is_named_where_an_input_is_not_connected(folders):
    workflow = parse_workflow(graph(SAVE, node(5, "Anything Everywhere")), ALL_NODES)
    with pytest.raises(WorkflowError, match="images is not connected; node 5 .* connects inputs in the browser only"):
        Runner(ALL_NODES, folders).run(workflow)


def test_reroutes_in_a_circle_are_told():
    ui = graph(
        node(2, "Reroute", inputs=[("", "*", 3)], outputs=["*"]),
        node(3, "Reroute", inputs=[("", "*", 4)], outputs=["*"]),
        SAVE,
        links=[[3, 3, 0, 2, 0, "*"], [4, 2, 0, 3, 0, "*"], [2, 2, 0, 9, 0, "*"]],
    )
    with pytest.raises(WorkflowError, match="runs in a circle"):
        parse_workflow(ui, ALL_NODES)


def test_a_chain_of_3000_reroutes_is_followed():
    chain = [node(10 + i, "Reroute", inputs=[("", "*", 100 + i)], outputs=["*"]) for i in range(3000)]
    links = [[100 + i, 9 + i if i else 1, 0, 10 + i, 0, "*"] for i in range(3000)] + [[2, 3009, 0, 9, 0, "*"]]
    assert parse_workflow(graph(LOAD, SAVE, *chain, links=links), ALL_NODES).prompt["9"]["inputs"]["images"] == ["1", 0]


def test_a_bypassed_node_hands_on_as_the_front_end_does():
    """The same place where types join, else the first input of the type that is wanted, else nothing."""

    def bypassed(*inputs, output=0):
        middle = node(5, "Foreign", inputs=inputs, mode=4, outputs=["IMAGE", "IMAGE"])
        links = [[1, 1, 0, 5, len(inputs) - 1, "IMAGE"], [2, 5, output, 9, 0, "IMAGE"]]
        return parse_workflow(graph(LOAD, middle, SAVE, links=links), ALL_NODES).prompt["9"]["inputs"].get("images")

    assert bypassed(("a", "IMAGE", 1)) == ["1", 0]
    assert bypassed(("a", "VAE", None), ("b", "IMAGE", 1)) == ["1", 0]
    assert bypassed(("a", "IMAGE", None), ("b", "IMAGE", 1)) is None  # the first of the type counts, linked or not
    assert bypassed(("a", "IMAGE", None), ("b", "IMAGE", 1), output=1) == ["1", 0]
    assert bypassed(("a", "*", 1)) == ["1", 0]
    assert bypassed(("a", "LATENT,IMAGE", 1)) == ["1", 0]
    assert bypassed(("a", "MASK", 1)) is None


# Nodes of the browser


@pytest.mark.parametrize("maker", ["", "easy "])
def test_set_and_get_nodes_are_a_link_by_name(maker):
    names = ("easy setNode", "easy getNode") if maker else ("SetNode", "GetNode")
    ui = graph(
        LOAD,
        node(5, names[0], inputs=[("MASK", "MASK", None)], values=["other"]),
        node(6, names[0], inputs=[("IMAGE", "IMAGE", 1)], values=["picture"]),
        node(7, names[1], values=["picture"], outputs=["IMAGE"]),
        SAVE,
        links=[[1, 1, 0, 6, 0, "IMAGE"], [2, 7, 0, 9, 0, "IMAGE"]],
    )
    prompt = parse_workflow(ui, ALL_NODES).prompt
    assert set(prompt) == {"1", "9"} and prompt["9"]["inputs"]["images"] == ["1", 0]


def test_a_get_node_in_a_subgraph_finds_the_set_node_outside():
    getter = node(3, "GetNode", values=["picture"], outputs=["IMAGE"])
    inner = graph(getter, SAVE, links=[{"id": 2, "origin_id": 3, "origin_slot": 0, "target_id": 9, "target_slot": 0}])
    ui = graph(
        LOAD,
        node(6, "SetNode", inputs=[("IMAGE", "IMAGE", 1)], values=["picture"]),
        node(7, "sub"),
        links=[[1, 1, 0, 6, 0, "IMAGE"]],
    )
    ui["definitions"] = {"subgraphs": [inner | {"id": "sub"}]}
    assert parse_workflow(ui, ALL_NODES).prompt["7:9"]["inputs"]["images"] == ["1", 0]


def test_a_get_node_without_its_set_node_is_told(caplog):
    ui = graph(node(7, "GetNode", values=["picture"], outputs=["IMAGE"]), SAVE, links=[[2, 7, 0, 9, 0, "IMAGE"]])
    assert "images" not in parse_workflow(ui, ALL_NODES).prompt["9"]["inputs"]
    assert "node 7 (GetNode): there is no Set node of the name picture" in caplog.text


def test_rgthrees_reroute_dissolves_and_a_primitive_that_holds_nothing_leaves_the_widget():
    ui = graph(
        LOAD,
        node(2, "Reroute (rgthree)", inputs=[("", "*", 1)], outputs=["*"]),
        node(4, "PrimitiveNode", outputs=["STRING"]),
        node(9, "SaveImage", inputs=[("images", "IMAGE", 2), ("filename_prefix", "STRING", 3)], values=["out"]),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 9, 0, "IMAGE"], [3, 4, 0, 9, 1, "STRING"]],
    )
    assert parse_workflow(ui, ALL_NODES).prompt["9"]["inputs"] == {"images": ["1", 0], "filename_prefix": "out"}


@pytest.mark.parametrize("kind", ["workflow>Decode", "workflow/Decode"])
def test_a_group_node_is_refused_with_what_to_do(kind, folders):
    ui = graph(node(5, kind, outputs=["IMAGE"]), SAVE, links=[[2, 5, 0, 9, 0, "IMAGE"]])
    with pytest.raises(WorkflowError, match="node 5 .*it is a group node; in ComfyUI, convert it to nodes"):
        Runner(ALL_NODES, folders).run(parse_workflow(ui, ALL_NODES))


# Values


def test_names_of_values_count_more_than_their_places():
    named = {"value": "by name"}
    ui = graph(node(6, "PrimitiveString", values=["by place"]) | {"widgets_values_named": named})
    assert parse_workflow(ui, ALL_NODES).prompt["6"]["inputs"] == named


@pytest.mark.parametrize(
    ("values", "message"),
    [([77], "prompt is 77, which is no STRING"), (["p", "wide"], "width is 'wide'"), (["p", 64, None], "height is None")],
)
def test_a_value_that_does_not_fit_its_widget_is_refused(values, message):
    with pytest.raises(WorkflowError, match=rf"node 3 \(GLM-Image Generate Prior\): {message}"):
        parse_workflow(graph(node(3, "GLMImageGeneratePrior", values=values)), ALL_NODES)


def test_a_primitive_that_holds_no_text_is_refused_for_a_prompt():
    ui = graph(
        node(4, "PrimitiveNode", values=[5], outputs=["STRING"]),
        node(3, "GLMImageGeneratePrior", inputs=[("prompt", "STRING", 1)]),
        links=[[1, 4, 0, 3, 0, "STRING"]],
    )
    with pytest.raises(WorkflowError, match="node 3 .*prompt is 5, which is no STRING"):
        parse_workflow(ui, ALL_NODES)


def prior_prompt(text: str, seed: int = 0) -> str:
    ui = graph(node(3, "GLMImagePrompt", values=[text]), node(4, "GLMImageGeneratePrior", values=["", 512, 640, 1, seed]))
    return parse_workflow(ui, ALL_NODES).prompt["3"]["inputs"]["prompt"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a // note", "a "),
        ("a /* no\nte */ b", "a  b"),
        ("{a|a}", "a"),
        ("{a} {", "a "),
        (r"\{a\|b\}", "{a|b}"),
        ("{ {a|a} | a }".replace(" ", ""), "a"),
        ("https://host", "https:"),
        ("no choice", "no choice"),
    ],
)
def test_choices_and_comments_are_resolved_as_in_the_front_end(text, right):
    assert prior_prompt(text) == right


def test_a_choice_repeats_and_follows_the_seed():
    text = "{a|b|c|d|e|f|g|h}"
    assert len({prior_prompt(text, seed=5) for _ in range(3)}) == 1
    assert len(chosen := {prior_prompt(text, seed) for seed in range(50)}) > 5 and chosen <= set("abcdefgh")


def test_choices_are_left_alone_where_the_front_end_leaves_them():
    """In API format, in a node without dynamic prompts, and where a link carries the text."""
    text = "{a|b} // c"
    api = {"3": {"class_type": "GLMImagePrompt", "inputs": {"prompt": text}}}
    assert parse_workflow(api, ALL_NODES).prompt["3"]["inputs"]["prompt"] == text
    ui = graph(node(6, "PrimitiveStringMultiline", values=[text]))
    assert parse_workflow(ui, ALL_NODES).prompt["6"]["inputs"]["value"] == text
    ui = graph(node(3, "GLMImageGeneratePrior", values=[text]))
    assert parse_workflow(ui, ALL_NODES).prompt["3"]["inputs"]["prompt"] == text
    ui = graph(
        node(4, "PrimitiveNode", values=[text], outputs=["STRING"]),
        node(3, "GLMImagePrompt", inputs=[("prompt", "STRING", 1)], values=["own"]),
        links=[[1, 4, 0, 3, 0, "STRING"]],
    )
    assert parse_workflow(ui, ALL_NODES).prompt["3"]["inputs"]["prompt"] == text


def test_choices_that_are_nested_without_end_are_refused():
    with pytest.raises(WorkflowError, match="nested more than 100 deep"):
        prior_prompt("{" * 5000)


def prefix(text: str, *others) -> str:
    ui = graph(LOAD, *others, node(9, "SaveImage", inputs=[("images", "IMAGE", 2)], values=[text]), links=[GOOD])
    return parse_workflow(ui, ALL_NODES).prompt["9"]["inputs"]["filename_prefix"]


def test_dates_and_values_of_nodes_in_file_names_are_resolved():
    now = time.localtime()
    prior = node(3, "GLMImageGeneratePrior", values=["a/b: c", 512, 640, 1, 77]) | {"title": "My plan"}
    assert prefix("%date:yyyy-MM-dd%/x") in {time.strftime("%Y-%m-%d/x", moment) for moment in (now, time.localtime())}
    assert prefix("%date:yy_d_hh%").startswith(time.strftime("%y_", now) + f"{now.tm_mday}_")
    assert prefix("p_%GLMImageGeneratePrior.seed%", prior) == "p_77"
    assert prefix("%My plan.prompt%", prior) == "a_b_ c"
    searched = prior | {"properties": {"Node name for S&R": "Plan"}}
    assert prefix("%Plan.width%x%Plan.height%", searched) == "512x640"
    assert prefix("%Plan.temperature%", searched) == "0.9"


@pytest.mark.parametrize("text", ["%width%", "%Nowhere.seed%", "%GLMImageGeneratePrior.nothing%", "50%", "%year%"])
def test_what_names_nothing_in_a_file_name_stays(text):
    assert prefix(text, node(3, "GLMImageGeneratePrior")) == text


# Pictures


@pytest.mark.parametrize("kind", ["webp", "jpg", "png"])
@pytest.mark.parametrize("name", ["prompt", "workflow"])
def test_a_picture_of_another_kind_carries_its_workflow_in_exif(tmp_path, kind, name):
    data = {"6": {"class_type": "PrimitiveString", "inputs": {"value": "\u68ee"}}}
    if name == "workflow":
        data = graph(node(6, "PrimitiveString", values=["\u68ee"]))
    exif = Image.Exif()
    exif[0x0110 if name == "prompt" else 0x010F] = f"{name}:{json.dumps(data)}"
    pattern(16, 16, 3).save(tmp_path / f"a.{kind}", exif=exif)
    assert read_workflow(tmp_path / f"a.{kind}", ALL_NODES).prompt["6"]["inputs"]["value"] == "\u68ee"
    (tmp_path / f"a.{kind}").rename(tmp_path / "a.json")  # what it is counts, not what it is called
    assert read_workflow(tmp_path / "a.json", ALL_NODES).prompt["6"]["class_type"] == "PrimitiveString"


def test_a_picture_whose_exif_is_broken_carries_no_workflow(tmp_path):
    pattern(16, 16, 3).save(tmp_path / "a.png", exif=b"Exif\0\0broken")
    with pytest.raises(WorkflowError, match="carries no workflow"):
        read_workflow(tmp_path / "a.png", ALL_NODES)


# Wrong shapes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"1": {"class_type": "X", "_meta": None}}, r"node 1 \(X\): _meta is None"),
        ({"1": {"class_type": "X", "_meta": ["a"]}}, r"node 1 \(X\): _meta is \['a'\]"),
        ({"1": {"class_type": "X", "_meta": {"title": 5}}}, "its title is 5"),
        (graph({"id": 1, "type": 5}), "node 1: its type is 5"),
        (graph({"id": 1}), "node 1: its type is None"),
        (graph({"id": None, "type": "X"}), "type 'X' has the id None"),
        (graph({"id": [], "type": "X"}), r"type 'X' has the id \[\]"),
        (graph({"id": 1, "type": "X", "title": {}}), "node 1: its title is {}"),
        (graph({"id": 1, "type": "X", "inputs": [5]}), "node 1: an input is 5"),
        (graph({"id": 1, "type": "X", "inputs": 5}), "node 1: inputs is 5"),
        (graph({"id": 1, "type": "X", "widgets_values": "abc"}), "widgets_values is 'abc'"),
        (graph(LOAD, LOAD), "two nodes have the id 1"),
        (graph(LOAD) | {"definitions": []}, "definitions is"),
        (graph(LOAD) | {"definitions": {"subgraphs": [{"id": 5}]}}, "has no id"),
        (graph(LOAD) | {"links": 5}, "links is 5"),
        (graph(None), "a node is None"),
    ],
)
def test_a_wrong_shape_is_told_with_its_place(data, message):
    with pytest.raises(WorkflowError, match=message):
        parse_workflow(data, ALL_NODES)


def test_ids_of_several_kinds_are_one_kind(folders):
    ui = graph(LOAD | {"id": "a"}, SAVE | {"id": 9}, links=[["2", "a", 0, 9, 0, "IMAGE"]])
    assert parse_workflow(ui, ALL_NODES).prompt["9"]["inputs"]["images"] == ["a", 0]


def test_a_picture_that_carries_no_json_is_not_called_json(tmp_path):
    info = PngInfo()
    info.add_text("workflow", "{oops")
    Image.new("L", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(WorkflowError, match=r"x\.png: what it carries is not JSON"):
        read_workflow(tmp_path / "x.png", ALL_NODES)
