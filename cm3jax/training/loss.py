"""Cross-entropy over long rows and large vocabularies, and what every learner's loss returns."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cm3jax import partition
from cm3jax.config import LossConfig
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.shapes import AnyArray, Array, Float, Int


class Mean(NamedTuple):
    """A weighted mean as its two sums, so that means of several batches add up."""

    total: Float[Array, ""] | float
    """Sum of weight times value."""
    weight: Float[Array, ""] | float
    """Sum of weights; 0 when there was nothing to average."""

    def compute(self) -> float:
        """The mean; NaN over nothing."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else math.nan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LossOutput:
    """What a learner's loss returns for one global batch."""

    loss: Float[Array, ""]
    """The scalar to differentiate. Where batches are accumulated, it must be a mean over the weight
    of `metrics["loss"]`, or the plain sum where that weight is below 1."""
    metrics: Mapping[str, tuple[Any, Any]]
    """Means (or plain pairs of sum and weight) over the global batch by name; one is `loss`, and
    its parts are named `loss_text` and so on."""
    extra: Any
    """Collections other than `params`, as this batch changed them."""


class TokenLosses(NamedTuple):
    """What every target of a batch costs, float32."""

    nll: Float[Array, "B L"]
    """Negative log-likelihood in nats."""
    log_z: Float[Array, "B L"]
    """Log of the softmax's denominator."""


def token_losses(
    logits: Callable[[Float[Array, "B C D"], Float[Array, "V D"]], Float[Array, "B C V"]],
    head: Float[Array, "V D"],
    hidden: Float[Array, "B L D"],
    targets: Int[AnyArray, "B L"],
    chunks: int = 1,
) -> TokenLosses:
    """Negative log-likelihood of every target, by the table `head`.

    With `chunks` > 1 the row is computed in that many pieces (a divisor of L), whose logits the
    backward pass recomputes: at a vocabulary of 65,536 the `B L V` array would be the largest of
    the whole step, and is never there. Each shard of rows has a copy of the table for all pieces:
    it is gathered once, and its gradient, float32, is summed over shards once.
    """

    def piece(head, hidden, targets):
        scores = logits(hidden, head).astype(jnp.float32)
        # A comparison fuses into the reduction; a gather's gradient would be a scatter into a
        # second array of the logits' size.
        chosen = jnp.arange(scores.shape[-1]) == targets[..., None]
        target = jnp.sum(jnp.where(chosen, scores, 0.0), axis=-1)
        log_z = jax.nn.logsumexp(scores, axis=-1)
        return TokenLosses(log_z - target, log_z)

    if chunks == 1:
        return piece(head, hidden, targets)

    rows, length = targets.shape
    shards = partition.batch_shards(jax.sharding.get_abstract_mesh())
    shards = shards if rows % shards == 0 else 1
    copies = partition.copies_of_table(head, shards)

    def split(x):  # [B L ...] to [pieces, shards, rows, tokens, ...]
        x = x.reshape(shards, rows // shards, chunks, length // chunks, *x.shape[2:])
        return partition.constrain(jnp.moveaxis(x, 2, 0), None, "batch")

    def losses(xs):
        return jax.checkpoint(jax.vmap(piece))(copies, *xs)

    pieces = jax.lax.map(losses, (split(hidden), split(targets)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(targets.shape), pieces)


def next_token_loss(
    losses: TokenLosses,
    targets: Int[AnyArray, "B L"],
    weights: Float[AnyArray, "B L"],
    vocab: Vocab,
    config: LossConfig,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """The scalar to differentiate, 0 without any weight, and its metrics.

    These are `by_modality`'s, in pure nats, and with a z-loss `loss_z`, the weighted mean of
    log(Z)**2 (before its own weight, `config.z_loss`).
    """
    metrics = by_modality(losses.nll, targets, weights, vocab)
    total, weight = metrics["loss"]
    if config.z_loss:
        squares = jnp.sum(weights * jnp.square(losses.log_z))
        metrics["loss_z"] = Mean(squares, weight)
        total = total + config.z_loss * squares
    return total / jnp.maximum(weight, 1.0), metrics


def chunks_for(rows: int, length: int, vocab: int, largest: int = 1 << 26) -> int:
    """Pieces per row so that one piece's logits have at most `largest` entries on a device.

    `rows` are those of one device. The answer divides `length`; 2**26 float32 are 256 MiB.
    """
    divisors = (n for n in range(1, length + 1) if length % n == 0)
    return next((n for n in divisors if rows * (length // n) * vocab <= largest), length)


def by_modality(
    losses: Float[Array, "B L"],
    targets: Int[AnyArray, "B L"],
    weights: Float[AnyArray, "B L"],
    vocab: Vocab,
) -> dict[str, Mean]:
    """`loss` over all targets, `loss_text` and `loss_image` over those of one modality.

    Structure (breaks, sentinels, ends) counts only in `loss`. The sums run over the global batch.
    """
    kinds = vocab.modality(targets, jnp)
    parts = {
        "loss": weights,
        "loss_text": jnp.where(kinds == int(Modality.TEXT), weights, 0.0),
        "loss_image": jnp.where(kinds == int(Modality.IMAGE), weights, 0.0),
    }
    return {name: Mean(jnp.sum(w * losses), jnp.sum(w)) for name, w in parts.items()}
