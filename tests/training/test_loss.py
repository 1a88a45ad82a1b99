"""Cross-entropy in pieces, sums by modality."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3jax import hlo, partition
from cm3jax.config import MeshConfig, VocabConfig
from cm3jax.model import embeddings
from cm3jax.sequence.vocab import Vocab
from cm3jax.training.loss import Mean, by_modality, chunks_for, token_losses

VOCAB = Vocab(VocabConfig(specials=8, image_codes=6, text_pieces=5, sentinels=2, grid=2))


def product(hidden, table):
    """Logits."""
    return hidden @ table.T


@pytest.fixture
def head():
    """Hidden states [2, 12, 4], a head [19, 4] and targets."""
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(2, 12, 4)), jnp.float32)
    table = jnp.asarray(generator.normal(size=(VOCAB.size, 4)), jnp.float32)
    return hidden, table, jnp.asarray(generator.integers(0, VOCAB.size, (2, 12)), jnp.int32)


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_pieces_give_the_loss_and_gradients_of_the_whole(head, chunks):
    hidden, table, targets = head

    def ours(hidden, table):
        losses = token_losses(product, table, hidden, targets, chunks)
        return jnp.sum((losses.nll + losses.log_z) * jnp.arange(12.0)[None])

    def reference(hidden, table):
        logits = hidden @ table.T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        denominators = jnp.log(jnp.exp(logits).sum(-1))
        return jnp.sum((losses + denominators) * jnp.arange(12.0)[None])

    both = [jax.value_and_grad(f, (0, 1))(hidden, table) for f in (ours, reference)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *both)


@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in [(1, 8, 1), (2, 4, 1)])],
)
def test_the_table_is_gathered_and_its_gradient_summed_once_for_all_pieces(sizes):
    """And loss and gradients are those of one device."""
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(8, 24, 32)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 64, (8, 24)), jnp.int32)
    weights = jnp.asarray(rng.random((8, 24)), jnp.float32)

    def loss(table, hidden, targets, weights, chunks):
        losses = token_losses(embeddings.logits, table, hidden, targets, chunks)
        return jnp.sum(weights * (losses.nll + 0.1 * losses.log_z**2))

    both = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=4)
    expected = both(table, hidden, targets, weights, 1)
    mesh = partition.make_mesh(MeshConfig(*sizes))
    rows = partition.batch_sharding(mesh)
    whole = partition.sharding_of(mesh, table.shape, "vocab", "embed")
    cut = jax.device_put((table, hidden, targets, weights), (whole, rows, rows, rows))

    def collectives(chunks):
        cuts = (None, (whole, rows))
        step = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=4, out_shardings=cuts)
        compiled = step.lower(*cut, chunks).compile()
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5),
            compiled(*cut),
            expected,
        )
        found = hlo.traffic(compiled.as_text())
        return {kind: each.hidden + each.waiting for kind, each in found.items()}

    with jax.set_mesh(mesh):
        few, many = collectives(3), collectives(12)
    if sizes[2] == 1:  # over `tensor` each piece sums what its scores are divided by
        assert few == many
        assert 0 < sum(many.values()) <= 4


def test_pieces_never_hold_all_logits():
    rows, length, width, vocab = 2, 256, 8, 4096
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(rows, length, width), (vocab, width)]]
    targets = jnp.zeros((rows, length), jnp.int32)

    def loss(hidden, table, chunks):
        return token_losses(product, table, hidden, targets, chunks).nll.sum()

    def temporaries(chunks):
        gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
        return gradient.lower(*shapes, chunks).compile().memory_analysis().temp_size_in_bytes

    all_logits = rows * length * vocab * 4
    assert temporaries(1) >= all_logits
    assert temporaries(16) < all_logits / 4


def test_chunks_bound_one_piece():
    assert chunks_for(16, 256, 1568) == 1
    assert chunks_for(8, 4096, 65536) == 32
    assert chunks_for(1, 12, 100, largest=350) == 4
    assert chunks_for(1000, 12, 100, largest=350) == 12


def test_sums_by_modality_on_a_worked_row():
    #                    break, image 0, text 0, text 1 (weight 0.5), padding
    targets = jnp.asarray([[2, 8, 14, 15, 0]])
    weights = jnp.asarray([[1.0, 1.0, 1.0, 0.5, 0.0]])
    losses = jnp.asarray([[1.0, 2.0, 4.0, 8.0, 100.0]])
    parts = by_modality(losses, targets, weights, VOCAB)
    assert parts["loss"] == Mean(11.0, 3.5)
    assert parts["loss_image"] == Mean(2.0, 1.0)
    assert parts["loss_text"] == Mean(8.0, 1.5)
    assert parts["loss"].compute() == pytest.approx(11 / 3.5)


def test_mean_of_nothing_is_nan():
    assert np.isnan(Mean(0.0, 0.0).compute())
