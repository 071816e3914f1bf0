"""The list of templates: the pack's are in the order of their numbers, and no other answer is touched."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from glm_image_pack.nodes.host.comfyui import templates

PACK = templates.PACK


def answered(path: str, response: web.Response) -> web.Response:
    asyncio.run(templates._in_order(make_mocked_request("GET", path), response))
    return response


@pytest.mark.parametrize("path", templates.LISTS)
def test_the_packs_templates_are_listed_in_order_and_others_as_they_are(path):
    listed = {"another-pack": ["b", "a"], PACK: ["GLM-Image 11 b", "GLM-Image 02 c", "GLM-Image 01 a"]}
    found = json.loads(answered(path, web.json_response(listed)).text)
    assert found == {"another-pack": ["b", "a"], PACK: ["GLM-Image 01 a", "GLM-Image 02 c", "GLM-Image 11 b"]}


@pytest.mark.parametrize(
    ("path", "response"),
    [
        ("/prompt", web.json_response({PACK: ["b", "a"]})),
        (templates.LISTS[0], web.json_response({"another-pack": ["b", "a"]})),
        (templates.LISTS[0], web.json_response(["b", "a"])),
        (templates.LISTS[0], web.json_response({PACK: {"b": 1}})),
        (templates.LISTS[0], web.json_response({PACK: ["b", "a"]}, status=500)),
        (templates.LISTS[0], web.Response(text="not JSON")),
    ],
)
def test_another_answer_stays_as_it_is(path, response):
    before = response.body
    assert answered(path, response).body == before
