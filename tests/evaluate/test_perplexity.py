import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.config import MeshConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.perplexity import evaluate_perplexity, perplexity
from cm3jax.evaluate.protocol import scores_from_json
from cm3jax.model.decoder import Decoder
from cm3jax.training.exported_run import LoadedRun, write_run
from launch.evaluate import run
from tests.data import corpora
from tests.evaluate.test_protocol import PROTOCOL


@pytest.mark.slow
def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(tmp_path):
    bank = corpora.write_bank(tmp_path)
    for split in ("train", "validation"):
        corpora.write_corpus(tmp_path, bank, 24, 1, split)
    config = dataclasses.replace(corpora.experiment(tmp_path), mesh=MeshConfig(data=1))
    variables = testing.decoder_variables(Decoder(config.model, corpora.VOCAB.size))
    nothing = jax.tree.map(jnp.zeros_like, variables)
    prints = {"vocab": corpora.VOCAB.fingerprint}
    write_run(LoadedRun(config, nothing, 0, prints), tmp_path / "run")
    out = str(tmp_path / "s.json")
    run(["perplexity", "--run", str(tmp_path / "run"), "--batches", "2", "--out", out])
    scores = scores_from_json(json.loads((tmp_path / "s.json").read_text()))
    assert scores.keys() == {f"perplexity.{part}" for part in ("all", "text", "image")}
    for score in scores.values():
        assert score.value == pytest.approx(corpora.VOCAB.size, rel=1e-5)
        assert score.protocol.retrieved == 2
        assert score.protocol.licensed_share == 1.0
    parts = {name.split(".")[1]: score.n for name, score in scores.items()}
    assert parts["text"] + parts["image"] < parts["all"]  # breaks and ends are the rest
    with pytest.raises(UserError, match="--batches at least 1"):
        evaluate_perplexity(tmp_path / "run", batches=0)


def test_targets_count_alike_in_every_batch():
    pairs = np.float64([[10.0, 10], [60.0, 20], [0.0, 0]])
    score = perplexity(pairs, PROTOCOL)
    assert score.value == pytest.approx(np.exp(70 / 30))
    assert score.n == 30
    assert score.interval[0] <= score.value <= score.interval[1]
