"""`python . score`: paints the held-out prompts of nano's world, reads the pictures back, prints one table."""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from ..bench.table import Table
from .choices import DTYPES, QUANTIZATIONS
from .progress import progress_bar, quiet_libraries

KEPT_DB = 28.0
"""What an edit is not to change must come back within this PSNR."""


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
    parser.add_argument("--share", type=float, default=1.0, help="share of the prompts of each subject, 0..1; default: all")
    parser.add_argument("--steps", type=int, default=20, help="steps of each picture; default: %(default)s")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale; default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="float32",
        help="precision of the weights; auto: as stored; default: %(default)s",
    )
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="none", help="format of AR model and DiT; default: %(default)s"
    )
    parser.add_argument(
        "--step-cache", type=float, default=0.0, metavar="THRESHOLD", help="step_cache of GLM-Image Sampler; default: 0, off"
    )
    parser.add_argument(
        "--lookahead",
        type=int,
        default=0,
        metavar="TOKENS",
        help="tokens a pass of the AR model; default: 0, as many as are fastest",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="also save the pictures to this folder; names of wrong ones begin with x"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.checkpoint and not (options.checkpoint / "model_index.json").is_file():
        raise FileNotFoundError(f"{options.checkpoint} is no folder with a model_index.json")
    if not 0 < options.share <= 1:
        raise ValueError(f"--share is {options.share}; it must lie above 0 and not above 1")
    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; at least one is needed")

    from ..glmimage_core.checkpoints.outputs import check_writable
    from ..glmimage_core.glm_image.denoise import Approximations
    from ..glmimage_core.glm_image.files.components import BUILT_IN, NANO, is_checkpoint
    from ..glmimage_core.glm_image.lookahead import check_lookahead
    from ..training import scoring  # needs SciPy, which the pack itself does not
    from ..training.painter import Painter

    check_lookahead(options.lookahead)
    checkpoint = options.checkpoint or BUILT_IN[NANO]
    if not is_checkpoint(checkpoint):
        raise FileNotFoundError(f"{checkpoint / 'model_index.json'} does not name a GlmImagePipeline")
    if options.save:
        check_writable(options.save / "picture.png")
        options.save.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    paint = Painter.of(
        checkpoint,
        options.dtype,
        options.quantization,
        steps=options.steps,
        cfg=options.cfg,
        approximations=Approximations(step_cache=options.step_cache),
        lookahead=options.lookahead,
    )
    verdicts, began = [], time.monotonic()
    asked = list(scoring.questions(options.share))
    with progress_bar("Pictures", len(asked)) as bar:
        for question in asked:
            picture = scoring.answer(paint, question)
            verdicts.append(scoring.judge(question, picture))
            if options.save:
                _keep(options.save, verdicts[-1], picture)
            bar.update()
    seconds = (time.monotonic() - began) / len(verdicts)
    title = f"{checkpoint.name}, {options.steps} steps, cfg {options.cfg}, {seconds:.1f} s a picture"
    print(table(title, verdicts, paint.planned).markdown())
    return 0


def _keep(folder: Path, verdict, picture) -> None:
    from ..glmimage_core.images import to_pictures

    name = f"{'' if verdict.right else 'x '}{verdict.question.subject} {verdict.question.number:03}.png"
    to_pictures(picture[None])[0].save(folder / name)


def table(title: str, verdicts: Sequence, planned: Sequence) -> Table:
    """One row for each subject, and one for each kind of edit. planned: how the plan of each verdict's picture was made."""
    groups: dict[str, list] = {}
    answers = list(zip(verdicts, planned, strict=True))
    for verdict, plan in answers:
        groups.setdefault(verdict.question.subject, []).append((verdict, plan))
    for verdict, plan in answers:
        if verdict.kept is not None:
            groups.setdefault(f"edit: {verdict.question.asked.kind}", []).append((verdict, plan))
    return Table(title, [_row(name, *zip(*group, strict=True)) for name, group in groups.items()])


def _row(name: str, verdicts: Sequence, planned: Sequence) -> dict:
    kept = [verdict.kept for verdict in verdicts if verdict.kept is not None]
    return {
        "what": name,
        "asked": len(verdicts),
        "right %": round(100 * statistics.fmean(verdict.right for verdict in verdicts), 1),
        "rest, median dB": round(statistics.median(kept), 1) if kept else None,
        f"rest within {KEPT_DB:.0f} dB %": round(100 * statistics.fmean(db >= KEPT_DB for db in kept), 1) if kept else None,
        "tokens a pass": round(statistics.fmean(plan.tokens_a_pass for plan in planned), 1),
        "plan, median s": round(statistics.median(plan.seconds for plan in planned), 3),
    }
