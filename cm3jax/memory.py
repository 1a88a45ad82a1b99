"""What a training step of a decoder needs, without running it: bytes per device and operations.

Parameters, gradients, moments and batch are exact: they are the shapes and shardings that training
itself lays out. What lives only within a step is estimated from what automatic differentiation
keeps between forward and backward pass, which tracing tells without compiling anything.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from cm3jax import hlo, partition
from cm3jax.config import DecoderConfig, Experiment
from cm3jax.data.caption_image import Pairs
from cm3jax.errors import UserError
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.learners.parti import PartiLearner
from cm3jax.model.quantised import stored_bytes
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Vocab
from cm3jax.train import make_train_step
from cm3jax.training.loss import chunks_for, token_losses
from cm3jax.training.mesh_checks import require_attention
from cm3jax.training.state import Layout, plan_layout


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes on each device during a step; the first four are exact, the last is an estimate."""

    parameters: int
    moments: int
    """What the optimiser keeps, its counters included, and `optim.ema`'s averages."""
    gradients: int
    batch: int
    temporaries: int
    """Activations, logits and what the backward pass computes from them."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


Planned = DecoderLearner | PartiLearner
"""What the formula knows."""
AnyMesh = jax.sharding.Mesh | AbstractMesh
"""A mesh whose devices are there, or need not exist."""


def abstract_batch(learner: Planned, mesh: AnyMesh) -> Batch | Pairs:
    """A global batch before it has values; `UserError` if the mesh cannot share its rows."""
    experiment = learner.experiment
    partition.require_shares(experiment.data.batch, mesh)
    sharding = partition.batch_sharding(mesh)

    def rows(length: int, dtype: Any) -> Any:  # the shape of an array, in its place
        return jax.ShapeDtypeStruct((experiment.data.batch, length), dtype, sharding=sharding)

    if isinstance(learner, PartiLearner):
        codes = learner.model.image_tokens
        texts = rows(learner.model.text_tokens, jnp.int32)
        return Pairs(texts, rows(codes, jnp.int32), rows(codes, jnp.float32))
    ids = rows(experiment.model.context, jnp.int32)
    return Batch(ids, ids, rows(experiment.model.context, jnp.float32), ids, ids)


def footprint(learner: Planned, layout: Layout, batch: Batch | Pairs) -> Footprint:
    """Bytes on each device of the mesh that `layout` and `batch` were made for."""
    state = layout.abstract
    parameters = local_bytes((state.params, state.extra))
    return Footprint(
        parameters=parameters,
        moments=local_bytes((state.opt_state, state.ema, state.step)),
        gradients=local_bytes(layout.trained_params),
        batch=local_bytes(batch),
        temporaries=_temporaries(learner, dict(jax.tree.leaves(batch)[0].sharding.mesh.shape)),
    )


def compiled_bytes(learner: Planned, mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Bytes per device of a step's arguments and of its temporaries, as XLA allots them.

    Compiles for the devices of `mesh`. Temporaries include the gradients.
    """
    require_attention(learner.experiment.model, mesh)
    with jax.set_mesh(mesh):
        layout, batch = plan_layout(learner, mesh), abstract_batch(learner, mesh)
        step = make_train_step(learner, layout)
        memory, _ = hlo.analysed(step.lower(layout.abstract, batch).compile())
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def planned(experiment: Experiment) -> Planned:
    """The experiment's learner, without data; `UserError` unless it is a decoder's or `parti`."""
    learners: dict[str, type[Planned]] = {"decoder": DecoderLearner, "parti": PartiLearner}
    if experiment.learner not in learners:
        raise UserError(
            f"{experiment.name} trains a {experiment.learner}; only decoders and parti can be "
            "planned."
        )
    return learners[experiment.learner](experiment, Vocab(experiment.vocab), {})


def local_bytes(tree: Any) -> int:
    """What one device has of a tree of arrays or their shapes, which say how they are cut."""
    return sum(
        stored_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(tree)
    )


