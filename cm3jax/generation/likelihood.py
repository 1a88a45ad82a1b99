"""How likely a model finds given answers, token by token: to compare answers, not to draw them."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax.errors import UserError
from cm3jax.model.cache import NONE, start_cache
from cm3jax.model.language_model import LanguageModel
from cm3jax.shapes import Array, Float, Int

_WIDTH = 64  # lengths are rounded up to multiples of it: a few programs serve all


class Likelihood:
    """Log-probabilities under a model: among all ids, at temperature 1, without guidance. Keys and
    values are kept in the type that drawing keeps them in (`model.cache`)."""

    def __init__(self, model: LanguageModel):
        self._model = model
        self._measure = jax.jit(self._token_logprobs)

    def __call__(
        self,
        variables: dict,
        prefixes: Sequence[Int[np.ndarray, " _"]],
        answers: Sequence[Int[np.ndarray, " _"]],
        batch: int,
    ) -> list[Float[np.ndarray, " _"]]:
        """The log-probability in nats of each id of each answer, after its prefix and those before.

        `batch` rows go through the model at once. `UserError` for a prefix and an answer that are
        together longer than the model's context.
        """
        return list(self.each(variables, prefixes, answers, batch))

    def each(
        self,
        variables: dict,
        prefixes: Sequence[Int[np.ndarray, " _"]],
        answers: Sequence[Int[np.ndarray, " _"]],
        batch: int,
    ) -> Iterator[Float[np.ndarray, " _"]]:
        """As a call, but rows go through the model when their figures are asked for."""
        pairs = list(zip(prefixes, answers, strict=True))
        for prefix, answer in pairs:
            self._require_room(len(prefix), len(answer))
        longest = max((len(p) - 1 for p, _ in pairs), default=0), max(map(len, answers), default=0)
        before, after = (-(-length // _WIDTH) * _WIDTH for length in longest)
        widths = min(before, self._model.longest_prompt), after
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            each = np.asarray(self._measure(variables, *_rows(part, batch, widths)))
            for row, (_, answer) in zip(each, part, strict=False):
                yield row[: len(answer)].astype(np.float64)

    def _require_room(self, before: int, new: int) -> None:
        room = self._model.room(before)
        if new > room:
            raise UserError(
                f"an answer of {new} tokens follows a prompt of {before}, but the model has room "
                f"for {max(room, 0)}."
            )

    def _token_logprobs(
        self,
        variables: dict,
        prompts: Int[Array, "B L"],
        lengths: Int[Array, " B"],
        read: Int[Array, "B T"],
        said: Int[Array, "B T"],
    ) -> Float[Array, "B T"]:
        """Log-probabilities of the ids `said` after the ids `read`, which follow prompts."""
        apply = self._model.apply
        _, prefix = apply(variables, prompts, lengths, method="prefill")
        prefix = [layer.stored(self._model.config) for layer in prefix]
        last = jnp.take_along_axis(prompts, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        newest = jnp.where(lengths > 0, last, NONE)
        cache = start_cache(prefix, lengths, newest, samples=1, capacity=read.shape[1])
        hidden, _ = apply(variables, read, cache, method="extend")
        scores = jax.nn.log_softmax(apply(variables, hidden, method="logits"))
        return jnp.take_along_axis(scores, said[..., None], axis=-1)[..., 0]


def _rows(
    pairs: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]],
    batch: int,
    widths: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Prompts without their last id, their lengths, and the ids that are read and said."""
    prompts = np.zeros((batch, widths[0]), np.int32)
    read, said = np.zeros((2, batch, widths[1]), np.int32)
    lengths = np.ones(batch, np.int32)
    for row, (prefix, answer) in enumerate(pairs):
        *prompt, last = prefix
        prompts[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        read[row, : len(answer)] = [last, *answer[:-1]]
        said[row, : len(answer)] = answer
    return prompts, lengths, read, said
