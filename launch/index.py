"""The memory bank and its index: build them, audit them, search them, take documents out.

python -m launch.index build quickstart
python -m launch.index audit quickstart --retrieval.index scann
python -m launch.index query quickstart "a red circle <image:x.png>" --retrieval.documents 5
python -m launch.index remove quickstart bank-17 bank-40
"""

import dataclasses

import numpy as np

from cm3jax.config import Experiment, RetrievalConfig
from cm3jax.data.prepare import prepare_bank, remove_documents
from cm3jax.data.sources import open_source
from cm3jax.document import ImagePath, parse_prompt
from cm3jax.errors import UserError
from cm3jax.learners import clip
from cm3jax.retrieval import audit
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip import ClipEncoder, fit, text_and_image
from cm3jax.retrieval.index import SAVED, ExactIndex, Index, ScannIndex, build_index, open_index
from cm3jax.retrieval.retriever import Retriever
from cm3jax.retrieval.select import choose
from cm3jax.shapes import Float
from cm3jax.tokenizers.image import load_picture
from launch.cli import parse_experiment
from launch.env import main
from launch.prepare import make_tools

COMMANDS = ("build", "audit", "query", "remove")
_DESCRIPTION = (
    "The first argument is what to do with the experiment's memory bank: `build` it and its index; "
    "`audit` recall and licences; `query` it with a PROMPT; `remove` documents by their KEYs."
)
_RECALL_AT = 10
_QUERIES = 500


def run(argv: list[str]) -> None:
    """Do what the first argument says with the bank of the experiment that the second names."""
    if not argv or argv[0] in ("-h", "--help"):
        parse_experiment(["--help"], _DESCRIPTION)
    command, *rest = argv
    if command not in COMMANDS:
        raise UserError(f"there is no {command!r} of an index; there are {', '.join(COMMANDS)}.")
    first_option = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    words = rest[1:first_option]
    experiment = parse_experiment([*rest[:1], *rest[max(first_option, 1) :]], _DESCRIPTION)
    expected = {"query": "a prompt, in quotes", "remove": "the keys of documents"}
    if bool(words) != (command in expected) or (command == "query" and len(words) != 1):
        raise UserError(f"launch.index {command} takes {expected.get(command, 'no words')}.")
    if not experiment.data.bank:
        raise UserError("data.bank is empty; say where the memory bank is.")
    match command:
        case "build":
            build(experiment)
        case "audit":
            print(audit_report(experiment))
        case "query":
            print(query(experiment, words[0]))
        case "remove":
            remove(experiment, words)


def build(experiment: Experiment) -> None:
    """Build the bank unless it stands, and beside it the index if that is one that is saved."""
    made = prepare_bank(experiment, make_tools(experiment))
    index = build_index(made.vectors, experiment.retrieval.index)
    if isinstance(index, ScannIndex):
        index.save(made.path / SAVED)
    print(f"{made.path}: {len(made)} documents, {type(index).__name__}")


def audit_report(experiment: Experiment) -> str:
    """What is in the bank, what of it is found by text and by picture, and which cuts would fit."""
    encoder, opened = _open(experiment)
    opened.verify()
    index = open_index(opened, experiment.retrieval.index)
    asking = _asking(experiment, encoder)
    fitted = audit.calibrate(asking.text, asking.image, asking.document, asking.subjects)
    manifest, config = opened.manifest, experiment.retrieval
    return "\n".join(
        [
            f"documents       {len(opened)}: {_counts(manifest['counts'])}",
            f"licences        {_counts(manifest['licences'])}",
            f"sources         {_counts(manifest['sources'])}",
            "checksums       all files are as they were written",
            f"self-retrieval  {audit.self_retrieval(opened, index):.4f}",
            f"by text         {_found(opened, index, asking.text, asking, config)}",
            f"by picture      {_found(opened, index, asking.image, asking, config)}",
            f"relevance cut   {config.relevance_cut:.2f}; {fitted.relevance_cut:.2f} would fit",
            f"diversity cut   {config.diversity_cut:.2f}; {fitted.diversity_cut:.2f} would fit",
        ]
    )


@dataclasses.dataclass(frozen=True)
class _Asking:
    """Pairs that no one trained on, as queries."""

    text: Float[np.ndarray, "B E"]
    image: Float[np.ndarray, "B E"]
    document: Float[np.ndarray, "B E"]
    subjects: list[tuple[str, ...]]


def _asking(experiment: Experiment, encoder: ClipEncoder) -> _Asking:
    source = open_source(experiment.data, "validation", experiment.seed)
    pairs, subjects = [], []
    for record in (source[i] for i in range(min(_QUERIES, len(source)))):
        text, image = text_and_image(record.segments)
        if text is not None and image is not None:
            pairs.append((text, fit(image, encoder.config)))
            subjects.append(record.subjects)
    if not pairs:
        raise UserError("the source's validation split has no pairs to ask with; mend data.source.")
    text = encoder.encode_texts([text for text, _ in pairs])
    image = encoder.encode_images([image for _, image in pairs])
    return _Asking(text, image, encoder.encode_documents(pairs), subjects)


def _found(opened: Bank, index: Index, queries, asking: _Asking, config: RetrievalConfig) -> str:
    """Recall against exact search, and what the selection makes of the neighbours."""
    recall = audit.recall(index, ExactIndex(opened.vectors), queries, _RECALL_AT)
    pair = opened.has_text & opened.has_image
    choice = choose(index.search(queries, config.pool), opened.vectors, pair, config)
    shown = audit.subject_hits(choice.ids, opened, asking.subjects)
    counts = _counts(choice.counts)
    return f"recall@{_RECALL_AT} {recall:.4f}, subjects shown {shown:.4f}; {counts}"


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
        raise UserError(f"the prompt {prompt!r} has neither a text nor a picture to search with.")
    config = dataclasses.replace(experiment.retrieval, candidates=experiment.retrieval.documents)
    asked = (" ".join(texts) if texts else None, images[0] if images else None)
    found = Retriever(encoder, opened, config).retrieve([asked], config.documents)[0]
    return "\n".join(
        f"{document.score:.3f}  {document.key}  {document.meta.text or '(a picture)'}"
        for document in found
    )


def remove(experiment: Experiment, keys: list[str]) -> None:
    """Take documents out of the bank, for good: `launch.prepare` leaves them out, too."""
    smaller = remove_documents(experiment, keys)
    print(f"removed {len(keys)} documents, {len(smaller)} are left; prepare the corpora again.")


def _open(experiment: Experiment) -> tuple[ClipEncoder, Bank]:
    encoder = clip.load(experiment.retrieval.encoder)
    return encoder, Bank.open(experiment.data.bank, encoder.fingerprint)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items())


if __name__ == "__main__":
    main(run)
