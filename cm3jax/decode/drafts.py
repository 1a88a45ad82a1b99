"""Guesses of what samples emit next, for `speculate.py`.

One source is the model: what a pass draws behind a wrong guess was drawn with the noise of its
place, so it often is what will be drawn there (speculative Jacobi decoding, arXiv 2410.01699);
where no pass has been yet, the code above it stands in. The other source is what was read: the
documents of the prompt, and the sample itself, from the place on that looks most like the newest
ids. Each sample takes the source that has been right more often of late.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Bool, Float, Int

UNKNOWN = -1
"""An id that is not there, or not guessed yet."""
_KEPT = 0.9
"""What a source's successes still count an id later."""


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "scores"], meta_fields=["prompt"])
@dataclasses.dataclass(frozen=True, eq=False)
class Drafts:
    """What each sample has read and emitted, and guesses of what it emits next."""

    ids: Int[Array, "B L"]
    """The conditional stream's prompt, `UNKNOWN` in front, then by place what was emitted, then
    guesses or `UNKNOWN`."""
    scores: Float[Array, "B 2"]
    """How often each source has been right of late."""
    prompt: int
    """Places of the prompt in `ids`."""

    @classmethod
    def empty(cls, samples: int, prompt: int, tokens: int) -> "Drafts":
        """Room for prompts and answers; none of both where nothing is guessed."""
        ids = jnp.full((samples, prompt + tokens), UNKNOWN, jnp.int32)
        return cls(ids, jnp.zeros((samples, 2)), prompt)

    def sources(self, emitted: Int[Array, " B"], count: int, vocab: Vocab) -> Int[Array, "2 B n"]:
        """Guesses of the next `count` ids, by source."""
        if not count:
            return jnp.zeros((2, len(emitted), 0), jnp.int32)
        places = self.prompt + emitted[:, None] + jnp.arange(count)
        grid = vocab.config.grid
        drawn, above = self._at(places), self._at(places - grid)
        newest = self._at(self.prompt + emitted[:, None] - 1)
        above = jnp.where(above == UNKNOWN, newest, above)
        drawn = jnp.where(drawn == UNKNOWN, above, drawn)
        start = self._likest(self.prompt + emitted, vocab)[:, None]
        read = self._at(start + jnp.arange(count))
        return jnp.stack([drawn, jnp.where((start < 0) | (read == UNKNOWN), drawn, read)])

    def chosen(self, sources: Int[Array, "2 B n"]) -> Int[Array, "B n"]:
        """The guesses of each sample's better source."""
        guesses = jnp.where(self.scores[:, :1] > self.scores[:, 1:], sources[0], sources[1])
        return jnp.maximum(guesses, 0)  # an empty slot has nothing to guess from

    def after(
        self,
        emitted: Int[Array, " B"],
        drawn: Int[Array, "N B"],
        kept: Bool[Array, "N B"],
        sources: Int[Array, "2 B n"],
    ) -> "Drafts":
        """With what a pass drew behind `emitted` ids, of which it emitted what is `kept`."""
        if not self.prompt:
            return self
        rows = jnp.arange(len(emitted))[:, None]
        places = self.prompt + emitted[:, None] + jnp.arange(len(drawn))
        ids = self.ids.at[rows, places].set(drawn.T, mode="drop")
        right = ((sources == drawn[:-1].T) & kept[:-1].T).sum(-1)
        scores = self.scores * _KEPT ** kept.sum(0)[:, None] + right.T
        return Drafts(ids, scores, self.prompt)

    def _at(self, places: Int[Array, "B n"]) -> Int[Array, "B n"]:
        return jnp.take_along_axis(self.ids, jnp.maximum(places, 0), axis=1, mode="clip")

    def _likest(self, now: Int[Array, " B"], vocab: Vocab) -> Int[Array, " B"]:
        """The place before `now` whose surroundings are most like those of `now`; -1: none is.

        What counts is how many of the last three ids are the same, then in pictures the codes above
        and the place in the picture. The last one of several.
        """
        ids, grid = self.ids, vocab.config.grid
        here = jnp.arange(ids.shape[1])
        is_code = (ids >= vocab.first_image) & (ids < vocab.first_text)
        begun = jax.lax.cummax(jnp.where(is_code, -1, here), axis=1)
        # The place of the id that follows, in its picture: 0 where one may begin.
        inside = here - begun

        def same(back: int) -> Bool[Array, "B L"]:
            """Whether the id `back` places before is as that before `now`."""
            moved = jnp.pad(ids, [(0, 0), (back, 0)], constant_values=UNKNOWN)[:, : ids.shape[1]]
            wanted = self._at(now[:, None] - back)
            return (moved == wanted) & (wanted != UNKNOWN)

        def aligned() -> Bool[Array, "B L"]:
            moved = jnp.pad(inside, [(0, 0), (1, 0)], constant_values=-1)[:, : ids.shape[1]]
            return moved == jnp.take_along_axis(inside, now[:, None] - 1, axis=1)

        one = same(1)
        two = one & same(2)
        left = one.astype(jnp.int32) + two + (two & same(3))
        likeness = 4 * left + is_code * (2 * same(grid).astype(jnp.int32) + aligned())
        usable = (here < now[:, None]) & (ids != UNKNOWN)
        likeness = jnp.where(usable, likeness, 0)
        last = ids.shape[1] - 1 - jnp.argmax(likeness[:, ::-1], axis=1)
        found = jnp.take_along_axis(likeness, last[:, None], axis=1)[:, 0]
        return jnp.where(found >= 3, last, -1)
