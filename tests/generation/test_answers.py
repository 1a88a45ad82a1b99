import numpy as np

from cm3jax import testing
from cm3jax.config import DecodeConfig
from cm3jax.generation.answers import AnswerReader, BrokenImage
from cm3jax.generation.prompts import picture_prompt

SIZE = testing.experiment().vqgan.image_size


def test_without_grammar_a_broken_picture_is_reported_with_its_length(generator, vocab):
    config = DecodeConfig(grammar=False)
    found = generator.text_to_image(["a red fox", "a cat"], samples=8, seed=1, decode=config)
    lengths = set()
    for sample in (sample for group in found for sample in group):
        assert not vocab.is_sentinel(sample.ids).any()
        assert sample.ids[-1] == vocab.eos
        for segment in sample.segments:
            if isinstance(segment, BrokenImage):
                lengths.add(segment.length)
            elif not isinstance(segment, str):
                assert segment.shape == (SIZE, SIZE, 3)
    assert lengths - {vocab.image_tokens}
    (request,) = generator.requests([picture_prompt("a fox")], decode=config)
    first, reader = vocab.first_image, AnswerReader(vocab, generator.text, generator.image)
    for ids, expected in (
        ([first, vocab.break_, first, first, vocab.eos], [1, 2]),
        ([first] * 6 + [vocab.eos], [6]),
        ([first, first, vocab.first_text, first, vocab.eos], [3]),
    ):
        parts = reader.parts(request, np.asarray(ids))
        assert parts == [BrokenImage(length) for length in expected]
    ids = np.asarray([*[first + 1] * 4, vocab.break_, vocab.first_text, vocab.eos])
    whole, text = reader.parts(request, ids)
    assert whole.tolist() == [1] * 4
    assert isinstance(text, str)
