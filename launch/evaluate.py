"""Score a trained model under a stated protocol, or say why two results differ.

    python -m launch.evaluate emblems --run runs/quickstart/decoder --out scores.json
    python -m launch.evaluate emoji --run runs/emoji/decoder --out emoji.json
    python -m launch.evaluate retrieval --run runs/quickstart/clip
    python -m launch.evaluate coco_fid --run RUN --captions captions_val2014.json \\
        --real val2014 --inception pt_inception-2015-12-05-6726825d.pth --out runs/coco
    python -m launch.evaluate captions --made made.json --captions captions_val2014.json
    python -m launch.evaluate vqa --made made.json --annotations v2_mscoco_val2014_annotations.json
    python -m launch.evaluate perplexity --run RUN
    python -m launch.evaluate tasks --run runs/miniature/sft
    python -m launch.evaluate reconstruction --run runs/miniature/vqgan
    python -m launch.evaluate diff a.json b.json

What was killed goes on with the same command: `coco_fid`, and with `--out` `emblems`, `emoji` and
`tasks`.
`diff` reads what `--out` wrote, `scores.json` of `coco_fid` and the quickstart's `metrics.json`.
"""

import dataclasses
import re
import resource
from typing import Annotated, Literal

import tyro
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import ONE_DEVICE, MeshConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.answers import score_caption_file, score_vqa_file
from cm3jax.evaluate.cases_page import cases_page, score_table
from cm3jax.evaluate.coco import read_captions
from cm3jax.evaluate.coco_fid import Exam, from_folder, from_run
from cm3jax.evaluate.coco_page import report, text_table
from cm3jax.evaluate.drawing import Share
from cm3jax.evaluate.features import Extractor, Resize
from cm3jax.evaluate.inception_weights import load_inception
from cm3jax.evaluate.perplexity import evaluate_perplexity
from cm3jax.evaluate.protocol import Score, differences, scores_from_json, scores_to_json
from cm3jax.evaluate.reconstruction import evaluate_reconstruction
from cm3jax.generation.generator import load_encoder
from cm3jax.io.files import read_json, write_atomic, write_json
from cm3jax.learners import clip
from experiments.emoji.emoji_scores import EmojiExam
from experiments.miniature.scores.emblem_scores import evaluate
from experiments.miniature.scores.retrieval_scores import evaluate_encoder
from experiments.miniature.scores.task_scores import NAMES, evaluate_tasks
from launch.cli import parse
from launch.env import main


