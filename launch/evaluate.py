"""Score a trained model under a stated protocol, or say why two results differ.

    python -m launch.evaluate emblems --run runs/quickstart/decoder --out scores.json
    python -m launch.evaluate emoji --run runs/emoji/decoder --out emoji.json
    python -m launch.evaluate heldout --run runs/mine/decoder --out heldout.json
    python -m launch.evaluate retrieval --run runs/quickstart/clip
    python -m launch.evaluate coco_fid --run RUN --captions captions_val2014.json \\
        --real val2014 --inception pt_inception-2015-12-05-6726825d.pth --out runs/coco
    python -m launch.evaluate captions --made made.json --captions captions_val2014.json
    python -m launch.evaluate vqa --made made.json --annotations v2_mscoco_val2014_annotations.json
    python -m launch.evaluate perplexity --run RUN
    python -m launch.evaluate tasks --run runs/miniature/sft
    python -m launch.evaluate reconstruction --run runs/miniature/vqgan
    python -m launch.evaluate diff a.json b.json

After a kill the same command continues: `coco_fid` always; `emblems`, `emoji`, `heldout` and
`tasks` with `--out`.
`diff` reads what `--out` wrote, `scores.json` of `coco_fid` and the quickstart's `metrics.json`.
"""

import contextlib
import resource
from collections.abc import Sequence

from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.evaluate.answers import score_caption_file, score_vqa_file
from cm3jax.evaluate.coco import read_captions
from cm3jax.evaluate.coco_fid import CocoExam, from_folder, from_run
from cm3jax.evaluate.coco_page import report, text_table
from cm3jax.evaluate.comparison import compare
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.inception_weights import load_inception
from cm3jax.evaluate.perplexity import evaluate_perplexity
from cm3jax.evaluate.protocol import Score, read_scores
from cm3jax.evaluate.reconstruction import evaluate_reconstruction
from cm3jax.evaluate.results import Figure
from cm3jax.generation.loading import load_encoder
from cm3jax.io.files import require_replaceable, sweep_scratch
from cm3jax.learners import clip
from experiments.emoji.emoji_scores import EmojiExam
from experiments.miniature.scores.emblem_scores import evaluate
from experiments.miniature.scores.retrieval_scores import evaluate_encoder
from experiments.miniature.scores.task_scores import evaluate_tasks
from launch import heldout
from launch.cli import parse
from launch.env import main
from launch.evaluate_options import (
    VQA,
    Captions,
    CocoFid,
    Diff,
    Emblems,
    Emoji,
    HeldOut,
    Options,
    Perplexity,
    Reconstruction,
    Retrieval,
    Tasks,
)
from launch.parts import naming_commands_of
from launch.score_files import ScoreFiles, page_of

_ABOUT = (
    "Every answer was sampled freely, once, and judged by a program. For each score some of the "
    "worst and some of the best answers are shown."
)

_HALVES = (
    (r"\d{12}\.png", "docs_*/samples_*"),
    (r"drawn-\d{5}\.json|settings\.json", "docs_*"),
    (r"\d{5}-[0-9a-f]{16}\.npy", "features/*"),
)
"""What killed processes leave half written of a `coco_fid`, and in which of its folders."""

_Scored = Captions | VQA | Perplexity | Reconstruction | Retrieval | Tasks | Emoji | Emblems
"""The options of evaluations that differ only in what they score."""


def run(argv: list[str]) -> None:
    """Evaluate, print a table and write the JSON; or compare two."""
    options = parse(
        Options,
        argv,
        "Score a run, captions or answers under a stated protocol, or compare two results.",
    )
    of = (getattr(options, name, "") for name in ("run", "bank", "corpus"))
    with naming_commands_of(*of):
        _run(options)


def _run(options: Options) -> None:
    match options:
        case Diff():
            print(compare(read_scores(options.left), read_scores(options.right)))
        case CocoFid():
            coco(options)
        case HeldOut():
            print(table(heldout.evaluate(options, _say)))
        case _:
            print(table(_evaluate(options)))


def _evaluate(options: _Scored) -> dict[str, Score]:
    """The scores, written where `out` says; with a page where answers can be shown."""
    files = ScoreFiles.named(options.out, with_page=isinstance(options, Tasks | Emblems))
    with files.held("an evaluation") if files else contextlib.nullcontext():
        return _score(options, files)


