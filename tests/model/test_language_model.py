import flax.linen as nn

from cm3jax import testing
from cm3jax.model.decoder import Decoder
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.model.language_model import LanguageModel


def test_both_models_are_what_decoding_asks_for():
    config = testing.experiment().model
    decoder = Decoder(config, 20)
    pair = EncoderDecoder(config, 1, 20, text_tokens=6, image_tokens=4)
    for model in (decoder, pair):
        assert isinstance(model, LanguageModel)
        assert model.config is config
    assert (decoder.longest_prompt, pair.longest_prompt) == (config.context, 6)
    assert [decoder.room(5), decoder.room(config.context + 1)] == [config.context - 5, -1]
    # A caption of six ids and the id that starts the image.
    assert [pair.room(7), pair.room(8)] == [4, 0]
    assert not isinstance(nn.Dense(3), LanguageModel)
