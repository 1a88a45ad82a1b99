"""Several ids from one pass, the same ones as from several passes.

An id that a sample draws is a function of its noise at that place, which is a function of (seed,
prompt, sample, place), and of the ids before it. So a guess needs no rule of acceptance that keeps
a distribution: it is right where it is what the sample draws there, and all guesses before it are
right. Whatever was guessed, the ids are those of a pass per id.
"""

import jax
import jax.numpy as jnp

from cm3jax.decode import grammar
from cm3jax.shapes import Array, Bool, Int


def follow(
    table: grammar.GrammarTable,
    states: Int[Array, " B"],
    drafts: Int[Array, "B n"],
    kinds: Int[Array, " V"],
) -> tuple[Int[Array, "B n"], Int[Array, "B N"]]:
    """The drafts with the ids that are forced after the drafts before them, and the states from
    `states` on that they lead to."""

    def step(states, drafts):
        forced = grammar.forced(table, states)
        drafts = jnp.where(forced == grammar.FREE, drafts, forced)
        after = grammar.advance(table, states, drafts, kinds)
        return after, (drafts, after)

    _, (drafts, after) = jax.lax.scan(step, states, drafts.T, unroll=True)
    return drafts.T, jnp.concatenate([states[:, None], after.T], axis=1)


def accepted(drafts: Int[Array, "B n"], drawn: Int[Array, "N B"]) -> Bool[Array, "N B"]:
    """Which drawn ids are behind right drafts only: the first always, the next where the first
    draft is what was drawn, and so on."""
    right = jnp.cumprod(drawn[:-1] == drafts.T, axis=0) == 1
    return jnp.concatenate([jnp.ones_like(drawn[:1], bool), right])
