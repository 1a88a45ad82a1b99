"""From a folder of pictures to rows, by the real tokenizers and the real encoder, untrained."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import CM3Config, DataConfig
from cm3jax.data import stations
from cm3jax.data.corpus import Corpus
from cm3jax.data.pipeline import CorpusStream
from cm3jax.data.prepare import is_prepared, prepare, prepare_bank, remove_documents
from cm3jax.data.show import show_row
from cm3jax.data.tokenised import Tools
from cm3jax.document import Image, Text, parse
from cm3jax.errors import UserError
from cm3jax.folders import hold
from cm3jax.learners import clip
from cm3jax.retrieval import bank as bank_module
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.select import NONE

RECORDS = 59
"""Lines of the folder; the 50th is for validation."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain")
    testing.write_chain(path, bank_size=2)
    return Tools(testing.text_tokenizer(), testing.image_tokenizer(), clip.load(path / "clip"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder")
    lines = []
    for number, picture in enumerate(testing.pictures(RECORDS)):
        PIL.Image.fromarray(picture).save(path / f"{number}.png")
        caption = f"{testing.CAPTIONS[number % 4]} {number // 4}"
        lines.append(json.dumps({"file": f"{number}.png", "caption": caption, "licence": "MIT"}))
    lines[7] = json.dumps({"file": "7.png", "caption": "fox " * 60})
    (path / "captions.jsonl").write_text("\n".join(lines))
    return path


def experiment(folder, out, **data):
    values = {
        "source": str(folder),
        "image_size": 16,
        "corpus": str(out / "corpus"),
        "bank": str(out / "bank"),
        "batch": 4,
        "shard": 20,
    }
    base = testing.experiment()
    cuts = dataclasses.replace(base.retrieval, relevance_cut=1.0, views=2)
    return dataclasses.replace(
        base, data=DataConfig(**values | data), cm3=CM3Config(max_masks=6), retrieval=cuts
    )


@pytest.fixture(scope="module")
def prepared(chain, folder, tmp_path_factory):
    config = experiment(folder, tmp_path_factory.mktemp("out"))
    prepare(config, chain, lambda line: None)
    return config


def content(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_documents_are_the_records(prepared, chain):
    corpus = Corpus.open(f"{prepared.data.corpus}/train")
    assert len(corpus) == RECORDS - 2  # one for validation, one refused
    assert len(Corpus.open(f"{prepared.data.corpus}/validation")) == 1
    assert corpus.manifest["refused"]["7.png"].endswith("and a row holds 94")
    assert corpus.manifest["licence_shares"] == {"MIT": 1.0}
    assert len(corpus.manifest["shards"]) == 3
    text, image = parse(corpus.ids(3), corpus.vocab)
    caption = f"{testing.CAPTIONS[3]} 0"
    assert text == Text(tuple(chain.text.encode(caption)))
    assert image == Image(tuple(chain.image.encode(testing.pictures(4))[3].tolist()))
    corpus.verify()


def test_neighbours_point_to_other_documents_of_the_bank(prepared):
    corpus = Corpus.open(f"{prepared.data.corpus}/train")
    bank = Bank.open(prepared.data.bank)
    assert corpus.neighbours.shape == (RECORDS - 2, 2, 2, 2)
    assert (corpus.neighbours != NONE).mean() > 0.9
    for record in range(len(corpus)):
        own = corpus.ids(record)
        for row in np.unique(corpus.neighbours[record]):
            assert row == NONE or not np.array_equal(bank.ids(int(row)), own)
    by_image = corpus.neighbours[:, :, 1]
    np.testing.assert_array_equal(by_image[:, 0], by_image[:, 1])  # pictures have one view
    assert (corpus.neighbours[:, 0, 0] != corpus.neighbours[:, 1, 0]).any()


def test_a_finished_preparation_is_left_alone(prepared, chain):
    before = content(Path(prepared.data.corpus))
    lines = []
    prepare(prepared, chain, lines.append)
    assert [line.split(":")[0] for line in lines] == ["bank", "train", "validation"]
    assert all(line.endswith("is complete") for line in lines)
    assert content(Path(prepared.data.corpus)) == before


def test_an_interrupted_preparation_goes_on(prepared, chain, folder, tmp_path):
    class Interrupted(Exception):
        pass

    def stop_after(words):
        def report(line):
            if line.startswith(words):
                raise Interrupted

        return report

    config = experiment(folder, tmp_path)
    for words in ("bank: 1/3", "train: 2/3", "validation: 1/1"):
        with pytest.raises(Interrupted):
            prepare(config, chain, stop_after(words))
    with pytest.raises(UserError, match="not complete"):
        CorpusStream.open(config, "validation")
    tokenised = []
    original = stations.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stations, "read", lambda *a: tokenised.append(a) or original(*a))
        prepare(config, chain, lambda line: None)
    assert not tokenised, "every shard stood already"
    straight = Path(prepared.data.corpus)
    assert content(tmp_path / "corpus") == content(straight)


def test_other_settings_prepare_again(prepared, chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    prepare(config, chain, lambda line: None)
    fewer = experiment(folder, tmp_path, records=30)
    prepare(fewer, chain, lambda line: None)
    assert len(Corpus.open(tmp_path / "corpus" / "train")) == 29


def test_preparation_is_up_to_date_or_not(prepared, chain):
    assert is_prepared(prepared, chain)
    for name, value in {"pool": 7, "clauses": True, "relevance_cut": 0.5}.items():
        rules = dataclasses.replace(prepared.retrieval, **{name: value})
        assert not is_prepared(dataclasses.replace(prepared, retrieval=rules), chain), name
    drawn = dataclasses.replace(prepared.retrieval, documents=1, encoder="elsewhere")
    assert is_prepared(dataclasses.replace(prepared, retrieval=drawn), chain)
    nowhere = dataclasses.replace(prepared.data, bank=f"{prepared.data.bank}-2")
    assert not is_prepared(dataclasses.replace(prepared, data=nowhere), chain)


def test_a_removed_document_stays_out(chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    before = prepare_bank(config, chain, lambda line: None)
    gone = [before.meta(row).key for row in (3, 11)]
    with pytest.raises(UserError, match="no document 'fox'; nothing was removed"):
        remove_documents(config, Removed(keys=("fox",)))
    for key in gone:
        smaller = remove_documents(config, Removed(keys=(key,)))
    lines = []
    prepare(config, chain, lines.append)
    assert lines[0].endswith("is complete"), "the smaller bank is the one that was wanted"
    assert Bank.open(config.data.bank).fingerprint == smaller.fingerprint
    assert is_prepared(config, chain)
    # Made again from its source, it lacks them still.
    again = dataclasses.replace(config, seed=1)
    made = prepare_bank(again, chain, lambda line: None)
    assert len(made) == len(before) - 2
    assert not set(gone) & set(made.rows)


def test_a_removal_that_was_interrupted_is_completed(chain, folder, tmp_path, monkeypatch):
    config = experiment(folder, tmp_path)
    key = prepare_bank(config, chain, lambda line: None).meta(0).key

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "rewrite", stop)
        with pytest.raises(KeyboardInterrupt):
            remove_documents(config, Removed(keys=(key,)))
    assert not is_prepared(config, chain)
    lines = []
    bank = prepare_bank(config, chain, lines.append)
    assert key not in bank.rows
    assert len(bank) == RECORDS - 2  # and one is for validation
    assert lines[0].endswith("is complete"), "it was finished, not made again"
    # What the bank no longer has, no corpus learns.
    prepare(config, chain, lambda line: None)
    corpus = Corpus.open(f"{config.data.corpus}/train")
    assert corpus.manifest["refused"][key] == "it was taken out of the bank"
    assert key not in {corpus.document(record).key for record in range(len(corpus))}


def canaries(*folders):
    """A file of the user's in each folder."""
    files = [Path(folder) / "thesis.txt" for folder in folders]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("words")
    return files


@pytest.mark.parametrize("name", ["bank", "corpus/train", "corpus/validation"])
def test_a_stranger_s_folder_is_refused_before_any_work(chain, folder, tmp_path, name):
    (file,) = canaries(tmp_path / name)
    (tmp_path / name / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UserError, match="nothing was changed there"):
        prepare(experiment(folder, tmp_path), chain)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f"{name}/thesis.txt", f"{name}/manifest.json"}
    assert file.read_text() == "words"


def test_a_stranger_s_files_survive_whatever_is_prepared(chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    prepare(config, chain, lambda line: None)
    train = tmp_path / "corpus" / "train"
    files = canaries(tmp_path, tmp_path / "bank", tmp_path / "corpus", train, train / "sub")
    prepare(config, chain, lambda line: None)
    prepare(experiment(folder, tmp_path, records=30), chain, lambda line: None)
    remove_documents(config, Removed(keys=("0.png",)))
    assert {file.read_text() for file in files} == {"words"}
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()], "nothing hidden is left"


def test_two_preparations_at_once_are_one_and_a_sentence(chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    with ThreadPoolExecutor(1) as other, hold(config.data.bank, "preparing elsewhere"):
        second = other.submit(prepare, config, chain)
        with pytest.raises(UserError, match=r"bank is in use: preparing elsewhere \(process "):
            second.result()
    prepare(config, chain, lambda line: None)


def test_a_path_must_be_given(chain, folder, tmp_path):
    with pytest.raises(UserError, match=r"data\.corpus is empty"):
        prepare(experiment(folder, tmp_path, corpus=""), chain)


def test_a_row_is_shown(prepared):
    rows = CorpusStream.open(prepared, "train").corpora[0]
    text = show_row(rows, 5, testing.text_tokenizer())
    key = rows.corpus.document(5).key
    assert f"record 5, {key} (pair)" in text
    lines = text.splitlines()
    assert "<eos>" in text
    assert "<break>" in text
    assert any(" T" in line and "'" in line for line in lines)
    placed = [line for line in lines if "(<mask:" in line]
    assert all(line.rstrip().endswith(" 0") for line in placed)
    with pytest.raises(UserError, match="there is no record 99"):
        show_row(rows, 99, testing.text_tokenizer())


def test_held_out_documents_are_no_neighbours(chain, folder, tmp_path, monkeypatch):
    opened = stations.open_source

    class HalfHeldOut:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            return dataclasses.replace(self.source[index], held_out=index % 2 == 0)

    def open_source(data, split, seed):
        source = opened(data, split, seed)
        return HalfHeldOut(source) if split == "bank" else source

    monkeypatch.setattr(stations, "open_source", open_source)
    config = experiment(folder, tmp_path)
    prepare(config, chain, lambda line: None)
    bank = Bank.open(config.data.bank)
    assert bank.held_out.sum() == RECORDS // 2
    found = np.unique(Corpus.open(f"{config.data.corpus}/train").neighbours)
    found = found[found != NONE]
    assert len(found) > 5
    assert not bank.held_out[found].any()
