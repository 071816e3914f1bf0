"""Subgraphs: which value of the node that stands for one belongs to which widget inside, in every shape that files have."""

import pytest
from glm_image_pack.cli.graph.errors import WorkflowError
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.workflow import parse_workflow

from workflow_fuzz import SUBGRAPH, subgraph, ui_node

OUTER = ("A green star.", 77, 6)
INNER = ("inner text", 11, 4)


def inside(ui: dict, prefix: str = "50:") -> tuple:
    """The prompt, the seed and the steps that run."""
    prompt = parse_workflow(ui, ALL_NODES).prompt
    encode, prior, sampler = (prompt[f"{prefix}{node}"]["inputs"] for node in (7, 8, 10))
    assert encode["prompt"] == prior["prompt"]
    return prior["prompt"], prior["seed"], sampler["steps"]


NAMED = {"text": "A green star.", "seed": 77, "steps": 6}
RIGHT = {
    "slots and values in order": subgraph(OUTER),
    "no slots, which a save drops": subgraph(OUTER, slots=()),
    "a labelled slot is left, the list is whole": subgraph(OUTER, slots=("steps",)),
    "slots in another order": subgraph(OUTER, slots=("steps", "text", "seed")),
    "a slot of an older name": subgraph(OUTER, slots=("old text", "seed", "steps")),
    "names": subgraph([], slots=(), widgets_values_named=NAMED),
    "names before places": subgraph(("other", 1, 2), widgets_values_named=NAMED),
    "values that are an object": subgraph(NAMED),
    "the companion of the seed in the list": subgraph(("A green star.", 77, "fixed", 6)),
    "pairs in another order": subgraph(
        (6, "A green star.", 77), properties={"proxyWidgets": [["-1", "steps"], ["-1", "text"], ["-1", "seed"]]}
    ),
    "pairs with nodes inside": subgraph(
        (77, "randomize", 6, "A green star."),
        properties={"proxyWidgets": [["8", "seed"], ["8", "control_after_generate"], ["10", "steps"], ["7", "prompt"]]},
    ),
}


@pytest.mark.parametrize("shape", RIGHT)
def test_values_of_a_subgraph_reach_their_widgets_in_every_shape(shape):
    assert inside(RIGHT[shape]) == OUTER


@pytest.mark.parametrize("shape", sorted(RIGHT.keys() - {"pairs with nodes inside"}))  # which are deeper here
def test_values_of_a_subgraph_reach_their_widgets_through_other_subgraphs(shape):
    (host,) = RIGHT[shape]["nodes"]
    ui = subgraph(nested=2) | {"nodes": [host | {"type": "nested-1"}]}
    assert inside(ui, "50:50:50:") == OUTER


@pytest.mark.parametrize("values", [[], None, [None, None, None]])
def test_a_value_that_is_null_or_missing_leaves_the_one_inside(values):
    assert inside(subgraph(values)) == INNER
    assert inside(subgraph(values, nested=1), "50:50:") == ("nested text", 12, 5)
    assert inside(subgraph(["A green star."])) == ("A green star.", 11, 4)


def test_pairs_change_only_what_they_name():
    ui = subgraph((6, 77), properties={"proxyWidgets": [["-1", "steps"], ["-1", "seed"]]})
    assert inside(ui) == ("inner text", 77, 6)


def test_a_pair_sets_a_widget_inside_that_no_input_is_linked_to():
    ui = subgraph((2.5,), properties={"proxyWidgets": [["10", "cfg"]]})
    assert parse_workflow(ui, ALL_NODES).prompt["50:10"]["inputs"]["cfg"] == 2.5
    ui = subgraph(("deep text",), nested=1, properties={"proxyWidgets": [["50", "7: negative_prompt"]]})
    assert parse_workflow(ui, ALL_NODES).prompt["50:50:7"]["inputs"]["negative_prompt"] == "deep text"


def test_a_linked_input_takes_the_link_and_not_the_value():
    ui = subgraph(OUTER, slots=("text", "seed", "steps"))
    ui["nodes"][0]["inputs"][1]["link"] = 1
    ui["nodes"].append(ui_node(60, "PrimitiveInt", values=[5, "fixed"]))
    ui["links"] = [[1, 60, 0, 50, 1, "INT"]]
    assert inside(ui) == ("A green star.", ["60", 0], 6)


