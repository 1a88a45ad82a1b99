"""The memory bank and its index: build them, audit them, search them, take documents out.

python -m launch.index build quickstart
python -m launch.index audit quickstart --retrieval.index scann --out audit.html
python -m launch.index query quickstart "a red circle <image:x.png>" --retrieval.documents 5
python -m launch.index remove quickstart bank-17 bank-40
python -m launch.index remove quickstart --licence unknown
python -m launch.index merge quickstart data/other/bank
python -m launch.index verify quickstart
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cm3jax.config import Experiment, RetrievalConfig
from cm3jax.data.prepare import merge_banks, prepare_bank, remove_documents
from cm3jax.data.probe_queries import Asking, asking
from cm3jax.data.shard_jobs import SplitJob
from cm3jax.errors import UserError
from cm3jax.io.files import require_replaceable, write_atomic
from cm3jax.io.folders import hold
from cm3jax.learners import clip, vqgan
from cm3jax.retrieval import audit
from cm3jax.retrieval.audit_page import AuditQuery, audit_page, is_audit_page
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.retrieval.duplicates import find_duplicates
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.index import open_index
from cm3jax.retrieval.interface import Index
from cm3jax.retrieval.pages import blank_written
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.retriever import Retriever
from cm3jax.retrieval.scann import RECALL_AT, ScannIndex
from cm3jax.retrieval.select import select_documents
from cm3jax.sequence.document import ImagePath, parse_prompt
from cm3jax.shapes import Float
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer, load_picture
from launch.cli import parse_experiment_and, show_overview
from launch.env import main
from launch.parts import naming_commands, require_made, require_parts_named
from launch.tools import make_tools

COMMANDS = ("build", "audit", "query", "remove", "merge", "verify")
_DESCRIPTION = (
    "COMMAND is what to do with the experiment's memory bank: `build` it and its index; "
    "`audit` recall and licences; `query` it with a PROMPT; `remove` documents by their KEYs, by "
    "--source or by --licence; `merge` the banks at other PATHs into it; `verify` its checksums."
)
_EXAMPLES = 12


def run(argv: list[str]) -> None:
    """Do what the first argument says with the bank of the experiment that the second names."""
    if not argv or argv[0] in ("-h", "--help"):
        show_overview(_DESCRIPTION, "COMMAND EXPERIMENT")
    command, *rest = argv
    if command not in COMMANDS:
        raise UserError(f"there is no {command!r} of an index; there are {', '.join(COMMANDS)}.")
    first_option = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    words = rest[1:first_option]
    argv = [*rest[:1], *rest[max(first_option, 1) :]]
    experiment, options = parse_experiment_and(Options, argv, _DESCRIPTION, command)
    _require_words(command, words, options)
    if not experiment.data.bank:
        raise UserError("data.bank is empty; say where the memory bank is.")
    with naming_commands(experiment):
        _do(command, experiment, words, options)


def _do(command: str, experiment: Experiment, words: list[str], options: "Options") -> None:
    match command:
        case "build":
            build(experiment)
        case "audit":
            if options.out:
                require_replaceable(options.out, is_audit_page, "the audit")
            audited = audit_bank(experiment)
            print(audited.text)
            if options.out:
                write_atomic(options.out, audited.page)
                blank_written(options.out, [experiment.data.bank])
        case "query":
            print(query(experiment, words[0]))
        case "remove":
            removed = Removed(tuple(words), options.source, options.licence)
            remove(experiment, removed, options.pages)
        case "merge":
            merge(experiment, words, options.pages)
        case "verify":
            verify(experiment)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of single commands, in addition to the experiment."""

    source: tuple[str, ...] = ()
    """`remove`: the sources whose documents go."""
    licence: tuple[str, ...] = ()
    """`remove`: the licences whose documents go."""
    pages: tuple[str, ...] = ("runs",)
    """`remove`, and `merge` for what was removed from any of its banks: folders with reports,
    results and samples, in which what shows the documents is blanked; documents that were removed
    before may be named again, to look through others."""
    out: str = ""
    """`audit`: also write a page with example queries as images, e.g. audit.html."""


