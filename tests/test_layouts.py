"""The shipped workflows as people see them: nothing lies over anything, in any renderer, and the notes say what is needed."""

import json
import re
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from glm_image_pack.cli.graph.declared import input_types
from glm_image_pack.workflows import TEMPLATES, find_workflow, template_file

from graph_layout import ALL_NODES, READABLE, Graph, drawn_height
from graph_packing import GAP
from make_workflows import MODEL, graph_of
from shipped import COGVIEW3, NAMES, NANO, ROOT, UNPLANNED

# What Nodes 2.0 drew of each node in ComfyUI 0.33.0, without title and without a picture; the classic renderer draws less.
MEASURED = {
    "GLMImageLoad": 206,
    "GLMImageLoadAR": 146,
    "GLMImageLoadDiT": 202,
    "GLMImageLoadVAE": 118,
    "GLMImageLoadLoRA": 138,
    "GLMImagePrompt": 102,
    "GLMImageEncodePrompt": 278,
    "GLMImageEncodeReference": 94,
    "GLMImageGeneratePrior": 342,
    "GLMImageApplyPrior": 94,
    "GLMImageSampler": 318,
    "GLMImageVAEDecode": 82,
    "GLMImageScheduler": 146,
    "GLMImageRemote": 530,
    "GLMImageEnhancePromptAPI": 406,
    "GLMImageSavePrior": 90,
    "GLMImageCogView3Encode": 406,
    "LoadImage": 322,
    "SaveImage": 302,
    "KSampler": 262,
    "SamplerCustomAdvanced": 114,
}
# The front end fits the nodes of a template, with their titles and 10 units around them, into three quarters of the window. Below
# this scale the classic renderer draws no text: it would be smaller than 8 of its 14 pixels.
WINDOW, FITTED, AROUND, TEXTLESS = (1600, 900), 0.75, 10, 8 / 14
TITLE, BADGE, SHOWN, SAID = 30, 20, 270, 40  # above a node; the picture that a node of these shows while it runs; a line of text
SAYING = {
    *("GLMImageChangedMask", "GLMImageLoadLoRA", "GLMImageLoadPrior", "GLMImagePriorEntropy"),
    *("GLMImageChooseSurest", "GLMImageChooseByText", "GLMImageSize"),
}
SHOWING = {
    *("GLMImageInpaint", "GLMImageRegrowPrior", "GLMImageSketchPriors", "GLMImageExpandPriors"),
    *("GLMImageGeneratePrior", "GLMImageSampler", "KSampler", "SamplerCustomAdvanced"),
    *("GLMImageCogView3Sampler", "GLMImageCogView3BaseSampler", "GLMImageCogView3Relay"),
}


def graph(name: str) -> dict:
    return json.loads(template_file(name).read_text("utf-8"))


def nodes_of(name: str) -> list[dict]:
    """The nodes of a shipped workflow, with those of a subgraph."""
    ui = graph(name)
    return [node for part in (ui, *ui.get("definitions", {}).get("subgraphs", [])) for node in part["nodes"]]


def box(node: dict, *, shown: bool = True) -> tuple[float, float, float, float]:
    """What a node covers: left, top, right, bottom, with title and badge."""
    (left, top), (width, height) = node["pos"], node["size"]
    more = (
        SHOWN
        if node["type"] in SHOWING or "previewExposures" in node.get("properties", {})
        else SAID
        if node["type"] in SAYING
        else 0
    )
    return left, top - TITLE - BADGE, left + width, top + height + more * shown


def frame(group: dict) -> tuple[float, float, float, float]:
    left, top, width, height = group["bounding"]
    return left, top, left + width, top + height


def overlap(one: tuple, other: tuple) -> bool:
    return all(min(one[axis + 2], other[axis + 2]) > max(one[axis], other[axis]) for axis in (0, 1))


def within(one: tuple, other: tuple) -> bool:
    return other[0] <= one[0] and other[1] <= one[1] and one[2] <= other[2] and one[3] <= other[3]


