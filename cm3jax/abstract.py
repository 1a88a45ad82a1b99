"""Learners and batches of shapes: what a training step is compiled from, without any data."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3jax import partition
from cm3jax.config import ClipConfig, Experiment
from cm3jax.data.contrastive import Couples
from cm3jax.errors import UserError
from cm3jax.learners.clip import CLIPLearner
from cm3jax.learners.online import OnlineLearner
from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.memory import Planned, abstract_batch, planned
from cm3jax.model.bridge import TokenizerBridge
from cm3jax.retrieval.clip_encoder import CLIP, text_length
from cm3jax.sequence.vocab import Vocab
from cm3jax.tokenizers import lpips
from cm3jax.training.learner import Learner


def learner_without_data(experiment: Experiment) -> Learner:
    """The experiment's learner, without any data; `UserError` for one that trains without jax."""
    match experiment.learner:
        case "vqgan":
            loss = experiment.vqgan_loss
            if loss.perceptual:  # whose values change no program
                loss = dataclasses.replace(loss, lpips="random")
            return VQGANLearner(dataclasses.replace(experiment, vqgan_loss=loss))
        case "clip":
            return CLIPLearner(experiment, None)
        case "decoder" if experiment.data.online:
            vocab = Vocab(experiment.vocab)
            bridge = TokenizerBridge(experiment.vqgan, vocab)
            return OnlineLearner(experiment, bridge, CLIP(experiment.clip), None)
        case "text_tokenizer":
            raise UserError(
                f"{experiment.name} trains a text tokenizer, which runs on any machine's "
                "processors; there is nothing to plan."
            )
        case _:
            return planned(experiment)


def batch_without_data(learner: Learner, mesh: Mesh) -> Any:
    """A global batch of `learner` before it has values; `UserError` if the mesh cannot share its
    rows."""
    experiment = learner.experiment
    if isinstance(learner, VQGANLearner):
        return _pictures(learner, mesh)
    if isinstance(learner, CLIPLearner):
        return _couples(experiment.clip, experiment.data.batch, mesh)
    if isinstance(learner, OnlineLearner):
        return _pairs(learner, mesh)
    assert isinstance(learner, Planned)
    return abstract_batch(learner, mesh)


class _Rows:
    """Arrays whose first axis is the batch."""

    def __init__(self, batch: int, mesh: Mesh):
        partition.require_shares(batch, mesh)
        self._rows, self._sharding = batch, partition.batch_sharding(mesh)

    def __call__(self, dtype: Any, *shape: int) -> Any:
        """The shape of an array, in its place."""
        return jax.ShapeDtypeStruct((self._rows, *shape), dtype, sharding=self._sharding)


def _pictures(learner: VQGANLearner, mesh: Mesh) -> dict[str, Any]:
    rows, size = _Rows(learner.experiment.data.batch, mesh), learner.experiment.vqgan.image_size
    batch: dict[str, Any] = {"images": rows(jnp.uint8, size, size, 3)}
    if learner.experiment.vqgan_loss.region:
        batch["masks"] = rows(jnp.uint8, size, size)
    if learner.experiment.vqgan_loss.perceptual:
        shapes = jax.eval_shape(lambda: lpips.random_weights(0))
        batch["lpips"] = jax.tree.map(lambda leaf: _with(leaf, partition.replicated(mesh)), shapes)
    return batch


def _couples(config: ClipConfig, batch: int, mesh: Mesh) -> Couples:
    rows = _Rows(batch, mesh)
    return Couples(
        records=rows(jnp.int32, 2),
        same=rows(jnp.int32, 2, 2),
        subjects=rows(jnp.int32, 2, 1),
        texts=rows(jnp.int32, 2, text_length(config.text_context, config)),
        images=rows(jnp.uint8, 2, config.image_size, config.image_size, 3),
    )


def _pairs(learner: OnlineLearner, mesh: Mesh) -> dict[str, Any]:
    """Captions take half of the room that a row leaves besides an image; the bank is of as many
    documents as the source has records."""
    experiment = learner.experiment
    rows, vocab, config = _Rows(experiment.data.batch, mesh), learner.vocab, experiment.clip
    size = experiment.vqgan.image_size
    room = experiment.model.context - vocab.image_tokens - 3
    words = max(1, room // 2)

    def placed(module: Any, *inputs: Any) -> Any:
        boxed = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree.map(_with, nn.unbox(boxed), partition.shardings(mesh, boxed))

    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    documents = -(-experiment.data.records // mesh.size) * mesh.size

    def spread(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((documents, *shape), dtype, sharding=everywhere)

    return {
        "tokenizer": placed(learner.bridge, jnp.zeros((1, size, size, 3))),
        "encoder": placed(
            learner.encoder,
            jnp.zeros((1, 16), jnp.int32),
            jnp.zeros((1, config.image_size, config.image_size, 3)),
        ),
        "bank": {
            "tokens": spread(jnp.int32, words + 1 + vocab.image_tokens),
            "lengths": spread(jnp.int32),
            "vectors": spread(jnp.float32, config.width),
        },
        "pieces": rows(jnp.int32, words),
        "lengths": rows(jnp.int32),
        "texts": rows(jnp.int32, text_length(words, config)),
        "exclude": rows(jnp.int32, 1),
        "records": rows(jnp.int32),
        "images": rows(jnp.uint8, size, size, 3),
        "seen": rows(jnp.uint8, config.image_size, config.image_size, 3),
        "epochs": rows(jnp.int32),
    }


def _with(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
