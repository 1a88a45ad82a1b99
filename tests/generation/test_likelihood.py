import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.config import DecoderConfig
from cm3jax.decode.params import as_read
from cm3jax.errors import UserError
from cm3jax.generation.likelihood import Likelihood
from cm3jax.generation.prompts import picture_prompt
from cm3jax.model.cache import KeyValues, empty_entries, start_cache
from cm3jax.model.decoder import Decoder


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, variables, *arguments, method=None):
    """Compiled, because hundreds of single operations would take seconds to dispatch."""
    return model.apply(variables, *arguments, method=method)


def test_answers_are_compared_by_their_likelihood(chain, generator):
    prompts = map(picture_prompt, ("a red fox", "two green squares on the left"))
    requests = generator.requests(list(prompts))
    answers = [np.array([20, 21, 300], np.int32), np.array([22], np.int32)]
    run = load_run(chain / "decoder")
    for request, answer, nats in zip(
        requests, answers, generator.logprobs(requests, answers), strict=True
    ):
        ids = jnp.concatenate([request.prefix, answer])[None]
        places = jnp.arange(ids.shape[1])[None]
        hidden = apply(generator.model, run.variables, ids, places, jnp.ones_like(ids))
        scores = apply(generator.model, run.variables, hidden, method="logits")
        each = np.log(jax.nn.softmax(scores[0, -1 - len(answer) : -1]))
        expected = each[np.arange(len(answer)), answer].sum()
        np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_an_answer_that_does_not_fit_raises_user_error(generator):
    requests = generator.requests([picture_prompt("a red fox")])
    with pytest.raises(UserError, match=r"an answer of 96 tokens follows a prompt of .* room for"):
        generator.logprobs(requests, [np.zeros(96, np.int32)])


@pytest.mark.slow
def test_keys_and_values_are_those_of_a_cache_in_int8():
    """Answers are as likely as when they are read id by id with such a cache."""
    sizes = {"layers": 2, "width": 32, "heads": 2, "head_width": 16, "ffn": 32, "context": 48}
    plain, small = (
        Decoder(DecoderConfig(**sizes, init_std=0.5, dtype="float32", cache=kind), 40)
        for kind in ("", "int8")
    )
    variables = as_read(testing.decoder_variables(plain), "float32")
    prefix, answer = np.arange(3, 12), np.asarray([20, 21, 33, 7, 5])

    tokens, lengths = jnp.asarray(prefix[None, :-1]), jnp.asarray([len(prefix) - 1])
    _, found = apply(plain, variables, tokens, lengths, method="prefill")
    empty = [
        KeyValues(*(empty_entries((1, 2, len(prefix) - 1), small.config) for _ in range(2)))
        for _ in range(2)
    ]
    layers = list(map(KeyValues.kept_like, found, empty))
    cache = start_cache(layers, lengths, tokens[:, -1], 1, len(answer))
    expected = []
    for read, said in zip([prefix[-1], *answer], answer, strict=False):
        hidden, cache = apply(small, variables, jnp.asarray([[read]]), cache, method="extend")
        logits = apply(small, variables, hidden, method="logits")
        expected.append(jax.nn.log_softmax(logits[0, 0])[said])

    exact, near = (
        Likelihood(model)(variables, [prefix], [answer], 1)[0] for model in (plain, small)
    )
    np.testing.assert_allclose(near, expected, atol=1e-5)
    assert np.abs(near - exact).max() > 1e-4, "a plain cache would not differ"
