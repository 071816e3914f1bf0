"""What ComfyUI itself says of a wrong value when a graph is queued: one cause is one error, at its input."""

import asyncio
import json
from pathlib import Path

import execution
import pytest
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

import nodes as stock

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"


@pytest.fixture
def faults(folder, monkeypatch):
    """faults(workflow, "Node", input=...): class, input and words of each error of a shipped workflow with these values."""
    monkeypatch.setattr(stock, "NODE_CLASS_MAPPINGS", stock.NODE_CLASS_MAPPINGS | NODES)

    def found(name: str, *changed: str, **values) -> list[tuple[str, str, str]]:
        prompt = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
        for node in prompt.values():
            if node["class_type"] in changed:
                node["inputs"] |= values
        errors = asyncio.run(execution.validate_prompt("id", prompt, None))[3]
        return sorted(
            (node["class_type"], error["extra_info"]["input_name"], f"{error['message']}: {error['details']}")
            for node in errors.values()
            for error in node["errors"]
        )

    return found


def test_a_right_graph_has_none(faults):
    assert faults("text_to_image") == []


LOADERS = ["GLMImageLoadAR", "GLMImageLoadDiT", "GLMImageLoadGlyphEncoder", "GLMImageLoadVAE"]


def test_a_missing_checkpoint_is_one_error_a_loader_and_says_what_to_download(faults):
    found = faults("separate_loaders", *LOADERS, checkpoint="absent")
    assert [place for *place, _ in found] == [[loader, "checkpoint"] for loader in LOADERS]
    found += faults("text_to_image", "GLMImageLoad", checkpoint="absent")
    assert [place for *place, _ in found[len(LOADERS) :]] == [["GLMImageLoad", "checkpoint"]]
    assert all(
        "no GLM-Image checkpoint 'absent'" in words and "download zai-org/GLM-Image as it is" in words for *_, words in found
    )


@pytest.mark.parametrize(
    ("workflow", "node", "values", "words"),
    [
        ("text_to_image", "GLMImageGeneratePrior", {"width": 1000}, "use 992 or 1024"),
        ("text_to_image", "GLMImageGeneratePrior", {"width": 160}, "outside 192..4096"),
        ("text_to_image", "GLMImageGeneratePrior", {"height": 160}, "smaller than min of 192"),
        ("separate_loaders", "GLMImageLoadDiT", {"quantization": "int4"}, "'int4' not in"),
        ("separate_loaders", "GLMImageLoadDiT", {"attention": "bogus"}, "'bogus' not in"),
        ("separate_loaders", "GLMImageLoadAR", {"device": "gpu:9"}, "'gpu:9' not in"),
        ("remote", "GLMImageRemote", {"prompt": " "}, "prompt is empty"),
    ],
)
def test_a_wrong_value_is_one_error_at_its_input(faults, workflow, node, values, words):
    ((where, name, said),) = faults(workflow, node, **values)
    assert (where, name) == (node, *values) and words in said
