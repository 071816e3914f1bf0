"""The text to be drawn: found as a reader would, encoded as the reference does."""

import pytest
import torch
from glm_image_pack.glmimage_core.glm_image.glyphs import MOST_TEXTS, check_glyph_texts, encode_glyph_texts
from glm_image_pack.glmimage_core.quoted import find_quoted_texts


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN" and one that says "CLOSED"', ["OPEN", "CLOSED"]),
        ("a dog's bowl next to the cat's toy", []),
        ("the dogs' bowl and the cats' toys, rock 'n' roll excluded", []),
        ("a '90s shop and the '80s bar", []),
        ("a poster 'don't walk' on the wall", ["don't walk"]),
        ("a poster \u2018don\u2019t walk\u2019 on the dog\u2019s wall", ["don\u2019t walk"]),
        (
            "\u201ccurly\u201d and \u300c\u6c49\u5b57\u300d and \u300e\u4e8c\u300f and \u00abfr\u00bb and \u201ede\u201c",
            ["curly", "\u6c49\u5b57", "\u4e8c", "fr", "de"],
        ),
        ('\u300csecond style first\u300d then "first style second"', ["second style first", "first style second"]),
        ('an empty "" quote and a blank " " one', []),
        ('two lines "one\ntwo"', ["one\ntwo"]),
        ('an unclosed "quote', []),
        ("nothing at all", []),
        ('a "quote with a dog\'s apostrophe" inside', ["quote with a dog's apostrophe"]),
    ],
)
def test_quoted_text_is_found_in_order_and_apostrophes_are_left_alone(prompt, texts):
    assert find_quoted_texts(prompt) == texts


def test_texts_are_joined_in_order_without_their_padding(encoder):
    both = encode_glyph_texts(encoder, ["AB", "wider text", "C"])
    assert both.shape == (1, 2 + 10 + 1 + 3, encoder.model.config.d_model)  # bytes and one end mark each
    alone = encode_glyph_texts(encoder, ["AB"])
    assert torch.allclose(both[:, :3], alone, atol=1e-5)


def test_an_even_number_of_texts_puts_a_pad_in_front_of_each(encoder):
    assert encode_glyph_texts(encoder, ["AB", "C"]).shape[1] == (1 + 2 + 1) + (1 + 1 + 1)


def test_no_text_is_the_single_empty_text(encoder):
    assert torch.equal(encode_glyph_texts(encoder, []), encode_glyph_texts(encoder, [""]))
    assert encode_glyph_texts(encoder, []).shape[1] == 1


def test_a_text_beyond_the_limit_is_cut_with_a_warning(encoder, caplog):
    assert encode_glyph_texts(encoder, ["x" * 3000]).shape[1] == 2048
    assert "cut" in caplog.text


def test_a_text_at_the_limit_is_not(encoder, caplog):
    assert encode_glyph_texts(encoder, ["x" * 2047]).shape[1] == 2048
    assert not caplog.text


def test_more_texts_than_a_picture_can_hold_are_refused():
    check_glyph_texts(["letters"] * MOST_TEXTS)
    check_glyph_texts(["x" * 100_000] * 8)  # of each 2048 bytes are read
    for texts in (["x"] * (MOST_TEXTS + 1), ["x" * 100_000] * 9):
        with pytest.raises(ValueError, match="put less between quotation marks"):
            check_glyph_texts(texts)
