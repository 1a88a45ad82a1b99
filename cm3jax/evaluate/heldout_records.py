"""Held-out records of any source, and which documents of a bank are right or wrong for them."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cm3jax.config import DataConfig
from cm3jax.data.partners import Partners, with_partners
from cm3jax.data.sources import RawRecord, open_source
from cm3jax.data.usable import usable
from cm3jax.errors import UserError
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip_encoder import text_and_image
from cm3jax.sequence import prng
from cm3jax.shapes import Int, RgbImage


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """A record that training never saw."""

    text: str
    picture: RgbImage
    raw: RawRecord


def held_out(
    data: DataConfig, seed: int, count: int, say: Callable[[str], None] = print, choice: int = 0
) -> list[HeldOut]:
    """Up to `count` records for validation with a text and an image; one caption for each image.

    `seed` is the run's, by which its source was split, `choice` that of the draw. Raises
    `UserError` where there are none, or where most are broken.
    """
    source = open_source(data, "validation", seed)
    order = prng.permutation(choice, 0, len(source)).tolist() if len(source) else []
    found: dict[str, HeldOut] = {}
    for _, record in usable(source, lambda number: source[order[number]], say):
        text, picture = text_and_image(record.segments)
        if text and text.strip() and picture is not None:
            found.setdefault(record.pictures[0], HeldOut(text, picture, record))
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"{data.source} holds back no record with a text and an image; give a source that "
            "does (split `validation`), or data.splits."
        )
    return list(found.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Which rows of a bank belong to each held-out record."""

    own: list[list[int]]
    """Rows that show the record's own image, which it must not be shown."""
    right: list[Int[np.ndarray, " _"]]
    """Rows with another image of the same subject; empty where there is none."""
    wrong: list[Int[np.ndarray, " _"]]
    """Rows with an image of another subject."""

    @classmethod
    def of(cls, records: Sequence[HeldOut], bank: Bank, partners: Partners) -> "Judged":
        """Reads the whole bank once; who shares a subject is decided as for the encoder's document
        loss (`clip.partners`)."""
        documents = list(bank.documents())
        names = [record.raw.subjects for record in records] + [d.subjects for d in documents]
        captions = [record.text for record in records] + [d.text for d in documents]
        marks = [record.raw.pictures[0] for record in records]
        marks += [d.pictures[0] if d.pictures else d.key for d in documents]
        groups = with_partners(names, captions, marks, partners)
        members = collections.defaultdict(list)
        for row, subjects in enumerate(groups[len(records) :]):
            for name in subjects:
                members[name].append(row)
        shown = np.flatnonzero(bank.has_image)
        own, right, wrong = [], [], []
        for record, subjects in zip(records, groups, strict=False):
            mine = bank.showing(record.raw.pictures)
            same = np.unique([row for name in subjects for row in members[name]]).astype(np.int64)
            own.append(mine.tolist())
            right.append(np.setdiff1d(np.intersect1d(same, shown), mine))
            wrong.append(np.setdiff1d(shown, np.union1d(same, mine)))
        return cls(own, right, wrong)


def drawn_rows(rows: Int[np.ndarray, " R"], count: int, seed: int, record: int) -> list[int]:
    """Up to `count` of some rows, a function of (seed, record)."""
    return rows[prng.permutation(seed, record, len(rows))[:count]].tolist() if len(rows) else []
