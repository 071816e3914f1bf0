"""Chat services as they are: fields that they refuse, reasons in many shapes, answers that are no stream."""

import json

import pytest
from glm_image_pack.glmimage_core.endpoint import ERROR_BYTES, ERROR_CHARACTERS, EndpointError
from glm_image_pack.glmimage_core.language.chat import chat_endpoint, complete
from glm_image_pack.glmimage_core.stated import stated_reason, visible, without_secret
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES

from endpoint_server import KEY, words


def ask(chat_server, **settings):
    endpoint = chat_endpoint(chat_server.url, "glm", **{"key": KEY, "timeout": 20, "retries": 0} | settings)
    return complete(endpoint, "Rewrite.", "a bakery", seed=7, max_tokens=100)


def answering(body, status=200, kind="application/json"):
    def behave(handler):
        handler.begin(status, kind)
        handler.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    return behave


def unsupported(name):
    return {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model.", "param": name}}


def refusing(*names, reason=unsupported):
    """A service that takes none of these fields, and says so of one at a time."""

    def behave(handler):
        asked = handler.server.asked[-1]["body"]
        wrong = [name for name in names if name in asked]
        answering(reason(wrong[0]), 400)(handler) if wrong else words(handler)

    return behave


@pytest.mark.parametrize(
    "reason",
    [
        unsupported,
        lambda name: {"error": {"message": f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'}},
        lambda name: [{"error": {"code": 400, "message": f'Unknown name "{name}": Cannot find field.'}}],
        lambda name: {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]},
        lambda name: {"detail": f"{name} is not allowed"},
        lambda name: {"message": f"property '{name}' is unsupported"},
    ],
)
def test_a_field_that_a_service_refuses_is_left_out_and_that_is_told(chat_server, reason):
    chat_server.behave = refusing("max_tokens", "temperature", "seed", reason=reason)
    answer = ask(chat_server)
    assert answer.text == "A bakery at dawn." and set(answer.left_out) == {"max_tokens", "temperature", "seed"}
    assert len(chat_server.asked) == 4
    last = chat_server.asked[-1]["body"]
    assert last["max_completion_tokens"] == 100 and not {"max_tokens", "temperature", "seed"} & last.keys()


def test_the_newer_name_of_a_field_is_left_out_too_where_it_is_refused(chat_server):
    chat_server.behave = refusing("max_tokens", "max_completion_tokens", "stream")
    assert ask(chat_server).left_out == ("max_tokens", "max_completion_tokens", "stream")


def test_a_service_that_refuses_for_ever_is_asked_a_few_times(chat_server):
    named = "max_tokens max_completion_tokens temperature seed stream model messages"
    chat_server.behave = answering({"error": {"message": f"wrong: {named}"}}, 400)
    with pytest.raises(EndpointError, match="answered 400: wrong"):
        ask(chat_server, retries=5)
    assert len(chat_server.asked) == 6


def test_another_refusal_is_not_asked_again(chat_server):
    for status, reason in (
        (400, "the picture is too big"),
        (401, "temperature"),
        (404, "no seed model"),
        (400, "model glm is unknown"),
    ):
        chat_server.asked.clear()
        chat_server.behave = answering({"error": {"message": reason}}, status)
        with pytest.raises(EndpointError, match=reason):
            ask(chat_server)
        assert len(chat_server.asked) == 1


def test_the_node_says_what_was_left_out(chat_server, caplog):
    chat_server.behave = refusing("seed")
    node = NODES["GLMImageEnhancePromptAPI"]()
    node.enhance(
        **{
            "prompt": "a bakery",
            "base_url": chat_server.url,
            "model": "glm",
            "key_variable": "",
            "style": "general",
            "language": "auto",
        },
        **{"seed": 1, "temperature": 0.5, "max_tokens": 256, "timeout": 20.0, "retries": 0},
    )
    assert "refuses the field seed" in caplog.text


REASONS = [
    ({"detail": "steps too big"}, "steps too big"),
    (
        {"detail": [{"loc": ["body", "size"], "msg": "bad size"}, {"loc": ["body", "n"], "msg": "bad n"}]},
        "body.size: bad size; body.n: bad n",
    ),
    ({"detail": {"message": "steps too big"}}, "steps too big"),
    ({"error": "model not loaded"}, "model not loaded"),
    ({"error": {"message": "model not loaded", "code": 7}}, "model not loaded"),
    ({"error": {"code": "1301", "msg": "not loaded"}}, "not loaded"),
    ({"error": [{"message": "not loaded"}]}, "not loaded"),
    ([{"error": {"message": "not loaded"}}], "not loaded"),
    ({"message": "not loaded"}, "not loaded"),
    ({"object": "error", "message": "not loaded", "code": 404}, "not loaded"),
    ({"msg": "not loaded", "code": 500, "success": False}, "not loaded"),
    ({"error": True, "reason": "not loaded"}, "not loaded"),
    ({"errors": [{"message": "not loaded"}]}, "not loaded"),
    ({"title": "Bad Request", "detail": "not loaded"}, "not loaded"),
    ({"error_description": "expired", "error": "invalid_grant"}, "expired"),
    ({"error": {"type": "overloaded", "message": ""}}, ""),
    ({"error": None, "message": None}, ""),
    ({}, ""),
    ([], ""),
    (7, ""),
    ("down for repairs", "down for repairs"),
]


@pytest.mark.parametrize(("answer", "reason"), REASONS)
def test_a_reason_is_found_in_every_shape(answer, reason):
    assert stated_reason(answer) == reason


@pytest.mark.parametrize("status", [200, 400, 422, 500])
@pytest.mark.parametrize("answer", [answer for answer, reason in REASONS if reason and isinstance(answer, dict)])
def test_the_reason_of_a_service_reaches_the_user(chat_server, answer, status):
    chat_server.behave = answering(answer, status)
    with pytest.raises(EndpointError) as caught:
        ask(chat_server)
    assert stated_reason(answer) in str(caught.value)


@pytest.mark.parametrize("answer", [{"error": {"message": "not loaded"}}, {"detail": "not loaded"}, {"message": "not loaded"}])
def test_a_reason_within_a_stream_reaches_the_user(chat_server, answer):
    chat_server.behave = answering(f"data: {json.dumps(answer)}\n\n".encode(), kind="text/event-stream")
    with pytest.raises(EndpointError, match="reported an error: not loaded"):
        ask(chat_server)


def test_a_foreign_reason_is_bounded_and_its_control_codes_are_shown(chat_server):
    chat_server.behave = answering({"detail": "\x1b[31mred\x07\u202e" + "x" * 5000}, 400)
    with pytest.raises(EndpointError, match=r"\\x1b\[31mred\\x07\\u202ex") as caught:
        ask(chat_server)
    assert len(str(caught.value)) <= ERROR_CHARACTERS and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    ["A bakery at dawn.", [{"type": "text", "text": "A bakery "}, {"type": "text", "text": "at dawn."}]],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_in_parts_and_one_that_is_no_stream_are_taken(chat_server, content, stream):
    choice = {"index": 0, "delta" if stream else "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    body = json.dumps({"id": "1", "choices": [choice]})
    chat_server.behave = (
        answering(f"data: {body}\n\n".encode(), kind="text/event-stream; charset=utf-8") if stream else answering(body.encode())
    )
    assert ask(chat_server).text == "A bakery at dawn."


@pytest.mark.parametrize(
    ("said", "reason", "expected"),
    [
        ({"content": "", "reasoning_content": "Hm"}, "length", {"cut_off": True, "thought": True}),
        ({"content": None, "reasoning": "Hm"}, "length", {"cut_off": True, "thought": True}),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}, "stop", {"thought": True}),
        ({"content": "A"}, "MAX_TOKENS", {"cut_off": True}),
        ({"content": ""}, "content_filter", {"withheld": True}),
        ({"content": ""}, "sensitive", {"withheld": True}),
        ({"content": None, "refusal": "I cannot."}, "stop", {"refusal": "I cannot."}),
    ],
)
def test_why_an_answer_ends_is_known(chat_server, said, reason, expected):
    chat_server.behave = answering({"choices": [{"message": said, "finish_reason": reason}]})
    answer = ask(chat_server)
    assert {name: getattr(answer, name) for name in expected} == expected


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": 7},
        {"choices": [7]},
        {"choices": []},
        {"choices": [{"message": []}]},
        {"choices": [{"message": {"content": 7}}]},
        [],
        7,
        None,
    ],
)
def test_a_whole_answer_of_the_wrong_shape_is_said_to_be_one(chat_server, answer):
    chat_server.behave = answering(answer)
    with pytest.raises(EndpointError, match="not of the chat protocol"):
        ask(chat_server)


