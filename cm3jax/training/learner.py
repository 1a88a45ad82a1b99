"""What training asks of the things that it trains."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from cm3jax.config import Experiment
from cm3jax.data.pipeline import Stream
from cm3jax.shapes import Array, Int, Key
from cm3jax.training.loss import LossOutput
from cm3jax.training.metrics import StepCost


@runtime_checkable
class Learner(Protocol):
    """What can be trained: a model, its loss and its data."""

    @property
    def experiment(self) -> Experiment:
        """What is trained, and how."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of vocabulary and tokenizers, by name; a checkpoint with others is
        refused."""

    @property
    def work(self) -> StepCost:
        """Tokens and floating-point operations of one global batch."""

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """`{"params": ..., other collections}`, boxed with logical axis names; it is traced."""

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Any,
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """The loss of one global batch after `step` finished updates; it is traced.

        Its random draws depend only on the key and on a row's number in the batch. Without
        `training` nothing is dropped.
        """

    def stream(self, split: Literal["train", "validation"]) -> Stream:
        """The data; the validation stream is read from its beginning each time, and is
        `NoRecords` where nothing is held back."""
