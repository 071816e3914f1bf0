"""Quotation marks as people type them: of other languages and keyboards, beside numbers, in words, in JSON."""

import pytest
from glm_image_pack.glmimage_core.quoted import find_quotations, find_quoted_texts, is_json, marks_without_text, without_marks
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS as NODES


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('A 12" vinyl record beside a 7" single', []),
        ('A 6\'2" tall man holding a sign "HELLO"', ["HELLO"]),
        ('He is 5\' 10" and the sign says "EXIT"', ["EXIT"]),
        ('{"scene": "a cafe", "text": "OPEN", "style": "photo"}', ["OPEN"]),
        ('A sign \\"HELLO\\"', ["HELLO"]),
        ('""HELLO""', ["HELLO"]),
        ("''HELLO''", ["HELLO"]),
        ('\u201cHELLO"', ["HELLO"]),
        ('"HELLO\u201d', ["HELLO"]),
        ("\u201dHELLO\u201d", ["HELLO"]),
        ("\u201cHELLO\u201c", ["HELLO"]),
        ("\uff02HELLO\uff02", ["HELLO"]),
        ("\u2033HELLO\u2033", ["HELLO"]),
        ("\u301d\u4f60\u597d\u301e", ["\u4f60\u597d"]),
        ("`HELLO`", ["HELLO"]),
        ("\u201akurz\u2018", ["kurz"]),
        ("\u2039x\u203a", ["x"]),
        ("rock 'n' roll poster with \"LIVE\"", ["LIVE"]),
        ('"Route 66"', ["Route 66"]),
        ('the number "7"', ["7"]),
        ('a 12"x18" poster "HI"', ["HI"]),
        ('a 12" record called "Top 10"', ["Top 10"]),
        ('1/2" pipe', []),
        ('a \xbd" pipe with "A"', ["A"]),
        ("5'10'' tall man, 'SIGN'", ["SIGN"]),
        ('a sign that says "12" SUB"', ['12" SUB']),
        ('say "it\'s 5\' 10" tall"', ["it's 5' 10\" tall"]),
        ('"1" "2" "3"', ["1", "2", "3"]),
        ('labels "A1"/"B2"', ["A1", "B2"]),
        ('("2024")', ["2024"]),
        ('an unclosed "quote and a sign "HELLO"', ["HELLO"]),
        ('"OPEN "and "CLOSED"', ["OPEN ", "CLOSED"]),
        ('\u5199\u7740"\u4f60\u597d"\u548c"\u518d\u89c1"', ["\u4f60\u597d", "\u518d\u89c1"]),
        ("\u5199\u7740\u201c\u4f60\u597d\u201c\u548c\u201c\u518d\u89c1\u201c", ["\u4f60\u597d", "\u518d\u89c1"]),
        ("\u5199\u7740\u201d\u4f60\u597d\u201d\u548c", ["\u4f60\u597d"]),
        ("\u5199\u7740'\u4f60\u597d'\u548c", ["\u4f60\u597d"]),
        ("\u5199\u7740\u2018\u4f60\u597d\u2019\u548c", ["\u4f60\u597d"]),
        ('"He said "HI" loudly"', ['He said "HI" loudly']),
        ('A "B""C" D', ["B", "C"]),
        ('"A sign ""HELLO"" there"', ["HELLO"]),
        ('"a sign that says \\"HELLO\\" here"', ["HELLO"]),
        ("\u201edeutsch\u201c und \xbbzitat\xab und \u203aklein\u2039 \xbbsvensk\xbb", ["deutsch", "zitat", "klein", "svensk"]),
        ("\xab Bonjour \xbb et \xab Au revoir \xbb", [" Bonjour ", " Au revoir "]),
        ("the '90s shop and the dogs' bowl", []),
        ("'90s 'SALE'", ["SALE"]),
        ("rock \u2018n\u2019 roll", []),
        ("fish 'n' chips 'OPEN'", ["OPEN"]),
        ("``HELLO''", ["HELLO"]),
        (",,HELLO''", ["HELLO"]),
        (",,HALLO\u201c", ["HALLO"]),
        ("12\u201d vinyl beside a 7\u201d single", []),
        ("12\u2033 vinyl 7\u2033", []),
        ('6\u20322\u2033 man "X"', ["X"]),
        ('12 " vinyl and "X"', ["X"]),
        ('" HELLO "', [" HELLO "]),
        ('an empty "" quote and "X"', ["X"]),
        ("'tis the season 'JOY'", ["JOY"]),
        ('"""HELLO"""', ["HELLO"]),
        ("'''HELLO'''", ["HELLO"]),
        ("\u201c\u2018HELLO\u2019\u201d", ["HELLO"]),
        ('"\u2018HELLO\u2019 world"', ["\u2018HELLO\u2019 world"]),
        ("&quot;HELLO&quot;", ["HELLO"]),
        ("\u300c\u5916\u300e\u5185\u300f\u300d\u3068\u300e\u5225\u300f", ["\u5916\u300e\u5185\u300f", "\u5225"]),
        ("\uff62HELLO\uff63", ["HELLO"]),
        ('\u05e6\u05d4"\u05dc \u05e9\u05dc\u05d8 "\u05e9\u05dc\u05d5\u05dd"', ["\u05e9\u05dc\u05d5\u05dd"]),
        ("\u05f4\u05e9\u05dc\u05d5\u05dd\u05f4", ["\u05e9\u05dc\u05d5\u05dd"]),
        ('"OPEN", "CLOSED".', ["OPEN", "CLOSED"]),
        ("the 'quick' dogs' bowl", ["quick"]),
        ("'He said \"HI\" loudly'", ['He said "HI" loudly']),
        ('size 3"HELLO"', ["HELLO"]),
        ("5'x7' rug 'HOME'", ["HOME"]),
        ('{"prompt": "a sign that says \\"OPEN\\" here", "style": "photo"}', ["OPEN"]),
        ("{'text': 'OPEN', 'style': 'x'}", ["OPEN"]),
        ('{"objects":[{"type":"sign","text":{"content":"OPEN","font":"serif"}},{"label":"x"}]}', ["OPEN"]),
        ('{"texts": ["A","B"], "x": "C"}', ["A", "B"]),
        ('Menu: "Coffee": 3, "Tea": 2', ["Coffee", "Tea"]),
        ('a 7" single "LOVE" and 12" mix', ["LOVE"]),
        ("a poster 'don't walk' here", ["don't walk"]),
        ("don't, can't, o'clock, y'all's", []),
        ("the letter 'n'.", ["n"]),
        ('two lines "one\ntwo"', ["one\ntwo"]),
        ('a 24" x 36" print, "A", 3.5" disk', ["A"]),
        ("Guns N' Roses 'LIVE'", ["LIVE"]),
        ("ain't nothin' but 'FUN'", ["FUN"]),
        ('a 10\'-6" wall with "NO"', ["NO"]),
        ('the "5" and "10" signs', ["5", "10"]),
        ('sizes "5", 7", "9"', ["5", "9"]),
        ('a 15" laptop showing \u201cHI\u201d', ["HI"]),
        ('screen 27", text "HI"', ["HI"]),
        ('15" "HI" 17"', ["HI"]),
        ('the 12"', []),
        ('"HELLO" 12"', ["HELLO"]),
        ('x "24/7" y', ["24/7"]),
        ("'24/7' y", ["24/7"]),
        ("a '7' sign", ["7"]),
        ('"7" on a 12" plate', ["7"]),
        ('a 12" "7" plate', ["7"]),
        ('sign reading "Over 9000" near 6\' fence', ["Over 9000"]),
        ('"ROOM 5" "ROOM 6"', ["ROOM 5", "ROOM 6"]),
        ("He wrote \u201c5\u201d and \u201c6\u201d", ["5", "6"]),
        ("\u201cTop 10\u201d list, 12\u201c TV", ["Top 10"]),
        ("\u275dHELLO\u275e", ["HELLO"]),
        ("\xb4HELLO\xb4", ["HELLO"]),
        ("`HELLO'", ["HELLO"]),
        ("\u201bHELLO\u2019", ["HELLO"]),
        ('\u201eHELLO"', ["HELLO"]),
        ("\u201eHELLO\u201d", ["HELLO"]),
        ('\u201dHELLO"', ["HELLO"]),
        ("\u2018HELLO'", ["HELLO"]),
        ("'HELLO\u2019", ["HELLO"]),
        ("\u2019HELLO\u2019", ["HELLO"]),
        ("\uff07HELLO\uff07", ["HELLO"]),
        ("\xbbHELLO\xab", ["HELLO"]),
        ("\u203ax\u2039", ["x"]),
        ("\u201d\u201dHELLO\u201d\u201d", ["HELLO"]),
        ("\\'HELLO\\'", ["HELLO"]),
        ("\\\u201cHELLO\\\u201d", ["HELLO"]),
        ('\\\\"HELLO\\\\"', ["HELLO"]),
        ('\\"\\"HELLO\\"\\"', ["HELLO"]),
        ("sign:'HELLO'", ["HELLO"]),
        ('sign:"HELLO"', ["HELLO"]),
        ('sign\u2014"HELLO"\u2014red', ["HELLO"]),
        ('"HELLO"-sign', ["HELLO"]),
        ("'HELLO'-sign", ["HELLO"]),
        ("'HELLO'; 'BYE'", ["HELLO", "BYE"]),
        ("the boys' and girls' rooms, 'EXIT'", ["EXIT"]),
        ("\"It's 5 o'clock\"", ["It's 5 o'clock"]),
        ("\u201cIt\u2019s 5\u2019 tall\u201d", ["It\u2019s 5\u2019 tall"]),
        ('a 65" TV showing "LIVE" in a 10\' x 12\' room', ["LIVE"]),
        ("class of '99 and '05 'REUNION'", ["REUNION"]),
        ('a 9" nail and 2" nail and 3" nail', []),
        ('a 9" "A" 2" "B" 3" "C"', ["A", "B", "C"]),
        ('"A" 2"', ["A"]),
        ('a sign "HELLO', []),
        ('HELLO" a sign', []),
        ("'90s' sign", ["90s"]),
        ("sign '80s'", ["80s"]),
        ('"5\'10"" x', ["5'10\""]),
        ('"12""', ['12"']),
        ("\u2018Tis the Season\u2019", ["Tis the Season"]),
        ("a poster 'Til Death'", ["Til Death"]),
        ("'Twas a night, no marks", []),
        ("' HELLO '", [" HELLO "]),
        ("6 ' tall", []),
        ("&ldquo;HELLO&rdquo; and &#39;BYE&#39;", ["HELLO", "BYE"]),
        ("the dog&apos;s &laquo;x&raquo;", ["x"]),
        ("12\u02ba vinyl, \u201cA\u201d", ["A"]),
        ("rock\u02bcn\u02bcroll, the dog\u02bcs", []),
        ('```json\n{"text": "OPEN", "style": "x"}\n```', ["OPEN"]),
        ('{"signText": "OPEN", "context": "x"}', ["OPEN"]),
        ('a sign "A", {"text": "B"}, then "C"', ["A", "B", "C"]),
        ('{"text": "OPEN", "style": "pho', ["OPEN"]),
        ('She\'s 5\'6", holding "YES"', ["YES"]),
        ('the 12" "remix" edition', ["remix"]),
        ('a 12"-wide sign "HELLO"', ["HELLO"]),
        ("6'2'' tall, \"A\"", ["A"]),
        ('45\xb030\'15" N, "HERE"', ["HERE"]),
        ("a 12\u201d \xd7 18\u201d poster, \u201cA\u201d", ["A"]),
        ("''HELLO\"", ["HELLO"]),
        ("```HELLO```", ["HELLO"]),
        ("\xab\xabHELLO\xbb\xbb", ["HELLO"]),
        ("the '80s and '90s, 'RETRO'", ["RETRO"]),
        ('{"text": ["A", "B"], "note": "say \\"C\\""}', ["A", "B", "C"]),
        ('{\n  "scene": "a cafe",\n  "elements": [{"type": "sign", "text": "OPEN"}, {"type": "cup"}]\n}', ["OPEN"]),
    ],
)
def test_marks_are_read_as_a_reader_does(prompt, texts):
    assert find_quoted_texts(prompt) == texts


