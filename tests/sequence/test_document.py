import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3jax.config import VocabConfig
from cm3jax.errors import UserError
from cm3jax.sequence.document import Image, ImagePath, Mark, Text, parse, parse_prompt, render
from cm3jax.sequence.vocab import Vocab

VOCAB = Vocab(VocabConfig(specials=12, image_codes=20, text_pieces=30, sentinels=8, grid=2))

texts = st.lists(st.integers(0, 29), min_size=1, max_size=9).map(lambda p: Text(tuple(p)))
images = st.lists(st.integers(0, 19), min_size=4, max_size=4).map(lambda c: Image(tuple(c)))


@given(st.lists(st.one_of(texts, images), max_size=6))
def test_parse_undoes_render(segments):
    document = tuple(segments)
    assert parse(render(document, VOCAB), VOCAB) == document


def test_a_pair_is_text_break_codes():
    ids = render((Text((0, 3)), Image((0, 1, 2, 19))), VOCAB)
    assert ids.tolist() == [32, 35, VOCAB.break_, 12, 13, 14, 31]
    assert ids.dtype == np.int32


@pytest.mark.parametrize(
    "segment", [Text(()), Text((30,)), Text((-1,)), Image((1, 2, 3)), Image((0, 0, 0, 20))]
)
def test_render_refuses_what_the_vocabulary_does_not_hold(segment):
    with pytest.raises(ValueError, match=r"0\.\.|codes"):
        render((segment,), VOCAB)


@pytest.mark.parametrize(
    "ids", [[VOCAB.break_], [12, 13], [32, 12], [32, 2, 2, 33], [32, VOCAB.eos], [32, VOCAB.break_]]
)
def test_parse_refuses_what_render_never_makes(ids):
    with pytest.raises(ValueError, match="not a text or a whole image"):
        parse(ids, VOCAB)


def test_prompts_split_at_their_marks():
    assert parse_prompt("A photo of a cat shown on a dslr") == ("A photo of a cat shown on a dslr",)
    assert parse_prompt("Image of a <mask>: <image: x y.png> <infill>") == (
        "Image of a",
        Mark.MASK,
        ":",
        ImagePath("x y.png"),
        Mark.INFILL,
    )
    assert parse_prompt("a < b, <images>") == ("a < b, <images>",)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="empty"):
        parse_prompt("  ")
