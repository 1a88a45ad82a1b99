"""Taking documents out of a memory bank for good, and merging banks, which brings none of them
back."""

import functools
import operator
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.folders import hold, scratch
from cm3jax.io.texts import brief
from cm3jax.retrieval.bank import Bank, before_merging, rewrite
from cm3jax.retrieval.bank_files import bank_files, key_hash, mark_of
from cm3jax.retrieval.bank_writer import require_writable, sweep_parts
from cm3jax.retrieval.pages import blank_pages
from cm3jax.retrieval.removed import Removed


def require_there(bank: Bank, removed: Removed) -> None:
    """Raise `UserError` for a key, a source or a licence that no document of the bank has, nor had
    before it was taken out."""
    hashes, before = set(bank.key_hashes.tolist()), Removed.of(bank.path)
    there = {
        "document": (removed.keys, lambda key: key_hash(key) in hashes or key in before.keys),
        "source": (removed.sources, {*bank.manifest["sources"], *before.sources}.__contains__),
        "licence": (removed.licences, {*bank.manifest["licences"], *before.licences}.__contains__),
    }
    for what, (names, known) in there.items():
        for name in names:
            if not known(name):
                raise UserError(
                    f"the bank {bank.path} has no {what} {brief(name, 200)}; nothing was removed."
                )


def remove(
    bank: Bank,
    removed: Removed,
    folders: Sequence[epath.PathLike] = (),
    say: Callable[[str], None] = print,
) -> Bank:
    """Take documents out of a bank for good: their text, codes and vectors are gone from it, from
    what was derived from it, and from what is prepared next in its place.

    First the pages below `folders` that show one of them, or one that was taken out before, are
    blanked (`blank_pages`), and `say` gets a line of each. Then the list of what is taken out is
    written: killed at any moment after that, opening the bank finishes it; killed before, removing
    again does. At last pages that were written meanwhile are blanked. Rows move, so neighbours
    prepared for the old bank don't fit the new one (its fingerprint says so), and a saved index
    goes with the old bank. Raises `UserError` for what is not there, and at the end for pages that
    cannot be written and for an old bank that cannot be deleted.
    """
    with hold(bank.path, "removing documents"):
        require_there(bank, removed)
        require_writable(bank.path)
        listed = Removed.of(bank.path) | removed | Removed(marks=_marks(bank, removed))
        say = _once(say)
        blank_pages(listed, folders, say)
        listed.save(bank.path)
        smaller = Bank.open(bank.path)
        # Pages that were written since, by who had the old bank open.
        _require_blanked(bank.path, blank_pages(listed, folders, say))
        _require_deleted(bank.path)
        return smaller


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` that passes every line on once."""
    said: set[str] = set()

    def new(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return new


def _require_blanked(bank: epath.PathLike, failed: Sequence[str]) -> None:
    """Raise `UserError` if pages still show what is out of the bank by now."""
    if failed:
        raise UserError(
            f"the documents are taken out of {bank}, but {len(failed)} "
            f"{'files show' if failed[1:] else 'file shows'} them still and cannot be written: "
            f"{', '.join(failed)}; correct the permissions and give the command again, or delete "
            "what it names."
        )


def _require_deleted(bank: epath.PathLike) -> None:
    """Raise `UserError` if the bank that was replaced still lies beside the new one, as where its
    folder may not be written to: readers go on without a word."""
    old = scratch(bank, "old")
    if bank_files(old) is not None:
        raise UserError(
            f"the documents are taken out of {bank}, but {old}, which it replaced, has them still "
            "and cannot be deleted; correct the permissions there and give the command again, or "
            "delete it."
        )


def _marks(bank: Bank, removed: Removed) -> tuple[str, ...]:
    """Marks of the documents that are taken out; keys are looked up, rules read the whole bank."""
    if removed.sources or removed.licences:
        rows: Sequence[int] = range(len(bank))
    else:
        wanted = np.asarray([key_hash(key) for key in removed.keys], np.uint64)
        rows = np.flatnonzero(np.isin(bank.key_hashes, wanted)).tolist()
    gone = (d for d in map(bank.meta, rows) if removed.covers(d.key, d.source, d.licence))
    # Pages of the bank that it was merged from show it under the key that it had there.
    return tuple(mark_of(name) for d in gone for name in (d, before_merging(d)))


def require_alike(banks: Sequence[Bank]) -> None:
    """Raise `UserError` for banks that cannot be merged: of different encoders or vocabularies."""
    first = banks[0].manifest
    for bank in banks[1:]:
        for what in ("encoder", "vocab"):
            if bank.manifest[what] != first[what]:
                raise UserError(
                    f"the bank {bank.path} was made with {what} {bank.manifest[what]}, but "
                    f"{banks[0].path} with {first[what]}; only banks of one {what} can be merged."
                )


def merge(
    path: epath.PathLike,
    banks: Sequence[Bank],
    made_from: str = "",
    folders: Sequence[epath.PathLike] = (),
    say: Callable[[str], None] = print,
) -> Bank:
    """Write one bank of several at `path`, in order, in bounded memory.

    What was taken out of any of them, or of the bank at `path`, stays out from then on, and what
    shows it in pages below `folders` is blanked as `remove` does. A document that an earlier bank
    has, under the same key and with the same ids, is not repeated; another one under the same key
    gets its content's hash behind it, the same whenever it is merged. Raises `UserError` for banks
    of different encoders or vocabularies, and at the end for pages that cannot be written.
    """
    require_alike(banks)
    with hold(path, "merging banks into it"):
        require_writable(path)
        known = Removed.of(path)
        removed = functools.reduce(operator.or_, (Removed.of(b.path) for b in banks), known)
        removed |= Removed(marks=tuple(mark for bank in banks for mark in _marks(bank, removed)))
        say = _once(say)
        blank_pages(removed, folders, say)
        if removed != known:
            removed.save(path)
            sweep_parts(path, "parts")
        rewrite(path, banks, removed, made_from)
        merged = Bank.open(path)
        _require_blanked(path, blank_pages(removed, folders, say))
        return merged
