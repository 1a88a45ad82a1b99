"""Keys and values of prompts that were read, so that what begins like one of them costs less.

A prefix that was read is not read again, and of one that begins like it, say after the same
documents, only the rest is. What was used longest ago goes when the bytes are more than the limit.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.decode.plan import CHUNK, bucket
from cm3jax.decode.request import Request
from cm3jax.model.cache import KeyValues, start_cache
from cm3jax.model.language_model import LanguageModel
from cm3jax.shapes import Array, Int

Layers = tuple[KeyValues, ...]
"""Keys and values of every layer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A prefix, and the beginning of its keys and values that are there."""

    ids: Int[np.ndarray, " L"]
    """All of its ids but the last, which the first step feeds."""
    layers: Layers
    """[1 K S A] each, with at least `length` entries."""
    length: int
    """How many of the ids are read; all, or some."""


class PrefixCache:
    """What was read, up to `limit` bytes."""

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[bytes, Known] = OrderedDict()

    def find(self, ids: Int[np.ndarray, " L"], beginnings: bool) -> Known | None:
        """What is known of a prefix, all ids but the last; None where it is too little to help.

        With `beginnings`, one with which it shares at least half of its ids will do.
        """
        whole = self._kept.get(ids.tobytes())
        if whole is not None:
            self._kept.move_to_end(ids.tobytes())
            return whole
        best, shared = None, max(CHUNK, len(ids) // 2) - 1
        for name, known in self._kept.items() if beginnings else ():
            if not name.startswith(ids[: shared + 1].tobytes()):
                continue  # of thousands that are kept, few are looked at closely
            length = _shared(known.ids, ids)
            if length > shared:
                best, shared = known, length
        if best is None:
            return None
        self._kept.move_to_end(best.ids.tobytes())
        return Known(ids, best.layers, shared)

    def find_all(self, request: Request, beginnings: bool) -> list[Known]:
        """What is known of the prefixes of each stream; nothing unless of all."""
        found = [self.find(prefix[:-1], beginnings) for prefix in request.prefixes]
        known = [one for one in found if one is not None]
        return known if len(known) == len(found) else []

    def exchange(
        self,
        model: LanguageModel,
        variables: dict,
        layers: Layers,
        first: int,
        request: Request,
        found: Sequence[Known],
    ) -> Layers:
        """The decoding cache's prefixes with those `found` of a request in the rows from `first`
        on. Where nothing was found they are there already, and are kept."""
        for row, prefix in enumerate(request.prefixes, first):
            if not found:
                self.keep(_taken(layers, row, prefix[:-1]))
                continue
            known = found[row - first]
            if known.length < len(known.ids):
                known = _read_rest(model, variables, known)
                self.keep(known)
            layers = _put(layers, row, known.layers)
        return layers

    def keep(self, known: Known) -> None:
        """Keep a prefix that was read whole, if it has room."""
        size = _bytes(known)
        if known.ids.tobytes() in self._kept or size > self.limit:
            return
        self._kept[known.ids.tobytes()] = known
        self.bytes += size
        while self.bytes > self.limit:
            _, old = self._kept.popitem(last=False)
            self.bytes -= _bytes(old)

    def clear(self) -> None:
        """Forget everything: what was read may not be kept for ever."""
        self._kept.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)


def _shared(one: Int[np.ndarray, " _"], other: Int[np.ndarray, " _"]) -> int:
    """How many ids two prefixes begin with alike."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _bytes(known: Known) -> int:
    return sum(part.nbytes for part in jax.tree.leaves(known.layers))


def _read_rest(model: LanguageModel, variables: dict, known: Known) -> Known:
    """The prefix with what was not known of it read."""
    rest = known.ids[known.length :]
    tokens = np.zeros((1, bucket(len(rest))), np.int32)
    tokens[0, : len(rest)] = rest
    size = bucket(len(known.ids))
    read = (known.layers, known.length, known.ids[known.length - 1])
    layers = _extended(model, variables, *read, tokens, size)
    return Known(known.ids, layers, len(known.ids))


@partial(jax.jit, static_argnames=("model", "size"))
def _extended(
    model,
    variables,
    layers: Layers,
    length: Int[Array, ""],
    newest: Int[Array, ""],
    tokens: Int[Array, "1 T"],
    size: int,
) -> Layers:
    """Keys and values, `size` of them, of the first `length` tokens, the last of which is `newest`,
    and then of `tokens`."""
    read = (jnp.asarray(length)[None], jnp.asarray(newest)[None])
    cache = start_cache(layers, *read, 1, tokens.shape[1])
    _, cache = model.apply(variables, tokens, cache, method="extend")

    def joined(old: Array, new: Array) -> Array:
        old = jnp.pad(old, [(0, 0), (0, 0), (0, max(0, size - old.shape[2])), (0, 0)])
        places = length + jnp.arange(new.shape[2])
        return old[:, :, :size].at[:, :, places].set(new, mode="drop")

    return jax.tree.map(joined, layers, cache.suffix)


def _taken(layers: Layers, row: int, ids: Int[np.ndarray, " L"]) -> Known:
    """The prefix in a row of the decoding cache."""
    size = min(bucket(len(ids)), layers[0].keys.shape[2])
    return Known(ids, _cut(layers, row, size), len(ids))


@partial(jax.jit, static_argnames="size")
def _cut(layers: Layers, row: Int[Array, ""], size: int) -> Layers:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1)[:, :, :size], layers)


@partial(jax.jit, donate_argnames="layers")
def _put(layers: Layers, row: Int[Array, ""], found: Layers) -> Layers:
    """The prefixes of the decoding cache with this one in a row; what is behind it stays."""

    def one(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice(old, new[:, :, : old.shape[2]], (row, 0, 0, 0))

    return jax.tree.map(one, layers, found)


def programs() -> int:
    """How many programs of this module the process has compiled."""
    return sum(f._cache_size() for f in (_extended, _cut, _put))  # type: ignore[attr-defined]
