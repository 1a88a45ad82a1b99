"""`launch.evaluate heldout`: a decoder on held-out records of any source, its table and page."""

import contextlib
from collections.abc import Callable

from cm3jax.evaluate.cases_page import cases_page, score_table
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.heldout import HeldOutExam, meanings
from cm3jax.evaluate.inception_weights import load_inception
from cm3jax.evaluate.protocol import Score
from cm3jax.report.html import facts, join
from launch.evaluate_options import HeldOut
from launch.score_files import ScoreFiles

_ABOUT = (
    "Every image was drawn once, freely, for a caption that training never saw, with documents "
    "of the memory bank in front, never with the true image. “Identified” is the share that is "
    "nearer to the true image than to all other candidates; “reconstruction” is what the image "
    "tokenizer makes of the true image, which no drawing can surpass."
)


def evaluate(options: HeldOut, say: Callable[[str], None]) -> dict[str, Score]:
    """Take every figure, and write JSON and page where `out` says.

    Raises `UserError`, before any work, rather than replace what no evaluation wrote.
    """
    files = ScoreFiles.named(options.out)
    with files.held(f"evaluating {options.run}") if files else contextlib.nullcontext():
        return _evaluate(options, files, say)


def _evaluate(
    options: HeldOut, files: ScoreFiles | None, say: Callable[[str], None]
) -> dict[str, Score]:
    weights = load_inception(options.inception) if options.inception else None
    extractor = Extractor(weights, options.resize) if weights else None
    keep = files.samples if files else ""
    exam = HeldOutExam(options, say, options.mesh, keep, extractor)
    exam.take()
    if files:
        title = f"{options.run} on held-out records"
        table = join("", score_table(exam.scores), facts(meanings(exam.scores)))
        page = cases_page(title, _ABOUT, table, exam.shown, exam.scores)
        files.write(exam.scores, page, [exam.bank.path])
    return exam.scores
