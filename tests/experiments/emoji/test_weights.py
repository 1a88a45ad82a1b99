"""The shipped tokenizers and encoder of emoji are those that its decoder asks for."""

import numpy as np

from cm3jax.learners import clip, vqgan
from cm3jax.presets import load_experiment
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


def test_they_fit_the_decoder_and_each_other():
    experiment = load_experiment("emoji/decoder")
    text = TextTokenizer.load(experiment.tokenizers.text)
    image = vqgan.load(experiment.tokenizers.image)
    encoder = clip.load(experiment.retrieval.encoder)
    assert text.pieces == experiment.vocab.text_pieces
    flag = np.zeros((64, 64, 3), np.uint8)
    flag[:, :22], flag[:, 22:43], flag[:, 43:] = (0, 85, 164), 255, (239, 65, 53)
    codes = image.encode(flag[None])
    assert codes.max() < experiment.vocab.image_codes
    assert np.abs(image.decode(codes)[0].astype(int) - flag).mean() < 10
    vectors = encoder.encode_documents([("the flag of France", None), (None, flag)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
