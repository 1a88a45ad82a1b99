"""One training row, token by token or run by run: what a model reads, and what it is asked."""

import dataclasses

import numpy as np

from cm3jax.data.cm3_rows import CorpusRows
from cm3jax.data.packing import BLOCK, OWN, Plan, epoch_order
from cm3jax.errors import UserError
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import Float, Int
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


def show_row(rows: CorpusRows, record: int, text: TextTokenizer, epoch: int = 0) -> str:
    """The row that holds a record in an epoch: its samples, then every token with its target.

    Where several stream rows share a record, the first of them. Raises `UserError` for a record
    that the corpus does not have.
    """
    corpus = rows.corpus
    if not 0 <= record < len(corpus):
        raise UserError(f"there is no record {record}; {corpus.path} has 0 to {len(corpus) - 1}.")
    order = epoch_order(rows.config.seed, epoch, len(corpus))
    block = int(np.flatnonzero(order == record)[0]) // BLOCK
    plan = rows.plan(epoch, block)
    held = np.flatnonzero(plan.records == record)
    row = int(plan.places.rows[held[np.argmax(plan.places.offsets[held])]])
    plan = plan.slice(row, row + 1)
    title = f"{corpus.path}: row {row} of block {block} of epoch {epoch}"
    tokens = _tokens(rows.build(plan), corpus.vocab, text)
    return "\n".join([title, "", *describe_samples(rows, plan), "", *tokens, ""])


def describe_samples(rows: CorpusRows, plan: Plan) -> list[str]:
    """A line for each sample of a plan: its record and masks; below it, one for each document."""
    lines = []
    for sample, record in enumerate(plan.records.tolist()):
        document = rows.corpus.document(record)
        lines.append(
            f"sample {plan.places.segments[sample]}: record {record}, {document.key} "
            f"({document.kind}), {plan.masks[sample]} masks drawn"
        )
        for row in plan.documents[sample].tolist():
            if row == OWN:
                lines.append("    the record itself")
            if rows.bank is not None and row >= 0:
                shown = rows.bank.meta(row)
                lines.append(f"    document {row}, {shown.key}: {shown.text or '(an image)'}")
    return lines


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of ids of one kind and one weight; a special id is a run by itself."""

    kind: Modality
    ids: tuple[int, ...]
    weight: float
    """The loss's weight of these targets; 0 for what the model is given."""
    place: int
    """For image codes: the place of the first one in its image, row-major, masks undone. Of an
    image that the beginning of a stream row cuts, where in what is left."""


def pieces(batch: Batch, vocab: Vocab) -> list[list[Piece]]:
    """The samples of a batch's first row as runs; padding is left out."""
    columns = (batch.segments, batch.tokens, batch.targets, batch.weights)
    segments, tokens, targets, weights = (np.asarray(column[0]) for column in columns)
    samples = []
    for segment in range(1, int(segments.max()) + 1):
        held = segments == segment
        # A sample's last target is asked for and never read, or belongs to what follows.
        ids, asked = tokens[held], np.append(0.0, weights[held])
        ids = np.append(ids, targets[held][-1]) if asked[-1] else ids
        samples.append(_runs(ids, asked[: len(ids)], vocab))
    return samples


def _runs(
    ids: Int[np.ndarray, " L"], weights: Float[np.ndarray, " L"], vocab: Vocab
) -> list[Piece]:
    hidden = _span_lengths(ids, vocab)
    starts: dict[int, int] = {}
    runs: list[Piece] = []
    place = 0
    for id_, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        kind = Modality(int(vocab.modality(id_)))
        if kind != Modality.SPECIAL:
            last = runs[-1] if runs else None
            if last and (last.kind, last.weight) == (kind, weight):
                runs[-1] = dataclasses.replace(last, ids=(*last.ids, id_))
            else:
                runs.append(Piece(kind, (id_,), weight, place))
            place += 1
            continue
        runs.append(Piece(kind, (id_,), weight, 0))
        if not vocab.is_sentinel(id_):
            place = 0
        elif id_ in starts:  # recalled: its span follows
            place = starts[id_]
        else:
            starts[id_] = place
            place += hidden.get(id_, 0)
    return runs


def _span_lengths(ids: Int[np.ndarray, " L"], vocab: Vocab) -> dict[int, int]:
    """How many ids each recalled sentinel has behind it, by sentinel."""
    specials = np.flatnonzero(vocab.modality(ids) == Modality.SPECIAL)
    ends = np.append(specials[1:], len(ids))
    # The second occurrence is the recalled one and overwrites the first.
    return {int(ids[at]): int(end - at - 1) for at, end in zip(specials, ends, strict=True)}


def _tokens(batch: Batch, vocab: Vocab, text: TextTokenizer) -> list[str]:
    """A table with one line per token, and how it is read; padding is left out."""

    def name(id_: int) -> str:
        if vocab.modality(np.asarray(id_)) != Modality.TEXT:
            return vocab.name(id_)
        return f"{vocab.name(id_)} {text.decode([id_ - vocab.first_text])!r}"

    columns = (batch.segments, batch.positions, batch.tokens, batch.targets, batch.weights)
    lines = [
        "T is a piece of the text tokenizer, I a code of the image tokenizer; a target in brackets "
        "is given, not asked.",
        "",
        "sample  position  token                 target                weight",
    ]
    rows = (column[0].tolist() for column in columns)
    for segment, position, token, target, weight in zip(*rows, strict=True):
        if segment:
            asked = name(target) if weight else f"({name(target)})"
            lines.append(f"{segment:6}  {position:8}  {name(token):20}  {asked:20}  {weight:6g}")
    return lines
