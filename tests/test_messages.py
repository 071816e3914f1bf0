"""Words of others on a terminal: one line, nothing obeyed, nothing without end."""

import json
import logging
import sys

import pytest
from glm_image_pack.cli.graph.errors import explained
from glm_image_pack.cli.main import main
from glm_image_pack.cli.messages import MOST, MessageFormatter, one_line

TITLE = "\x1b[31mred\x07\x1b]0;title\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, with \u68ee and \u00e9", "plain text, with \u68ee and \u00e9"),
        ("two\nlines\r\n\tand more", "two lines and more"),
        (TITLE, r"\x1b[31mred\x07\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # an escape sequence in one character
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),  # which turns the direction
        ("\ud800", r"\ud800"),
        ("\0", r"\x00"),
    ],
)
def test_what_a_terminal_obeys_is_shown(text, shown):
    assert one_line(text) == shown


def test_a_long_message_keeps_its_begin_and_its_end():
    line = one_line("node 5: prompt is " + "x" * 100_000 + ", which is no INT")
    assert len(line) < MOST + 50
    assert line.startswith("node 5: prompt is xxx") and line.endswith("xxx, which is no INT") and "characters left out" in line


def test_a_record_of_the_log_is_one_line_and_keeps_the_lines_of_a_traceback():
    try:
        raise KeyError(TITLE)
    except KeyError:
        record = logging.LogRecord("x", logging.WARNING, "", 0, "a %s\nb", (TITLE,), sys.exc_info())
    first, *trace = MessageFormatter().format(record).splitlines()
    assert first == r"WARNING: a \x1b[31mred\x07\x1b]0;title\x07 b"
    assert len(trace) > 3 and trace[0].startswith("Traceback") and "\x1b" not in "".join(trace)


def workflow(tmp_path, **inputs) -> str:
    node = {"class_type": "ImageScale", "inputs": inputs, "_meta": {"title": TITLE}}
    (tmp_path / "graph.json").write_text(
        json.dumps({"1": node, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}})
    )
    return str(tmp_path / "graph.json")


def test_a_title_and_a_value_of_a_file_reach_the_terminal_in_one_bounded_line(tmp_path, capsys):
    assert main(["render", workflow(tmp_path, image="x" * 100_000)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"node 1 (\x1b[31mred\x07") and "\x1b" not in line and len(line) < MOST + 50


def test_the_traceback_of_an_error_is_shown_with_v_only(tmp_path, caplog, capsys):
    file = workflow(tmp_path, image="x")
    for more, shown in ([], 0), (["-v"], 1):
        caplog.clear()
        assert main(["render", file, *more]) == 2
        assert sum(bool(record.exc_info) for record in caplog.records) == shown


def test_half_a_character_is_named():
    with pytest.raises(UnicodeEncodeError) as caught:
        "a\udcff".encode()
    assert explained(caught.value) == r"a text holds '\udcff', half a character, which is no text; type it anew"
