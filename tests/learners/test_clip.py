import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm3jax.config import Experiment
from cm3jax.data.contrastive import NO_SUBJECT, Couples
from cm3jax.data.pipeline import Position
from cm3jax.data.sources import RawRecord
from cm3jax.errors import UserError
from cm3jax.learners import clip
from cm3jax.learners.clip import CLIPLearner, contrast, document_loss, pair_loss
from cm3jax.retrieval.clip_encoder import document_vectors
from cm3jax.testing import experiment, text_tokenizer, write_chain


def _unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _nll(scores: np.ndarray, right: int, allowed: list[int]) -> float:
    kept = np.exp(scores[[right, *(i for i in allowed if i != right)]])
    return -float(np.log(kept[0] / kept.sum()))


def test_contrast_ignores_what_is_not_allowed():
    rng = np.random.default_rng(0)
    queries, keys = _unit(rng, 3, 8), _unit(rng, 5, 8)
    allowed = rng.random((3, 5)) < 0.6
    weights = np.array([1.0, 0.0, 2.0], np.float32)
    losses, hits = jax.jit(contrast)(queries, keys, np.float32(5), allowed, weights)
    scores = 5 * queries @ keys.T
    expected = [_nll(scores[i], i, np.flatnonzero(allowed[i]).tolist()) for i in range(3)]
    np.testing.assert_allclose(losses.total, weights @ expected, rtol=1e-5)
    assert float(losses.weight) == float(hits.weight) == 3
    best = [
        np.where(allowed[i] | (np.arange(5) == i), scores[i], -9).argmax() == i for i in range(3)
    ]
    np.testing.assert_allclose(hits.total, weights @ np.array(best))


def _each_its_own(records) -> jax.Array:
    """`Couples.same` of records with different images and captions."""
    return jnp.asarray(np.stack([records] * 2, axis=-1))


def _couples(records, subjects) -> Couples:
    rows = len(records)
    return Couples(
        records=jnp.asarray(records),
        same=_each_its_own(records),
        subjects=jnp.asarray(subjects),
        texts=jnp.zeros((rows, 2, 4), jnp.int32),
        images=jnp.zeros((rows, 2, 8, 8, 3), jnp.uint8),
    )


def test_pair_loss_is_literally_clips():
    rng = np.random.default_rng(1)
    text, image = _unit(rng, 6, 8), _unit(rng, 6, 8)
    records = np.array([[0, 3], [1, 4], [2, 2]])  # record 2 has no partner: it stands there twice
    numbers = [0, 1, 2, 3, 4, 2]
    found = jax.jit(pair_loss)(text, image, _each_its_own(records), np.float32(7))
    expected = []
    for i in range(6):
        others = [j for j in range(6) if numbers[j] != numbers[i]]
        for scores in (7 * text @ image.T, 7 * image @ text.T):
            expected.append(_nll(scores[i], i, others))
    np.testing.assert_allclose(found.compute(), np.mean(expected), rtol=1e-5)


def test_other_captions_of_a_picture_are_no_negatives():
    """Records 0, 1 and 3 have one image, 1 and 4 one caption: none is wrong for the other."""
    rng = np.random.default_rng(3)
    text, image = _unit(rng, 6, 8), _unit(rng, 6, 8)
    pictures, captions = [7, 7, 2, 7, 4, 2], [0, 5, 2, 3, 5, 6]
    same = np.stack([pictures, captions], -1).reshape(2, 3, 2).swapaxes(0, 1)
    wrong = {
        i: [j for j in range(6) if pictures[i] != pictures[j] and captions[i] != captions[j]]
        for i in range(6)
    }
    assert wrong[1] == [2, 5]
    assert wrong[4] == [0, 2, 3, 5]
    found = jax.jit(pair_loss)(text, image, same, np.float32(7))
    scores = (7 * text @ image.T, 7 * image @ text.T)
    expected = [_nll(each[i], i, wrong[i]) for i in range(6) for each in scores]
    np.testing.assert_allclose(found.compute(), np.mean(expected), rtol=1e-5)

    subjects = [[[1], [1]], [[2], [2]], [[NO_SUBJECT], [NO_SUBJECT]]]
    couples = _couples([[0, 3], [1, 4], [2, 5]], subjects)
    couples = dataclasses.replace(couples, same=jnp.asarray(same))
    by_text, _, _ = jax.jit(document_loss)(text, image, couples, np.float32(3))
    documents = np.asarray(jax.jit(document_vectors)(text, image))
    # Of the others' subjects, with neither the asking record's image nor its caption.
    asking = {0: (3, [2, 4, 5]), 1: (4, [2, 5]), 3: (0, [2, 4, 5]), 4: (1, [0, 2, 3, 5])}
    losses = [_nll(3 * text[i] @ documents.T, right, bad) for i, (right, bad) in asking.items()]
    np.testing.assert_allclose(by_text.compute(), np.mean(losses), rtol=1e-5)


