"""What ComfyUI's template browser needs of the pack: pictures of the shipped workflows, their order, old links."""

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import folder_paths
from aiohttp import web
from server import PromptServer

from ....workflows import FOLDER, TEMPLATES, template_file

log = logging.getLogger(__name__)
LISTS = ("/workflow_templates", "/api/workflow_templates")
PACK = Path(__file__).parents[3].name  # as ComfyUI calls the pack: the name of its folder, or of the link to it


def put_pictures() -> None:
    """Put the pictures that the shipped workflows load into ComfyUI's input folder, where they are missing."""
    folder = Path(folder_paths.get_input_directory())
    missing = [picture for picture in (FOLDER / "input").glob("*.png") if not (folder / picture.name).exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in missing:
            shutil.copyfile(picture, folder / picture.name)
    except OSError as error:
        log.warning("the pictures of the shipped workflows cannot be put into %s: %s", folder, error)


def serve() -> None:
    """Answer links to a shipped workflow by its short name, as files were called before they had numbers, and list them by these.

    ComfyUI lists templates as they lie on the disk, and its browser keeps that order.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:  # ComfyUI's modules without its server
        return
    for name in TEMPLATES:
        server.routes.get(f"/workflow_templates/{PACK}/{name}.json")(partial(_answer, template_file(name)))
    server.app.on_response_prepare.append(_in_order)


async def _in_order(request: web.Request, response: web.StreamResponse) -> None:
    """A signal of aiohttp. It leaves alone what is not a list of names: an answer of another ComfyUI is not to fail in here."""
    if request.path not in LISTS or response.status != 200 or response.content_type != "application/json":
        return
    templates = json.loads(response.text)
    if isinstance(templates, dict) and isinstance(templates.get(PACK), list):
        response.text = json.dumps(templates | {PACK: sorted(templates[PACK], key=str)})


async def _answer(file: Path, request: web.Request) -> web.FileResponse:
    return web.FileResponse(file)
