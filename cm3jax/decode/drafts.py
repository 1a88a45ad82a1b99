"""Guesses of what samples emit next, for `speculate.py`.

What a pass draws behind a wrong guess was drawn with the noise of its place, so it often is what
will be drawn there (speculative Jacobi decoding, arXiv 2410.01699). Elsewhere an id is looked up:
in the documents and the rest of the prompt, and in what the sample has emitted, where the ids
before it and the code above it are the same. Two ways to mix both are at hand, and each sample
takes the one that has been right more often of late.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Bool, Float, Int

UNKNOWN = -1
"""An id that is not there, or not guessed yet."""
_BACKGROUND = -2
"""What stands for any code that repeats."""
_SURE = 11
"""The likeness of a place that `_look_up` is sure of."""
_KEPT = 0.9
"""What a source's successes still count an id later."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["ids", "read", "scores"], meta_fields=["prompt"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Drafts:
    """What each sample has read and emitted, and guesses of what it emits next."""

    ids: Int[Array, "B L"]
    """The conditional stream's prompt, `UNKNOWN` in front, then by place what was emitted, then
    guesses or `UNKNOWN`."""
    read: Int[Array, "B L"]
    """What the last pass over a place has read there."""
    scores: Float[Array, "B 2"]
    """How often each source has been right of late."""
    prompt: int
    """Places of the prompt in `ids`."""

    @classmethod
    def empty(cls, samples: int, prompt: int, tokens: int) -> "Drafts":
        """Room for prompts and answers; none of both where nothing is guessed."""
        return cls.before(jnp.full((samples, prompt + tokens), UNKNOWN, jnp.int32), prompt)

    @classmethod
    def before(cls, ids: Int[Array, "B L"], prompt: int) -> "Drafts":
        """Drafts of samples that have emitted nothing; `ids` as in the field."""
        return cls(ids, jnp.full_like(ids, UNKNOWN), jnp.zeros((len(ids), 2)), prompt)

    def sources(self, emitted: Int[Array, " B"], count: int, vocab: Vocab) -> Int[Array, "2 B n"]:
        """Guesses of the next `count` ids, by source."""
        if not count:
            return jnp.zeros((2, len(emitted), 0), jnp.int32)

        def guess(carry, place):
            """The id at a place, by source: drawn ids while all that was read before them holds, or
            behind each id that was read; others are looked up where that is sure."""
            ids, whole = carry
            place = self.prompt + emitted + place
            drawn = _at(self.ids, place)
            holds = _at(self.read, place - 1) == jax.vmap(_at, (0, None))(ids, place - 1)
            whole = whole & holds[0]
            looked_up, sure = jax.vmap(lambda each: _look_up(each, place, self.prompt, vocab))(ids)
            uses = (jnp.stack([whole, holds[1]]) | ~sure) & (drawn != UNKNOWN)
            found = jnp.where(uses, drawn, looked_up)
            ids = ids.at[:, jnp.arange(len(place)), place].set(found, mode="drop")
            return (ids, whole), found

        start = (jnp.stack([self.ids, self.ids]), jnp.ones(len(emitted), bool))
        return jnp.moveaxis(jax.lax.scan(guess, start, jnp.arange(count))[1], 0, -1)

    def chosen(self, sources: Int[Array, "2 B n"]) -> Int[Array, "B n"]:
        """The guesses of each sample's better source."""
        guesses = jnp.where(self.scores[:, :1] > self.scores[:, 1:], sources[0], sources[1])
        return jnp.maximum(guesses, 0)  # an empty slot has nothing to guess from

    def after(
        self,
        emitted: Int[Array, " B"],
        read: Int[Array, "B n"],
        drawn: Int[Array, "N B"],
        kept: Bool[Array, "N B"],
        sources: Int[Array, "2 B n"],
    ) -> "Drafts":
        """With what a pass `read` and drew behind `emitted` ids; it emitted what is `kept`."""
        rows = jnp.arange(len(emitted))[:, None]
        places = self.prompt + emitted[:, None] + jnp.arange(len(drawn))
        ids = self.ids.at[rows, places].set(drawn.T, mode="drop")
        read = self.read.at[rows, places[:, :-1]].set(read, mode="drop")
        right = ((sources == drawn[:-1].T) & kept[:-1].T).sum(-1)
        scores = self.scores * _KEPT ** kept.sum(0)[:, None] + right.T
        return Drafts(ids, read, scores, self.prompt)

    def followed_by(self, emitted: Int[Array, " B"], ids: Int[Array, "T B"]) -> "Drafts":
        """These drafts, where passes without guesses have emitted more ids, behind `emitted`."""
        if not self.prompt:
            return self
        places = self.prompt + emitted[:, None] + jnp.arange(len(ids))
        rows = jnp.arange(len(emitted))[:, None]
        return dataclasses.replace(self, ids=self.ids.at[rows, places].set(ids.T, mode="drop"))


def _at(ids: Int[Array, "B L"], places: Int[Array, " B"]) -> Int[Array, " B"]:
    places = jnp.maximum(places, 0)[:, None]
    return jnp.take_along_axis(ids, places, axis=1, mode="clip")[:, 0]


def _look_up(
    ids: Int[Array, "B L"], place: Int[Array, " B"], prompt: int, vocab: Vocab
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The id at the place before `place` whose surroundings are most like those of `place`, and
    whether the id before it and two more of these are the same. The first `prompt` places are the
    prompt's.

    What counts is the id before it, the one before that, and in images the codes above and above
    on the right, and the column: the last place of several. Without any, the newest id. Codes
    follow codes. Codes that repeat count as one, the sample's own background, so that what a
    document shows is found on another one.
    """
    length, grid = ids.shape[1], vocab.config.grid
    here = jnp.arange(length)
    codes = (ids >= vocab.first_image) & (ids < vocab.first_text)
    before, after = (codes & (ids == _moved(ids, places)) for places in (1, -1))
    drawn = before & (here >= prompt) & (here < place[:, None])
    latest = jnp.where(drawn, here, -1).max(axis=1)
    background = jnp.where(latest < 0, UNKNOWN, _at(ids, latest))
    plain = before | after | (codes & (ids == background[:, None]))
    alike = jnp.where(plain, _BACKGROUND, ids)
    column = here - jax.lax.cummax(jnp.where(codes, -1, here + 1), axis=1)

    def same(back: int) -> Bool[Array, "B L"]:
        return _moved(alike, back) == _at(alike, place - back)[:, None]

    one, newest = same(1), _at(ids, place - 1)
    drawing = ((newest >= vocab.first_image) & (newest < vocab.first_text))[:, None]
    beside = (_at(column, place - 1)[:, None] + 1 - column) % grid == 0
    around = codes * (3 * same(grid) + 3 * same(max(grid - 1, 1)) + beside)
    likeness = 6 * one + 2 * (one & same(2)) + around
    there = (here < place[:, None]) & (ids != UNKNOWN) & (codes | ~drawing)
    best = jnp.where(there, likeness * length + here, 0).max(axis=1)
    found = _at(
        jnp.where(plain & (background >= 0)[:, None], background[:, None], ids), best % length
    )
    return jnp.where(best >= length, found, newest), best >= _SURE * length


def _moved(ids: Int[Array, "B L"], places: int) -> Int[Array, "B L"]:
    """What is this many places before each; `UNKNOWN` beyond the ends."""
    there = jnp.arange(ids.shape[1]) - places
    return jnp.where((there >= 0) & (there < ids.shape[1]), jnp.roll(ids, places, 1), UNKNOWN)
