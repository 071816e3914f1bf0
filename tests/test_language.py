"""Enhancing prompts: the node, its key, and the shipped workflow, against a real HTTP server on the loopback."""

import json
from pathlib import Path

import pytest
import torch
from glm_image_pack.cli.graph.nodes import ALL_NODES
from glm_image_pack.cli.graph.workflow import read_workflow
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.language.chat import chat_endpoint
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES
from glm_image_pack.nodes.keys import key_for
from glm_image_pack.workflows import template_file
from PIL import Image

from endpoint_server import KEY

ROOT = Path(__file__).resolve().parents[1]
NODE = NODES["GLMImageEnhancePromptAPI"]
VALUES = {
    "prompt": 'a bakery with a sign "FRESH BREAD"', "model": "glm", "key_variable": "", "style": "general", "language": "auto",
    "seed": 1, "temperature": 0.5, "max_tokens": 256, "timeout": 20.0, "retries": 0,
}  # fmt: skip
REWRITTEN = 'A bakery at dawn. The picture shows the text "FRESH BREAD".'


def test_a_prompt_is_rewritten_and_its_text_kept(chat_server):
    assert NODE().enhance(base_url=chat_server.url, **VALUES) == (REWRITTEN,)
    (asked,) = chat_server.asked
    told, said = (message["content"] for message in asked["body"]["messages"])
    assert said == VALUES["prompt"] and "GLM-Image" in told and "reference pictures" not in told
    assert (asked["body"]["temperature"], asked["body"]["max_tokens"]) == (0.5, 256)


def test_an_answer_that_was_cut_off_leaves_no_torn_sentence_and_is_told(chat_server, caplog):
    def cut_off(handler):
        handler.begin()
        handler.say('A bakery at dawn. A sign reads "FRESH BR')
        handler.say("", "length")

    assert NODE().enhance(base_url=chat_server.url, **VALUES) == (REWRITTEN,)
    assert "cut off" not in caplog.text
    chat_server.behave = cut_off
    assert NODE().enhance(base_url=chat_server.url, **VALUES) == (REWRITTEN,)
    assert "the model was cut off after 256 tokens" in caplog.text and "raise max_tokens" in caplog.text


def test_an_answer_without_a_prompt_is_told(chat_server, caplog):
    def thoughts(handler):
        handler.begin()
        handler.say("<think>A bakery, so", "length")

    chat_server.behave = thoughts
    assert NODE().enhance(base_url=chat_server.url, **VALUES) == (VALUES["prompt"],)
    assert "said nothing within 256 tokens, or only thought" in caplog.text


def test_references_go_along(chat_server):
    NODE().enhance(base_url=chat_server.url, images=torch.rand(2, 16, 16, 3), **VALUES)
    told, (*pictures, said) = (message["content"] for message in chat_server.asked[0]["body"]["messages"])
    assert "reference pictures" in told and len(pictures) == 2 and said["text"] == VALUES["prompt"]


def test_a_key_comes_from_the_environment(chat_server, monkeypatch):
    monkeypatch.setenv("GLM_IMAGE_API_KEY", KEY)
    NODE().enhance(base_url=chat_server.url, **VALUES | {"key_variable": "GLM_IMAGE_API_KEY"})
    assert chat_server.asked[0]["headers"]["Authorization"] == f"Bearer {KEY}"


def test_a_key_goes_only_where_it_may(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert key_for("OPENAI_API_KEY", "https://api.openai.com/v1") == KEY
    assert key_for("", "https://elsewhere.example/v1") == ""
    for address in (
        "https://elsewhere.example/v1",
        "https://api.openai.com.elsewhere.example/v1",
        "http://127.0.0.1.example/",
        "http://localhost/v1",
    ):
        with pytest.raises(ValueError, match="OPENAI_API_KEY may not be sent to .*OPENAI_API_KEY_HOSTS") as caught:
            key_for("OPENAI_API_KEY", address)
        assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY_HOSTS", "other.example, Elsewhere.example")
    assert key_for("OPENAI_API_KEY", "https://elsewhere.example/v1") == KEY


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8080/v1", "http://[::1]:8080/v1", "http://localhost/v1", "http://127.1.2.3"]
)
def test_only_keys_that_are_meant_for_this_machine_go_to_its_ports(monkeypatch, address):
    """Any program of any user may listen there."""
    for name in ("GLM_IMAGE_API_KEY", "GLM_IMAGE_MY_TOKEN", "OLLAMA_API_KEY", "LM_API_TOKEN"):
        monkeypatch.setenv(name, KEY)
        assert key_for(name, address) == KEY
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MINE_API_KEY"):
        monkeypatch.setenv(name, KEY)
        with pytest.raises(ValueError, match=f"{name}_HOSTS"):
            key_for(name, address)
    monkeypatch.setenv("MINE_API_KEY_HOSTS", "127.0.0.1 ::1 localhost 127.1.2.3")
    assert key_for("MINE_API_KEY", address) == KEY


