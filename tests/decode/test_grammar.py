import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import VocabConfig
from cm3jax.decode import grammar
from cm3jax.decode.grammar import Codes, Fixed, Free, Interleaved, Kind, Words
from cm3jax.sequence.document import Image, parse
from cm3jax.sequence.vocab import Modality, Vocab

VOCAB = Vocab(VocabConfig(specials=12, image_codes=9, text_pieces=20, sentinels=5, grid=2))
IMAGE, TEXT = VOCAB.first_image, VOCAB.first_text
KINDS = grammar.kinds(VOCAB)
FORCED, PERMITTED, ADVANCE = map(jax.jit, (grammar.forced, grammar.permitted, grammar.advance))


def walk(program, choose, limit=50):
    """Follow the automaton as the loop does; `choose(permitted ids)` samples."""
    table = grammar.compile_programs([program], VOCAB, width=limit)
    assert table.lengths[0] == grammar.columns(program, VOCAB)
    states, emitted = jnp.zeros(1, jnp.int32), []
    while states[0] < table.lengths[0]:
        forced = int(FORCED(table, states)[0])
        count = jnp.asarray([len(emitted)], jnp.int32)
        permitted = np.flatnonzero(PERMITTED(table, states, count, KINDS)[0])
        assert not VOCAB.is_sentinel(permitted).any()
        token = choose(permitted) if forced == grammar.FREE else forced
        emitted.append(int(token))
        states = ADVANCE(table, states, jnp.asarray([token], jnp.int32), KINDS)
    assert len(emitted) <= grammar.steps(program)
    return emitted


def test_every_id_is_of_one_kind_or_of_none():
    for id_, kind in ((VOCAB.eoss, Kind.END), (VOCAB.break_, Kind.BREAK), (VOCAB.eos, Kind.EOS)):
        assert KINDS[id_] == kind
    modality = VOCAB.modality(np.arange(VOCAB.size))
    assert (KINDS[modality == Modality.IMAGE] == Kind.IMAGE).all()
    assert (KINDS[modality == Modality.TEXT] == Kind.TEXT).all()
    special = np.flatnonzero(modality == Modality.SPECIAL)
    others = np.setdiff1d(special, [VOCAB.eoss, VOCAB.break_, VOCAB.eos])
    assert (KINDS[others] == Kind.NONE).all()


def test_a_picture_has_its_length_its_known_codes_and_nothing_but_codes():
    offered = []

    def choose(ids):
        offered.append(ids)
        return ids[-1]

    program = (Codes((None, IMAGE + 3, None, IMAGE)),)
    assert walk(program, choose) == [TEXT - 1, IMAGE + 3, TEXT - 1, IMAGE]
    for ids in offered:
        np.testing.assert_array_equal(ids, np.arange(IMAGE, TEXT))


@pytest.mark.parametrize(("pieces", "limit"), [(1, 6), (3, 6), (4, 6), (5, 6), (99, 6), (99, 2)])
def test_a_text_is_never_empty_and_ends_within_its_limit(pieces, limit):
    seen = 0

    def choose(ids):
        nonlocal seen
        assert set(ids) <= {VOCAB.eoss, *range(TEXT, VOCAB.size)}
        assert seen or VOCAB.eoss not in ids
        if seen >= pieces and VOCAB.eoss in ids:
            return VOCAB.eoss
        seen += 1
        return ids[ids >= TEXT][0]

    expected = min(pieces, limit - 1)
    assert walk((Words(limit),), lambda ids: VOCAB.eoss if len(ids) == 1 else choose(ids)) == [
        *[TEXT] * expected,
        VOCAB.eoss,
    ]