def test_document_loss_masks_shared_subjects():
    """Couples of records 0 and 3, 1 and 4, and 2, which has no partner and does not ask. Record 1
    shows two subjects: it is a negative of neither kind, and asks for two documents."""
    rng = np.random.default_rng(2)
    text, image = _unit(rng, 6, 8), _unit(rng, 6, 8)
    none = NO_SUBJECT
    subjects = [[[1, none], [1, none]], [[1, 2], [2, none]], [[none, none], [none, none]]]
    couples = _couples([[0, 3], [1, 4], [2, 2]], subjects)
    by_text, by_image, _ = jax.jit(document_loss)(text, image, couples, np.float32(3))
    documents = np.asarray(jax.jit(document_vectors)(text, image))
    # By row (records 0 1 2 3 4 2): the row of the other document, the negatives, the weight.
    asking = {
        0: (3, [2, 4, 5], 1),
        1: (4, [2, 5], 2),
        3: (0, [2, 4, 5], 1),
        4: (1, [0, 2, 3, 5], 1),
    }
    for queries, found in ((text, by_text), (image, by_image)):
        scores = 3 * queries @ documents.T
        losses = [w * _nll(scores[i], right, others) for i, (right, others, w) in asking.items()]
        np.testing.assert_allclose(found.compute(), sum(losses) / 5, rtol=1e-5)
        assert float(found.weight) == 5


SYLLABLES = ("ba", "ke", "lo", "ti")
NAMES = [a + b for a in SYLLABLES for b in SYLLABLES]


def _flags(split: str, count: int) -> list[RawRecord]:
    """Flags of two colours with made-up names, on one of two backgrounds."""
    rng = np.random.default_rng(len(split))
    looks = np.random.default_rng(0).integers(0, 256, (len(NAMES), 2, 3), np.uint8)
    records = []
    for i in range(count):
        name, ground = int(rng.integers(len(NAMES))), rng.integers(0, 2)
        image = np.full((16, 16, 3), 255 * ground, np.uint8)
        image[:8, :8], image[:8, 8:] = looks[name]
        caption = f"the flag {NAMES[name]} on {('black', 'white')[ground]}"
        records.append(
            RawRecord(f"{split}-{i}", (caption, image), "pair", (NAMES[name],), "s", "l")
        )
    return records


@pytest.fixture
def flags(monkeypatch, tmp_path) -> Experiment:
    """A tiny experiment whose source are flags."""
    monkeypatch.setattr(clip, "open_source", lambda data, split, seed: _flags(split, 96))
    text_tokenizer().save(tmp_path / "text")
    base = experiment()
    return dataclasses.replace(
        base,
        learner="clip",
        workdir=str(tmp_path / "run"),
        tokenizers=dataclasses.replace(base.tokenizers, text=str(tmp_path / "text")),
        data=dataclasses.replace(base.data, batch=32),
    )


