"""The progress bar, and texts on the node that runs."""

import contextvars
import time
from collections.abc import Callable

import comfy.utils
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.utils import ExecutionContext, get_executing_context
from PIL import Image

from ....glmimage_core.progress import Progress
from .background import stop_if_asked

PREVIEW_SECONDS = 0.25  # between two pictures or two texts of one stage
PREVIEW_SIDE = 1024  # pixels; larger pictures are scaled down
WARNING_EVENT = "glm-image.warning"  # nodes/web/warnings.js listens to it

_warned: contextvars.ContextVar[tuple[ExecutionContext | None, tuple[str, ...]]] = contextvars.ContextVar(
    "warned", default=(None, ())
)
"""The node that warned last, as ComfyUI names it while it runs, and its warnings."""


def progress_bar(unit: str = "") -> Progress:
    """A callback that shows a stage on the running node, and raises when the user has asked to stop.

    unit: what is counted. With it, the node also shows speed and time left.
    """
    check = stop_if_asked()
    check()
    bar = comfy.utils.ProgressBar(1)
    started = shown = time.monotonic()

    def step(done: int, total: int, preview: Callable[[], Image.Image] | None = None) -> None:
        nonlocal shown
        check()
        now = time.monotonic()
        picture = None
        if now - shown >= PREVIEW_SECONDS or done == total:
            shown = now
            if preview is not None and args.preview_method != LatentPreviewMethod.NoPreviews:
                drawn = preview()
                picture = ("JPEG", drawn, PREVIEW_SIDE if max(drawn.size) > PREVIEW_SIDE else None)
            if unit:
                write_on_node(_speed(done, total, now - started, unit))
        bar.update_absolute(done, total, picture)

    return step


def _speed(done: int, total: int, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-6)
    left = f", {(total - done) / rate:.0f} s left" if rate else ""
    return f"{done} of {total} {unit}, {rate:.1f} a second{left}"


def write_on_node(text: str) -> None:
    """Show a text on the node that runs, if a node runs and a browser is there to show it.

    It takes the place of the text before it, and stands below the node's warnings.
    """
    _show(*_warnings(), text)


def warn_on_node(text: str) -> None:
    """Show a warning once: on the node that runs, and as a message of the front end.

    Newer front ends take the text of a node away as soon as the run ends.
    """
    if text not in _warnings():
        _warned.set((get_executing_context(), (*_warnings(), text)))
        _show(*_warnings())
        _notify(text)


def _warnings() -> tuple[str, ...]:
    """The warnings of the node that runs."""
    context, warnings = _warned.get()
    return warnings if context == get_executing_context() else ()


def _show(*lines: str) -> None:
    if context := get_executing_context():
        _server().send_progress_text("\n".join(lines), context.node_id)


def _notify(warning: str) -> None:
    if context := get_executing_context():
        message = {"prompt_id": context.prompt_id, "node": context.node_id, "text": warning}
        _server().send_sync(WARNING_EVENT, message, _server().client_id)


def _server():
    from server import PromptServer

    return PromptServer.instance