@dataclasses.dataclass(frozen=True)
class Emblems:
    """What a decoder of the miniature can do, in exact shares."""

    run: str
    """Run directory of a decoder, or weights exported from one."""
    bank: str = ""
    """Memory bank to retrieve from, instead of the one in the run's config."""
    prompts: int = 200
    """Prompts of each kind."""
    seed: int = 0
    """Seed of the sampling."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the drawing; `--mesh.data -1` takes all."""
    out: str = ""
    """JSON file for the scores and their protocols. Beside it, with its name, lie a page that ends
    in .html and a folder in .samples of all that was drawn: if killed, the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Emoji(Emblems):
    """What a decoder of emoji can do with names and looks that training never showed."""

    documents: tuple[int, ...] = (0, 1, 2)
    """Numbers of retrieved documents to draw with."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How often a retrieval encoder of the miniature finds an emblem that it never saw."""

    run: str
    """Run directory of a CLIP encoder, or weights exported from one."""
    prompts: int = 200
    """Prompts that name one emblem."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class CocoFid:
    """The paper's zero-shot MS-COCO protocol: FID, KID and CLIP score of pictures for captions.

    A run that was killed goes on where it was. Writes `scores.json`, `report.html`, the pictures
    and `reference.npz`."""

    captions: str
    """Captions in COCO's format, captions_val2014.json."""
    real: str
    """Folder of the real pictures, or an .npz with their `mu` and `sigma`."""
    inception: str
    """Weights of FID's Inception, as pytorch-fid publishes them: .pth, or .safetensors."""
    out: str
    """Folder for everything that is written."""
    run: str = ""
    """The decoder that draws: a run directory, or exported weights."""
    made: str = ""
    """A folder of pictures made elsewhere, instead of --run; named by caption id or COCO's file."""
    bank: str = ""
    """Memory bank to retrieve from, instead of the one in the run's config."""
    clip: str = ""
    """Run directory of the CLIP encoder that scores and chooses; empty is the run's own."""
    documents: tuple[int, ...] = (0, 1, 2)
    """Numbers of retrieved documents to try."""
    samples: tuple[int, ...] = (1, 8)
    """Numbers of samples of which the best by CLIP counts."""
    count: int = 30_000
    """Captions to ask, drawn by the seed."""
    seed: int = 0
    """Seed of the choice of captions and of the sampling."""
    guidance: float | None = None
    """Scale of classifier-free guidance, instead of the run's."""
    resize: Resize = "clean"
    """How pictures reach Inception's size: clean-fid's way, pytorch-fid's or TensorFlow's."""
    crop: int = 256
    """Cut real pictures to centre squares of so many pixels; 0 leaves them as they are."""
    part: str = "1/1"
    """This process's share of the work, as 3/8: several processes may fill one --out."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the drawing; `--mesh.data -1` takes all."""

    def __post_init__(self):
        if bool(self.run) == bool(self.made):
            raise UserError("coco_fid takes either --run or --made, a folder of pictures.")
        if not self.documents or min(self.documents) < 0:
            raise UserError("--documents takes numbers from 0.")
        if not self.samples or min(self.samples) < 1:
            raise UserError("--samples takes numbers from 1.")
        self.share  # noqa: B018  # raises

    @property
    def share(self) -> Share:
        """As numbers."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise UserError(f"--part {self.part} is no share; write the third of eight as 3/8.")
        return index - 1, count


@dataclasses.dataclass(frozen=True)
class Captions:
    """BLEU, ROUGE-L and CIDEr of captions, as COCO's code gives them."""

    made: str
    """JSON list of objects with image_id and caption."""
    captions: str
    """Captions in COCO's format."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class VQA:
    """Accuracy of answers, as the official VQA script gives it."""

    made: str
    """JSON list of objects with question_id and answer."""
    annotations: str
    """VQA's annotations."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Perplexity on validation rows: of all targets, of text and of picture codes."""

    run: str
    """Run directory of a decoder, or weights exported from one."""
    corpus: str = ""
    """Prepared corpus, instead of the one in the run's config."""
    bank: str = ""
    """Its memory bank, instead of the one in the run's config."""
    batches: int = 50
    """Batches to read."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Tasks:
    """What a decoder of the miniature does after instruction tuning, on held-out cases."""

    run: str
    """Run directory of a decoder, or weights exported from one."""
    before: str = ""
    """The decoder before tuning, to score beside it."""
    tasks: tuple[str, ...] = NAMES
    """Which tasks."""
    cases: int = 200
    """Cases of each task."""
    seed: int = 0
    """Seed of the sampling."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the drawing; `--mesh.data -1` takes all."""
    out: str = ""
    """JSON file for the scores and their protocols. Beside it, with its name, lie a page that ends
    in .html and a folder in .samples of all that was drawn: if killed, the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What an image tokenizer loses: PSNR, SSIM, LPIPS, rFID and use of its codes, by kind."""

    run: str
    """Run directory of an image tokenizer, or exported or imported weights."""
    source: str = ""
    """Pictures to measure, as data.source; empty takes the run's own."""
    split: Literal["train", "validation"] = "validation"
    """Which of them."""
    count: int = 0
    """The first so many; 0 takes all."""
    lpips: str = ""
    """LPIPS weights, as vqgan_loss.lpips; without them there is no LPIPS."""
    inception: str = ""
    """Weights of FID's Inception, as pytorch-fid publishes them; without them there is no rFID."""
    resize: Resize = "clean"
    """How pictures reach Inception's size."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Diff:
    """Why two results differ: protocols first, then figures."""

    left: tyro.conf.Positional[str]
    """A result."""
    right: tyro.conf.Positional[str]
    """Another one."""


_ABOUT = (
    "Every answer was sampled freely, once, and judged by a program. Of every score the first of "
    "the worst and of the best answers are shown."
)

Options = (
    Annotated[Emblems, tyro.conf.subcommand("emblems")]
    | Annotated[Emoji, tyro.conf.subcommand("emoji")]
    | Annotated[Retrieval, tyro.conf.subcommand("retrieval")]
    | Annotated[CocoFid, tyro.conf.subcommand("coco_fid")]
    | Annotated[Captions, tyro.conf.subcommand("captions")]
    | Annotated[VQA, tyro.conf.subcommand("vqa")]
    | Annotated[Perplexity, tyro.conf.subcommand("perplexity")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Reconstruction, tyro.conf.subcommand("reconstruction")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
)


def run(argv: list[str]) -> None:
    """Evaluate, print a table and write the JSON; or compare two."""
    options = parse(Options, argv, "Scores with their protocols.")
    match options:
        case Diff():
            print(compare(_scores(options.left), _scores(options.right)))
            return
        case CocoFid():
            coco(options)
            return
        case Captions():
            scores = score_caption_file(options.made, options.captions)
        case VQA():
            scores = score_vqa_file(options.made, options.annotations)
        case Perplexity():
            where = (options.run, options.corpus, options.bank)
            scores = evaluate_perplexity(*where, options.batches)
        case Reconstruction():
            weights = load_inception(options.inception) if options.inception else None
            extractor = Extractor(weights, options.resize) if weights else None
            where = (options.run, options.split, options.count, options.source, options.lpips)
            scores = evaluate_reconstruction(*where, extractor)
        case Retrieval():
            scores = evaluate_encoder(options.run, options.prompts)
        case Tasks():
            which = (options.tasks, options.cases, options.seed)
            where = (options.mesh, _beside(options.out, ".samples"))
            found = evaluate_tasks(options.run, options.before, *which, _say, *where)
            scores = found.scores
        case Emoji():
            which = (options.bank, options.prompts, options.seed)
            found = EmojiExam(
                options.run, *which, _say, options.mesh, _beside(options.out, ".samples")
            )
            found.take(options.documents)
            scores = found.scores
        case Emblems():
            which = (options.bank, options.prompts, options.seed)
            where = (options.mesh, _beside(options.out, ".samples"))
            found = evaluate(options.run, *which, _say, *where)
            scores = found.scores
    print(table(scores))
    if options.out:
        write_json(options.out, scores_to_json(scores))
    if options.out and isinstance(options, Tasks | Emblems):
        title = f"What {options.run} does"
        page = cases_page(title, _ABOUT, score_table(scores), found.figures, scores)
        write_atomic(_beside(options.out, ".html"), page)


def coco(options: CocoFid) -> None:
    """Do this process's share; score and write JSON and page when that was the last one missing."""
    asked = options.count if options.run else None  # others' pictures may be any caption's
    captions = read_captions(options.captions, asked, options.seed)
    weights = load_inception(options.inception)
    if options.clip:
        encoder = clip.load(options.clip)
    elif options.run:
        encoder = load_encoder(options.run, load_run(options.run))
    else:
        encoder = None
    out = epath.Path(options.out)
    extractor = Extractor(weights, options.resize)
    exam = Exam(captions, extractor, encoder, options.real, options.crop, out)
    if options.made:
        model, sets = from_folder(options.made, exam)
    else:
        how = (options.bank, options.documents, options.samples, options.seed, options.guidance)
        model, sets = from_run(options.run, exam, *how, options.share, options.mesh, _say)
    if not exam.extract(sets, options.share, _say):
        _say(f"share {options.part} is done; run the others into {out}, the last one scores.")
        return
    outcome = exam.judge(model, sets, _say)
    write_json(out / "scores.json", scores_to_json(outcome.scores))
    write_atomic(out / "report.html", report(outcome))
    print(text_table(outcome))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"wrote {out / 'scores.json'} and {out / 'report.html'}; peak memory {peak:.2f} GiB")