def test_what_ended_because_of_its_limit_is_told_from_what_ended_by_itself():
    a, eoss, eos, break_ = TEXT, VOCAB.eoss, VOCAB.eos, VOCAB.break_
    picture = [IMAGE] * VOCAB.image_tokens
    for program, ids, cut in (
        ((Words(3),), [a, eoss], False),
        ((Words(3),), [a, a, eoss], True),
        ((Words(3), Fixed((a,)), Words(3)), [a, eoss, a, a, eoss], False),
        ((Words(3), Fixed((a,)), Words(3)), [a, eoss, a, a, a, eoss], True),
        ((Codes((None, IMAGE)), Fixed((eoss,))), [IMAGE, IMAGE, eoss], False),
        ((Interleaved(5),), [a, a, eos], False),
        ((Interleaved(5),), [a, break_, a, a, eos], True),
        ((Interleaved(8),), [a, break_, *picture, eos], True),
        ((Interleaved(10),), [a, break_, *picture, eos], False),
        ((Free(4),), [a, a, eos], False),
        ((Free(4),), [a, a, a, eos], True),
    ):
        assert grammar.cut_short(program, np.asarray(ids), VOCAB) == cut, (program, ids)


def test_slots_follow_each_other_wherever_a_text_ends():
    recall = Fixed((VOCAB.sentinel(1),))
    program = (Words(9), recall, Codes((None, None)), Fixed((VOCAB.eoss,)))
    picks = iter([TEXT + 1, TEXT, VOCAB.eoss, IMAGE, IMAGE + 1])
    assert walk(program, lambda ids: next(picks)) == [
        *[TEXT + 1, TEXT, VOCAB.eoss],
        VOCAB.sentinel(1),
        *[IMAGE, IMAGE + 1, VOCAB.eoss],
    ]


@pytest.mark.parametrize("limit", [2, 3, 5, 6, 9, 14, 30])
@pytest.mark.parametrize("seed", range(3))
def test_an_interleaved_document_is_whole_whatever_the_model_likes(limit, seed):
    draw = np.random.default_rng((limit, seed))

    def choose(ids):
        kind = draw.choice(np.unique(KINDS[ids]))  # or text, with most ids, would always win
        assert kind != Kind.END
        return draw.choice(ids[np.asarray(KINDS[ids]) == kind])

    emitted = walk((Interleaved(limit),), choose)
    assert emitted[-1] == VOCAB.eos
    assert len(emitted) <= limit
    segments = parse(emitted[:-1], VOCAB)  # refuses an image of another length, and mixtures
    assert segments
    if limit < VOCAB.image_tokens + 1:
        assert not any(isinstance(segment, Image) for segment in segments)


def test_a_picture_may_be_the_last_that_fits():
    def image_then_break(ids):
        wanted = (Kind.IMAGE, Kind.BREAK, Kind.EOS)
        return next(id_ for kind in wanted for id_ in ids if KINDS[id_] == kind)

    emitted = walk((Interleaved(10),), image_then_break)
    assert parse(emitted[:-1], VOCAB) == (Image((0,) * 4), Image((0,) * 4))
    assert len(emitted) == 10


def test_without_grammar_all_but_sentinels_and_padding_is_permitted():
    offered = []

    def choose(ids):
        offered.append(set(ids.tolist()))
        return IMAGE if IMAGE in ids else VOCAB.eos

    assert walk((Free(4),), choose) == [*[IMAGE] * 3, VOCAB.eos]
    everything = {VOCAB.eos, VOCAB.break_, VOCAB.eoss, *range(IMAGE, VOCAB.size)}
    assert offered == [everything] * 3 + [{VOCAB.eos}]
    assert walk((Free(9),), lambda ids: VOCAB.eos) == [VOCAB.eos]


def test_rows_of_a_batch_do_not_disturb_each_other():
    programs = [(Codes((None,) * 3),), (), (Words(5),)]
    table = grammar.compile_programs(programs, VOCAB, width=8)
    np.testing.assert_array_equal(table.lengths, [3, 0, 5])
    states = jnp.asarray([0, 0, 2])
    tokens = jnp.asarray([IMAGE, VOCAB.pad, VOCAB.eoss])
    np.testing.assert_array_equal(grammar.advance(table, states, tokens, KINDS), [1, 0, 5])
    permitted = PERMITTED(table, jnp.asarray([3, 0, 5]), jnp.zeros(3, jnp.int32), KINDS)
    assert not permitted.any()