@pytest.mark.slow
def test_training_finds_documents_and_pictures(flags):
    learner = CLIPLearner.from_source(flags)
    params = nn.unbox(jax.jit(learner.init)(jax.random.key(0)))["params"]

    adam = optax.adam(3e-3)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            output = learner.loss(params, {}, batch, jax.random.key(0), jnp.int32(0))
            return output.loss, output.metrics

        gradients, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    state = adam.init(params)
    batches = learner.stream("train").batches(Position())
    history = []
    for _ in range(80):
        params, state, metrics = step(params, state, next(batches).data)
        history.append({name: mean.compute() for name, mean in metrics.items()})
    assert set(history[0]) == {
        "loss",
        "loss_pair",
        "loss_document_text",
        "loss_document_image",
        "hit_text",
        "hit_image",
    }
    # Of 64 documents in a batch many are equal: the pair loss can't come near 0.
    assert history[-1]["loss_pair"] < 0.7 * history[0]["loss_pair"]
    assert history[-1]["loss_document_image"] < 0.4 * history[0]["loss_document_image"]
    assert history[-1]["hit_image"] > 0.8


def test_without_the_document_loss_only_pairs_count(flags):
    flags = dataclasses.replace(flags, clip=dataclasses.replace(flags.clip, document_loss=0.0))
    learner = CLIPLearner.from_source(flags)
    params = nn.unbox(jax.jit(learner.init)(jax.random.key(0)))["params"]
    batch = next(learner.stream("validation").batches(Position())).data
    batch = jax.tree.map(jnp.asarray, batch)
    output = jax.jit(learner.loss)(params, {}, batch, jax.random.key(0), jnp.int32(0))
    assert set(output.metrics) == {"loss", "loss_pair"}
    np.testing.assert_allclose(output.loss, output.metrics["loss_pair"].compute(), rtol=1e-6)


def test_training_says_how_many_records_have_a_partner(flags, monkeypatch):
    names = [record.subjects for record in _flags("train", 96)]
    count = sum(names.count(name) > 1 for name in names)
    said = f"{count} of 96 records have a partner of their subject."
    assert CLIPLearner.from_source(flags).stream("train").notes == [said]

    def bare(data, split, seed):
        return [dataclasses.replace(record, subjects=()) for record in _flags(split, 96)]

    monkeypatch.setattr(clip, "open_source", bare)
    (warning,) = CLIPLearner.from_source(flags).stream("train").notes
    assert warning.startswith("warning: clip.document_loss=1 has nothing to work on")
    alone = dataclasses.replace(flags.clip, document_loss=0.0)
    assert not CLIPLearner.from_source(dataclasses.replace(flags, clip=alone)).stream("train").notes
    found = dataclasses.replace(flags, clip=dataclasses.replace(flags.clip, partners="captions"))
    captions = [record.segments[0] for record in bare(None, "train", 0)]
    shared = sum(captions.count(caption) > 1 for caption in captions)
    assert CLIPLearner.from_source(found).records.partnered == shared > 80


def test_without_pairs_held_back_nothing_is_validated(flags, monkeypatch):
    monkeypatch.setattr(
        clip, "open_source", lambda data, split, seed: _flags(split, 96) * (split == "train")
    )
    learner = CLIPLearner.from_source(flags)
    assert not list(learner.stream("validation").batches(Position()))
    assert next(learner.stream("train").batches(Position())).data.records.shape == (32, 2)


def test_a_text_tower_of_another_size_is_refused(flags):
    wrong = dataclasses.replace(flags, clip=dataclasses.replace(flags.clip, text_vocab=99))
    with pytest.raises(UserError, match=r"clip.text_vocab=99 does not fit .* set it to "):
        CLIPLearner.from_source(wrong)


def test_an_encoder_and_its_tokenizer_belong_together(tmp_path):
    write_chain(tmp_path)
    encoder = clip.load(tmp_path / "clip")
    assert encoder.encode_texts(["a fox"]).shape == (1, encoder.config.width)
    other = type(encoder.tokenizer).train(["another text", "of other words"] * 9, 320)
    other.save(tmp_path / "clip")
    with pytest.raises(UserError, match="text"):
        clip.load(tmp_path / "clip")
    with pytest.raises(UserError, match="is the run of a decoder, not of a retrieval encoder"):
        clip.load(tmp_path / "decoder")
