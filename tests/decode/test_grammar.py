import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import VocabConfig
from cm3jax.decode import grammar
from cm3jax.decode.grammar import Codes, Fixed, Words
from cm3jax.vocab import Modality, Vocab

VOCAB = Vocab(VocabConfig(specials=12, image_codes=9, text_pieces=20, sentinels=5, grid=2))
IMAGE, TEXT = VOCAB.first_image, VOCAB.first_text


def walk(program, choose, limit=50):
    """Follow the automaton as the loop does; `choose(permitted ids)` samples."""
    table = grammar.compile_programs([program], VOCAB, width=limit)
    states, emitted = jnp.zeros(1, jnp.int32), []
    while states[0] < table.lengths[0]:
        forced = int(grammar.forced(table, states)[0])
        permitted = grammar.permitted(table, states, grammar.kinds(VOCAB))[0]
        token = choose(np.flatnonzero(permitted)) if forced == grammar.FREE else forced
        emitted.append(int(token))
        states = grammar.advance(table, states, jnp.asarray([token], jnp.int32), VOCAB.eoss)
    return emitted


def test_every_id_is_of_one_kind_or_of_none():
    kinds = grammar.kinds(VOCAB)
    assert kinds[VOCAB.eoss] == grammar.Kind.END
    modality = VOCAB.modality(np.arange(VOCAB.size))
    assert (kinds[modality == Modality.IMAGE] == grammar.Kind.IMAGE).all()
    assert (kinds[modality == Modality.TEXT] == grammar.Kind.TEXT).all()
    others = np.setdiff1d(np.flatnonzero(modality == Modality.SPECIAL), [VOCAB.eoss])
    assert (kinds[others] == grammar.Kind.NONE).all()


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


def test_slots_follow_each_other_wherever_a_text_ends():
    recall = Fixed((VOCAB.sentinel(1),))
    program = (Words(9), recall, Codes((None, None)), Fixed((VOCAB.eoss,)))
    picks = iter([TEXT + 1, TEXT, VOCAB.eoss, IMAGE, IMAGE + 1])
    assert walk(program, lambda ids: next(picks)) == [
        *[TEXT + 1, TEXT, VOCAB.eoss],
        VOCAB.sentinel(1),
        *[IMAGE, IMAGE + 1, VOCAB.eoss],
    ]


def test_rows_of_a_batch_do_not_disturb_each_other():
    programs = [(Codes((None,) * 3),), (), (Words(5),)]
    table = grammar.compile_programs(programs, VOCAB, width=8)
    np.testing.assert_array_equal(table.lengths, [3, 0, 5])
    states = jnp.asarray([0, 0, 2])
    tokens = jnp.asarray([IMAGE, VOCAB.pad, VOCAB.eoss])
    np.testing.assert_array_equal(grammar.advance(table, states, tokens, VOCAB.eoss), [1, 0, 5])
    permitted = grammar.permitted(table, jnp.asarray([3, 0, 5]), grammar.kinds(VOCAB))
    assert not permitted.any()
