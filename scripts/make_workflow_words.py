"""Keeps nodes/web/workflows/LANGUAGE.json in step with the texts of the shipped workflows and blueprints.

    python scripts/make_workflow_words.py

Each language's file has the notes and the titles of all of them, in English, with their translations. A new text is added with an
empty translation, for a translator to fill; one that none has any more is dropped and printed.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from _pack import ROOT

WORDS = ROOT / "nodes" / "web" / "workflows"
NOTES = ("MarkdownNote", "Note")


def _parts(graph: dict) -> list[dict]:
    return [graph, *graph.get("definitions", {}).get("subgraphs", [])]


def _notes(graph: dict) -> Iterator[str]:
    for part in _parts(graph):
        yield from (node["widgets_values"][0] for node in part["nodes"] if node["type"] in NOTES)


def _titles(graph: dict) -> Iterator[str]:
    """Titles of nodes, of groups without their numbers, of subgraphs and of what they promote."""
    for part in _parts(graph):
        titled = [*part.get("groups", []), *part["nodes"]]
        yield from (re.sub(r"^\d+ +", "", item["title"]) for item in titled if item.get("title"))
    for subgraph in _parts(graph)[1:]:
        yield subgraph["name"]
        yield from (slot.get("label") or slot["name"] for slot in subgraph["inputs"])


def shipped_texts() -> dict[str, list[str]]:
    """What the shipped workflows and blueprints say, in English: notes and titles, each once."""
    paths = [path for folder in ("workflows", "subgraphs") for path in sorted((ROOT / folder).glob("*.json"))]
    graphs = [json.loads(path.read_text("utf-8")) for path in paths]
    return {
        "notes": list(dict.fromkeys(text for graph in graphs for text in _notes(graph))),
        "titles": sorted({text for graph in graphs for text in _titles(graph)}),
    }


def update(file: Path) -> list[str]:
    """Bring one language's file up to date. Returns the texts that it had and that no workflow has."""
    old = json.loads(file.read_text("utf-8")) if file.exists() else {}
    texts = shipped_texts()
    new = {kind: {text: old.get(kind, {}).get(text, "") for text in texts[kind]} for kind in texts}
    file.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return [text for kind in old for text in old[kind] if text not in new[kind]]


if __name__ == "__main__":
    for file in sorted(WORDS.glob("*.json")):
        for text in update(file):
            print(f"{file.name} no longer has: {text}")
