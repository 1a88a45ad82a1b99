"""From a folder of images to rows, by the real tokenizers and the real encoder, untrained."""

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import CM3Config, DataConfig
from cm3jax.data import shard_jobs
from cm3jax.data.corpus import Corpus
from cm3jax.data.packing import Position
from cm3jax.data.pipeline import NoRecords
from cm3jax.data.prepare import is_prepared, prepare, prepare_bank, remove_documents
from cm3jax.data.shard_jobs import SplitJob
from cm3jax.data.show import show_row
from cm3jax.data.summary import Timing, summarise
from cm3jax.data.tokenize import Tools
from cm3jax.errors import UserError
from cm3jax.io.folders import hold
from cm3jax.learners import clip
from cm3jax.retrieval import bank as bank_module
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.select import NONE
from cm3jax.sequence.document import Image, Text, parse
from tests.data.corpora import corpus_stream

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
    np.testing.assert_array_equal(by_image[:, 0], by_image[:, 1])  # images have one view
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
        corpus_stream(config, "validation")
    tokenised = []
    original = shard_jobs.read_and_tokenise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shard_jobs, "read_and_tokenise", lambda *a: tokenised.append(a) or original(*a)
        )
        prepare(config, chain, lambda line: None)
    assert not tokenised, "every shard stood already"
    straight = Path(prepared.data.corpus)
    assert content(tmp_path / "corpus") == content(straight)


def test_other_settings_prepare_again(prepared, chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    prepare(config, chain, lambda line: None)
    fewer = experiment(folder, tmp_path, records=30)
    prepare(fewer, chain, lambda line: None)
    corpus = Corpus.open(tmp_path / "corpus" / "train")
    assert len(corpus) + len(corpus.manifest["refused"]) == 30


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
    before = prepare_bank(SplitJob(config, "bank"), chain, lambda line: None)
    gone = [before.meta(row).key for row in (3, 11)]
    with pytest.raises(UserError, match="no document 'fox'; nothing was removed"):
        remove_documents(config.data.bank, config.retrieval, Removed(keys=("fox",)))
    for key in gone:
        smaller = remove_documents(config.data.bank, config.retrieval, Removed(keys=(key,)))
    lines = []
    prepare(config, chain, lines.append)
    assert lines[0].endswith("is complete"), "the smaller bank is the one that was wanted"
    assert Bank.open(config.data.bank).fingerprint == smaller.fingerprint
    assert is_prepared(config, chain)
    # Made again from its source, it lacks them still.
    again = dataclasses.replace(config, seed=1)
    made = prepare_bank(SplitJob(again, "bank"), chain, lambda line: None)
    assert len(made) == len(before) - 2
    assert not set(gone) & set(made.rows)


def test_a_removal_that_was_interrupted_is_completed(chain, folder, tmp_path, monkeypatch):
    config = experiment(folder, tmp_path)
    key = prepare_bank(SplitJob(config, "bank"), chain, lambda line: None).meta(0).key

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "rewrite", stop)
        with pytest.raises(KeyboardInterrupt):
            remove_documents(config.data.bank, config.retrieval, Removed(keys=(key,)))
    assert not is_prepared(config, chain)
    lines = []
    bank = prepare_bank(SplitJob(config, "bank"), chain, lines.append)
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
    remove_documents(
        config.data.bank, config.retrieval, Removed(keys=(Bank.open(config.data.bank).meta(0).key,))
    )
    assert {file.read_text() for file in files} == {"words"}
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()], "nothing hidden is left"


