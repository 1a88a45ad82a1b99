"""Windows of guesses emit what a pass per id emits."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from cm3jax import partition, testing
from cm3jax.config import DecodeConfig, DecoderConfig, MeshConfig, VocabConfig
from cm3jax.config.decoding import AUTO
from cm3jax.decode import pace, speculate, steps
from cm3jax.decode.drafts import Drafts
from cm3jax.decode.grammar import Codes, Fixed, Interleaved, Words
from cm3jax.decode.loop import Slots, decode, decode_each
from cm3jax.decode.params import as_read
from cm3jax.decode.plan import SizeClass
from cm3jax.decode.request import Guide, Request
from cm3jax.decode.throughput import Meter
from cm3jax.model.decoder import Decoder
from cm3jax.sequence.vocab import Vocab
from tests.decode.test_loop import (  # noqa: F401
    BLIND,
    GREEDY,
    MODEL,
    PICTURE,
    VOCAB,
    read,
    text_request,
    variables,
)

HOLES = (
    Codes((VOCAB.first_image + 3, None, None, VOCAB.first_image + 5, None)),
    Fixed((VOCAB.eoss, VOCAB.sentinel(1))),
    Words(20),
)
METHODS = {
    "greedy": GREEDY,
    "filtered": DecodeConfig(temperature_range=(0.5, 3.0), top_k=12, top_p=0.9),
    "contrasted": DecodeConfig(temperature=1.5, contrast="half"),
}


def equal(some, others):
    for one, other in zip(itertools.chain(*some), itertools.chain(*others), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert (one.sampled, one.temperature) == (other.sampled, other.temperature)


THIRD = (Guide(BLIND, 2.0), Guide(BLIND[:2], 1.5))
ASKED = [
    text_request(0, 5, PICTURE, 3.0),
    # Two slots for three prompts: the third is drawn beside one that has emitted more.
    *(text_request(number, 3 + number, (Words(24),)) for number in (1, 2, 3)),
    text_request(4, 25, (Interleaved(30),), 2.0),
    text_request(5, 14, HOLES, 1.0),
    dataclasses.replace(text_request(6, 7, (Words(24),)), guides=THIRD),
]
"""Of images, holes, texts and documents, in one, two and three streams."""


@pytest.mark.parametrize(
    ("requests", "method", "window"),
    [
        (ASKED[:4], "filtered", 4),
        # Each window, each number of streams and each model is a program of its own.
        *(
            pytest.param(ASKED, *pair, marks=pytest.mark.slow)
            for pair in (*zip(METHODS, (5, 2, 8), strict=True), ("contrasted", 4))
        ),
    ],
)
def test_windows_draw_what_a_pass_per_id_draws(read, requests, method, window):  # noqa: F811
    config = dataclasses.replace(METHODS[method], batch=4)
    wide = dataclasses.replace(config, speculate=window)
    equal(*(decode(MODEL, read, VOCAB, requests, one, 2, 7) for one in (config, wide)))


def test_prompts_of_one_bucket_share_one_program_of_each_window(read):  # noqa: F811
    config = dataclasses.replace(GREEDY, speculate=4, batch=4)

    def programs(*lengths):
        requests = [text_request(number, length) for number, length in enumerate(lengths)]
        decode(MODEL, read, VOCAB, requests, config)
        return steps.compiled_programs()

    assert programs(18, 20, 25, 27) == programs(17, 30, 29, 19)


def test_what_is_copied_from_a_document_takes_few_passes(read):  # noqa: F811
    """Known codes are forced, so that an answer repeats the image of its document."""
    codes = tuple(VOCAB.first_image + np.random.default_rng(0).permutation(9))
    words = [VOCAB.first_text + 1, VOCAB.first_text + 2, VOCAB.break_]
    prefix = np.asarray([VOCAB.eos, *words, *codes, VOCAB.break_, *words], np.int32)
    alone = Request(prefix, (), PICTURE, 0)
    meter = Meter()
    config = dataclasses.replace(GREEDY, speculate=4)
    list(decode_each(MODEL, read, VOCAB, [alone], config, meter=meter))
    assert meter.emitted == 9
    assert meter.passes <= 9
    guessed = Drafts.empty(1, len(prefix), 16)
    guessed = dataclasses.replace(guessed, ids=guessed.ids.at[0, : len(prefix)].set(prefix))
    first = guessed.sources(jnp.zeros(1, jnp.int32), 9, VOCAB)
    assert first[1, 0].tolist() == list(codes)
    # Three codes on, of which the third was guessed wrong: so is what was drawn behind it.
    kept = jnp.arange(4)[:, None] < 3
    drawn = jnp.asarray([*codes[:3], VOCAB.first_image])[:, None]
    read = jnp.asarray([[*codes[:2], VOCAB.first_image]])
    later = guessed.after(jnp.zeros(1, jnp.int32), read, drawn, kept, first[:, :, :3])
    assert later.sources(jnp.full(1, 3), 6, VOCAB)[:, 0].tolist() == [list(codes[3:])] * 2
    assert (later.scores == 3).all()
    # Had the third been right, what was drawn behind it would be believed.
    right = dataclasses.replace(later, read=later.ids)
    assert (right.sources(jnp.full(1, 3), 1, VOCAB) == VOCAB.first_image).all()


def test_what_a_document_shows_is_guessed_on_another_background():
    """Two codes side by side: the second one, and what ends them."""
    document, own = (
        [VOCAB.first_image + code for code in codes]
        for codes in ((0, 0, 0, 0, 0, 1, 2, 0, 0), (7, 7, 1, 2, 7, 7))
    )
    prefix = [VOCAB.eos, VOCAB.first_text, VOCAB.break_, *document, VOCAB.break_]
    ids = jnp.asarray([*prefix, *own])[None]
    for emitted in (3, 4, 5):
        known = jnp.where(jnp.arange(ids.shape[1]) < len(prefix) + emitted, ids, -1)
        guess = Drafts.before(known, len(prefix)).sources(jnp.full(1, emitted), 1, VOCAB)
        assert guess[:, 0, 0].tolist() == [own[emitted]] * 2


def test_guesses_know_what_passes_without_any_emitted():
    drafts = Drafts.before(jnp.asarray([[3, 4, -1, -1, -1]] * 2), 2)
    after = drafts.followed_by(jnp.asarray([0, 1]), jnp.asarray([[7, 8], [9, 10]]))
    assert after.ids.tolist() == [[3, 4, 7, 9, -1], [3, 4, -1, 8, 10]]
    assert after.read is drafts.read


def test_processes_that_share_rows_time_nothing(read, monkeypatch):  # noqa: F811
    """Each would choose a window of its own, and wait for the others in another program."""
    mesh = partition.make_mesh(MeshConfig(data=2))
    shared = jax.device_put(read, partition.replicated(mesh))
    config = dataclasses.replace(GREEDY, speculate=AUTO)
    shape = SizeClass.of(text_request(0, 5), VOCAB).shape(2, MODEL.longest_prompt, config.guesses)

    def window(processes):
        monkeypatch.setattr(partition, "processes", lambda mesh: processes)
        return Slots(MODEL, shared, VOCAB, shape, config, Meter())._pace.window

    timed = []

    def trial(slots, window):
        timed.append(window)
        return 1.0

    monkeypatch.setattr(Slots, "_trial", trial)
    assert window(2) == 1
    assert not timed
    assert window(1) == 16
    assert timed


def test_where_guesses_do_not_pay_programs_are_those_without(read, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pace, "_MEASURED", {})
    monkeypatch.setattr(Slots, "_trial", lambda slots, window: float(window))
    requests = [text_request(number, 5 + number) for number in range(3)]
    config = dataclasses.replace(GREEDY, batch=4)
    plain = decode(MODEL, read, VOCAB, requests, config)
    programs = steps.compiled_programs()
    auto = dataclasses.replace(config, speculate=AUTO)
    equal(plain, decode(MODEL, read, VOCAB, requests, auto))
    assert steps.compiled_programs() == programs


def test_a_guess_counts_where_all_before_it_are_right():
    drafts = jnp.asarray([[5, 6, 7], [5, 0, 7], [0, 6, 7]])
    drawn = jnp.asarray([[5, 6, 7, 8]] * 3).T
    assert speculate.accepted(drafts, drawn).sum(0).tolist() == [4, 2, 1]


# A joint that can be written out: three codes of four.
FEW = Vocab(VocabConfig(specials=16, image_codes=4, text_pieces=8, sentinels=2, grid=2))
SMALL = Decoder(
    DecoderConfig(
        layers=1, width=16, heads=2, head_width=8, ffn=16, context=16, dtype="float32", init_std=0.7
    ),
    FEW.size,
)
PLACES = 3
SAMPLERS = {
    "plain": DecodeConfig(guidance_scale=1.0),
    "cfg": DecodeConfig(temperature=1.5, guidance_scale=2.0),
    "top_p": DecodeConfig(temperature=1.2, guidance_scale=1.5, top_p=0.9),
    "cdk": DecodeConfig(contrast="all", contrast_k=3, contrast_alpha=0.3),
}


def literal_probabilities(conditional, unconditional, config):
    """Of the next code, as the formulas say it."""
    if config.contrast == "all":
        likely = conditional - np.log(np.exp(conditional).sum())
        heated = unconditional / config.contrast_temperature
        scores = likely - (heated - np.log(np.exp(heated).sum()))
        least = np.log(config.contrast_alpha) + np.sort(likely)[-config.contrast_k]
        scores = np.where(likely >= least, scores, -np.inf)
    else:
        scores = unconditional + config.guidance_scale * (conditional - unconditional)
        scores = scores / config.temperature
    found = np.exp(scores) / np.exp(scores).sum()
    order = np.argsort(-found)
    before = np.cumsum(found[order]) - found[order]
    nucleus = np.zeros(len(found), bool)
    nucleus[order[before < config.top_p]] = True
    found = np.where(nucleus, found, 0)
    return found / found.sum()


def literal_joint(variables, request, config):  # noqa: F811
    """Probabilities of all answers, by a full forward pass for each beginning."""

    @jax.jit
    def logits(row):
        hidden = SMALL.apply(variables, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row))
        return SMALL.apply(variables, hidden[0], method="logits")

    def forward(prefix, codes):
        ids = [*prefix, *codes]
        found = logits(jnp.asarray([[*ids, *[0] * (SMALL.config.context - len(ids))]]))
        return np.asarray(found[len(ids) - 1, FEW.first_image : FEW.first_text], np.float64)

    joint = np.ones([4] * PLACES)
    for place in range(PLACES):
        for codes in itertools.product(range(4), repeat=place):
            ids = [FEW.first_image + code for code in codes]
            other = request.guides[0].prefix if request.guides else request.prefix
            following = literal_probabilities(
                forward(request.prefix, ids), forward(other, ids), config
            )
            joint[codes] *= following.reshape(4, *[1] * (PLACES - place - 1))
    return joint.reshape(-1)


def rejected(variables, config, samples):  # noqa: F811
    """Whether samples are not of the joint: chi-square at 0.001."""
    prefix = np.asarray([FEW.eos, FEW.first_text + 2, FEW.first_image, FEW.break_], np.int32)
    blind = np.asarray([FEW.eos, FEW.break_], np.int32)
    guided = config.guidance_scale != 1 or config.contrast != "none"
    guides = (Guide(blind, config.guidance_scale),) if guided else ()
    request = Request(prefix, guides, (Codes((None,) * PLACES),), 0)
    config = dataclasses.replace(config, batch=6_000)
    meter, found = Meter(), []
    read = as_read(variables, "float32")  # noqa: F811
    for finished in decode_each(SMALL, read, FEW, [request], config, samples, 3, meter):
        found += [sample.ids for done in finished for sample in done.samples]
    codes = np.asarray(found) - FEW.first_image
    counts = np.bincount(codes @ 4 ** np.arange(PLACES)[::-1], minlength=4**PLACES)
    if config.speculate:
        assert meter.passes < meter.emitted, "no guess was right"
    expected = literal_joint(variables, request, config) * samples
    assert not counts[expected == 0].any()
    # Rare answers are counted as one.
    often = expected >= 5
    counts = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], max(expected[~often].sum(), 1e-9))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert often.sum() > 5, "nearly all answers are rare; make the model less sure"
    return chi2.sf(statistic, len(expected) - 1) < 0.001


@pytest.fixture(scope="module")
def small():
    return testing.decoder_variables(SMALL)


@pytest.mark.slow  # two compilations; which guesses count is tested above
def test_samples_are_of_the_joint_and_of_another_where_a_wrong_guess_is_kept(small, monkeypatch):
    config = dataclasses.replace(SAMPLERS["cfg"], speculate=4)
    assert not rejected(small, config, 6_000)
    # The rule broken by hand: a guess counts though the one before it was wrong.
    monkeypatch.setattr(
        speculate, "accepted", lambda drafts, drawn: jnp.ones_like(drawn, dtype=bool)
    )
    steps.chunk.clear_cache()
    assert rejected(small, config, 6_000)
    steps.chunk.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 2, 4, 8])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_samples_are_of_the_joint(small, sampler, window):
    """Of each sampler 50,000 of a pass per id, and 210,000 of windows: 70,000 of each."""
    config = dataclasses.replace(SAMPLERS[sampler], speculate=window)
    assert not rejected(small, config, 70_000 if window else 50_000)
