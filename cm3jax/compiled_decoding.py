"""A chunk of decoding compiled for devices that need not be here, and what limits it there."""

import dataclasses
import math
import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3jax import hlo, partition
from cm3jax.config import DecodeConfig, DecoderConfig, WeightType
from cm3jax.decode import grammar, sampling, steps
from cm3jax.decode.params import as_multiplied, read_by_steps
from cm3jax.decode.plan import CHUNK, ProgramShape, bucket
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.memory import local_bytes
from cm3jax.model.quantised import FewBits, contracted_by, quantise
from cm3jax.sequence.vocab import Vocab
from cm3jax.targets import Target

TEXT = 64
"""Tokens that a caption is taken to have."""
_LARGE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What is drawn together."""

    prompts: int = 1
    documents: int = 0
    """Retrieved documents of each prompt."""
    samples: int = 1
    """Images of each prompt."""
    tokens_per_pass: float = 1.0
    """Ids that a pass emits of each sample: above 1 where guesses are right (`decode.speculate`),
    as `launch.bench speculate` measures it."""


@dataclasses.dataclass(frozen=True)
class CompiledChunk:
    """A chunk of passes as one device has it."""

    peak: int
    """Bytes of memory at once, arguments included."""
    read: int
    """Bytes of weights and cache that one pass reads, the cache at its padded length."""
    compiled_read: int
    """Bytes that the compiled program's pass reads from memory: less than `read` where a TPU keeps
    some of it in fast memory from one pass to the next."""
    traffic: dict[str, hlo.Traffic]
    """Collectives by kind, of the whole chunk."""
    copies: int
    """Copies of arrays of a megabyte or more in the chunk."""
    seconds: float
    """What tracing and compiling took."""
    emitted: float
    """Ids that a pass emits of all samples that are drawn together."""

    def tokens_per_second(self, target: Target) -> float:
        """At most, reading at the memory's full rate, collectives being waited for."""
        sent = sum(each.waiting_bytes + each.hidden_bytes for each in self.traffic.values())
        seconds = self.read / target.accelerator.bandwidth
        return self.emitted / (seconds + sent / CHUNK / target.rate)


def compile_chunk(learner: DecoderLearner, target: Target, wanted: Decoding) -> CompiledChunk:
    """Compile a chunk of guided drawing on the mesh of a decoder's experiment for the target.

    Matrices, keys and values have the types of `model.weights` and `model.cache`; passes read
    windows of `decode.speculate` ids. Raises `UserError` as `Target.build` and
    `partition.make_mesh`.
    """
    experiment, vocab = learner.experiment, learner.vocab
    mesh = partition.make_mesh(experiment.mesh, target.build())
    begin = time.monotonic()
    model, variables = learner.model, _as_read(learner, mesh)
    pair = TEXT + vocab.image_tokens + 2
    shape = ProgramShape(
        slots=-(-wanted.prompts // partition.batch_shards(mesh)) * partition.batch_shards(mesh),
        samples=wanted.samples,
        streams=2,
        width=min(bucket(wanted.documents * pair + TEXT + 2), model.longest_prompt),
        capacity=bucket(vocab.image_tokens),
        guesses=experiment.decode.guesses,
    )
    window = max(1, experiment.decode.speculate)
    rows = _rows(experiment.decode, vocab, shape, mesh)
    state = _state(experiment.model, shape, mesh)
    method = sampling.Method.of(experiment.decode)
    with jax.set_mesh(mesh):
        call = (model, vocab, variables, method, False, rows, state)
        lowered = steps.chunk.lower(*call, CHUNK, window)
        made = lowered.compile()
    memory, text = hlo.analysed(made)
    return CompiledChunk(
        peak=memory.peak_memory_in_bytes,
        read=local_bytes((read_by_steps(variables), state.cache.prefix, state.cache.suffix)),
        compiled_read=hlo.read_per_turn(text),
        traffic=hlo.traffic(text),
        copies=hlo.copies(text, _LARGE),
        seconds=time.monotonic() - begin,
        # Without slots that only fill the mesh.
        emitted=wanted.prompts * wanted.samples * wanted.tokens_per_pass,
    )


def _as_read(learner: DecoderLearner, mesh: Mesh) -> dict:
    """Shapes of the parameters as `decode.params.as_read` lays them out on devices with memory of
    their own."""
    boxed = jax.eval_shape(learner.init, jax.random.key(0))
    config = learner.experiment.model
    dtype = jnp.dtype(config.dtype)

    def laid(path, leaf, sharding):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "kernel" and config.weights:
            return _in_few_bits(path, leaf, config.weights, sharding)
        kind = dtype if name in ("kernel", "head") else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=sharding)

    shapes = jax.tree.map_with_path(laid, nn.unbox(boxed), partition.shardings(mesh, boxed))
    params = dict(shapes["params"])

    def one(leaf):
        sharding = NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)

    layer = jax.tree.map(one, params.pop("layers"))
    params |= {f"layer_{number}": layer for number in range(config.layers)}

    def placed(path, leaf):
        there = as_multiplied(path, leaf) or leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

    return {**shapes, "params": jax.tree.map_with_path(placed, params)}


