import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.checkpoint import load_run
from cm3jax.errors import UserError
from cm3jax.generation.prompts import picture_prompt


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
        hidden = generator.model.apply(run.variables, ids, places, jnp.ones_like(ids))
        scores = generator.model.apply(run.variables, hidden, method="logits")
        each = np.log(jax.nn.softmax(scores[0, -1 - len(answer) : -1]))
        expected = each[np.arange(len(answer)), answer].sum()
        np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_an_answer_that_does_not_fit_raises_user_error(generator):
    requests = generator.requests([picture_prompt("a red fox")])
    with pytest.raises(UserError, match=r"an answer of 96 tokens follows a prompt of .* room for"):
        generator.logprobs(requests, [np.zeros(96, np.int32)])
