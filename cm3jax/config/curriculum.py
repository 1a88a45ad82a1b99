"""The curriculum: what changes between the stages of one training."""

import dataclasses
import itertools
from typing import Any, Literal

from cm3jax.config.checks import require


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """A table of stages: every field has one value per stage, or none where no stage changes it.

    `--curriculum.starts 0 10000 --curriculum.documents 1 2` shows one document for 10,000 steps and
    two from then on. Validation and generation take the experiment's own values throughout.
    """

    starts: tuple[int, ...] = ()
    """Finished steps at which each stage begins, the first at 0; empty trains in one stage."""
    rate: tuple[float, ...] = ()
    """Factor on the learning rate that `optim` gives at each step of a stage."""
    mixture: tuple[float, ...] = ()
    """Weights of the corpora of data.mixture: those of the first stage in order, then those of the
    second, and so on; a corpus of weight 0 waits."""
    documents: tuple[int, ...] = ()
    """As retrieval.documents."""
    queries: tuple[Literal["both", "text", "image"], ...] = ()
    """As retrieval.queries."""
    mean_masks: tuple[float, ...] = ()
    """As cm3.mean_masks."""
    no_documents: tuple[float, ...] = ()
    """As cm3.no_documents."""
    wrong_documents: tuple[float, ...] = ()
    """As cm3.wrong_documents."""
    own_documents: tuple[float, ...] = ()
    """As cm3.own_documents."""
    vary_documents: tuple[bool, ...] = ()
    """As cm3.vary_documents."""

    def __post_init__(self):
        require(
            not self.starts
            or (
                self.starts[0] == 0
                and all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
            ),
            f"curriculum.starts={_words(self.starts)} must begin with 0 and rise.",
        )
        stages = len(self.starts)
        for name in _COLUMNS:
            values = getattr(self, name)
            require(
                len(values) in (0, stages),
                f"curriculum.{name}={_words(values)} has {len(values)} values for the {stages} "
                "stages of curriculum.starts; give one for each.",
            )
        # Neither of which NaN is.
        require(all(rate > 0 for rate in self.rate), "curriculum.rate must be positive.")
        require(
            all(weight >= 0 for weight in self.mixture), "curriculum.mixture must not be negative."
        )
        require(
            bool(stages) or not self.mixture,
            "curriculum.mixture needs curriculum.starts; give both.",
        )

    @property
    def changes_rows(self) -> bool:
        """Whether stages differ in more than the learning rate."""
        return any(getattr(self, name) for name in ("mixture", *_RETRIEVAL, *_CM3))

    @property
    def last_rows(self) -> int:
        """Finished steps after which no stage changes the rows any more."""
        return self.starts[-1] if self.changes_rows else 0

    def retrieval_of(self, stage: int) -> dict[str, Any]:
        """The fields of `RetrievalConfig` that a stage replaces."""
        return {name: getattr(self, name)[stage] for name in _RETRIEVAL if getattr(self, name)}

    def cm3_of(self, stage: int) -> dict[str, Any]:
        """The fields of `CM3Config` that a stage replaces."""
        return {name: getattr(self, name)[stage] for name in _CM3 if getattr(self, name)}

    def weights_of(self, stage: int) -> tuple[float, ...]:
        """The weights of a stage's corpora; empty where no stage changes them."""
        corpora = len(self.mixture) // max(len(self.starts), 1)
        return self.mixture[stage * corpora : (stage + 1) * corpora]

    def mean_weights(self, steps: int) -> tuple[float, ...]:
        """The share of each corpus in the rows of all steps; empty where no stage changes it."""
        borders = [min(start, steps) for start in (*self.starts, steps)]
        shares = [0.0] * len(self.weights_of(0))
        for stage, (start, end) in enumerate(itertools.pairwise(borders)):
            weights = self.weights_of(stage)
            for corpus, weight in enumerate(weights):
                shares[corpus] += (end - start) / steps * weight / sum(weights)
        return tuple(shares)

    def require_mixture(self, corpora: int, resampled: bool) -> None:
        """Raise `UserError` unless every stage weighs this many corpora and reads one of them."""
        if not self.mixture:
            return
        stages = len(self.starts)
        require(
            len(self.mixture) == stages * corpora,
            f"curriculum.mixture has {len(self.mixture)} weights for {stages} stages of {corpora} "
            "corpora in data.mixture; give one for each corpus in each stage, or none "
            "(--curriculum.mixture without values).",
        )
        require(
            all(any(self.weights_of(stage)) for stage in range(stages)),
            "curriculum.mixture gives every corpus of a stage the weight 0; give one a positive "
            "weight.",
        )
        require(
            not resampled or all(self.mixture),
            "curriculum.mixture has a weight of 0, but data.resample says how often each corpus is "
            "seen at least; give positive weights, or leave data.resample out.",
        )

    def describe(self, stage: int) -> str:
        """What holds in a stage, in a line."""
        values = {name: getattr(self, name) for name in _COLUMNS}
        said = [f"{name} {column[stage]}" for name, column in values.items() if column]
        if self.mixture:
            said.append(f"mixture {_words(self.weights_of(stage))}")
        start = self.starts[stage]
        return f"stage {stage + 1} of {len(self.starts)}, from step {start}: {', '.join(said)}"


_RETRIEVAL = ("documents", "queries")
_CM3 = ("mean_masks", "no_documents", "wrong_documents", "own_documents", "vary_documents")
_COLUMNS = ("rate", *_RETRIEVAL, *_CM3)
"""The fields with one value per stage."""
REPLACES = {
    "data.mixture": "mixture",
    **{f"retrieval.{name}": name for name in _RETRIEVAL},
    **{f"cm3.{name}": name for name in _CM3},
}
"""The column that takes the place of a field of the experiment, by the field's dotted name."""


def _words(values: tuple[Any, ...]) -> str:
    return " ".join(map(str, values))


ONE_STAGE = CurriculumConfig()
"""Everything as the experiment says, from the first step to the last."""