def _in_few_bits(path: tuple, leaf: Any, kind: WeightType, sharding: NamedSharding) -> FewBits:
    """Shapes of a matrix in this type; an axis of scales that the mesh does not divide is whole."""
    shapes = jax.eval_shape(partial(quantise, contracted=contracted_by(path), kind=kind), leaf)

    def laid(part):
        spec, mesh = sharding.spec, sharding.mesh
        cuts = (*spec, *[None] * (part.ndim - len(spec)))
        sizes = (math.prod(mesh.shape[axis] for axis in _axes(cut)) for cut in cuts)
        fits = [
            cut if length % size == 0 else None
            for cut, size, length in zip(cuts, sizes, part.shape, strict=True)
        ]
        there = NamedSharding(mesh, PartitionSpec(*fits))
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=there)

    return jax.tree.map(laid, shapes)


def _axes(cut: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes of the mesh that an entry of a `PartitionSpec` names."""
    return () if cut is None else (cut,) if isinstance(cut, str) else cut


def _rows(config: DecodeConfig, vocab: Vocab, shape: ProgramShape, mesh: Mesh):
    total = shape.slots * shape.samples
    zeros = np.zeros(total, np.int64)
    drawn = sampling.sample_keys(0, zeros, zeros, (1.0, 1.0))
    rows = steps.RowConstants(
        table=grammar.compile_programs([()] * total, vocab, shape.capacity),
        keys=jnp.asarray(drawn.keys),
        temperatures=jnp.asarray(drawn.temperatures),
        contrasted=jnp.asarray(sampling.contrasted(config, zeros)),
        scales=jnp.ones((total, shape.streams - 1), jnp.float32),
    )
    return _cut(rows, mesh, "batch")


def _state(config: DecoderConfig, shape: ProgramShape, mesh: Mesh) -> steps.State:
    state = jax.eval_shape(partial(steps.start, config, shape, shape.capacity))
    cache = state.cache
    halves = {
        name: _cut(getattr(cache, name), mesh, "batch", "heads") for name in ("prefix", "suffix")
    }
    rest = {
        name: _cut(getattr(cache, name), mesh, "batch")
        for name in ("prefix_lengths", "lengths", "newest")
    }
    return dataclasses.replace(
        _cut(state, mesh, "batch"), cache=dataclasses.replace(cache, **halves, **rest)
    )


def _cut(tree: Any, mesh: Mesh, *names: str) -> Any:
    """Shapes with their first axes cut as these logical ones, where the mesh divides them."""

    def laid(leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=partition.sharding_of(mesh, leaf.shape, *names)
        )

    return jax.tree.map(laid, tree)
