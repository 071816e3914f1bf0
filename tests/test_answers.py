"""The caption in what language models answer: thoughts, channels, JSON, suggestions and refusals, and what the user is told."""

import json

import pytest
from glm_image_pack.glmimage_core.language.answers import Answer, caption_of, cleaned, is_refusal, remarks
from glm_image_pack.glmimage_core.language.rewriting import rewritten_prompt

STAR = "A green star on snow."
SECOND = "A green star above a frozen lake, seen from a low hill at dusk."
FIRST = "A green star on white snow, painted in soft watercolours at dawn."


@pytest.mark.parametrize(
    "answer",
    [
        f"<thinking>The user wants a star.</thinking>{STAR}",
        f"<Thought>Hm.</Thought>\n{STAR}",
        f"<reasoning>Hm.</reasoning>{STAR}",
        f"I should say it well.</thinking>{STAR}",
        f"[THINK]Hm.[/THINK]{STAR}",
        f"\u25c1think\u25b7Hm.\u25c1/think\u25b7{STAR}",
        f"analysis plan it assistant final {STAR}",
        f"analysisWe need a caption.assistantfinal{STAR}",
        f"assistantfinal{STAR}",
        f"<|channel|>analysis<|message|>Plan it.<|end|><|start|>assistant<|channel|>final<|message|>{STAR}<|return|>",
        f"<|start|>assistant<|channel|>final<|message|>{STAR}",
        f"<|channel|>commentary<|message|>Call nothing.<|end|><|start|>assistant<|channel|>final<|message|>{STAR}",
        json.dumps({"prompt": STAR, "negative_prompt": "blurry"}),
        json.dumps({"negative_prompt": "blurry", "prompt": STAR}),
        json.dumps({"original_prompt": "star", "enhanced_prompt": STAR}),
        json.dumps({"result": {"caption": STAR}}),
        json.dumps([{"prompt": STAR}, {"prompt": "another"}]),
        json.dumps({"whatever": STAR}),
        f"```json\n{json.dumps({'prompt': STAR}, indent=2)}\n```",
        f"Here is the prompt:\n```json\n{json.dumps({'prompt': STAR})}\n```\nEnjoy!",
        f'{{"prompt": "{STAR}\n"}}',
        f"<think>Hm.</think>{json.dumps({'prompt': STAR})}",
        f"Here is the caption: {STAR}",
    ],
)
def test_the_caption_comes_out_of_what_is_around_it(answer):
    assert cleaned(Answer(answer)) == STAR and remarks(Answer(answer), 64) == []


@pytest.mark.parametrize(
    "answer",
    [
        f"1. {FIRST}\n2. {SECOND}\n3. {SECOND}",
        f"Here are three options:\n\n1) **{FIRST}**\n\n2) {SECOND}\n\n3) {SECOND}",
        f"Option 1: {FIRST}\nOption 2: {SECOND}\nOption 3: {SECOND}",
        f"Sure!\n\n**Option 1**\n{FIRST}\n\n**Option 2:**\n{SECOND}\n\n**Option 3**\n{SECOND}",
        f"### Version A\n{FIRST}\n### Version B\n{SECOND}\n### Version C\n{SECOND}",
    ],
)
def test_of_several_suggestions_the_first_is_taken_and_that_is_said(answer):
    assert caption_of(Answer(answer)) == (FIRST, 3)
    (said,) = remarks(Answer(answer), 64)
    assert "3 suggestions" in said


def test_parts_of_one_caption_are_no_suggestions():
    answer = f"1. Subject: {FIRST}\n2. Light: {SECOND}"
    assert caption_of(Answer(answer)) == (f"Subject: {FIRST} Light: {SECOND}", 1)
    assert caption_of(Answer("1. A star.\n2. Snow.")) == ("A star. Snow.", 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(""), "said nothing within 64 tokens"),
        (Answer("", cut_off=True, thought=True), "raise max_tokens, or switch its thinking off"),
        (Answer("<think>A star, so", cut_off=True), "only thought; raise max_tokens"),
        (Answer("analysisWe need a star", cut_off=True), "only thought; raise max_tokens"),
        (Answer("", withheld=True), "content filter"),
        (Answer("A star. And th", withheld=True), "content filter"),
        (Answer("", refusal="I cannot.\x1b[31m"), r"the model refused: 'I cannot.\\x1b[31m'"),
        (Answer("I'm sorry, but I can't help with that."), "the model refused"),
        (Answer("\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5"), "the model refused"),
        (Answer('{"error": 7}'), "holds no caption"),
        (Answer('{"a": 1, "b": 2}'), "holds no caption"),
        (Answer("A star. And th", cut_off=True), "cut off after 64 tokens"),
        (Answer(STAR, left_out=("seed", "temperature")), "refuses the field seed and temperature"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said_with_what_to_change(answer, said):
    assert said in "; ".join(remarks(answer, 64))


def test_a_refusal_and_an_answer_without_a_caption_leave_the_prompt():
    for text in ("I'm sorry, but I can't help with that.", '{"a": 1, "b": 2}', "analysisWe need", ""):
        assert rewritten_prompt(Answer(text), 'a sign "A"') == 'a sign "A"'


@pytest.mark.parametrize(
    "text", ["A sorry-looking dog.", "I can see a star.", "Analysis of a painting, framed.", "Sorrow, painted."]
)
def test_a_caption_is_no_refusal_and_no_channel(text):
    assert not is_refusal(text) and cleaned(Answer(text)) == text


def test_a_torn_json_answer_gives_what_there_is_of_its_caption():
    assert cleaned(Answer('{"prompt": "A star. A \\"green\\" one. And th', cut_off=True)) == 'A star. A "green" one.'
    assert cleaned(Answer('{"negative_prompt": "blurry, bad', cut_off=True)) != "blurry, bad"
