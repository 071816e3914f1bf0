"""What the front end runs of the pack: warnings of nodes become messages."""

import pytest

from front_end import WEB, run_in_node

# As the front end's: a message of the server that is read from standard input, and the messages that the window shows.
API = """
export const api = new EventTarget();
"""
APP = """
export const app = {
  rootGraph: { getNodeById: (id) => ({ 4: { title: "Plan" }, 7: { title: "Text to Image" } })[id] },
  extensionManager: { toast: { add: (message) => globalThis.shown.push(message) } },
};
"""
RUN = """
import { readFileSync } from "node:fs";
import { api } from "./scripts/api.js";
globalThis.shown = [];
await import("./extensions/pack/warnings.js");
const { type, detail } = JSON.parse(readFileSync(0, "utf-8"));
api.dispatchEvent(new CustomEvent(type, { detail }));
process.stdout.write(JSON.stringify(globalThis.shown));
"""


@pytest.fixture
def shown(tmp_path):
    """shown(kind, **data): the messages that the window shows when the server has sent one."""

    def run(kind: str, **data) -> list[dict]:
        return run_in_node(tmp_path, RUN, {"app.js": APP, "api.js": API}, {"type": kind, "detail": data})

    return run


@pytest.mark.parametrize(
    ("node", "title"), [("4", "Plan"), ("7:5", "Text to Image"), ("7:5:1", "Text to Image"), ("9", "GLM-Image")]
)
def test_a_warning_is_shown_with_the_title_of_its_node_on_the_canvas(shown, node, title):
    (message,) = shown("glm-image.warning", node=node, text="1024x1024 is no size that this model knows")
    assert message["severity"] == "warn" and message["summary"] == title and message["life"] >= 10_000
    assert message["detail"] == "1024x1024 is no size that this model knows"


def test_other_messages_are_not_ours(shown):
    assert shown("progress", node="4", value=1, max=2) == []


def test_the_front_end_listens_to_what_the_server_sends():
    progress = (WEB.parent / "host" / "comfyui" / "progress.py").read_text("utf-8")
    assert 'WARNING_EVENT = "glm-image.warning"' in progress
    assert 'addEventListener("glm-image.warning"' in (WEB / "warnings.js").read_text("utf-8")
