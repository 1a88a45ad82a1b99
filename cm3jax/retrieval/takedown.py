"""Taking documents out of a memory bank for good, and merging banks, which brings none of them
back."""

import functools
import operator
from collections.abc import Sequence

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.folders import hold
from cm3jax.retrieval.bank import Bank, rewrite
from cm3jax.retrieval.bank_files import key_hash
from cm3jax.retrieval.bank_writer import sweep_parts
from cm3jax.retrieval.removed import Removed


def require_there(bank: Bank, removed: Removed) -> None:
    """Raise `UserError` for a key, a source or a licence that no document of the bank has."""
    hashes = set(bank.key_hashes.tolist())
    there = {
        "document": (removed.keys, lambda key: key_hash(key) in hashes),
        "source": (removed.sources, bank.manifest["sources"].__contains__),
        "licence": (removed.licences, bank.manifest["licences"].__contains__),
    }
    for what, (names, known) in there.items():
        for name in names:
            if not known(name):
                raise UserError(
                    f"the bank {bank.path} has no {what} {name!r}; nothing was removed."
                )


def remove(bank: Bank, removed: Removed) -> Bank:
    """Take documents out of a bank for good: their text, codes and vectors are gone from it, from
    what was derived from it, and from what is prepared next in its place.

    The list of what was taken out is written first of all. Killed at any moment after that, opening
    the bank finishes it. Rows move, so neighbours prepared for the old bank don't fit the new one
    (its fingerprint says so), and a saved index goes with the old bank. Raises `UserError` for what
    is not there.
    """
    with hold(bank.path, "removing documents"):
        require_there(bank, removed)
        (Removed.of(bank.path) | removed).save(bank.path)
        return Bank.open(bank.path)


def merge(path: epath.PathLike, banks: Sequence[Bank], made_from: str = "") -> Bank:
    """Write one bank of several at `path`, in order, in bounded memory.

    What was taken out of any of them, or of the bank at `path`, stays out from then on. A document
    that an earlier bank has, under the same key and with the same ids, is not repeated; another one
    under the same key gets its content's hash behind it, the same whenever it is merged. Raises
    `UserError` for banks of different encoders or vocabularies.
    """
    first = banks[0].manifest
    for bank in banks[1:]:
        for what in ("encoder", "vocab"):
            if bank.manifest[what] != first[what]:
                raise UserError(
                    f"the bank {bank.path} was made with {what} {bank.manifest[what]}, but "
                    f"{banks[0].path} with {first[what]}; only banks of one {what} can be merged."
                )
    with hold(path, "merging banks into it"):
        known = Removed.of(path)
        removed = functools.reduce(operator.or_, (Removed.of(b.path) for b in banks), known)
        if removed != known:
            removed.save(path)
            sweep_parts(path, "parts")
        rewrite(path, banks, removed, made_from)
        return Bank.open(path)