@pytest.mark.parametrize("node_type", MEASURED)
def test_a_node_is_given_the_height_that_it_is_drawn_with(node_type):
    outputs = [{}] * len(ALL_NODES[node_type].RETURN_TYPES)
    assert drawn_height({"type": node_type, "outputs": outputs}) >= MEASURED[node_type] - (
        68 if node_type in ("LoadImage", "SaveImage") else 0
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_node_lies_over_another_and_previews_have_room(name):
    nodes = graph(name)["nodes"]
    over = [(one["type"], other["type"]) for one, other in combinations(nodes, 2) if overlap(box(one), box(other))]
    assert over == []
    assert all(node["size"][1] >= drawn_height(node) for node in nodes)


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_their_nodes_whole_and_lie_beside_each_other(name):
    ui = graph(name)
    assert [
        (one["title"], other["title"]) for one, other in combinations(ui["groups"], 2) if overlap(frame(one), frame(other))
    ] == []
    for node in ui["nodes"]:
        touched = [group for group in ui["groups"] if overlap(box(node), frame(group))]
        assert all(within(box(node), frame(group)) for group in touched), node["type"]
        assert len(touched) == 1 or node["type"] == "MarkdownNote", node["type"]


def opening_scale(ui: dict) -> float:
    """The scale at which a window of 1600 x 900 pixels opens a template. Both renderers fit the sizes in the file."""
    places, sizes = ([node[key] for node in ui["nodes"]] for key in ("pos", "size"))
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    right, bottom = (max(place[axis] + size[axis] for place, size in zip(places, sizes, strict=True)) for axis in (0, 1))
    extent = right - left + 2 * AROUND, bottom - top + TITLE + 2 * AROUND
    return min(FITTED * pixels / units for pixels, units in zip(WINDOW, extent, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_large_enough_for_its_text(name):
    assert opening_scale(graph(name)) > TEXTLESS


def test_the_measure_of_the_scale_measures():
    """As ComfyUI's front ends 1.49.6 and 1.58 opened two graphs."""
    nodes = [{"pos": [0, 0], "size": [300, 100]}, {"pos": [1570, 0], "size": [350, 918]}]
    assert opening_scale({"nodes": nodes}) == pytest.approx(0.61856, abs=1e-5)
    nodes[1]["size"][1] = 1402
    assert opening_scale({"nodes": nodes}) == pytest.approx(0.46488, abs=1e-5) and opening_scale({"nodes": nodes}) < TEXTLESS


@pytest.mark.parametrize("name", NAMES)
def test_groups_stand_from_left_to_right_in_the_order_of_their_numbers(name):
    lefts = [group["bounding"][0] for group in graph(name)["groups"]]
    assert lefts == sorted(lefts)


def test_a_graph_that_has_no_room_is_refused():
    graph = Graph("remote")
    column = graph.column(0, 340)
    graph.group("Too much", "#fff", *(column.add("SaveImage", taller=500) for _ in range(40)))
    with pytest.raises(ValueError, match="no room for 40 nodes"):
        graph.settle()


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_opens_where_it_begins_and_is_readable(name):
    ui = graph(name)
    view = ui["extra"]["ds"]
    assert view["scale"] >= READABLE
    left, top, _, _ = box(next(node for node in ui["nodes"] if node.get("title") == "About this workflow"))
    x, y = ((place + offset) * view["scale"] for place, offset in zip((left, top), view["offset"], strict=True))
    assert 60 <= x <= 200 and 80 <= y <= 260  # right of the side bar, below the menu


def test_the_measure_of_overlaps_measures():
    one = {"type": "GLMImageVAEDecode", "pos": [0, 0], "size": [300, 82]}
    apart, close = ({"type": "SaveImage", "pos": [0, 82 + gap], "size": [300, 300]} for gap in (GAP, TITLE))
    assert not overlap(box(one), box(apart)) and overlap(box(one), box(close))


# Names


def test_titles_are_found_by_a_search_and_begin_with_what_needs_no_download():
    titles = list(TEMPLATES.values())
    assert titles == sorted(titles) and "nano" in titles[0] and "nano" in titles[1]
    assert all(re.fullmatch(r"GLM-Image \d\d [\w, -]+", title) for title in titles)
    assert sorted(f"{title}.json" for title in titles) == sorted(path.name for path in (ROOT / "workflows").glob("*.json"))


def test_old_names_still_find_their_files(tmp_path, monkeypatch):
    for path in ("nano", "workflows/nano.json", ROOT / "workflows" / "nano.json"):
        assert find_workflow(Path(path)) == template_file("nano")
    for path in ("workflows/api/nano.json", "mine/nano.json", "other", "workflows/nano.png"):
        assert find_workflow(Path(path)) == Path(path)
    monkeypatch.chdir(tmp_path)
    Path("nano").touch()
    assert find_workflow(Path("nano")) == Path("nano")  # somebody's own


# Seeds, prompts, sizes, notes


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_changes_a_seed(name):
    after = [value for node in nodes_of(name) for value in node["widgets_values"] if value in ("fixed", "randomize")]
    assert "randomize" in after


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("load_plan", "one_node")])
def test_the_prompt_is_typed_in_the_one_node_that_draws_choices(name):
    typed = [node for node in graph(name)["nodes"] if node["type"] == "GLMImagePrompt"]
    assert len(typed) == 1 and typed[0]["title"] == ("Text to be drawn" if name in ("picture_plan", "enlarge") else "Prompt")


def test_the_workflow_in_one_node_is_the_blueprint():
    """It asks for all that the blueprint of the node library asks for."""
    ui, blueprint = graph("one_node"), json.loads((ROOT / "subgraphs" / "Text to Image (GLM-Image).json").read_text("utf-8"))
    assert ui["definitions"] == blueprint["definitions"]
    (placed,) = (node for node in ui["nodes"] if node["type"] == ui["definitions"]["subgraphs"][0]["id"])
    assert placed["inputs"] == blueprint["nodes"][0]["inputs"] and placed["properties"] == blueprint["nodes"][0]["properties"]
    inside = {node["id"] for node in ui["definitions"]["subgraphs"][0]["nodes"]}
    assert not inside & {node["id"] for node in ui["nodes"]}  # the front end would number those inside anew


def test_no_node_that_shares_a_prompt_with_another_draws_choices():
    """One may plan by a choice and another one draw text by another choice."""
    plans = ("GLMImageGeneratePrior", "GLMImageSketchPriors", "GLMImageInpaint", "GLMImageRegrowPrior", "GLMImageExpandPriors")
    texts = {name: input_types(ALL_NODES[name]).get("prompt") for name in ("GLMImageEncodePrompt", *plans)}
    assert sum(text is not None for text in texts.values()) >= 5
    assert not [name for name, text in texts.items() if text and text[1].get("dynamicPrompts")]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*COGVIEW3, *UNPLANNED, "remote", "one_node")])