def _require_words(command: str, words: list[str], options: Options) -> None:
    """Raise `UserError` unless the command has the words and options that it takes."""
    expected = {
        "query": "a prompt, in quotes",
        "remove": "the keys of documents, or --source or --licence",
        "merge": "the paths of other banks",
    }
    rules = bool(options.source or options.licence)
    right = bool(words) == (command in expected) or (command == "remove" and rules)
    if not right or (command == "query" and len(words) != 1):
        raise UserError(f"launch.index {command} takes {expected.get(command, 'no words')}.")
    owners = (
        (rules, ("remove",)),
        (options.pages != Options.pages, ("remove", "merge")),
        (bool(options.out), ("audit",)),
    )
    for given, commands in owners:
        if given and command not in commands:
            raise UserError(f"launch.index {command} does not take the options of {commands[0]}.")


def build(experiment: Experiment) -> None:
    """Build the bank unless it is there, and its index if that is of a kind that is saved."""
    tools, config = make_tools(experiment), experiment.retrieval
    with hold(experiment.data.bank, "building the bank's index"):  # on a server, too
        made = prepare_bank(SplitJob(experiment, "bank"), tools)
        index = open_index(made, config.index, config.milvus)
    reached = f", {index.effort.describe()}" if isinstance(index, ScannIndex) else ""
    print(f"{made.path}: {len(made)} documents, {type(index).__name__}{reached}")


@dataclasses.dataclass(frozen=True)
class Audited:
    """An audit for a terminal and for a browser."""

    text: str
    page: str


def audit_bank(experiment: Experiment) -> Audited:
    """The contents of the bank, how well and how fast text, image and both find them, and which
    cuts would fit."""
    encoder, opened = _open(experiment)
    opened.verify()
    index = open_index(opened, experiment.retrieval.index, experiment.retrieval.milvus)
    asked = asking(experiment.data, experiment.seed, encoder, "validation")
    if not asked.pairs:
        raise UserError("the source has no validation pairs to ask with; correct data.source.")
    fitted = audit.calibrate(asked.text, asked.image, asked.document, asked.subjects)
    copies = find_duplicates(
        opened.vectors, opened.content, index, experiment.retrieval.duplicate_cut
    )
    manifest, config = opened.manifest, experiment.retrieval
    queries = asked.queries
    dead = audit.dead_shards(opened, index)
    kinds = {{"pictures": "images"}.get(kind, kind): n for kind, n in manifest["counts"].items()}
    rows = [
        ("documents", f"{len(opened):,}: {_counts(kinds)}"),
        ("licences", _counts(manifest["licences"])),
        ("sources", _counts(manifest["sources"])),
        ("checksums", "all files are as they were written"),
        ("duplicates", f"{copies.exact:,} copies of other documents, {copies.near:,} nearly so"),
        ("self-retrieval", f"{audit.self_retrieval(opened, index):.4f}"),
        ("dead shards", ", ".join(dead) or "none"),
        ("index", f"{type(index).__name__}, {audit.index_bytes(opened, index) / 2**20:.1f} MiB"),
    ]
    for name, vectors in queries.items():
        rows.append((f"by {name}", _found(opened, index, vectors, asked, config)))
        rows.append(("latency", _percentiles(audit.latencies(index, vectors, config.pool))))
    rows += [
        ("relevance cut", f"{config.relevance_cut:.2f}; {fitted.relevance_cut:.2f} would fit"),
        ("diversity cut", f"{config.diversity_cut:.2f}; {fitted.diversity_cut:.2f} would fit"),
    ]
    shown = [
        AuditQuery(
            text, picture, {name: index.search(q[i : i + 1], 4) for name, q in queries.items()}
        )
        for i, (text, picture) in enumerate(asked.pairs[:_EXAMPLES])
    ]
    page = audit_page(opened, rows, shown, experiment.vocab, _image_tokenizer(experiment))
    return Audited("\n".join(f"{name:<15} {value}" for name, value in rows), page)


def _image_tokenizer(experiment: Experiment) -> ImageTokenizer | None:
    """The tokenizer that draws the bank's images, if the experiment names one."""
    path = experiment.tokenizers.image
    return vqgan.load(path) if path else None


