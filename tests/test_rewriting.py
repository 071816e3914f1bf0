"""Rewriting prompts: what a language model is told, and what becomes of whatever it answers."""

import random
from collections import Counter

import pytest
from glm_image_pack.glmimage_core.language.answers import Answer, cleaned, without_markup
from glm_image_pack.glmimage_core.language.rewriting import (
    LANGUAGES,
    MAX_CHARACTERS,
    STYLES,
    instruction,
    language_of,
    rewritten_prompt,
)
from glm_image_pack.glmimage_core.quoted import find_quoted_texts
from hypothesis import given, settings
from hypothesis import strategies as st

PROMPT = 'A bakery with a sign "FRESH BREAD" and a cat named Mia'
ZH = "\u4e00\u5bb6\u9762\u5305\u5e97\uff0c\u62db\u724c\u4e0a\u5199\u7740\u201c\u65b0\u9c9c\u9762\u5305\u201d"


def checked(answer: str, prompt: str, style: str = "general") -> str:
    return rewritten_prompt(Answer(answer), prompt, style)


def test_a_text_that_is_copied_stays_where_it_is():
    answer = 'A warm bakery at dawn. Above the door hangs a sign that reads "FRESH BREAD" in gold. Mia, a cat, sleeps.'
    assert checked(answer, PROMPT) == answer


@pytest.mark.parametrize("altered", ["Fresh Bread", "FRESH  BREAD", "FRESH BREAD!", "FRESH BRED", "FRESH BREADS DAILY"])
def test_an_altered_text_becomes_the_original_in_its_place(altered):
    written = checked(f'A sign "{altered}" hangs there.', PROMPT)
    assert written == 'A sign "FRESH BREAD" hangs there.'


def test_a_text_that_was_left_out_is_said_at_the_end():
    assert checked("A bakery.", PROMPT) == 'A bakery. The picture shows the text "FRESH BREAD".'
    written = checked("\u4e00\u5bb6\u9762\u5305\u5e97\u3002", ZH)
    assert find_quoted_texts(written) == ["\u65b0\u9c9c\u9762\u5305"] and written.endswith("\u3002")


def test_a_text_asked_for_twice_comes_twice():
    prompt = 'A door "IN" and a door "IN"'
    assert find_quoted_texts(checked('One door says "IN", and so does the other.', prompt)) == ["IN", "IN"]


def test_what_nobody_asked_to_be_drawn_is_not_in_quotation_marks():
    answer = 'A bakery called "Golden Crust" with a sign "FRESH BREAD" and a "cozy" mood; the cat is "Mia".'
    assert find_quoted_texts(checked(answer, PROMPT)) == ["FRESH BREAD", "Mia"]
    assert "Golden Crust" in checked(answer, PROMPT)
    assert find_quoted_texts(checked(answer, PROMPT, "text-heavy")) == ["Golden Crust", "FRESH BREAD", "cozy", "Mia"]


@pytest.mark.parametrize(
    "answer",
    [
        "<think>The user wants a bakery, so...</think>\n\nA bakery at dawn.",
        "the user wants a bakery</think>A bakery at dawn.",
        "<|begin_of_box|>A bakery at dawn.<|end_of_box|>",
        "```\nA bakery at dawn.\n```",
        "Here is the rewritten prompt:\n\nA bakery at dawn.",
        "**Prompt:** A bakery at dawn.",
        "# A bakery\n- at __dawn__.",
        '"A bakery at dawn."',
        "A `bakery` at *dawn*.",
    ],
)
def test_markup_thoughts_and_labels_go(answer):
    assert without_markup(answer) == "A bakery at dawn."


@pytest.mark.parametrize("answer", ["", " \n", "<think>hm", "```\n```", '""'])
def test_an_empty_answer_leaves_the_prompt(answer, caplog):
    assert checked(answer, PROMPT) == PROMPT and "answered nothing" in caplog.text


