"""Reconstructions of an image tokenizer in training."""

import dataclasses
import io
import json

import jax
import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import DataConfig, TrainConfig
from cm3jax.learners.vqgan import VQGANLearner
from cm3jax.report.html import png
from cm3jax.report.samples.vqgan_samples import by_label, vqgan_illustrator
from cm3jax.training.state import TrainState


@pytest.fixture
def learner(tmp_path):
    lines = []
    for number, picture in enumerate(testing.pictures(100)):
        (tmp_path / f"{number}.png").write_bytes(png(picture))
        lines.append(json.dumps({"file": f"{number}.png", "caption": "noise"}) + "\n")
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    config = dataclasses.replace(
        testing.experiment(),
        learner="vqgan",
        data=DataConfig(source=str(tmp_path), image_size=16),
        train=TrainConfig(samples=2),
    )
    return VQGANLearner(config)


def test_pictures_are_shown_over_what_their_codes_decode_to(learner):
    variables = dict(testing.image_tokenizer().variables)
    params = variables.pop("params")
    state = TrainState(jax.numpy.int32(0), params, None, variables)
    (drawn,) = vqgan_illustrator(learner)(state)
    assert drawn.body.count("<img") == 4
    grid = drawn.pictures["reconstructions"]
    true = testing.pictures(100)[[49, 99]]  # every 50th is for validation
    np.testing.assert_array_equal(grid[:16], np.concatenate(true, axis=1))
    tokenizer = testing.image_tokenizer()
    remade = np.concatenate(tokenizer.decode(tokenizer.encode(true)), axis=1)
    np.testing.assert_allclose(grid[16:].astype(int), remade.astype(int), atol=1)
    assert PIL.Image.open(io.BytesIO(png(grid))).size == (32, 32)
    assert "<td>pair</td><td>2</td>" in drawn.body


def test_figures_by_label():
    """Two cats and a dog."""
    codes = np.array([[0, 1], [0, 1], [2, 2]])
    figures = {"psnr": np.array([10.0, 20.0, 60.0])}
    rows = by_label(["cat", "cat", "dog"], figures, codes, 8)
    shares = np.array([2, 2, 2]) / 6
    every = {"images of": "all", "number": "3", "psnr": "30", "code_usage": "0.375"}
    assert rows[0] == every | {"code_perplexity": f"{np.exp(-(shares * np.log(shares)).sum()):.4g}"}
    cat = {"images of": "cat", "number": "2", "psnr": "15"}
    assert rows[1] == cat | {"code_usage": "0.25", "code_perplexity": "2"}
    dog = {"images of": "dog", "number": "1", "psnr": "60"}
    assert rows[2] == dog | {"code_usage": "0.125", "code_perplexity": "1"}
