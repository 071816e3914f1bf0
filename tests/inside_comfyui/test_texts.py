"""What is written on a node while it runs: warnings stay, above the latest other text."""

from comfy_execution.utils import CurrentNodeContext
from glm_image_pack.glmimage_core.glm_image.files.components import NANO
from glm_image_pack.nodes.host import host
from glm_image_pack.nodes.host.comfyui.progress import WARNING_EVENT


def test_a_warning_is_on_the_node_before_the_plan_begins_and_when_it_is_done(run, texts):
    (ar,) = run("GLMImageLoadAR", checkpoint=NANO, dtype="float32", quantization="none")
    with CurrentNodeContext("prompt", "7"):
        run("GLMImageGeneratePrior", ar=ar, prompt="A red house", width=544, height=192, batch_size=1, seed=0)
    size, words = "544x192 is no size that this model knows", "does not know: house"
    assert {node for node, _ in texts} == {"7"}
    assert size in texts[0][1] and "\n" not in texts[0][1]
    assert all(size in text and words in text for _, text in texts[1:])
    assert any(line.endswith(" s left") for _, text in texts for line in text.splitlines())
    assert texts[-1][1].splitlines()[-1].endswith("a pass")


def test_a_warning_is_shown_once_in_a_run_and_not_in_another(browser):
    for prompt_id, node_id in (("first", "7"), ("first", "8"), ("second", "7")):
        with CurrentNodeContext(prompt_id, node_id):
            host.warn(f"{prompt_id} {node_id}")
            host.warn(f"{prompt_id} {node_id}")
            host.say("done")
    each = [("7", "first 7"), ("8", "first 8"), ("7", "second 7")]
    assert browser.texts == [(node, text) for node, warning in each for text in (warning, f"{warning}\ndone")]
    shown = [(data["node"], data["text"], client) for event, data, client in browser.messages if event == WARNING_EVENT]
    assert shown == [(*warning, "browser") for warning in each]  # to the window that queued the run, and to no other
