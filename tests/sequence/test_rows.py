"""The CM3 rule: examples by hand, a literal transcription, the inverse, and both array modules."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import CM3Config, VocabConfig
from cm3jax.errors import UserError
from cm3jax.sequence import prng
from cm3jax.sequence import rows as sequence
from cm3jax.sequence import spans as masks
from cm3jax.sequence.fit import documents_shown, fit_samples, reserved
from cm3jax.sequence.prng import PrngStream
from cm3jax.sequence.rotation import restore
from cm3jax.sequence.rows import Places, Samples, build_rows
from cm3jax.sequence.spans import REPEATS, Spans, mask_counts
from cm3jax.sequence.vocab import Modality, Vocab

DEFAULT = CM3Config()
VOCAB = Vocab(VocabConfig(specials=32, image_codes=64, text_pieces=50, sentinels=17, grid=2))
EOS, BREAK, EOSS = VOCAB.eos, VOCAB.break_, VOCAB.eoss
M0, M1 = VOCAB.sentinel(0), VOCAB.sentinel(1)
A, RED, FOX = (VOCAB.first_text + i for i in range(3))
I1, I2, I3, I4, J1, J2, J3, J4 = (VOCAB.first_image + i for i in range(8))
WIDTH = 30
"""Longest document of the random samples."""


def pack(queries, documents=(), masks=None, records=None, width=WIDTH):
    """Samples of lists of ids; `documents` is one list of documents per query."""
    documents = documents or [[] for _ in queries]
    most = max(map(len, documents))
    shown = np.zeros((len(queries), most, width), np.int32)
    lengths = np.zeros((len(queries), most), np.int32)
    for row, few in enumerate(documents):
        for place, ids in enumerate(few):
            shown[row, place, : len(ids)] = ids
            lengths[row, place] = len(ids)
    query = np.zeros((len(queries), width), np.int32)
    for row, ids in enumerate(queries):
        query[row, : len(ids)] = ids
    count = len(queries)
    return Samples(
        documents=shown,
        document_lengths=lengths,
        query=query,
        query_lengths=np.asarray([len(ids) for ids in queries], np.int32),
        masks=np.zeros(count, np.int32) if masks is None else np.asarray(masks, np.int32),
        records=np.arange(count) if records is None else np.asarray(records),
    )


def random_document(rng, kind):
    def text():
        return list(VOCAB.first_text + rng.integers(0, 50, rng.integers(1, 12)))

    def image():
        return list(VOCAB.first_image + rng.integers(0, 64, 4))

    parts = {
        "text": lambda: [text()],
        "image": lambda: [image()],
        "pair": lambda: [text(), image()],
        "story": lambda: [text()[:5], image(), text()[:5], image()],
    }[kind]()
    ids = parts[0]
    for part in parts[1:]:
        ids = [*ids, BREAK, *part]
    return [int(id_) for id_ in ids]


def random_samples(count, seed, config=DEFAULT):
    """0 to 3 documents; texts, images, pairs and stories."""
    rng = np.random.default_rng(seed)
    kinds = ("text", "image", "pair", "story")
    queries = [random_document(rng, kinds[rng.integers(4)]) for _ in range(count)]
    documents = [
        [random_document(rng, kinds[rng.integers(4)]) for _ in range(rng.integers(4))]
        for _ in range(count)
    ]
    records = np.arange(count) + 100_000 * seed
    return pack(queries, documents, mask_counts(np, 0, 1, records, config), records)


def one_per_row(samples, length=4 * WIDTH + 60, config=DEFAULT, epoch=1):
    count = len(samples.query_lengths)
    alone = np.ones(count, np.int32)
    places = Places(rows=np.arange(count, dtype=np.int32), offsets=0 * alone, segments=alone)
    shape = (count, length)
    return build_rows(np, samples, places, shape, seed=0, epoch=epoch, config=config, vocab=VOCAB)


def real(batch, row):
    """Tokens, targets and weights of a row's only sample."""
    length = int((batch.segments[row] > 0).sum())
    parts = (batch.tokens[row], batch.targets[row], batch.weights[row])
    return [part[:length].tolist() for part in parts]