def test_the_value_of_an_outer_subgraph_wins_over_those_inside():
    assert inside(subgraph(OUTER, nested=3), "50:" * 4) == OUTER


WRONG = {
    "a text for a seed": (subgraph(("A green star.", "fixed", 6)), "node 50 .*seed is 'fixed', which is no INT"),
    "a number for a text": (subgraph((77, 6, "A")), "node 50 .*text is 77, which is no STRING"),
    "a fraction for a number": (subgraph(("A", 7.5, 6)), "seed is 7.5"),
    "a truth for a number": (subgraph(("A", True, 6)), "seed is True"),
    "a list for a text": (subgraph((["A"], 77, 6)), "text is"),
    "by name": (subgraph([], widgets_values_named={"steps": "A"}), "node 50 .*steps is 'A', which is no INT"),
    "by pair": (subgraph(("A",), properties={"proxyWidgets": [["-1", "seed"]]}), "node 50 .*seed is 'A'"),
    "in a nested one": (subgraph(("A", "B", 6), nested=1), "node 50 .*seed is 'B'"),
    "a pair that names nothing": (subgraph((5,), properties={"proxyWidgets": [["99", "seed"]]}), "seed of node 99 inside"),
    "a pair that names no widget": (subgraph((5,), properties={"proxyWidgets": [["10", "model"]]}), "model of node 10 inside"),
    "a number for a text inside": (
        subgraph((5,), properties={"proxyWidgets": [["7", "glyph_text"]]}),
        "node 50:7 .*glyph_text is 5",
    ),
    "a pair that is none": (subgraph((5,), properties={"proxyWidgets": ["seed"]}), "proxyWidgets has the entry 'seed'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_does_not_fit_is_refused_with_subgraph_and_input(name):
    ui, message = WRONG[name]
    with pytest.raises(WorkflowError, match=message):
        parse_workflow(ui, ALL_NODES)


def test_a_choice_that_is_none_is_refused_with_the_subgraph():
    ui = subgraph(("maybe",), properties={"proxyWidgets": [["-1", "text"]]})
    (definition,) = ui["definitions"]["subgraphs"]
    definition["nodes"] = [ui_node(7, "GLMImageVAEDecode", {"tiling": ("COMBO", 20)}, ["auto"])]
    with pytest.raises(WorkflowError, match=r"node 50 .*text is 'maybe'; it must be one of auto, on, off"):
        parse_workflow(ui, ALL_NODES)


def doubled(levels: int) -> dict:
    """Subgraphs that each hold the next one twice: about 2 ** (levels + 1) nodes."""
    graphs = [
        {"id": f"s{level}", "nodes": [{"id": place, "type": f"s{level + 1}"} for place in (1, 2)]} for level in range(levels)
    ]
    return {"nodes": [{"id": 1, "type": "s0"}], "definitions": {"subgraphs": graphs}}


def test_subgraphs_that_hold_each_other_twice_are_refused_at_once():
    assert len(parse_workflow(doubled(8), ALL_NODES).prompt) == 2**8
    for levels in (13, 40):
        with pytest.raises(WorkflowError, match="more than 10000 nodes"):
            parse_workflow(doubled(levels), ALL_NODES)


@pytest.mark.parametrize("levels", [1, 3, 500])
def test_subgraphs_in_a_circle_or_too_deep_are_refused(levels):
    chain = [
        {"id": f"s{level}", "nodes": [{"id": 1, "type": f"s{(level + 1) % levels}"}], "links": []} for level in range(levels)
    ]
    with pytest.raises(WorkflowError, match="holds itself"):
        parse_workflow({"nodes": [{"id": 1, "type": "s0"}], "definitions": {"subgraphs": chain}}, ALL_NODES)


def test_ids_as_texts_and_links_as_lists_mean_the_same():
    ui = subgraph(OUTER)
    (definition,) = ui["definitions"]["subgraphs"]
    definition["nodes"] = [node | {"id": str(node["id"])} for node in reversed(definition["nodes"])]
    definition["links"] = [list(link.values()) for link in reversed(definition["links"])]
    definition["inputs"] = [slot | {"linkIds": list(map(str, slot["linkIds"]))} for slot in definition["inputs"]]
    assert definition["id"] == SUBGRAPH and inside(ui) == OUTER
