import numpy as np
import pytest

from cm3jax import testing


def test_samples_are_ranked_by_clip_or_by_perplexity(generator):
    text = "a red fox"
    (group,) = generator.text_to_image([text], samples=5)
    encoder = generator.encoder
    by_hand = [
        float(encoder.encode_images(s.image[None])[0] @ encoder.encode_texts([text])[0])
        for s in group
    ]
    order = sorted(range(5), key=lambda i: -by_hand[i])
    ranked = generator.ranked(group, "clip", text)
    assert [s.sample_id for s in ranked] == order
    (texts,) = generator.caption(testing.pictures(1), samples=5)
    ranked = generator.ranked(texts, "perplexity")
    values = [np.exp(-s.logprob / len(s.ids)) for s in ranked]
    assert values == sorted(values)
    assert values[0] == pytest.approx(ranked[0].perplexity)
