"""`python . score`: paints the held-out prompts of nano's world, reads the pictures back, prints one table."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ..bench.table import Table
from .answers import Answer, answer_of, answers_in, comparison_rows, groups, score_row
from .choices import DTYPES, QUANTIZATIONS
from .clone import check_training
from .progress import progress_bar, quiet_libraries
from .workers import lines_of

DEFAULTS = {
    "share": 1.0,
    "series": "held out",
    "larger": False,
    "glyph_text": False,
    "dtype": "float32",
    "quantization": "none",
    "step_cache": 0.0,
    "lookahead": 0,
    "temperature": 0.9,
}
"""What changes a score, and is said above its table where it is set otherwise. Steps and cfg are always said."""
LEAST_QUESTIONS = 20  # of a process: fewer do not repay its start
STEPS, CFG = 20, 1.5
LARGE = 10**9  # bytes of a checkpoint's weights from which on several processes are not started unasked


def add_parser(commands, common: Sequence[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "score",
        parents=common,
        help="measure how well a checkpoint follows prompts of nano's world",
        description="Paints 500 held-out prompts and edits of coloured shapes and words, and reads the pictures back.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CHECKPOINT",
        help="a folder with model_index.json; default: nano, the built-in model",
    )
    parser.add_argument(
        "--share", type=float, default=DEFAULTS["share"], help="share of the prompts of each subject, 0..1; default: all"
    )
    parser.add_argument(
        "--series",
        default=DEFAULTS["series"],
        metavar="NAME",
        help="ask other questions, one set for each name; default: those of the card",
    )
    parser.add_argument(
        "--larger",
        action="store_true",
        help="ask for pictures of 512x512, 512x256 and 256x512 instead of 192 to 384 pixels a side",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each picture; default: %(default)s")
    parser.add_argument("--cfg", type=float, default=CFG, help="guidance scale; default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default=DEFAULTS["dtype"],
        help="precision of the weights; auto: as stored; default: %(default)s",
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default=DEFAULTS["quantization"],
        help="format of AR model and DiT; default: %(default)s",
    )
    parser.add_argument(
        "--step-cache",
        type=float,
        default=DEFAULTS["step_cache"],
        metavar="THRESHOLD",
        help="step_cache of GLM-Image Sampler; default: 0, off",
    )
    parser.add_argument(
        "--lookahead",
        type=int,
        default=DEFAULTS["lookahead"],
        metavar="TOKENS",
        help="tokens a pass of the AR model; default: 0, as many as are fastest",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=DEFAULTS["temperature"],
        help="temperature of the plans; default: %(default)s",
    )
    parser.add_argument(
        "--glyph-text",
        action="store_true",
        help="give the word that stays in an edit as glyph_text, as a user of Encode Prompt may",
    )
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument(
        "--plans",
        action="store_true",
        help="judge the plans alone: each is drawn by code and not painted, which takes a fraction of the time",
    )
    alone.add_argument(
        "--vae",
        action="store_true",
        help="judge the VAE alone: what is asked for is drawn by code, encoded and decoded",
    )
    alone.add_argument(
        "--answers",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="paint nothing: the table of the answers that --part wrote to these files",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="CHECKPOINT",
        help="also score this checkpoint and print where they differ; p is of McNemar's exact test",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="how many processes, of one thread each if several; default: one a core, 1 for a large checkpoint",
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="answer every N-th question from the I-th on, in one thread, and print a line of JSON for each instead of the table",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="also save the pictures to this folder; names of wrong ones begin with x"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.answers:
        print(table_of_files(options).markdown())
        return 0
    check_training("score")
    for checkpoint in filter(None, (options.checkpoint, options.compare)):
        if not (checkpoint / "model_index.json").is_file():
            raise FileNotFoundError(f"{checkpoint} is no folder with a model_index.json")

    from ..training import scoring  # needs SciPy, which the pack itself does not

    checkpoints = _checked(options)
    quiet_libraries()
    sizes = scoring.LARGER_SIZES if options.larger else scoring.SIZES
    asked = list(scoring.questions(options.share, options.series, sizes))
    if options.part:
        part, parts = _part(options.part)
        for answer in _answers(checkpoints[0], asked[part - 1 :: parts], options, one_thread=True):
            print(answer.line(), flush=True)
        return 0
    began = time.monotonic()
    scores = [_all_answers(checkpoint, asked, options) for checkpoint in checkpoints]
    seconds = (time.monotonic() - began) / sum(map(len, scores))
    how = ["plans alone"] if options.plans else ["VAE alone"] if options.vae else [f"{options.steps} steps", f"cfg {options.cfg}"]
    settings = ", ".join([*how, *_set_otherwise(options), f"{seconds:.1f} s a picture"])
    if options.compare:
        print(comparison(f"{checkpoints[0]} and {checkpoints[1]}, {settings}", *scores).markdown())
    else:
        print(table(f"{checkpoints[0].name}, {settings}", *scores).markdown())
    return 0


def _set_otherwise(options: argparse.Namespace) -> list[str]:
    """The settings that are not the defaults, as words."""
    changed = {name: getattr(options, name) for name, usual in DEFAULTS.items() if getattr(options, name) != usual}
    return [name.replace("_", " ") + ("" if value is True else f" {value}") for name, value in changed.items()]


def _checked(options: argparse.Namespace) -> list[Path]:
    """The checkpoints to score. Raises for options that mean nothing."""
    from ..glmimage_core.checkpoints.outputs import check_writable
    from ..glmimage_core.glm_image.files.components import BUILT_IN, NANO, is_checkpoint
    from ..glmimage_core.glm_image.lookahead import check_lookahead

    checkpoints = [options.checkpoint or BUILT_IN[NANO], *([options.compare] if options.compare else [])]
    for checkpoint in checkpoints:
        if not is_checkpoint(checkpoint):
            raise FileNotFoundError(f"{checkpoint / 'model_index.json'} does not name a GlmImagePipeline")
    if not 0 < options.share <= 1:
        raise ValueError(f"--share is {options.share}; it must lie above 0 and not above 1")
    for name in ("steps", "processes"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise ValueError(f"--{name} is {count}; at least one is needed")
    check_lookahead(options.lookahead)
    if options.compare and (options.save or options.part):
        raise ValueError("--compare prints a table of two checkpoints; it goes with neither --save nor --part")
    painting = options.steps, options.cfg, options.step_cache
    if (options.plans or options.vae) and painting != (STEPS, CFG, DEFAULTS["step_cache"]):
        raise ValueError("--plans and --vae paint nothing; they go without --steps, --cfg and --step-cache")
    planning = "quantization", "lookahead", "temperature", "glyph_text"
    if options.vae and any(getattr(options, name) != DEFAULTS[name] for name in planning):
        raise ValueError("--vae plans nothing; it goes without --quantization, --lookahead, --temperature and --glyph-text")
    if options.part:
        _part(options.part)
        if options.processes:
            raise ValueError("--part is one process; start another one for each of the others")
    if options.save:
        check_writable(options.save / "picture.png")
        options.save.mkdir(parents=True, exist_ok=True)
    return checkpoints


def _part(text: str) -> tuple[int, int]:
    """The part and the number of parts that a text like 2/4 names."""
    numbers = text.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]):
        raise ValueError(f"--part is {text}; it must be I/N with I from 1 to N, as in 2/4")
    return int(numbers[0]), int(numbers[1])


def _all_answers(checkpoint: Path, asked: Sequence, options: argparse.Namespace) -> list[Answer]:
    """The answers of a checkpoint to all questions, in their order, while a bar shows progress."""
    processes = options.processes or _processes(checkpoint, len(asked))
    with progress_bar(f"Pictures of {checkpoint.name}", len(asked)) as bar:
        found = _answers_of_processes(checkpoint, processes, options) if processes > 1 else _answers(checkpoint, asked, options)
        answers = {}
        with closing(found):
            for answer in found:
                answers[answer.question] = answer
                bar.update()
    return [answers[question.subject, question.number] for question in asked]


def _processes(checkpoint: Path, questions: int) -> int:
    """How many processes are worth their start, where there is memory for each to load the checkpoint."""
    if sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors")) > LARGE:
        return 1
    return max(1, min(os.cpu_count() or 1, questions // LEAST_QUESTIONS))


def _answers_of_processes(checkpoint: Path, processes: int, options: argparse.Namespace) -> Iterator[Answer]:
    settings = {name: getattr(options, name) for name in (*DEFAULTS, "steps", "cfg", "plans", "vae")}
    flags = {f"--{name.replace('_', '-')}": value for name, value in settings.items() if value is not False}
    arguments = [flag if value is True else f"{flag}={value}" for flag, value in flags.items()]
    if options.save:
        arguments.append(f"--save={options.save.absolute()}")
    commands = [
        ["score", str(checkpoint.absolute()), *arguments, f"--part={part}/{processes}"] for part in range(1, processes + 1)
    ]
    with closing(lines_of(commands)) as lines:
        for line in lines:
            yield answer_of(line)


def _answers(checkpoint: Path, asked: Sequence, options: argparse.Namespace, one_thread: bool = False) -> Iterator[Answer]:
    """Judge the picture of each question, one by one: on a CPU eight of them took as long in a batch."""
    import torch

    from ..training import scoring

    if one_thread:
        torch.set_num_threads(1)
    for question, (picture, plan) in zip(asked, _pictures(checkpoint, asked, options), strict=True):
        verdict = scoring.judge(question, picture)
        if options.save:
            _keep(options.save, verdict, picture)
        yield Answer(
            question.subject,
            question.number,
            kind=getattr(question.asked, "kind", None),  # an edit's
            width=picture.shape[1],
            height=picture.shape[0],
            right=verdict.right,
            kept=verdict.kept,
            tokens_a_pass=plan.tokens_a_pass,
            plan_seconds=plan.seconds,
        )


def _pictures(checkpoint: Path, asked: Sequence, options: argparse.Namespace) -> Iterator[tuple]:
    """The picture of each question, [H, W, 3] in 0..1, and how it was planned."""
    from ..glmimage_core.glm_image.denoise import Approximations
    from ..glmimage_core.glm_image.draw import Sampling
    from ..glmimage_core.glm_image.files.load import load_vae
    from ..training import scoring
    from ..training.painter import NOT_PLANNED, Painter

    if options.vae:
        vae = load_vae(checkpoint, options.dtype)
        for question in asked:
            yield scoring.through_vae(vae, question), NOT_PLANNED
        return
    paint = Painter.of(
        checkpoint,
        options.dtype,
        options.quantization,
        steps=options.steps,
        cfg=options.cfg,
        sampling=Sampling(temperature=options.temperature),
        approximations=Approximations(step_cache=options.step_cache),
        lookahead=options.lookahead,
        plans_alone=options.plans,
    )
    for question in asked:
        yield scoring.answer(paint, question, says_word=options.glyph_text), paint.planned[-1]


def _keep(folder: Path, verdict, picture) -> None:
    from ..glmimage_core.images import to_pictures

    name = f"{'' if verdict.right else 'x '}{verdict.question.subject} {verdict.question.number:03}.png"
    to_pictures(picture[None])[0].save(folder / name)


def table(title: str, answers: Sequence[Answer]) -> Table:
    """One row for each subject, each kind of edit and each size, and one for all."""
    return Table(title, [score_row(name, group) for name, group in groups(answers).items()])


def table_of_files(options: argparse.Namespace) -> Table:
    """The table of the answers in the files of `--answers`. Raises for a question that was answered twice."""
    if options.checkpoint or options.compare or options.part or options.save:
        raise ValueError("--answers prints a table of files; it goes without CHECKPOINT, --compare, --part and --save")
    answers: dict[tuple[str, int], Answer] = {}
    for file in options.answers:
        for answer in answers_in(file):
            if answers.setdefault(answer.question, answer) is not answer:
                raise ValueError(f"{file} answers {answer.subject} {answer.number}, which was answered before")
    if not answers:
        raise ValueError("the files of --answers have none")
    subjects = list(dict.fromkeys(subject for subject, _ in answers))
    in_order = sorted(answers.values(), key=lambda answer: (subjects.index(answer.subject), answer.number))
    return table(", ".join(file.name for file in options.answers), in_order)


def comparison(title: str, ours: Sequence[Answer], theirs: Sequence[Answer]) -> Table:
    """The same rows for two checkpoints that were asked the same questions."""
    pairs = zip(groups(ours).items(), groups(theirs).values(), strict=True)
    return Table(title, [row for (name, first), second in pairs for row in comparison_rows(name, first, second)])