def test_the_second_of_two_concurrent_preparations_is_refused(chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    with ThreadPoolExecutor(1) as other, hold(config.data.bank, "preparing elsewhere"):
        second = other.submit(prepare, config, chain)
        with pytest.raises(UserError, match=r"bank is in use: preparing elsewhere \(process "):
            second.result()
    prepare(config, chain, lambda line: None)


def test_a_bank_and_a_corpus_never_replace_each_other(chain, folder, tmp_path):
    config = experiment(folder, tmp_path)
    with pytest.raises(
        UserError, match=r"corpus/train is a folder of data\.corpus=.*/corpus, where"
    ):
        prepare(experiment(folder, tmp_path, bank=f"{config.data.corpus}/train"), chain)
    prepare(config, chain, lambda line: None)
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train").symlink_to(config.data.bank)
    mixed = (
        ({"bank": f"{config.data.corpus}/train", "corpus": f"{tmp_path}/c"}, "a memory bank"),
        ({"bank": f"{tmp_path}/b", "corpus": f"{tmp_path}/other"}, "a corpus"),
    )
    for places, what in mixed:
        with pytest.raises(UserError, match=f"is not empty and does not hold {what}; nothing was"):
            prepare(experiment(folder, tmp_path, **places), chain, lambda line: None)
    assert {name: Path(name).read_bytes() for name in before} == before


def test_a_report_that_a_kill_prevented_is_written_by_the_next_life(chain, folder, tmp_path):
    config, said = experiment(folder, tmp_path), []
    prepare(config, chain, lambda line: None)
    report = tmp_path / "corpus-report.json"
    whole = json.loads(report.read_text())
    report.unlink()
    prepare(config, chain, said.append)
    assert json.loads(report.read_text()) == {"splits": whole["splits"]}
    assert said[-1] == f"See {report}."
    # As little is known where this life only joined the shards of another one.
    assert summarise(config.data.corpus, {"train": Timing(0, 2.0)}, 1, 0.0) == said[3:]

    class Killed(Exception):
        pass

    def stop(line):
        if line.startswith("validation: ") and " records in " in line:
            raise Killed

    with pytest.raises(Killed):
        prepare(experiment(folder, tmp_path, records=30), chain, stop)
    assert not report.exists()  # rather than that of the corpus before


def test_a_file_in_the_report_s_place_stays(chain, folder, tmp_path):
    mine = tmp_path / "corpus-report.json"
    mine.write_text('{"title": "What our corpora are"}')
    with pytest.raises(UserError, match=r"-report\.json is another file, which the report on"):
        prepare(experiment(folder, tmp_path), chain, lambda line: None)
    assert list(tmp_path.iterdir()) == [mine]
    assert mine.read_text() == '{"title": "What our corpora are"}'


def test_a_path_must_be_given(chain, folder, tmp_path):
    with pytest.raises(UserError, match=r"data\.corpus is empty"):
        prepare(experiment(folder, tmp_path, corpus=""), chain)


def test_a_row_is_shown(prepared):
    rows = corpus_stream(prepared, "train").corpora[0]
    text = show_row(rows, 5, testing.text_tokenizer())
    key = rows.corpus.document(5).key
    assert f"record 5, {key} (pair)" in text
    lines = text.splitlines()
    assert any(line.startswith("T is a piece of the text tokenizer, I a code") for line in lines)
    assert "<eos>" in text
    assert "<break>" in text
    assert any(" T" in line and "'" in line for line in lines)
    placed = [line for line in lines if "(<mask:" in line]
    assert all(line.rstrip().endswith(" 0") for line in placed)
    with pytest.raises(UserError, match="there is no record 99"):
        show_row(rows, 99, testing.text_tokenizer())


def test_held_out_documents_are_no_neighbours(chain, folder, tmp_path, monkeypatch):
    opened = shard_jobs.open_source

    class HalfHeldOut:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def made(self, span):
            return self.source.made(span)

        def __getitem__(self, index):
            return dataclasses.replace(self.source[index], held_out=index % 2 == 0)

    def open_source(data, split, seed):
        source = opened(data, split, seed)
        return HalfHeldOut(source) if split == "bank" else source

    monkeypatch.setattr(shard_jobs, "open_source", open_source)
    config = experiment(folder, tmp_path)
    prepare(config, chain, lambda line: None)
    bank = Bank.open(config.data.bank)
    assert bank.held_out.sum() == RECORDS // 2
    found = np.unique(Corpus.open(f"{config.data.corpus}/train").neighbours)
    found = found[found != NONE]
    assert len(found) > 5
    assert not bank.held_out[found].any()


def write_captions(path, captions, broken=()):
    """A folder of one image per entry, with the captions of each; some images are empty."""
    path.mkdir(exist_ok=True)
    lines = []
    for number, (own, picture) in enumerate(
        zip(captions, testing.pictures(len(captions)), strict=True)
    ):
        file = path / f"{number}.png"
        PIL.Image.fromarray(picture).save(file)
        if number in broken:
            file.write_bytes(b"")
        lines += [json.dumps({"file": file.name, "caption": caption}) for caption in own]
    (path / "captions.jsonl").write_text("\n".join(lines))
    return path


def keys_of(config, split):
    corpus = Corpus.open(f"{config.data.corpus}/{split}")
    return [corpus.document(number).key for number in range(len(corpus))]


def test_no_record_is_shown_its_own_picture(chain, tmp_path):
    """Five captions of each image, as in COCO: the pairs of the other four are no neighbours. The
    image of one validation record is trained on under another name: that is a leak."""
    captions = [[f"{testing.CAPTIONS[j % 4]} {i} {j}" for j in range(5)] for i in range(20)]
    folder = write_captions(tmp_path / "folder", captions)
    (folder / "copy.png").write_bytes((folder / "19.png").read_bytes())
    line = json.dumps({"file": "copy.png", "caption": "seen before", "split": "train"})
    (folder / "captions.jsonl").write_text(f"{line}\n{(folder / 'captions.jsonl').read_text()}")
    config = experiment(folder, tmp_path / "out")
    prepare(config, chain, lambda line: None)
    bank = Bank.open(config.data.bank)
    assert len(bank) == 96
    for split, count in (("train", 96), ("validation", 5)):
        corpus = Corpus.open(f"{config.data.corpus}/{split}")
        assert len(corpus) == count
        shown = corpus.neighbours[corpus.neighbours != NONE]
        assert len(shown) > count
        for number in range(count):
            (own,) = corpus.document(number).pictures
            rows = np.unique(corpus.neighbours[number])
            assert all(bank.meta(int(row)).pictures != (own,) for row in rows if row != NONE)
    leaks = Corpus.open(f"{config.data.corpus}/validation").manifest["leaks"]
    assert set(leaks.values()) == {"copy.png"}
    assert len(leaks) == 5


def test_a_changed_source_is_prepared_again_and_it_is_said(chain, tmp_path):
    captions = [[f"wrong {i}"] for i in range(60)]
    folder = write_captions(tmp_path / "folder", captions, broken=[3])
    config = experiment(folder, tmp_path / "out")
    prepare(config, chain, lambda line: None)
    assert is_prepared(config, chain)
    lines = (folder / "captions.jsonl").read_text().replace('"wrong 7"', '"right 7"')
    PIL.Image.fromarray(testing.pictures(1)[0]).save(folder / "3.png")
    PIL.Image.fromarray(testing.pictures(1)[0]).save(folder / "new.png")
    new = json.dumps({"file": "new.png", "caption": "new"})
    (folder / "captions.jsonl").write_text(f"{lines}\n{new}")
    assert not is_prepared(config, chain)
    said = []
    prepare(config, chain, said.append)
    assert "has changed since (1 new (new.png first), 2 changed (3.png first))" in said[0]
    bank = Bank.open(config.data.bank)
    assert bank.meta(bank.rows["7.png"]).text == "right 7"
    assert {"3.png", "new.png"} <= set(keys_of(config, "train"))
    said.clear()
    prepare(config, chain, said.append)
    assert all(line.endswith("is complete") for line in said)


def test_a_source_that_changed_between_a_kill_and_the_rerun_is_not_mixed(chain, tmp_path):
    folder = write_captions(tmp_path / "folder", [[f"first {i}"] for i in range(60)])
    config = experiment(folder, tmp_path / "out")

    class Killed(Exception):
        pass

    def stop(line):
        if line.startswith("train: 2/3"):
            raise Killed

    with pytest.raises(Killed):
        prepare(config, chain, stop)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    (folder / "captions.jsonl").write_text("\n".join([*lines[30:], *lines[:30]]))
    prepare(config, chain, lambda line: None)
    train, validation = (keys_of(config, split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(f"{i}.png" for i in range(60))
    assert set(Bank.open(config.data.bank).rows) == set(train)


def test_a_source_that_changes_meanwhile_is_refused(chain, tmp_path, monkeypatch):
    folder = write_captions(tmp_path / "folder", [[f"first {i}"] for i in range(60)])
    read = shard_jobs.read_and_tokenise

    def change(*at):
        found = read(*at)
        PIL.Image.fromarray(testing.pictures(3)[2]).save(folder / "0.png")
        return found

    monkeypatch.setattr(shard_jobs, "read_and_tokenise", change)
    with pytest.raises(UserError, match="has changed while it was prepared"):
        prepare(experiment(folder, tmp_path / "out"), chain, lambda line: None)


@pytest.mark.parametrize("clauses", [True, False])
def test_shards_without_a_usable_record(chain, tmp_path, clauses):
    captions = [[f"{testing.CAPTIONS[i % 4]} {i}"] for i in range(60)]
    folder = write_captions(tmp_path / "folder", captions, broken=range(10, 20))
    config = experiment(folder, tmp_path / "out", shard=10)
    rules = dataclasses.replace(config.retrieval, clauses=clauses)
    config = dataclasses.replace(config, retrieval=rules)
    prepare(config, chain, lambda line: None)
    assert len(keys_of(config, "train")) == 49
    assert next(corpus_stream(config, "train").batches(Position())).data.tokens.shape[0] == 4


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_corpora_of_one_modality(chain, tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = []
    for number, picture in enumerate(testing.pictures(60)):
        PIL.Image.fromarray(picture).save(folder / f"{number}.png")
        text = {"text": f"{testing.CAPTIONS[number % 4]} {number}"}
        lines.append(json.dumps([text if kind == "text" else {"image": f"{number}.png"}]))
    (folder / "documents.jsonl").write_text("\n".join(lines))
    config = experiment(folder, tmp_path / "out")
    prepare(config, chain, lambda line: None)
    corpus = Corpus.open(f"{config.data.corpus}/train")
    asked = (corpus.neighbours != NONE).any((0, 1, 3))
    assert asked.tolist() == [kind == "text", kind == "picture"]
    assert next(corpus_stream(config, "train").batches(Position())).data.tokens.shape[0] == 4


@pytest.mark.parametrize(("count", "broken", "held"), [(10, (), 1), (60, (49,), 0), (1, (), 0)])
def test_small_sets(chain, tmp_path, count, broken, held):
    captions = [[f"{testing.CAPTIONS[i % 4]} {i}"] for i in range(count)]
    config = experiment(write_captions(tmp_path / "folder", captions, broken), tmp_path / "out")
    said = []
    prepare(config, chain, said.append)
    assert len(keys_of(config, "train")) == count - max(1, held) * (count > 1)
    assert len(keys_of(config, "validation")) == held
    empty = "validation: no usable record, so training measures no validation loss"
    assert (empty in said) == (not held)
    stream = corpus_stream(config, "validation")
    assert isinstance(stream, NoRecords) == (not held)


def test_a_blank_last_line_is_one_refused_record(chain, tmp_path):
    folder = write_captions(tmp_path / "folder", [[f"fox {i}"] for i in range(81)])
    with (folder / "captions.jsonl").open("a") as file:
        file.write("\n\n")
    config = experiment(folder, tmp_path / "out")
    prepare(config, chain, lambda line: None)
    assert len(keys_of(config, "train")) == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 32}, r"data\.image_size=32, but the image tokenizer has 16 pixels a side"),
        ({"grid": 4}, r"vocab\.grid=4, but the image tokenizer has 2 codes a side; set vocab"),
        ({"image_codes": 64}, r"vocab\.image_codes=64, but .* has 32 codes to choose from"),
        ({"text_pieces": 100}, r"vocab\.text_pieces=100, but the text tokenizer has 320 pieces"),
    ],
)
def test_sizes_that_disagree_are_refused(chain, folder, tmp_path, change, message):
    config = experiment(folder, tmp_path, **{k: v for k, v in change.items() if k == "image_size"})
    sizes = {name: value for name, value in change.items() if name != "image_size"}
    other = {"grid": {"image_size": 32}, "image_codes": {"codes": 64}}.get(next(iter(change)), {})
    config = dataclasses.replace(
        config,
        vocab=dataclasses.replace(config.vocab, **sizes),
        vqgan=dataclasses.replace(config.vqgan, **other),
    )
    with pytest.raises(UserError, match=message):
        prepare(config, chain, lambda line: None)


def test_training_is_told_how_many_documents_samples_have(prepared):
    model = dataclasses.replace(prepared.model, context=300)
    (note,) = corpus_stream(dataclasses.replace(prepared, model=model), "train").notes
    shares = [int(share) for share in re.findall(r"(\d+)% have", note)]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=2)
    assert "do not fit a row" not in note
    (note,) = corpus_stream(prepared, "train").notes
    assert re.search(r"; \d+% of those drawn do not fit a row of 96 tokens", note)
