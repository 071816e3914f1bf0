"""Help pages in other languages: none is missing, none is older than the English one, and they say what that one says."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS

from mark_translated import MARKS, PAGES, mark_of

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ["zh"]
pytestmark = pytest.mark.parametrize("language", LANGUAGES)


def pages(language: str) -> dict[str, str]:
    """Node id -> its page, of the nodes that have one where ComfyUI's front end looks for it."""
    found = {node: PAGES / node / f"{language}.md" for node in NODE_CLASS_MAPPINGS}
    return {node: page.read_text("utf-8") for node, page in found.items() if page.is_file()}


def english(node: str) -> str:
    return (PAGES / f"{node}.md").read_text("utf-8")


def words(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


def widgets(node: str) -> list[str]:
    inputs = NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    shown = inputs["required"] | inputs.get("optional", {})  # without the hidden ones
    return [name for name, (kind, _) in shown.items() if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")]


def facts(page: str) -> Counter:
    """What no translation changes: code, addresses and numbers, however often each."""
    return Counter(re.findall(r"`[^`]+`|https?://[^\s)`]+|\d+(?:[.,]\d+)*", page))


def test_no_help_page_is_missing_or_of_no_node(language):
    assert [node for node in NODE_CLASS_MAPPINGS if node not in pages(language)] == []
    assert sorted(page.parent.name for page in PAGES.glob(f"*/{language}.md")) == sorted(NODE_CLASS_MAPPINGS)


def test_no_help_page_is_older_than_the_english_one(language):
    marks = json.loads(MARKS.read_text("utf-8"))[language]
    stale = [node for node in NODE_CLASS_MAPPINGS if marks.get(node) != mark_of(node)]
    assert stale == [], "translate what changed, then python scripts/mark_translated.py"


def test_a_help_page_has_the_nodes_title_and_every_widget_by_both_names(language):
    """As the front end shows it, and as it is in a workflow and in the command line."""
    for node, page in pages(language).items():
        assert page.startswith(f"# {words(language)[node]['display_name']}\n"), node
        for widget in widgets(node):
            shown = words(language)[node]["inputs"][widget]["name"]
            assert (f"**{shown}**" if shown == widget else f"**{shown}**\uff08{widget}\uff09") in page, (node, widget)


def test_a_help_page_has_the_paragraphs_and_the_facts_of_the_english_one(language):
    for node, page in pages(language).items():
        assert len(page.split("\n\n")) == len(english(node).split("\n\n")), node
        assert len(re.findall(r"(?m)^- ", page)) == len(re.findall(r"(?m)^- ", english(node))), node
        assert facts(english(node)) - facts(page) == Counter(), node
