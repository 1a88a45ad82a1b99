"""One training row as text, so that what a model reads and is asked can be seen."""

import numpy as np

from cm3jax.data.packing import BLOCK, Plan, epoch_order
from cm3jax.data.rows import CorpusRows
from cm3jax.errors import UserError
from cm3jax.sequence import Batch
from cm3jax.tokenizers.text import TextTokenizer
from cm3jax.vocab import Modality, Vocab


def show_row(rows: CorpusRows, record: int, text: TextTokenizer, epoch: int = 0) -> str:
    """The row that holds a record in an epoch: its samples, then every token with its target.

    Of a record that several stream rows share, the first of them. Raises `UserError` for a record
    that the corpus does not have.
    """
    corpus = rows.corpus
    if not 0 <= record < len(corpus):
        raise UserError(f"there is no record {record}; {corpus.path} has 0 to {len(corpus) - 1}.")
    order = epoch_order(rows.experiment.seed, epoch, len(corpus))
    block = int(np.flatnonzero(order == record)[0]) // BLOCK
    plan = rows.plan(epoch, block)
    held = np.flatnonzero(plan.records == record)
    row = int(plan.places.rows[held[np.argmax(plan.places.offsets[held])]])
    plan = plan.slice(row, row + 1)
    title = f"{corpus.path}: row {row} of block {block} of epoch {epoch}"
    tokens = _tokens(rows.build(plan), corpus.vocab, text)
    return "\n".join([title, "", *_samples(rows, plan), "", *tokens, ""])


def _samples(rows: CorpusRows, plan: Plan) -> list[str]:
    lines = []
    for sample, record in enumerate(plan.records.tolist()):
        document = rows.corpus.document(record)
        lines.append(
            f"sample {plan.places.segments[sample]}: record {record}, {document.key} "
            f"({document.kind}), {plan.masks[sample]} masks drawn"
        )
        for row in plan.documents[sample].tolist():
            if row >= 0:
                shown = rows.bank.meta(row)
                lines.append(f"    document {row}, {shown.key}: {shown.text or '(a picture)'}")
    return lines


def _tokens(batch: Batch, vocab: Vocab, text: TextTokenizer) -> list[str]:
    """A table with one line per token; padding is left out."""

    def name(id_: int) -> str:
        if vocab.modality(np.asarray(id_)) != Modality.TEXT:
            return vocab.name(id_)
        return f"{vocab.name(id_)} {text.decode([id_ - vocab.first_text])!r}"

    columns = (batch.segments, batch.positions, batch.tokens, batch.targets, batch.weights)
    lines = ["sample  position  token                 target                weight"]
    rows = (column[0].tolist() for column in columns)
    for segment, position, token, target, weight in zip(*rows, strict=True):
        if segment:
            asked = name(target) if weight else f"({name(target)})"
            lines.append(f"{segment:6}  {position:8}  {name(token):20}  {asked:20}  {weight:6g}")
    return lines
