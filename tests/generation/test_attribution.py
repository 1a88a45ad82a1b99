import numpy as np
import pytest

from cm3jax import testing
from cm3jax.generation import loading
from cm3jax.generation.attribution import effects, gains_by_place, heat_map, prefixes_without
from cm3jax.generation.prompts import picture_prompt
from cm3jax.sequence.document import Image, Text, render

PROMPT = "a red fox"


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return loading.load(testing.write_chain(tmp_path_factory.mktemp("attributed")))


@pytest.fixture(scope="module")
def documents(generator):
    """One of the bank, one that is given, one without an image."""
    (found,) = generator.documents_for([picture_prompt(PROMPT)], 1, floor=-1.0)
    text = Text(tuple(generator.text.encode("a blue fox")))
    given = [render(parts, generator.vocab) for parts in ((text, Image((3, 1, 4, 1))), (text,))]
    return [*found, *given]


def test_the_effect_of_a_document_is_what_the_answer_loses_without_it(generator, documents):
    prompt = picture_prompt(PROMPT)
    ((sample,),) = generator.sample([prompt], [documents], seed=1)
    lists = [documents, documents[1:], [documents[0], documents[2]], documents[:2]]
    requests = generator.requests([prompt] * 4, lists)
    for own, other in zip(prefixes_without(sample.prefix, documents), requests[1:], strict=True):
        np.testing.assert_array_equal(own, other.prefix)
    whole, *without = generator.logprobs(requests, [sample.ids] * 4)
    found = generator.document_effects(sample)
    for effect, less in zip(found, without, strict=True):
        assert effect.gain == pytest.approx(whole - less, abs=1e-3)
        assert effect.gains.shape == sample.ids.shape
    assert found[2].copied is None


def test_the_share_of_codes_that_a_document_s_picture_has(generator, documents):
    ((sample,),) = generator.sample([picture_prompt(PROMPT)], [documents], seed=1)
    ids = np.asarray([3, 1, 4, 2], np.int32) + generator.vocab.first_image
    shown, nothing = sample.documents, np.zeros(4)
    assert effects(ids, shown, [nothing] * 4, generator.vocab)[1].copied == 0.75
    found = effects(ids[:3], shown, [nothing[:3]] * 4, generator.vocab)
    assert [effect.copied for effect in found] == [None] * 3


def test_gains_stand_where_the_codes_are(generator):
    vocab = generator.vocab
    ids, gains = np.asarray([3, 1], np.int32) + vocab.first_image, np.asarray([1.0, -2.0])
    np.testing.assert_array_equal(gains_by_place(ids, gains, 1, vocab), [[0, 1], [-2, 0]])
    assert gains_by_place(ids, gains, 3, vocab) is None
    assert gains_by_place(ids - vocab.first_image, gains, 0, vocab) is None


def test_the_map_is_red_where_a_document_helped_and_blue_where_it_hurt():
    image = np.full((4, 4, 3), 100, np.uint8)
    drawn = heat_map(image, np.asarray([5.0, 0.0, -5.0, 0.0]), 2).astype(int)
    assert drawn[0, 0, 0] > drawn[0, 0, 2]
    assert drawn[3, 1, 2] > drawn[3, 1, 0]
    assert (drawn[:, 2:] == 100).all()
