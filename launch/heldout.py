"""`launch.evaluate heldout`: a decoder on held-out records of any source, its table and page."""

from collections.abc import Callable

from etils import epath

from cm3jax.evaluate.cases_page import cases_page, score_table
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.heldout import HeldOutExam
from cm3jax.evaluate.inception_weights import load_inception
from cm3jax.evaluate.protocol import Score, scores_to_json
from cm3jax.io.files import write_atomic, write_json
from launch.evaluate_options import HeldOut

_ABOUT = (
    "Every picture was drawn once, freely, for a caption that training never saw, with documents "
    "of the memory bank in front, never with the true picture. “Identified” is the share that is "
    "nearer to the true picture than to all other candidates; “reconstruction” is what the image "
    "tokenizer makes of the true picture, which no drawing can surpass."
)


def evaluate(options: HeldOut, say: Callable[[str], None]) -> dict[str, Score]:
    """Take every figure, and write JSON and page where `out` says."""
    weights = load_inception(options.inception) if options.inception else None
    extractor = Extractor(weights, options.resize) if weights else None
    out = epath.Path(options.out)
    keep = out.with_suffix(".samples") if options.out else ""
    exam = HeldOutExam(options, say, options.mesh, keep, extractor)
    exam.take()
    if options.out:
        title = f"{options.run} on held-out records"
        page = cases_page(title, _ABOUT, score_table(exam.scores), exam.figures, exam.scores)
        write_atomic(out.with_suffix(".html"), page)
        write_json(out, scores_to_json(exam.scores))  # last: its presence says all is done
    return exam.scores
