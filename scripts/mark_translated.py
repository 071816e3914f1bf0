"""Notes that help pages were translated: which English page each translation was made from.

    python scripts/mark_translated.py zh GLMImageSampler ...

Write nodes/web/docs/NODE/LANGUAGE.md first. A test compares the English pages with those marked here, and so finds a translation
that is older than its page.
"""

import hashlib
import json
import sys

from _pack import ROOT

PAGES = ROOT / "nodes" / "web" / "docs"
MARKS = ROOT / "tests" / "data" / "translated.json"


def mark_of(node: str) -> str:
    """A short fingerprint of a node's English page."""
    return hashlib.sha256((PAGES / f"{node}.md").read_text("utf-8").encode()).hexdigest()[:12]


def main(language: str, *nodes: str) -> None:
    marks = json.loads(MARKS.read_text("utf-8"))
    translated = {node: mark_of(node) for node in nodes if (PAGES / node / f"{language}.md").is_file()}
    if missing := set(nodes) - set(translated):
        sys.exit(f"there is no {language}.md of {', '.join(sorted(missing))}")
    marks[language] = dict(sorted((marks.get(language, {}) | translated).items()))
    MARKS.write_text(json.dumps(marks, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