# ------------------------------------------------------------------------- the design's examples

FOX_QUERY = [A, RED, FOX, BREAK, I1, I2, I3, I4]
CAPTION, CODES_2_3 = (0, 3), (5, 7)
EXAMPLES = {
    "plain": ([], [], [EOS, A, RED, FOX, BREAK, I1, I2, I3, I4, EOS], [1] * 9),
    "mask the caption": (
        [],
        [CAPTION],
        [EOS, M0, BREAK, I1, I2, I3, I4, EOS, M0, A, RED, FOX, EOSS],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ),
    "mask I2..I3": (
        [],
        [CODES_2_3],
        [EOS, A, RED, FOX, BREAK, I1, M0, I4, EOS, M0, I2, I3, EOSS],
        [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1],
    ),
    "mask both": (
        [],
        [CODES_2_3, CAPTION],
        [EOS, M0, BREAK, I1, M1, I4, EOS, M0, A, RED, FOX, EOSS, M1, I2, I3, EOSS],
        [0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ),
    "with a document": (
        [[A, FOX, BREAK, J1, J2, J3, J4]],
        [CAPTION],
        [
            *(EOS, A, FOX, BREAK, J1, J2, J3, J4, BREAK),
            *(M0, BREAK, I1, I2, I3, I4, EOS, M0, A, RED, FOX, EOSS),
        ],
        [0.5] * 8 + [0] + [1] * 11,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_designs_examples(name, monkeypatch):
    """Spans are put in place of the drawn ones; everything after them is the real program."""
    documents, spans, tokens, weights = EXAMPLES[name]
    start = 1 + sum(len(ids) + 1 for ids in documents)

    def chosen(xp, *_, config, **__):
        ends = np.full((2, 1, config.max_masks), masks.NOWHERE, np.int32)
        for place, span in enumerate(sorted(spans)):
            ends[:, 0, place] = np.asarray(span) + start
        return Spans(*map(xp.asarray, ends))

    monkeypatch.setattr(sequence, "draw_spans", chosen)
    samples = pack([FOX_QUERY], [documents], [len(spans)])
    batch = one_per_row(samples, config=CM3Config(retrieved_weight=0.5))
    assert real(batch, 0) == [tokens, [*tokens[1:], VOCAB.pad], [*weights, 0]]
    assert batch.positions[0, : len(tokens)].tolist() == list(range(len(tokens)))
    for part in (batch.tokens, batch.targets, batch.weights, batch.segments, batch.positions):
        assert not part[0, len(tokens) :].any()


# ------------------------------------------------------------------- the rule, written with loops


def drawn_spans(segments, pictures, first, stop, count, record, epoch, config):
    """The rule of `sequence.spans` word by word, for one sample; `segments` are (start, stop)
    places, and some of them `pictures`."""
    accepted = []
    for mask in range(count):
        for attempt in range(1 + REPEATS):
            start_word = 4 * (mask * (1 + REPEATS) + attempt)
            words = prng.bits(np, 0, epoch, record, PrngStream.MASKS, 4, start_word).tolist()
            if words[0] // 2 < round(config.whole_segment * 2**31):
                low, high = segments[words[1] * len(segments) >> 32]
            else:
                cuts = [first + (word * (stop - first + 1) >> 32) for word in words[1:3]]
                overlaps = [min(max(cuts), b) - max(min(cuts), a) for a, b in segments]
                most = segments[overlaps.index(max(overlaps))]
                low, high = max(min(cuts), most[0]), min(max(cuts), most[1])
                wide = words[3] // 2 < round(config.picture_rows * 2**31)
                if wide and low < high and most in pictures:
                    rows = range(most[0], most[1] + 1, VOCAB.config.grid)
                    low, high = max(r for r in rows if r <= low), min(r for r in rows if r >= high)
            if low < high and all(high <= a or b <= low for a, b in accepted):
                accepted.append((low, high))
                break
    return sorted(accepted)


def rotated(documents, query, count, record, epoch, config):
    """Tokens and target weights of one sample."""
    sample, source = [EOS], [1.0]
    for ids in documents:
        sample += [*ids, BREAK]
        source += [config.retrieved_weight] * (len(ids) + 1)
    first = 1 if config.mask_retrieved else len(sample)
    sample, source = [*sample, *query], [*source, *[1.0] * len(query)]
    segments, start = [], first
    for place in range(first, len(sample) + 1):
        if place == len(sample) or sample[place] == BREAK:
            segments.append((start, place))
            start = place + 1
    pictures = [part for part in segments if VOCAB.modality(sample[part[0]]) == Modality.IMAGE]
    spans = drawn_spans(segments, pictures, first, len(sample), count, record, epoch, config)

    tokens, weights, tail, tail_weights, place = [], [], [], [], 0
    for number, (low, high) in enumerate([*spans, (len(sample), len(sample))]):
        tokens += sample[place:low]
        weights += source[place:low]
        if number < len(spans):
            tokens += [VOCAB.sentinel(number)]
            weights += [0.0]
            tail += [VOCAB.sentinel(number), *sample[low:high], EOSS]
            tail_weights += [1.0, *source[low:high], 1.0]
        place = high
    return [*tokens, EOS, *tail], [*weights, 1.0, *tail_weights], spans


@pytest.mark.parametrize(
    "config",
    [
        CM3Config(),
        CM3Config(mean_masks=5.0, whole_segment=0.2, retrieved_weight=0.1),
        CM3Config(mean_masks=3.0, mask_retrieved=True, retrieved_weight=0.5),
        CM3Config(mean_masks=2.0, whole_segment=1.0, max_masks=3),
        CM3Config(mean_masks=2.5, whole_segment=0.2, picture_rows=0.6),
        CM3Config(mean_masks=0.0, max_masks=0),
    ],
    ids=lambda config: f"mean{config.mean_masks:g}-retrieved{config.mask_retrieved:d}",
)
def test_rows_agree_with_the_rule_written_with_loops(config):
    samples = random_samples(600, 3, config)
    batch = one_per_row(samples, config=config)
    masked = 0
    for row, record in enumerate(samples.records):
        lengths = samples.document_lengths[row]
        documents = [samples.documents[row, i, :n].tolist() for i, n in enumerate(lengths) if n]
        query = samples.query[row, : samples.query_lengths[row]].tolist()
        tokens, weights, spans = rotated(
            documents, query, int(samples.masks[row]), record, 1, config
        )
        expected = [*weights[1:], 0]
        got_tokens, targets, got_weights = real(batch, row)
        assert got_tokens == tokens
        assert targets == [*tokens[1:], VOCAB.pad]
        assert got_weights == np.asarray(expected, np.float32).tolist()
        query_start = 1 + sum(len(ids) + 1 for ids in documents)
        assert config.mask_retrieved or all(start >= query_start for start, _ in spans)
        masked += len(spans)
    assert (masked > 0) == (config.mean_masks > 0)


def test_plain_causal_samples_without_masks():
    samples = random_samples(50, 0, CM3Config(mean_masks=0.0))
    assert not samples.masks.any()
    tokens, _, weights = real(one_per_row(samples), 7)
    assert tokens.count(EOS) == 2
    assert tokens[-1] == EOS
    assert weights == [1.0] * (len(weights) - 1) + [0.0]


# -------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("mask_retrieved", [False, True])
def test_the_inverse_is_the_identity(mask_retrieved):
    config = CM3Config(mean_masks=3.0, mask_retrieved=mask_retrieved)
    samples = random_samples(500, 11, config)
    batch = one_per_row(samples, config=config)
    for row in range(500):
        lengths = samples.document_lengths[row]
        parts = [[*samples.documents[row, i, :n], BREAK] for i, n in enumerate(lengths) if n]
        documents = np.asarray([id_ for part in parts for id_ in part], np.int32)
        back = restore(np.asarray(real(batch, row)[0]), 1 + len(documents), VOCAB)
        np.testing.assert_array_equal(back.documents, documents)
        np.testing.assert_array_equal(back.query, samples.query[row, : samples.query_lengths[row]])


def test_spans_hold_neither_break_nor_eos():
    batch = one_per_row(random_samples(2000, 5, CM3Config(mean_masks=4.0)))
    inside = 0
    for tokens in batch.tokens:
        tail = np.flatnonzero(tokens == EOS)[1]
        spans = tokens[tail + 1 :]
        assert not np.isin(spans, [EOS, BREAK]).any()
        opening = VOCAB.is_sentinel(spans)
        assert opening.sum() == (spans == EOSS).sum()
        kinds = VOCAB.modality(spans)
        for start in np.flatnonzero(opening):
            stop = start + np.flatnonzero(spans[start:] == EOSS)[0]
            assert len(set(kinds[start + 1 : stop].tolist())) == 1
            inside += 1
    assert inside > 2000


def test_widened_spans_are_whole_rows_of_pictures():
    wide = CM3Config(mean_masks=1.0, whole_segment=0.0, picture_rows=1.0)
    records = np.arange(4000)
    query = [A, RED, FOX, BREAK, *[VOCAB.first_image + i for i in range(4)]]
    samples = pack([query] * 4000, masks=np.ones(4000), records=records)
    tails = [tail_of(row) for row in one_per_row(samples, config=wide).tokens]
    texts = {tail for tail in tails if tail[0] >= VOCAB.first_text}
    assert len(texts) == 6  # every span of three words
    assert set(tails) - texts == {(I1, I2), (I3, I4), (I1, I2, I3, I4)}


def tail_of(tokens):
    """What a row's only mask hid."""
    opening = np.flatnonzero(tokens == M0)[1]
    return tuple(tokens[opening + 1 : np.flatnonzero(tokens == EOSS)[0]].tolist())


def test_counts_are_poisson_and_captions_are_masked():
    config = CM3Config()
    records = np.arange(40_000)
    counts = mask_counts(np, 0, 0, records, config)
    shares = np.bincount(counts, minlength=4)[:4] / len(records)
    np.testing.assert_allclose(shares, np.exp(-1) / np.asarray([1, 1, 2, 6]), atol=0.008)
    assert mask_counts(np, 0, 0, records, CM3Config(mean_masks=30.0)).max() == 16

    single = records[counts == 1][:8000]
    query = [VOCAB.first_text + i for i in range(8)] + [BREAK] + FOX_QUERY[4:] * 8
    samples = pack([query] * len(single), masks=np.ones(len(single)), records=single, width=48)
    batch = one_per_row(samples, length=64, epoch=0)
    length = (batch.segments > 0).sum(1)
    assert (length == len(query) + 5).mean() > 0.99  # nearly every mask finds its place
    caption = batch.tokens[:, 1] == M0
    whole_caption = caption & (batch.tokens[:, 2] == BREAK)
    whole_picture = (batch.tokens[:, 9] == BREAK) & (batch.tokens[:, 10] == M0)
    whole_picture &= batch.tokens[:, 11] == EOS
    assert abs(whole_caption.mean() - 0.25) < 0.02
    # A random span rarely covers a text that is short beside its image.
    assert 0.25 < whole_picture.mean() < 0.35


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (CM3Config(), [0.2, 0, 0.8]),
        (CM3Config(no_documents=0.0, vary_documents=True), [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_documents_are_shown_as_often_as_configured(config, shares):
    shown = documents_shown(np, 0, 0, np.arange(20_000), 2, config)
    assert np.bincount(shown) / 20_000 == pytest.approx(shares, abs=0.01)


# --------------------------------------------------------------------- numpy and jax.numpy, meshes

SIZES = {"1": (1, 1, 1), "2x2x2": (2, 2, 2)}


DEVICE_CONFIG = CM3Config(mean_masks=1.5, retrieved_weight=0.1, picture_rows=0.3)


def two_per_row(xp, samples):
    count = len(samples.query_lengths)
    place = xp.arange(count, dtype=xp.int32)
    places = Places(rows=place // 2, offsets=200 * (place % 2), segments=1 + place % 2)
    shape = (count // 2, 400)
    return build_rows(
        xp, samples, places, shape, seed=0, epoch=2, config=DEVICE_CONFIG, vocab=VOCAB
    )


@pytest.fixture(scope="module")
def host_rows():
    """10,240 samples and their rows by numpy."""
    samples = [random_samples(2048, seed, DEVICE_CONFIG) for seed in range(5)]
    return [(part, two_per_row(np, part)) for part in samples]


@pytest.mark.slow  # `model/test_sequence_builder.py` compares both with fewer
@pytest.mark.parametrize("mesh", ["1", "2x2x2"])
def test_ten_thousand_samples_are_bitwise_equal_on_host_and_mesh(mesh, host_rows):
    """Rows are spread over the mesh."""
    sizes = SIZES[mesh]
    auto = (jax.sharding.AxisType.Auto,) * 3
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=auto, devices=devices)
    rows = jax.P(("data", "fsdp"))
    program = jax.shard_map(
        partial(two_per_row, jnp), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    program = jax.jit(program)
    for samples, host in host_rows:
        device = program(samples)
        for field in dataclasses.fields(host):
            left, right = getattr(host, field.name), getattr(device, field.name)
            assert left.dtype == right.dtype == ("f4" if field.name == "weights" else "i4")
            np.testing.assert_array_equal(left, right, err_msg=field.name)


@pytest.mark.parametrize("max_masks", [0, 16])
def test_lengths_are_equal_on_host_and_device(max_masks):
    config = CM3Config(mean_masks=2.0, max_masks=max_masks)
    samples = random_samples(500, 1, config)
    scores = np.random.default_rng(0).integers(0, 5, samples.document_lengths.shape)
    scores = scores.astype(np.float32)
    counts = jax.jit(lambda records: mask_counts(jnp, 0, 1, records, config))(samples.records)
    np.testing.assert_array_equal(counts, samples.masks)
    lengths = (samples.document_lengths, scores, samples.query_lengths, samples.masks)
    host, device = (
        fit_samples(np, *lengths, 60),
        jax.jit(lambda *args: fit_samples(jnp, *args, 60))(*lengths),
    )
    for left, right in zip(host, device, strict=True):
        np.testing.assert_array_equal(left, right)


# ------------------------------------------------------------------------------------ stream rows


def test_a_piece_of_the_stream_is_rotated_as_one(monkeypatch):
    """The end of one sample, a whole one with a document, and the beginning of a third."""

    def chosen(xp, *_, config, **__):
        ends = np.full((2, 1, config.max_masks), masks.NOWHERE, np.int32)
        ends[:, 0, :2] = [[3, 16], [5, 18]]  # I3 I4 of the first, I1 I2 of the second query
        return Spans(*map(xp.asarray, ends))

    monkeypatch.setattr(sequence, "draw_spans", chosen)
    samples = pack([FOX_QUERY] * 3, [[], [[RED, BREAK, J1, J2]], []], masks=[2, 2, 2])
    places = Places(
        rows=np.zeros(3, np.int32),
        offsets=np.asarray([-4, 6, 21], np.int32),
        segments=np.asarray([1, 2, 3], np.int32),
    )
    batch = sequence.build_stream_rows(
        np,
        samples,
        places,
        (1, 30),
        seed=0,
        epoch=0,
        config=CM3Config(retrieved_weight=0.5),
        vocab=VOCAB,
    )
    tokens = [
        *(BREAK, I1, I2, M0, EOS),
        *(EOS, RED, BREAK, J1, J2, BREAK, A, RED, FOX, BREAK, M1, I3, I4, EOS),
        *(EOS, A, RED, M0, I3, I4, EOSS, M1, I1, I2, EOSS),
    ]
    assert batch.tokens[0].tolist() == tokens
    assert batch.targets[0].tolist() == [*tokens[1:], VOCAB.pad]
    weights = [1, 1, 0, 1, 1, *[0.5] * 5, *[1] * 4, 0, *[1] * 14, 0]
    assert batch.weights[0].tolist() == weights
    assert batch.segments[0].tolist() == [1] * 30
    assert batch.positions[0].tolist() == list(range(30))


def random_stream(config, rows=64, length=96):
    """Samples on end, cut into rows; every row's masks are drawn."""
    samples = random_samples(240, 7)
    sizes = reserved(np, samples.document_lengths, samples.query_lengths, 0)
    stops = np.cumsum(sizes)
    counts = np.minimum(mask_counts(np, 0, 2, np.arange(rows), config), length // 6)
    cuts = np.concatenate([[0], np.cumsum(length - 3 * counts)])
    row, sample = np.nonzero(
        (stops[None] > cuts[:-1, None]) & (stops - sizes < cuts[1:, None])[:rows]
    )
    assert len(set(row.tolist())) == rows
    samples = jax.tree.map(lambda x: x[sample], samples)
    samples = dataclasses.replace(samples, masks=counts[row], records=row)
    offsets = ((stops - sizes)[sample] - cuts[row]).astype(np.int32)
    return samples, Places(row.astype(np.int32), offsets, np.ones(len(row), np.int32))


def test_stream_rows_are_bitwise_equal_on_host_and_device():
    config = CM3Config(mean_masks=2.0, retrieved_weight=0.1)
    parts = random_stream(config)
    build = partial(sequence.build_stream_rows, seed=0, epoch=2, config=config, vocab=VOCAB)
    host = build(np, *parts, (64, 96))
    device = jax.jit(lambda *parts: build(jnp, *parts, (64, 96)))(*parts)
    for field in dataclasses.fields(host):
        left, right = getattr(host, field.name), getattr(device, field.name)
        assert left.dtype == right.dtype == ("f4" if field.name == "weights" else "i4")
        np.testing.assert_array_equal(left, right, err_msg=field.name)


def test_a_stream_row_is_one_segment_with_padding_only_behind_it():
    """So that causal attention, which cuDNN computes without segments, is attention within it."""
    config = CM3Config(mean_masks=12.0)  # so many that some find no place
    batch = sequence.build_stream_rows(
        np, *random_stream(config), (64, 96), seed=0, epoch=2, config=config, vocab=VOCAB
    )
    lengths = (batch.segments > 0).sum(1, keepdims=True)
    assert len(np.unique(lengths)) > 1
    np.testing.assert_array_equal(batch.segments, np.arange(96) < lengths)
    assert not batch.weights[batch.segments == 0].any()


def test_stream_spans_cross_neither_break_nor_eos_and_reach_documents():
    config = CM3Config(mean_masks=2.0, retrieved_weight=0.5)
    samples, places = random_stream(config)
    batch = sequence.build_stream_rows(
        np, samples, places, (64, 96), seed=0, epoch=2, config=config, vocab=VOCAB
    )
    spans = in_documents = 0
    for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
        assert not VOCAB.is_sentinel(tokens[:1]).any()
        recalled = np.flatnonzero(tokens == M0)
        if not len(recalled):
            continue
        assert weights[recalled[0] - 1] == 0
        assert weights[recalled[1] - 1] == 1
        tail, asked = tokens[recalled[1] :], weights[recalled[1] - 1 :]
        for start in np.flatnonzero(VOCAB.is_sentinel(tail)):
            stop = start + np.flatnonzero(tail[start:] == EOSS)[0]
            inside = tail[start + 1 : stop]
            assert len(inside)
            assert len(set(VOCAB.modality(inside).tolist())) == 1
            assert not np.isin(inside, [EOS, BREAK]).any()
            spans += 1
            in_documents += asked[start + 1] == 0.5
    assert spans > 90
    assert in_documents > 20


# ---------------------------------------------------------------------------------------- packing


def test_samples_share_a_row_and_stay_apart():
    queries = [FOX_QUERY, [A, FOX], FOX_QUERY]
    samples = pack(queries, masks=[0, 0, 0])
    places = Places(
        rows=np.asarray([0, 0, -1], np.int32),
        offsets=np.asarray([0, 12, 0], np.int32),
        segments=np.asarray([1, 2, 3], np.int32),
    )
    batch = build_rows(
        np, samples, places, (1, 20), seed=0, epoch=0, config=CM3Config(), vocab=VOCAB
    )
    first, second = [EOS, *FOX_QUERY, EOS], [EOS, A, FOX, EOS]
    assert batch.tokens[0].tolist() == [*first, 0, 0, *second, *[0] * 4]
    assert batch.segments[0].tolist() == [1] * 10 + [0, 0] + [2] * 4 + [0] * 4
    assert batch.positions[0].tolist() == [*range(10), 0, 0, *range(4), *[0] * 4]
    assert batch.targets[0].tolist() == [*first[1:], 0, 0, 0, *second[1:], 0, *[0] * 4]
    assert batch.weights[0].tolist() == [1] * 9 + [0, 0, 0] + [1] * 3 + [0] * 5


def test_fit_drops_the_lowest_scores_then_masks_then_gives_up():
    lengths = np.asarray([[10, 10, 10]] * 5, np.int32)
    scores = np.asarray([[0.5, 0.2, 0.9]] * 5, np.float32)
    query, count = np.asarray([8, 8, 8, 8, 40], np.int32), np.asarray([0, 3, 4, 16, 1], np.int32)
    left = fit_samples(np, lengths, scores, query, count, 43)
    assert left.document_lengths.tolist() == [
        [10, 10, 10],  # 2 + 33 + 8 = 43 fits
        [10, 0, 10],
        [0, 0, 10],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert left.masks.tolist() == [0, 3, 4, 11, 0]
    assert left.fits.tolist() == [True, True, True, True, True]
    assert not fit_samples(np, lengths, scores, query, count, 41).fits[4]
    assert (reserved(np, left.document_lengths, query, left.masks) <= 43).all()


def test_the_later_of_two_documents_of_equal_score_is_dropped_first():
    lengths, scores = np.asarray([[5, 5]], np.int32), np.zeros((1, 2), np.float32)
    one = np.asarray([1], np.int32)
    assert fit_samples(np, lengths, scores, one, 0 * one, 9).document_lengths.tolist() == [[5, 0]]


# ------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_sees_every_part_and_adds_up_over_processes():
    samples = random_samples(8, 0)
    batch, records = one_per_row(samples), samples.records[:, None]
    whole = sequence.batch_fingerprint(batch, records)
    parts = [
        sequence.batch_fingerprint(jax.tree.map(lambda x, s=s: x[s], batch), records[s], s.start)
        for s in (slice(0, 4), slice(4, 8))
    ]
    assert f"{sum(int(part, 16) for part in parts) % 2**64:016x}" == whole
    for name in ("tokens", "targets", "weights"):
        changed = getattr(batch, name).copy()
        changed[3, 2] += 1
        other = dataclasses.replace(batch, **{name: changed})
        assert sequence.batch_fingerprint(other, records) != whole
    assert sequence.batch_fingerprint(batch, records + 1) != whole
    swapped = jax.tree.map(lambda x: x[::-1], batch)
    assert sequence.batch_fingerprint(swapped, records[::-1]) != whole


def test_more_masks_than_sentinels_are_refused():
    with pytest.raises(UserError, match=r"max_masks=18 .* vocab\.sentinels=17"):
        one_per_row(random_samples(1, 0), config=CM3Config(max_masks=18))


def test_text_only_and_image_only_samples_are_masked_whole():
    config = CM3Config(whole_segment=1.0)
    samples = pack([[A, RED, FOX], [I1, I2, I3, I4]], masks=[1, 1])
    batch = one_per_row(samples, config=config)
    assert real(batch, 0)[0] == [EOS, M0, EOS, M0, A, RED, FOX, EOSS]
    assert real(batch, 1)[0] == [EOS, M0, EOS, M0, I1, I2, I3, I4, EOSS]
    assert VOCAB.modality(np.asarray(I1)) == Modality.IMAGE