def _score(options: _Scored, files: ScoreFiles | None) -> dict[str, Score]:
    keep = files.samples if files else ""
    figures: Sequence[Figure] = ()
    banks: list[str] = []
    match options:
        case Captions():
            scores = score_caption_file(options.made, options.captions)
        case VQA():
            scores = score_vqa_file(options.made, options.annotations)
        case Perplexity():
            scores = evaluate_perplexity(options.run, options.corpus, options.bank, options.batches)
        case Reconstruction():
            weights = load_inception(options.inception) if options.inception else None
            extractor = Extractor(weights, options.resize) if weights else None
            about = (options.split, options.count, options.source, options.lpips)
            scores = evaluate_reconstruction(options.run, *about, extractor)
        case Retrieval():
            scores = evaluate_encoder(options.run, options.prompts)
        case Tasks():
            tasks = (options.tasks, options.cases, options.seed)
            tested = evaluate_tasks(
                options.run,
                options.before,
                *tasks,
                _say,
                options.mesh,
                keep,
                options.weights,
                options.cache,
            )
            scores, figures = tested.scores, tested.figures
        case Emoji():
            which = (options.bank, options.prompts, options.seed)
            exam = EmojiExam(
                options.run, *which, _say, options.mesh, keep, options.weights, options.cache
            )
            exam.take(options.documents)
            scores = exam.scores
        case Emblems():
            which = (options.bank, options.prompts, options.seed)
            found = evaluate(
                options.run, *which, _say, options.mesh, keep, options.weights, options.cache
            )
            scores, figures, banks = found.scores, found.figures, [found.bank]
    if files:
        page = None
        if isinstance(options, Tasks | Emblems):
            page = page_of(f"What {options.run} does", _ABOUT, scores, figures)
        files.write(scores, page, banks)
    return scores


def coco(options: CocoFid) -> None:
    """Do this process's share; score and write JSON and page when that was the last one missing."""
    out = epath.Path(options.out)
    files = ScoreFiles.inside(out)
    if not options.real.endswith(".npz"):  # else nothing is measured of the real images
        features = out / "features"
        require_replaceable(out / "reference.npz", lambda _: features.exists(), "the statistics")
    asked = options.count if options.run else None  # others' images may be any caption's
    captions = read_captions(options.captions, asked, options.seed)
    weights = load_inception(options.inception)
    if options.clip:
        encoder = clip.load(options.clip)
    elif options.run:
        encoder = load_encoder(options.run, load_run(options.run))
    else:
        encoder = None
    extractor = Extractor(weights, options.resize)
    exam = CocoExam(captions, extractor, encoder, options.real, options.crop, out)
    if options.made:
        model, sets = from_folder(options.made, exam)
    else:
        how = (options.bank, options.documents, options.samples, options.seed, options.guidance)
        model, sets = from_run(options.run, exam, *how, options.share, options.mesh, _say)
    if not exam.extract(sets, options.share, _say):
        _say(f"share {options.part} is done; run the others into {out}, the last one scores.")
        return
    outcome = exam.judge(model, sets, _say)
    for names, place in _HALVES:  # all is drawn and extracted: nobody writes them now
        for folder in out.glob(place):
            sweep_scratch(folder, names)
    files.write(outcome.scores, report(outcome))
    print(text_table(outcome))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"wrote {files.scores} and {files.page}; peak memory {peak:.2f} GiB")


def _say(line: str) -> None:
    print(line, flush=True)


def table(scores: dict[str, Score]) -> str:
    """One line per score: value, 95 % interval, n, chance, and what it may be called."""
    width = max(map(len, scores))
    lines = [f"{'score':{width}}   value        95 %    n   chance  protocol"]
    for name, score in scores.items():
        low, high = score.interval
        chance = "–" if score.chance is None else f"{score.chance:.1e}"
        lines.append(
            f"{name:{width}}  {score.value:6.3f} {low:.3f}–{high:.3f} {score.n:4d} {chance:>8}  "
            f"{score.protocol.regime}; documents: {score.protocol.documents}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(run)