def test_a_quotation_says_where_it_stands():
    prompt = 'a 12" sign \u201cHELLO" here'
    (quotation,) = find_quotations(prompt)
    assert prompt[quotation.start : quotation.end] == '\u201cHELLO"' and quotation.text == "HELLO"


@pytest.mark.parametrize(
    ("prompt", "places"),
    [
        ('a sign that says "HELLO', ['n that says "HELLO']),
        ('HELLO" a sign', ['HELLO" a sign']),
        ('a sign "A" and a sign "B', ['and a sign "B']),
        ('A 12" vinyl', ['A 12" vinyl']),
        ('an "" empty one', ['an "" empty one']),
        ('A 12" vinyl, "LIVE"', []),
        ("the dogs' bowl, rock 'n' roll, the '90s", []),
        ("a sign \u2018HELLO", ["a sign \u2018HELLO"]),
        ("nothing at all", []),
    ],
)
def test_marks_that_hold_no_text_are_shown(prompt, places):
    assert marks_without_text(prompt) == places


def test_apostrophes_and_measures_stay_where_marks_are_taken_out():
    assert without_marks("the dog's 12\" bowl and a \u201c") == "the dog's 12\" bowl and a "


@pytest.mark.parametrize(
    ("prompt", "json"),
    [('{"text": "A"}', True), ('[{"text": "A"}]', True), ('"text": "A"', False), ('{red|green} "A"', False), ("{}", False)],
)
def test_a_prompt_in_json_is_known(prompt, json):
    assert is_json(prompt) is json


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ('a sign that says "HELLO', "no text between two of them"),
        ('a 12" record', "no text between two of them"),
        ('"A" and "B', "has no other one"),
        ('{"text": "OPEN", "style": "photo"}', "the prompt is JSON, and 'OPEN' from it is drawn"),
        ('{"style": "photo"}', "the prompt is JSON, and nothing of it is drawn"),
        ("the dogs' bowl", ""),
        ('a sign "HELLO"', ""),
    ],
)
def test_the_node_says_what_it_did_not_read(encoder, caplog, prompt, said):
    node = NODES["GLMImageEncodePrompt"]()
    node.encode(encoder, prompt)
    assert (said in caplog.text) if said else not caplog.text
    caplog.clear()
    node.encode(encoder, prompt, glyph_text="OPEN")
    assert not caplog.text


@pytest.mark.parametrize("part", ['"a ', "'a ", '5"', "\u2018\u201c", "\\\\", '\\\\"', '{"a":', '{"', ",,a", '"\u00ab'])
def test_long_prompts_of_marks_take_no_longer_than_their_length(part):
    """A reading that looks back or ahead for each mark would take minutes here."""
    prompt = part * (100_000 // len(part))
    find_quoted_texts(prompt)
    marks_without_text(prompt)