def _beside(out: str, suffix: str) -> str:
    """What has the name of `out` and this suffix; nothing without one."""
    return str(epath.Path(out).with_suffix(suffix)) if out else ""


def _say(line: str) -> None:
    print(line, flush=True)


def _scores(path: str) -> dict[str, Score]:
    scores = scores_from_json(read_json(path, "the result"))
    if not scores:
        raise UserError(f"{path} holds no scores; give a file that launch.evaluate wrote.")
    return scores


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


def compare(left: dict[str, Score], right: dict[str, Score]) -> str:
    """What differs, in words: first the protocols, equal differences of several scores on one
    line, then each figure with its interval."""
    found = differences(left, right)
    if not found:
        return "no difference: same protocols, same figures."
    lines = []
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        if one.of_protocol:
            groups.setdefault((one.what, str(one.left), str(one.right)), []).append(one.score)
    if groups:
        lines.append("protocols differ in:")
    for (what, a, b), names in groups.items():
        every = len(names) == len(left.keys() | right.keys())
        whose = "every score" if every else ", ".join(names)
        lines.append(f"  {what}: {a} | {b}   ({whose})")
    figures = [one.score for one in found if not one.of_protocol]
    if figures:
        lines.append("figures differ:")
    for name in figures:
        a, b = left[name], right[name]
        apart = max(a.interval[0], b.interval[0]) > min(a.interval[1], b.interval[1])
        verdict = "intervals apart" if apart else "intervals overlap"
        lines.append(f"  {name}: {_figure(a)} | {_figure(b)}   ({verdict})")
    return "\n".join(lines)


def _figure(score: Score) -> str:
    low, high = score.interval
    return f"{score.value:.4g} ({low:.4g}–{high:.4g}, n = {score.n})"


if __name__ == "__main__":
    main(run)