def test_one_choice_of_checkpoint_is_all_that_nano_needs(name):
    """Its size follows what the model knows, and one loader loads all, or one node sets all loaders."""
    nodes = {node["type"]: node for node in graph(name)["nodes"]}
    parts = [node for kind, node in nodes.items() if re.fullmatch("GLMImageLoad(DiT|AR|GlyphEncoder|VAE)?", kind)]
    setting = {link[0]: link[1] for link in graph(name)["links"] if link[3] in {node["id"] for node in parts}}
    chosen = [setting.get(slot["link"], node["id"]) for node in parts for slot in node["inputs"] if slot["name"] == "checkpoint"]
    assert len(chosen) == len(parts) in (1, 4) and len(set(chosen)) == 1
    assert nodes["GLMImageSize"]["widgets_values"][-1] is True
    sides = [slot["link"] for slot in nodes["GLMImageGeneratePrior"]["inputs"] if slot["name"] in ("width", "height")]
    assert all(sides) and len(sides) == 2


HF = "https://huggingface.co/"
COGVIEW3_PLUS = (f"{HF}THUDM/CogView3-Plus-3B", "CogView3-Plus-3B/")
SOURCES = {  # what the notes say of the files of each loader: from where, how large, into which folder, and what a card wants
    "GLMImageLoad": (f"{HF}zai-org/GLM-Image), 35 GB", "ComfyUI/models/diffusers/GLM-Image/", "8 GB: *nf4*"),
    "GLMImageLoadDiT": (f"{HF}zai-org/GLM-Image), 35 GB", "models/diffusion_models", "12 GB: *int8* for it and the DiT"),
    "GLMImageLoadLoRA": ("models/loras",),
    "GLMImageLoadVLM": (f"{HF}zai-org/GLM-4.1V-9B-Thinking) (21 GB)", "ComfyUI/models/LLM/", "less than 24 GB"),
    "GLMImageLoadCogView3": (*COGVIEW3_PLUS, "15 GB", "ComfyUI/models/diffusers/", "9.5 GB, the DiT 5.7 GB"),
    "GLMImageLoadT5": (*COGVIEW3_PLUS, "9.5 GB on the card", "ComfyUI/models/diffusers/"),
    "GLMImageLoadCogView3Base": ("https://github.com/THUDM/CogView3", f"{HF}stabilityai/sdxl-vae", "cogview3-relay-3b/"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_notes_say_what_it_is_where_files_come_from_and_where_to_turn(name):
    notes = [node["widgets_values"][0] for node in graph(name)["nodes"] if node["type"] == "MarkdownNote"]
    said = "\n".join(notes)
    assert notes[0].startswith("## ") and "python . info" in said and "where you got the pack" in said
    for loader in {node["type"] for node in graph(name)["nodes"]} & SOURCES.keys():
        for words in SOURCES[loader] if name not in NANO else ("nano (built in)",):
            assert words in said, (loader, words)
    outside = "".join(re.split(r"```.*?```", said, flags=re.DOTALL))
    assert "`" not in outside  # which Nodes 2.0 draws blue on blue


def test_the_note_of_the_model_names_link_size_folder_and_settings_for_a_card():
    for words in ("huggingface.co/zai-org/GLM-Image", "35 GB", "models/diffusers/GLM-Image", "8 GB", "int8", "nano"):
        assert words in MODEL


def test_a_graph_counts_its_groups_in_reading_order():
    groups = graph_of("image_edit").groups
    assert [group["title"].split("  ")[0] for group in groups] == [str(number) for number in range(1, len(groups) + 1)]
    assert all(one["id"] < other["id"] for one, other in pairwise(groups))