@pytest.mark.parametrize("address", ["http://api.openai.com/v1", "http://api.openai.com:443/v1", "HTTP://api.openai.com"])
def test_no_key_goes_to_another_machine_unencrypted(monkeypatch, address):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ValueError, match="by https:// only"):
        key_for("OPENAI_API_KEY", address)
    with pytest.raises(ValueError, match="by https:// only"):
        chat_endpoint(address, "glm", key=KEY)


@pytest.mark.parametrize("between", ["\n", "\r\n", "\t", " ", "\0", "\x1b[31m", "\x7f", "\u00a0", "\u2028", "\u00e9", "\x0b"])
def test_a_key_with_other_characters_is_refused_by_its_variables_name_alone(monkeypatch, between):
    name, parts = "GLM_IMAGE_API_KEY", ("sk-live-1111", "sk-live-2222")
    monkeypatch.setattr("os.environ", {name: between.join(parts)})  # a real one refuses NUL
    with pytest.raises(ValueError, match=f"{name} contains a line break") as caught:
        key_for(name, "http://127.0.0.1:8080/v1")
    assert "\n" not in str(caught.value) and not any(part in str(caught.value) for part in parts)
    with pytest.raises(ValueError, match="key contains a line break") as caught:
        chat_endpoint("http://127.0.0.1:8080/v1", "glm", key=between.join(parts))
    assert not any(part in str(caught.value) for part in parts)


def test_a_key_in_place_of_its_variables_name_is_not_repeated(monkeypatch):
    with pytest.raises(ValueError, match="not the name of a key's variable") as caught:
        key_for(KEY, "https://api.openai.com/v1")
    assert KEY not in str(caught.value)


def test_other_secrets_are_no_keys(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    with pytest.raises(ValueError, match="not the name of a key's variable"):
        key_for("DATABASE_PASSWORD", "http://127.0.0.1/v1")
    with pytest.raises(ValueError, match="GLM_IMAGE_ABSENT_API_KEY is not set"):
        key_for("GLM_IMAGE_ABSENT_API_KEY", "http://127.0.0.1/v1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, True),
        ({"prompt": None, "base_url": None, "model": None}, True),
        ({"prompt": " "}, "prompt is empty"),
        ({"model": ""}, "name of the model is empty"),
        ({"base_url": "127.0.0.1:8080"}, "is not a web address"),
        ({"key_variable": "GLM_IMAGE_ABSENT_API_KEY"}, "is not set"),
        ({"base_url": "http://127.0.0.1:abc/v1"}, "the address is not one"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "the address is not one"),
        ({"base_url": "http://127.0.0.1:8080/v1\n"}, "contains a space or a line break"),
        ({"base_url": "http://127.0.0.1 /v1"}, "contains a space or a line break"),
        ({"base_url": "http://[::1/v1"}, "the address is not one"),
    ],
)
def test_it_is_checked_when_the_graph_is_queued(values, message):
    said = NODE.VALIDATE_INPUTS(**{"prompt": "a", "base_url": "http://127.0.0.1/v1", "model": "m", "key_variable": ""} | values)
    assert said is True if message is True else message in said and "\n" not in said


def test_the_shipped_workflow_paints_what_was_rewritten(chat_server, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLM_IMAGE_API_KEY", KEY)
    title = NODE.TITLE
    values = {
        f"{title}.base_url": chat_server.url, f"{title}.key_variable": "GLM_IMAGE_API_KEY", f"{title}.model": "glm",
        "Prompt.prompt": VALUES["prompt"], "GLM-Image Generate Prior.width": 256, "GLM-Image Generate Prior.height": 256,
        "GLM-Image Sampler.steps": 1,
    }  # fmt: skip
    settings = [f"--set={name}={value}" for name, value in values.items()]
    file = template_file("enhance_prompt_api")
    assert main(["render", str(file), "--models", str(models), "--output", str(tmp_path), "--device", "cpu", *settings]) == 0
    said = capsys.readouterr()
    (picture,) = tmp_path.rglob("*.png")
    assert REWRITTEN in said.out + said.err
    info = "".join(map(str, Image.open(picture).info.values()))
    assert "GLM_IMAGE_API_KEY" in info and KEY not in info + said.out + said.err


def test_the_shipped_workflow_hands_one_rewritten_prompt_on():
    prompt = read_workflow(template_file("enhance_prompt_api"), ALL_NODES).prompt
    (enhancer,) = (node_id for node_id, node in prompt.items() if node["class_type"] == NODE.__name__)
    fed = [node["class_type"] for node in prompt.values() if node["inputs"].get("prompt") == [enhancer, 0]]
    assert sorted(fed) == ["GLMImageEncodePrompt", "GLMImageGeneratePrior"]
    assert json.dumps(prompt).count("THE LAST PAGE") == 1
