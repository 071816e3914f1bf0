"""Scoring in several processes, and the comparison of two checkpoints."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from glm_image_pack.cli import score
from glm_image_pack.cli.answers import KEPT_DB, Answer, answer_of, comparison_rows, groups, mcnemar
from glm_image_pack.cli.main import main
from glm_image_pack.cli.workers import WorkerError, lines_of
from glm_image_pack.glmimage_core.glm_image.files import components
from glm_image_pack.training import world
from glm_image_pack.training.captions import EDITS
from PIL import Image

scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
NANO = components.BUILT_IN[components.NANO]
FEW = ["--share", "0.01", "--steps", "2"]  # six questions


def an_answer(number: int, right: bool, kept: float | None = None, **changes) -> Answer:
    described = {"subject": "edit" if kept else "word", "kind": "move" if kept else None, "width": 256, "height": 192}
    return Answer(number=number, right=right, kept=kept, tokens_a_pass=1.0, plan_seconds=0.1, **{**described, **changes})


def size_of(question) -> tuple[int, int]:
    """Width and height of what a question asks for, in pixels."""
    return question.asked.scene.columns * world.CELL_PX, question.asked.scene.rows * world.CELL_PX


def rows_of(printed: str) -> dict[str, list[str]]:
    """The cells of each row of a printed table, by the first of them."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"), [(0, 0, 1), (0, 5, 2 / 32), (9, 1, 22 / 1024), (3, 3, 1), (4, 2, 44 / 64)]
)
def test_p_is_that_of_a_sign_test_on_the_questions_that_one_of_two_answers(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == mcnemar(only_second, only_first) == pytest.approx(p)


def test_a_comparison_counts_what_only_one_of_two_gets_right():
    ours = [an_answer(number, right=number < 6, kept=30 if number else 20) for number in range(10)]
    theirs = [an_answer(number, right=number in (0, 9), kept=KEPT_DB) for number in range(10)]
    right, rest = comparison_rows("edit", ours, theirs)
    assert (right["first %"], right["second %"], right["only first"], right["only second"]) == (60, 20, 5, 1)
    assert right["p"] == pytest.approx(mcnemar(5, 1), abs=1e-4)
    assert (rest["first %"], rest["second %"], rest["only first"], rest["only second"]) == (90, 100, 0, 1)


def test_a_comparison_of_words_and_edits_counts_the_rest_of_the_edits():
    ours, theirs = ([an_answer(0, True), an_answer(1, True, kept=kept), an_answer(2, False)] for kept in (KEPT_DB, 20))
    right, rest = comparison_rows("256 x 192", ours, theirs)
    assert (right["asked"], right["only first"], right["only second"]) == (3, 0, 0)
    assert (rest["what"], rest["asked"], rest["only first"]) == (f"256 x 192, rest within {KEPT_DB:.0f} dB", 1, 1)
    assert len(comparison_rows("word", ours[:1], theirs[:1])) == 1


def test_answers_are_grouped_by_subject_kind_and_size():
    answers = [an_answer(0, True), an_answer(1, True, kept=30.0), an_answer(2, False, height=256)]
    assert {name: [answer.number for answer in group] for name, group in groups(answers).items()} == {
        "word": [0, 2],
        "edit": [1],
        "edit: move": [1],
        "256 x 192": [0, 1],
        "256 x 256": [2],
        "all": [0, 1, 2],
    }


@pytest.mark.slow
def test_several_processes_answer_what_one_does(tmp_path, capsys):
    printed = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        assert main(["score", *FEW, "--series", "others", "--processes", processes, "--save", str(folder)]) == 0
        rows = rows_of(capsys.readouterr().out)
        printed.append({name: row[:4] for name, row in rows.items()})  # without tokens a pass and seconds, which follow the clock
    assert printed[0] == printed[1] and printed[0]["all"][0] == "6"
    names = [sorted(file.name for file in (tmp_path / processes).iterdir()) for processes in ("1", "2")]
    assert names[0] == names[1] and len(names[0]) == 6


@pytest.mark.slow
def test_plans_can_be_judged_alone(tmp_path, capsys):
    """Edits among them have a word that no prompt names."""
    folder = tmp_path / "plans"
    assert main(["score", "--share", "0.06", "--plans", "--save", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "plans alone" in printed and float(rows_of(printed)["one shape"][1]) == 100
    assert float(rows_of(printed)["all"][1]) > 70
    pictures = [Image.open(file) for file in folder.iterdir()]
    assert len(pictures) == 30
    for picture in pictures:  # drawn and not painted: the palette alone, but for edges
        colours = sorted(picture.getcolors(2**16), reverse=True)
        assert colours[0][1] in world.COLOURS.values() and sum(count for count, _ in colours[:6]) > 0.9 * 192 * 192


def test_what_the_vae_loses_is_measured_alone(capsys):
    assert main(["score", "--share", "0.06", "--vae", "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    asked, right, median, within, *_ = rows_of(printed)["edit"]
    assert "VAE alone" in printed and (asked, right) == ("9", "100") and float(median) > 30 and float(within) > 80


def test_the_answers_of_several_machines_make_one_table(tmp_path, capsys):
    asked = ["score", "--share", "0.03", "--vae"]
    assert main([*asked, "--processes", "1"]) == 0
    rows = rows_of(capsys.readouterr().out)
    files = [str(tmp_path / f"{part}.jsonl") for part in (2, 1)]
    for part, file in zip((2, 1), files, strict=True):
        assert main([*asked, "--part", f"{part}/2"]) == 0
        Path(file).write_text(capsys.readouterr().out, "utf-8")
    assert main(["score", "--answers", *files]) == 0
    printed = capsys.readouterr().out
    assert list(rows_of(printed).items()) == list(rows.items()) and rows["all"][0] == "14" and "2.jsonl, 1.jsonl" in printed

    assert main(["score", "--answers", *files, files[0]]) == 2
    assert "2.jsonl answers one shape" in capsys.readouterr().err
    Path(files[0]).write_text("no answer\n")
    assert main(["score", "--answers", *files]) == 2
    assert "2.jsonl: no answer of `score --part`: no answer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_is_compared_with_another(tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(NANO, copy)
    assert main(["score", "--compare", str(copy), *FEW, "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert str(NANO) in printed and str(copy) in printed
    asked, first, second, *differing = rows_of(printed)["all"]
    assert asked == "6" and first == second and differing == ["0", "0", "1"]


def test_a_part_is_every_nth_question(monkeypatch, capsys):
    def answered(checkpoint, asked, options, one_thread=False):
        assert one_thread
        return (an_answer(question.number, True, subject=question.subject) for question in asked)

    monkeypatch.setattr(score, "_answers", answered)
    parts = []
    for part in ("1/2", "2/2"):
        assert main(["score", "--share", "0.03", "--part", part]) == 0
        parts.append([answer_of(line) for line in capsys.readouterr().out.splitlines()])
    numbers = [(answer.subject, answer.number) for pair in zip(*parts, strict=False) for answer in pair]
    assert numbers[:4] == [(question.subject, question.number) for question in scoring.questions(0.03)][:4]
    assert sum(map(len, parts)) == len({(a.subject, a.number) for part in parts for a in part})


def test_a_table_says_what_was_asked(monkeypatch, capsys):
    monkeypatch.setattr(score, "_answers", lambda *parts, **how: (an_answer(q.number, True, subject=q.subject) for q in parts[1]))
    asked = ["--share", "0.01", "--series", "others", "--larger", "--glyph-text", "--step-cache", "0.1", "--processes", "1"]
    assert main(["score", *asked]) == 0
    said = "20 steps, cfg 1.5, share 0.01, series others, larger, glyph text, step cache 0.1, "
    assert said in capsys.readouterr().out
    assert score.DEFAULTS["series"] == scoring.SERIES


def test_a_share_asks_for_all_sizes_and_is_a_part_of_a_larger_one():
    small, large, whole = ({(q.subject, q.number) for q in scoring.questions(share)} for share in (0.12, 0.3, 1))
    assert (len(small), len(large), len(whole)) == (60, 150, 500) and small < large < whole
    edits = [question for question in scoring.questions(0.12) if question.subject == "edit"]
    assert len({size_of(question) for question in edits}) >= 5 and len({question.asked.kind for question in edits}) >= 6


def test_larger_questions_are_asked_at_larger_sizes(monkeypatch, capsys):
    """Each kind of edit at each size, as at the other sizes."""
    seen = []

    def answered(checkpoint, asked, options, one_thread=False):
        seen.extend(asked)
        return (an_answer(question.number, True, subject=question.subject) for question in asked)

    monkeypatch.setattr(score, "_answers", answered)
    assert main(["score", "--larger", "--part", "1/1"]) == 0 and len(capsys.readouterr().out.splitlines()) == 500
    sizes = {(512, 512), (512, 256), (256, 512)}
    asked = {(question.subject, getattr(question.asked, "kind", None), *size_of(question)) for question in seen}
    assert {key[2:] for key in asked} == sizes
    kinds = {key[:2] for key in asked}
    assert len(kinds) == 3 + len(EDITS) and len(asked) == len(kinds) * len(sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "3/2"], "--part is 3/2; it must be I/N"),
        (["--part", "half"], "--part is half; it must be I/N"),
        (["--part", "1/2", "--processes", "2"], "--part is one process"),
        (["--processes", "0"], "--processes is 0; at least one is needed"),
        (["--compare", "nowhere"], "nowhere is no folder with a model_index.json"),
        (["--plans", "--steps", "5"], "--plans and --vae paint nothing; they go without --steps, --cfg and --step-cache"),
        (["--vae", "--temperature", "0.5"], "--vae plans nothing; it goes without --quantization, --lookahead"),
        (["--answers", "x.jsonl", "--part", "1/2"], "it goes without CHECKPOINT, --compare, --part and --save"),
        (["--answers", "x.jsonl"], "x.jsonl"),
        (["--answers", os.devnull], "the files of --answers have none"),
        (["--compare", str(NANO), "--save", "x"], "it goes with neither --save nor --part"),
    ],
)
def test_a_wrong_option_is_named(options, message, capsys):
    assert main(["score", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_process_that_fails_ends_the_score(capfd):
    with pytest.raises(WorkerError, match="status 2"):
        list(lines_of([["score", "nowhere", "--part", "1/1"]]))
    assert "nowhere is no folder" in capfd.readouterr().err


def test_a_large_checkpoint_is_scored_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(score.os, "cpu_count", lambda: 4)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    assert score._processes(tmp_path, questions=500) == 4 and score._processes(tmp_path, questions=50) == 2
    monkeypatch.setattr(score, "LARGE", 99)
    assert score._processes(tmp_path, questions=500) == 1


@pytest.mark.parametrize("says_word", [False, True])
def test_an_edit_is_asked_with_its_word_as_glyph_text_if_that_is_wanted(says_word):
    from glm_image_pack.training import scoring

    given = []

    def paint(prompt, pictures, width, height, *, seed, glyph_texts=None):
        given.append(glyph_texts)
        return torch.zeros(height, width, 3)

    asked = [question for question in scoring.questions(0.2) if question.subject in ("word", "edit")]
    for question in asked:
        scoring.answer(paint, question, says_word=says_word)
    words = [question.asked.scene.word for question in asked]
    expected = [[word.text] if word else [] for word in words]
    edits = [question.subject == "edit" for question in asked]
    assert given == [texts if says_word and is_edit else None for texts, is_edit in zip(expected, edits, strict=True)]


def test_a_plan_that_keeps_a_word_is_drawn_with_the_word_of_its_length():
    """Of two references the plan alone says whose word stays."""
    from glm_image_pack.training import drawing, painter, world

    def scene(text: str) -> world.Scene:
        return world.Scene(8, 8, "white", word=world.Word(text, "red", 3, 0))

    pictures = [drawing.draw(scene(text)) for text in ("SU", "ZIX")]
    for kept in ("SU", "ZIX"):
        tokens = world.tokens_of(scene(kept))
        assert painter._word(tokens, "Put the star of the second picture into the first.", pictures, None) == kept
        assert painter._word(tokens, 'Change the word to "MOON"', pictures, None) == "MOON"
    bare = torch.full((2, 2), world.CODES + 5)
    assert world.letters_in(bare) == 0