def test_a_long_answer_ends_with_a_sentence_and_keeps_its_text():
    answer = "A very long sentence about bread. " * 200 + 'And a sign "FRESH BREAD".'
    written = checked(answer, PROMPT)
    assert (
        len(written) < MAX_CHARACTERS + 100
        and find_quoted_texts(written) == ["FRESH BREAD"]
        and written.endswith('"FRESH BREAD".')
    )


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("A bakery at dawn. Two cats sl", "A bakery at dawn."),
        ("A bakery! Is it dawn? Two cats sl", "A bakery! Is it dawn?"),
        ("It costs 3.50 euros. A sign at 4.5", "It costs 3.50 euros."),
        ('A bakery. A sign reads "OPEN. NOW" and th', "A bakery."),
        ('A bakery. A sign reads "OPEN. NO', "A bakery."),
        ("A bakery. A sign reads \u201cOPEN. NO", "A bakery."),
        ("A bakery. The dogs' bowl. It's emp", "A bakery. The dogs' bowl."),
        (ZH[:5] + "\u3002" + ZH[6:9], ZH[:5] + "\u3002"),
        ("A bakery at dawn.", "A bakery at dawn."),
        ("A bakery at da", "A bakery at da"),
    ],
)
def test_an_answer_that_was_cut_off_ends_with_its_last_whole_sentence(text, whole):
    assert cleaned(Answer(text, cut_off=True)) == whole
    assert cleaned(Answer(text)) == text


def test_a_prompt_from_an_answer_that_was_cut_off_has_no_torn_sentence():
    answer = Answer('**Caption:** A bakery at dawn. Above the door a sign reads "FRESH', cut_off=True)
    assert rewritten_prompt(answer, PROMPT) == 'A bakery at dawn. The picture shows the text "FRESH BREAD".'


def test_the_language_is_that_of_what_is_not_quoted():
    assert language_of(PROMPT) == "en" and language_of(ZH) == "zh"
    assert language_of('A sign that says "\u65b0\u9c9c\u9762\u5305\u65b0\u9c9c\u9762\u5305"') == "en"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("style", STYLES)
def test_the_instruction_says_what_matters(style, language):
    said = instruction(ZH, style, language)
    marks = "quotation marks" if language == "en" else "\u53cc\u5f15\u53f7"
    assert marks in said and said != instruction(ZH, "general" if style != "general" else "portrait", language)
    assert len(instruction(PROMPT, style, language, references=2)) > len(instruction(PROMPT, style, language))


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="landscape.*general, portrait"):
        instruction(PROMPT, "landscape")


PAIRS = [
    ('"', '"'),
    ("\u201c", "\u201d"),
    ("\u300c", "\u300d"),
    ("\u00ab", "\u00bb"),
    ("'", "'"),
    ("\u2018", "\u2019"),
    ("\u201e", "\u201c"),
]
LETTERS = st.text("ABC abc 12!*_#<>|`'\"\u201c\u201d\u300c\u300d\u2019\u4f60\u597d\n.-", min_size=1, max_size=12)
NOISE = st.sampled_from(
    [
        '"',
        "'",
        "\u201c",
        "\u201d",
        "\u300c",
        "\u2018",
        "**",
        "# ",
        "\n- ",
        "<think>",
        "</think>",
        "```\n",
        "<|user|>",
        " and ",
        ". ",
        "1. ",
    ]
)


@st.composite
def prompts(draw) -> str:
    parts = []
    for text in draw(st.lists(LETTERS, min_size=0, max_size=4)):
        left, right = draw(st.sampled_from(PAIRS))
        parts.append(f"a sign {left}{text}{right} ")
    return "A street, " + ", ".join(parts)


@st.composite
def answers(draw, prompt: str) -> str:
    """Noise, and what is in the prompt: as it is, altered or cut."""
    texts = find_quoted_texts(prompt) or ["x"]
    copied = st.builds(
        lambda text, pair, change: pair[0] + change(text) + pair[1],
        st.sampled_from(texts),
        st.sampled_from(PAIRS),
        st.sampled_from([str, str.lower, str.title, lambda t: t[1:], lambda t: t + " & more", lambda t: t[::-1]]),
    )
    return "".join(draw(st.lists(st.one_of(NOISE, LETTERS, copied), max_size=14)))


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.data())
def test_every_quoted_text_is_there_whatever_the_model_answers(data):
    prompt = data.draw(prompts())
    written = checked(data.draw(answers(prompt)), prompt, random.Random(len(prompt)).choice(STYLES))
    assert not Counter(find_quoted_texts(prompt)) - Counter(find_quoted_texts(written))
    assert len(written) <= MAX_CHARACTERS + len(prompt) + 100
