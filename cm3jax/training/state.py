"""The train state and how it is made: shapes first, shardings next, values last."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cm3jax import partition
from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Array, Key
from cm3jax.training import ema
from cm3jax.training.optim import freezing, optimizer, trained

_NAMED = 24
"""Parameters that a sentence names, at most."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes."""

    step: Any
    """Finished updates, an int32 scalar."""
    params: Any
    opt_state: Any
    extra: Any
    """Collections other than `params` (a codebook's moving averages); often empty."""
    ema: Any = None
    """Moving averages of the parameters (`training.ema`); None where none are kept."""

    @property
    def averaged(self) -> Any:
        """The parameters to validate, draw from and export: their averages where they are kept."""
        return ema.over(self.ema, self.params)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A train state before it has values."""

    optimizer: optax.GradientTransformation
    abstract: TrainState
    """Leaves are `jax.ShapeDtypeStruct` with shardings."""
    init: Callable[[Key[Array, ""]], TrainState]
    """Compiled with the shardings: no device ever holds a whole large parameter."""
    table: str
    """Sharding table of all variables."""
    trained: Any
    """How many values of each parameter training changes, like `abstract.params`."""

    @property
    def shardings(self) -> TrainState:
        """The sharding of every leaf."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))

    @property
    def trained_params(self) -> Any:
        """`abstract.params` without what is frozen."""
        return jax.tree.map(
            lambda leaf, mine: leaf if mine else None, self.abstract.params, self.trained
        )

    @property
    def trained_table(self) -> str:
        """A line per parameter, how many of its values are trained; empty when all are."""
        counts = jax.tree.leaves(self.trained)
        leaves = jax.tree.leaves_with_path(self.abstract.params)
        if counts == [leaf.size for _, leaf in leaves]:
            return ""
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        width = max(map(len, names))
        lines = [
            f"{name:{width}}  {f'trained  {count:,}' if count else 'frozen   0'} of {leaf.size:,}"
            for name, (_, leaf), count in zip(names, leaves, counts, strict=True)
        ]
        share = 100 * sum(counts) / self.parameters
        lines.append(
            f"{sum(counts):,} of {self.parameters:,} parameters are trained ({share:.2g} %)"
        )
        return "\n".join(lines)

    def hold(self, params: Any) -> Any:
        """`params`, no gradient passing into those that are frozen."""
        return jax.tree.map(
            lambda leaf, mine: leaf if mine else jax.lax.stop_gradient(leaf), params, self.trained
        )


@runtime_checkable
class Trainable(Protocol):
    """What of a learner decides its train state."""

    @property
    def experiment(self) -> Experiment:
        """Its optimiser, its number of steps and what it trains."""

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """`{"params": ..., other collections}`, boxed with logical axis names; it is traced."""


def plan_layout(learner: Trainable, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Layout:
    """Lay out what a learner trains on a mesh.

    The values that `Layout.init` gives depend only on the key, bit for bit, not on the mesh. On an
    abstract mesh there is a layout, but nothing can be given values. Raises `UserError` if
    `optim.trained` freezes everything.
    """
    experiment = learner.experiment
    boxed = jax.eval_shape(learner.init, jax.random.key(0))
    rows = _trained_rows(experiment.optim.trained_ids, Vocab(experiment.vocab))
    which = trained(experiment.trained, rows, boxed["params"])
    pattern, tied = experiment.trained, experiment.learner == "decoder" and experiment.model.tied
    if not any(jax.tree.leaves(which)):
        raise _no_such_name(pattern, boxed["params"], tied)
    if rows != slice(None) and which == trained(pattern, slice(None), boxed["params"]):
        raise UserError(
            f"optim.trained_ids={experiment.optim.trained_ids} is for the embedding and the head, "
            f"of which optim.trained={pattern!r} trains neither; correct one of them."
        )
    settings = (experiment.optim, experiment.train.steps, boxed["params"], experiment.curriculum)
    transform = optimizer(*settings)
    transform = freezing(transform, which, rows, boxed["params"])

    def create(key) -> TrainState:
        variables = dict(nn.unbox(learner.init(key)))
        params = variables.pop("params")
        averages = ema.begin(params, which) if experiment.optim.ema else None
        moments = transform.init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, moments, variables, averages)

    abstract = jax.eval_shape(create, jax.random.key(0))
    extra = partition.shardings(mesh, boxed)
    params = extra.pop("params")
    whole = partition.replicated(mesh)
    shardings = TrainState(
        step=whole,
        params=params,
        opt_state=_like_params(abstract.opt_state, params, whole),
        extra=extra,
        ema=_like_params(abstract.ema, params, whole),
    )
    return Layout(
        optimizer=transform,
        abstract=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        ),
        init=jax.jit(create, out_shardings=shardings),
        table=partition.array_table(mesh, boxed),
        trained=which,
    )


def _no_such_name(pattern: str, boxed: Any, tied: bool) -> UserError:
    """What is wrong with a pattern that is in no parameter's name."""
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(nn.unbox(boxed))
    ]
    more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
    return UserError(
        f"optim.trained={pattern!r} is found in no parameter's name; they are "
        f"{', '.join(names[:_NAMED])}{more}{'; the head is the embedding (model.tied)' * tied}."
    )


def _trained_rows(which: str, vocab: Vocab) -> slice:
    """The ids that `optim.trained_ids` names."""
    return {
        "all": slice(None),
        "image": slice(vocab.first_image, vocab.first_text),
        "text": slice(vocab.first_text, None),
    }[which]


def _like_params(opt_state: Any, params: Any, otherwise: Any) -> Any:
    """For each leaf of an optimiser's state, the value of the parameter that it belongs to.

    Moments are in trees like the parameters', so that the ends of their paths name parameters.
    (`optax.tree_map_params` cannot look into Muon.)
    """
    by_path = dict(jax.tree.leaves_with_path(params))

    def find(path, _):
        tails = (path[start:] for start in range(len(path)))
        return next((by_path[tail] for tail in tails if tail in by_path), otherwise)

    return jax.tree.map_with_path(find, opt_state)
