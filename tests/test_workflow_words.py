"""Notes and titles of the shipped workflows in other languages: none is missing, none is stale, and the front end shows them."""

import json
import re
from pathlib import Path

import pytest
from glm_image_pack.workflows import template_file

from front_end import run_in_node
from make_workflow_words import WORDS, shipped_texts

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = sorted(path.stem for path in WORDS.glob("*.json"))
TEXTS = shipped_texts()
# As the front end's: what is registered is called with each graph that is read from standard input.
APP = """
export const app = {
  extensionManager: { setting: { get: (name) => name === "Comfy.Locale" && process.argv[2] } },
  registerExtension: (extension) => { globalThis.extension = extension; },
};
"""
RUN = """
import { readFileSync } from "node:fs";
globalThis.fetch = async (url) => ({ json: async () => JSON.parse(readFileSync(url, "utf-8")) });
await import("./extensions/pack/workflows.js");
const graph = JSON.parse(readFileSync(0, "utf-8"));
await globalThis.extension.beforeConfigureGraph(graph, []);
for (const subgraph of graph.definitions?.subgraphs ?? []) {
  subgraph.renameInput = (input, label) => { input.label = label; };
  await globalThis.extension.nodeCreated({ title: "", subgraph });
}
process.stdout.write(JSON.stringify(graph));
"""


def words_of(language: str) -> dict[str, dict[str, str]]:
    return json.loads((WORDS / f"{language}.json").read_text("utf-8"))


@pytest.fixture
def opened(tmp_path):
    """opened(graph, language): the graph as the extension hands it on to the front end in that language."""

    def run(graph: dict, language: str = "zh") -> dict:
        return run_in_node(tmp_path, RUN, {"app.js": APP}, graph, language)

    return run


@pytest.fixture
def edit() -> dict:
    """A shipped workflow with a note, titled nodes and groups."""
    return json.loads(template_file("image_edit").read_text("utf-8"))


def texts_of(graph: dict) -> list[str]:
    """Titles and notes, those of groups without their numbers."""
    titles = [item["title"] for item in [*graph["groups"], *graph["nodes"]] if item.get("title")]
    return [re.sub(r"^\d+ +", "", title) for title in titles] + [
        node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"
    ]


def test_there_is_chinese():
    assert LANGUAGES == ["zh"]
    assert len(TEXTS["notes"]) > 10 and len(TEXTS["titles"]) > 10


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", list(TEXTS))
def test_every_text_of_the_workflows_is_translated_and_no_other(language, kind):
    words = words_of(language)[kind]
    missing = [text for text in TEXTS[kind] if not words.get(text)]
    stale = [text for text in words if text not in TEXTS[kind]]
    assert (missing, stale) == ([], []), "python scripts/make_workflow_words.py, then translate"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translated_note_has_the_links_the_commands_and_the_paragraphs_of_the_english_one(language):
    for english, translated in words_of(language)["notes"].items():
        for pattern in (r"https?://[^\s)>]+", r"`[^`\n]+`", r"ComfyUI/\S+", r"(?m)^(?:#+ |\||```|\s*- )"):
            assert re.findall(pattern, translated) == re.findall(pattern, english), english
        assert translated.count("\n\n") == english.count("\n\n"), english


def test_a_shipped_workflow_is_opened_in_the_users_language(opened, edit):
    words = words_of("zh")
    either = words["titles"] | words["notes"]
    shown = opened(edit)
    assert texts_of(shown) == [either[text] for text in texts_of(edit)]
    assert [group["title"][:3] for group in shown["groups"]] == [group["title"][:3] for group in edit["groups"]]
    assert [node["widgets_values"] for node in shown["nodes"] if node["type"] != "MarkdownNote"] == [
        node["widgets_values"] for node in edit["nodes"] if node["type"] != "MarkdownNote"
    ]


def test_in_english_and_in_a_language_without_words_nothing_changes(opened, edit):
    assert opened(edit, "en") == opened(edit, "fr") == edit


def test_what_a_user_wrote_stays(opened, edit):
    note = next(node for node in edit["nodes"] if node["type"] == "MarkdownNote")
    note["title"], note["widgets_values"], edit["groups"][0]["title"] = "Mine", ["mine"], "1  mine"
    shown = opened(edit)
    assert note in shown["nodes"] and edit["groups"][0] in shown["groups"]


def test_a_workflow_of_other_nodes_is_left_alone(opened, edit):
    edit["nodes"] = [node for node in edit["nodes"] if not node["type"].startswith("GLMImage")]
    assert opened(edit) == edit


def test_what_lies_in_a_subgraph_is_translated_too(opened, edit):
    outer = {"nodes": [], "groups": [], "definitions": {"subgraphs": [edit | {"inputs": []}]}}
    assert opened(outer)["definitions"]["subgraphs"] == [opened(edit) | {"inputs": []}]


def test_what_a_subgraph_promotes_is_called_in_the_users_language(opened, edit):
    inputs = [{"name": "text", "label": "Prompt"}, {"name": "Plan"}, {"name": "mine"}]
    outer = {"nodes": [], "definitions": {"subgraphs": [edit | {"inputs": inputs}]}}
    titles = words_of("zh")["titles"]
    (subgraph,) = opened(outer)["definitions"]["subgraphs"]
    assert subgraph["inputs"] == [
        {"name": "text", "label": titles["Prompt"]},
        {"name": "Plan", "label": titles["Plan"]},
        {"name": "mine"},
    ]