def _temporaries(learner: Planned, mesh: dict[str, int]) -> int:
    """Peak of what lives within a step: at the head, or in the backward pass of a layer.

    At the head all layers' residuals are there, and the logits. In a layer the head's are gone; it
    computes again those of its own residuals that were not kept.
    """
    experiment = learner.experiment
    model, tensor = experiment.model, mesh["tensor"]
    shards = mesh["data"] * mesh["fsdp"] * experiment.optim.accumulate
    rows = experiment.data.batch // shards
    # What one device does is the work of a narrower model on fewer rows.
    local = dataclasses.replace(
        model,
        heads=model.heads // tensor,
        kv_heads=model.kv_heads and max(1, model.kv_heads // tensor),  # 0: one per query head
        ffn=model.ffn // tensor,
    )
    vocab_size = Vocab(experiment.vocab).size
    pairs = isinstance(learner, PartiLearner)
    length = learner.model.image_tokens if pairs else model.context
    chunks = chunks_for(rows, length, vocab_size)

    def kept(config: DecoderConfig, encoder_layers: int) -> int:
        parti = dataclasses.replace(experiment.parti, encoder_layers=encoder_layers)
        narrow = dataclasses.replace(experiment, model=_traceable(config), parti=parti)
        return _kept_by_layers(planned(narrow), rows)

    encoder_layers = experiment.parti.encoder_layers
    layers = kept(local, encoder_layers)
    part = -(-vocab_size // tensor)
    head = _kept_by_head(model, rows, part, length // chunks)
    if chunks > 1 and mesh["fsdp"] > 1:  # the table that is gathered for all, and its gradient
        kinds = (model.dtype, jnp.float32)
        head += part * model.width * sum(jnp.dtype(kind).itemsize for kind in kinds)
    of_one = kept(dataclasses.replace(local, layers=1, remat="none"), 1)
    depth = model.layers + (encoder_layers if pairs else 0)
    again = of_one - layers // depth
    return layers + max(head, again)


def _kept_by_layers(learner: Planned, rows: int) -> int:
    """Bytes that the layers keep for their backward pass, parameters left out."""
    variables = nn.unbox(jax.eval_shape(learner.init, jax.random.key(0)))
    if isinstance(learner, PartiLearner):
        model = learner.model
        lengths = (model.text_tokens, model.image_tokens)
        inputs = [jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in lengths]

        def hidden(variables, pair):
            return model.apply(variables, pair[0], pair[0] != Vocab.pad, pair[1])

        return _kept(hidden, variables, inputs)
    row = jax.ShapeDtypeStruct((rows, learner.experiment.model.context), jnp.int32)
    hidden = lambda variables, row: learner.model.apply(variables, row, row, row)  # noqa: E731
    return _kept(hidden, variables, row)


def _traceable(model: DecoderConfig) -> DecoderConfig:
    """cuDNN's attention can be traced only where the library is; splash attention keeps the same.

    (Of whole blocks: the context is rounded up to one.)
    """
    if model.attention == "auto":  # all keep about the same
        return dataclasses.replace(model, attention="xla")
    if model.attention != "cudnn":
        return model
    return dataclasses.replace(model, attention="splash", context=-(-model.context // 128) * 128)


def _kept_by_head(config: DecoderConfig, rows: int, vocab_size: int, length: int) -> int:
    """Bytes of the head's backward pass over a chunk of `length`: what it keeps or computes again.

    The gradient of the logits takes the place of an array that it is computed from.
    """
    width, dtype = config.width, jnp.dtype(config.dtype)
    table = jax.ShapeDtypeStruct((vocab_size, width), jnp.float32)
    hidden = jax.ShapeDtypeStruct((rows, length, width), dtype)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def losses(inputs, targets):
        table, hidden = inputs

        def logits(part, table):
            return jnp.einsum(
                "...d,vd->...v", part, table.astype(dtype), preferred_element_type=jnp.float32
            )

        return token_losses(logits, table, hidden, targets)

    return _kept(losses, (table, hidden), targets)


def _kept(function: Callable[[Any, Any], Any], inputs: Any, other: Any) -> int:
    """Bytes kept between the forward and the backward pass with respect to `inputs`.

    What is among the inputs already is not counted.
    """

    def residuals(inputs, other):
        return jax.vjp(lambda inputs: function(inputs, other), inputs)[1]

    def sizes(tree):
        return Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))

    new = sizes(jax.eval_shape(residuals, inputs, other)) - sizes((inputs, other))
    return sum(count * math.prod(shape) * dtype.itemsize for (shape, dtype), count in new.items())