def _percentiles(seconds: Float[np.ndarray, " B"]) -> str:
    """Percentiles of the time of a single query, in milliseconds."""
    parts = [f"p{p} {1000 * np.percentile(seconds, p):.2f} ms" for p in (50, 95, 99)]
    return f"{', '.join(parts)} of {len(seconds)} single queries"


def _found(opened: Bank, index: Index, queries, asked: Asking, config: RetrievalConfig) -> str:
    """Recall against exact search, and how many neighbours the selection drops, by rule."""
    recall = audit.recall(index, ExactIndex(opened.vectors), queries, RECALL_AT)
    pair = opened.has_text & opened.has_image
    choice = select_documents(index.search(queries, config.pool), opened.vectors, pair, config)
    shown = audit.subject_hits(choice.ids, opened, asked.subjects)
    counts = _counts(choice.counts)
    subjects = "no subjects known" if np.isnan(shown) else f"subjects shown {shown:.4f}"
    return f"recall@{RECALL_AT} {recall:.4f}, {subjects}; {counts}"


def query(experiment: Experiment, prompt: str) -> str:
    """The documents that a prompt (a text, an <image:PATH>, or both) finds, best first."""
    encoder, opened = _open(experiment)
    texts, images = [], []
    for part in parse_prompt(prompt):
        if isinstance(part, ImagePath):
            images.append(load_picture(part.path, encoder.config.image_size))
        elif isinstance(part, str):
            texts.append(part)
    if not texts and not images:
        raise UserError(f"the prompt {prompt!r} has neither a text nor an image to search with.")
    config = dataclasses.replace(experiment.retrieval, candidates=experiment.retrieval.documents)
    asked = (" ".join(texts) if texts else None, images[0] if images else None)
    (found,) = Retriever(encoder, opened, config).search([asked], config.documents, floor=-np.inf)
    floor = config.relevance_floor
    return "\n".join(
        f"{document.score:.3f}  {document.key}  {document.meta.text or '(an image)'}"
        + (f"  (below the floor of {floor:g}: no prompt is shown it)" * (document.score < floor))
        for document in found.documents
    )


def remove(experiment: Experiment, removed: Removed, pages: Sequence[str] = Options.pages) -> None:
    """Remove documents for good: `launch.prepare` and `merge` leave them out, too."""
    _require_folders(pages)
    before = len(Bank.open(experiment.data.bank))
    smaller = remove_documents(experiment.data.bank, experiment.retrieval, removed, pages)
    print(
        f"removed {before - len(smaller)} documents, {len(smaller)} are left; prepare the corpora "
        f"again. Looked for pages that show what was removed in {', '.join(pages) or 'no folder'}; "
        "corpora and weights that were made before may still hold it, and pages elsewhere: for "
        "these give the command again with --pages FOLDER."
    )


def _require_folders(pages: Sequence[str]) -> None:
    for folder in pages:
        if not Path(folder).is_dir() and pages != Options.pages:
            raise UserError(f"--pages {folder} is no folder here; the bank stays as it was.")


def merge(
    experiment: Experiment, paths: Sequence[str], pages: Sequence[str] = Options.pages
) -> None:
    """Add the documents of other banks; documents removed from any of them stay out."""
    _require_folders(pages)
    before = len(Bank.open(experiment.data.bank))
    larger = merge_banks(experiment.data.bank, experiment.retrieval, paths, pages)
    print(
        f"{larger.path}: {len(larger)} documents, {len(larger) - before} of them new; build its "
        "index and prepare the corpora again."
    )


def verify(experiment: Experiment) -> None:
    """Compare every file of the bank with its checksum."""
    opened = Bank.open(experiment.data.bank)
    opened.verify()
    print(f"{opened.path}: all {len(opened.manifest['files'])} files are as they were written.")


def _open(experiment: Experiment) -> tuple[ClipEncoder, Bank]:
    require_parts_named(experiment, ["retrieval.encoder"])
    require_made(experiment, ["retrieval.encoder"])
    encoder = clip.load(experiment.retrieval.encoder)
    return encoder, Bank.open(experiment.data.bank, encoder.fingerprint)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())


if __name__ == "__main__":
    main(run)
