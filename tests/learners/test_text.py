"""Training the text tokenizer from a source, once."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import read_experiment
from cm3jax.learners.text import train_text_tokenizer
from cm3jax.testing import CAPTIONS, experiment
from cm3jax.tokenizers.text_tokenizer import TextTokenizer


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
    assert read_experiment(f"{config.run_dir}/config.json") == config
    learnt = tokenizer.pieces - tokenizer.reserved
    assert f"learnt {learnt} pieces from {len(CAPTIONS)} records" in capsys.readouterr().out
    train_text_tokenizer(config)
    assert "finished already" in capsys.readouterr().out
    assert TextTokenizer.load(config.run_dir).fingerprint == tokenizer.fingerprint


def test_pieces_that_the_captions_do_not_yield_are_reserved_and_said(config, capsys):
    many = dataclasses.replace(config, vocab=dataclasses.replace(config.vocab, text_pieces=5000))
    train_text_tokenizer(many)
    tokenizer = TextTokenizer.load(config.run_dir)
    assert tokenizer.pieces == 5000
    assert 4000 < tokenizer.reserved < 5000 - 257  # one is the unknown one, 256 are bytes
    assert f"; {tokenizer.reserved} more are reserved" in capsys.readouterr().out
    used = {piece for caption in CAPTIONS for piece in tokenizer.encode(caption)}
    assert len(used) <= 5000 - tokenizer.reserved


def test_too_few_pieces(config):
    few = dataclasses.replace(
        config, vocab=dataclasses.replace(config.vocab, text_pieces=260), workdir=config.workdir
    )
    with pytest.raises(UserError, match="260 text pieces can't be learnt"):
        train_text_tokenizer(few)


def test_what_it_does_not_read_may_differ(config, capsys):
    """Experiments of one family share their config: the decoder's options are none of its."""
    train_text_tokenizer(config)
    other = dataclasses.replace(
        config,
        cm3=dataclasses.replace(config.cm3, wrong_documents=0.3),
        data=dataclasses.replace(config.data, batch=3, corpus="elsewhere"),
    )
    train_text_tokenizer(other)
    assert "finished already" in capsys.readouterr().out
    tokenizers = dataclasses.replace(config.tokenizers, algorithm="unigram")
    with pytest.raises(UserError, match=r"other options: tokenizers.algorithm bpe → unigram; give"):
        train_text_tokenizer(dataclasses.replace(other, tokenizers=tokenizers))


def _nothing_held_back(config):
    data = dataclasses.replace(config.data, splits=((".", "train"),))
    return dataclasses.replace(config, data=data)


def test_no_picture_is_read_and_bad_records_are_left_out(config, capsys):
    config = _nothing_held_back(config)
    home = epath.Path(config.data.source)
    (home / "a.png").unlink()
    good = (home / "captions.jsonl").read_text()
    train_text_tokenizer(dataclasses.replace(config, workdir=str(home / "good")))
    (home / "captions.jsonl").write_text(f'{good}not JSON\n{{"file": "b.png", "caption": null}}\n')
    train_text_tokenizer(config)
    said = capsys.readouterr().out
    assert "left out 2 of" in said
    assert "is not JSON" in said
    tokenizers = [TextTokenizer.load(home / name) for name in ("good", "run")]
    assert tokenizers[0].fingerprint == tokenizers[1].fingerprint


def test_a_source_that_is_mostly_broken_raises_user_error(config):
    (epath.Path(config.data.source) / "captions.jsonl").write_text("not JSON\n" * 30)
    with pytest.raises(UserError, match=r"30 of 30 records can't be read, the first one being"):
        train_text_tokenizer(_nothing_held_back(config))


def test_what_a_rule_leaves_out_ends_nothing(config, capsys):
    lines = (epath.Path(config.data.source) / "captions.jsonl").read_text().splitlines()
    marked = [json.loads(line) | {"licence": "MIT"} for line in lines[: len(lines) // 4]]
    text = "\n".join([*map(json.dumps, marked), *lines[len(marked) :]])
    (epath.Path(config.data.source) / "captions.jsonl").write_text(text)
    data = dataclasses.replace(config.data, licences=("MIT",))
    train_text_tokenizer(dataclasses.replace(config, data=data))
    assert f"left out {len(lines) - len(marked)} of {len(lines)} records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines, lines[0]], r"the data's records' number 4 → 5, the data's reco"),
        (lambda lines: [lines[0].replace("red", "bed"), *lines[1:]], r"records' texts \w+ → \w+;"),
        (lambda lines: [*lines[1:], lines[0]], r"records' texts \w+ → \w+;"),
    ],
)
def test_captions_that_changed_are_noticed(config, capsys, change, said):
    config = _nothing_held_back(config)
    file = epath.Path(config.data.source) / "captions.jsonl"
    before = file.read_text()
    train_text_tokenizer(config)
    model = TextTokenizer.load(config.run_dir).fingerprint
    file.write_text("\n".join(change(before.splitlines())))
    with pytest.raises(UserError, match=f"made with other options: .*{said}.* give"):
        train_text_tokenizer(config)
    assert TextTokenizer.load(config.run_dir).fingerprint == model
    file.write_text(before)
    (file.parent / "a.png").touch()
    train_text_tokenizer(config)
    assert "finished already" in capsys.readouterr().out


def test_captions_may_move_and_a_run_of_an_earlier_version_goes_on(config, capsys):
    train_text_tokenizer(config)
    home = epath.Path(config.data.source)
    moved = home / "moved"
    moved.mkdir()
    (home / "captions.jsonl").rename(moved / "captions.jsonl")
    data = dataclasses.replace(config.data, source=str(moved))
    train_text_tokenizer(dataclasses.replace(config, data=data))
    (epath.Path(config.run_dir) / "data.json").unlink()
    train_text_tokenizer(config)  # it does not know its captions, which are gone
    assert capsys.readouterr().out.count("finished already") == 2
    with pytest.raises(UserError, match=r"other options: data\.source"):
        train_text_tokenizer(dataclasses.replace(config, data=data))