@pytest.mark.parametrize(
    "text",
    [
        f"no such key: {KEY}",
        f"key%3D{KEY}&x",
        f"cut {KEY[:14]}",
        f"cut {KEY[:6]}",
        f"the end {KEY[-10:]} of it",
        repr(f"\n{KEY}\n"),
        f"{KEY}{KEY} {KEY}",
    ],
)
def test_no_part_of_a_key_stays_in_a_text(text):
    assert not any(KEY[start : start + 8] in without_secret(text, KEY) for start in range(len(KEY) - 7))
    assert not without_secret(text, KEY).endswith(KEY[:6])


def test_a_text_without_the_key_stays_as_it_is():
    assert without_secret("an error", "") == without_secret("an error", KEY) == "an error"
    odd = "a+b/c=d\\e'f\"g"
    for form in (odd, "a%2Bb%2Fc%3Dd%5Ce%27f%22g", repr(odd)):
        assert "f" not in without_secret(f"({form})", odd)


def test_control_characters_are_shown_on_one_line():
    assert visible("a\n\tb\x1b[0m\x00\u202e\u00e9") == "a b\\x1b[0m\\x00\\u202e\u00e9"


@pytest.mark.parametrize("fill", [ERROR_BYTES - 20, ERROR_BYTES - 8])
def test_a_key_that_the_end_of_an_answer_cuts_is_not_shown(chat_server, fill):
    """Spaces are joined, so what is cut at the end of the bytes that are read may be seen."""
    chat_server.behave = answering(b" " * fill + f"{KEY} and more".encode(), 400, "text/plain")
    with pytest.raises(EndpointError, match="answered 400") as caught:
        ask(chat_server)
    assert KEY[:6] not in str(caught.value)
