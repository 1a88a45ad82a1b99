"""Training the text tokenizer from a source, once."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.experiment_io import load_experiment
from cm3jax.learners.text import train_text_tokenizer
from cm3jax.testing import CAPTIONS, experiment
from cm3jax.tokenizers.text import TextTokenizer


@pytest.fixture
def config(tmp_path):
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    lines = (f'{{"file": "a.png", "caption": "{caption}"}}\n' for caption in CAPTIONS)
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    return dataclasses.replace(
        experiment(),
        learner="text_tokenizer",
        workdir=str(tmp_path / "run"),
        data=DataConfig(source=str(tmp_path), image_size=8),
    )


def test_trains_once_and_says_so(config, capsys):
    train_text_tokenizer(config)
    tokenizer = TextTokenizer.load(config.run_dir)
    assert tokenizer.pieces == config.vocab.text_pieces
    assert load_experiment(f"{config.run_dir}/config.json") == config
    assert f"learnt {config.vocab.text_pieces} pieces" in capsys.readouterr().out
    train_text_tokenizer(config)
    assert "finished already" in capsys.readouterr().out
    assert TextTokenizer.load(config.run_dir).fingerprint == tokenizer.fingerprint


def test_too_few_pieces(config):
    few = dataclasses.replace(
        config, vocab=dataclasses.replace(config.vocab, text_pieces=260), workdir=config.workdir
    )
    with pytest.raises(UserError, match="260 text pieces can't be learnt"):
        train_text_tokenizer(few)
