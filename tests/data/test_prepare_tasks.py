"""Corpora of tasks: what `launch.prepare` writes, training reads with its answers in place."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import CM3Config, DataConfig
from cm3jax.data import prepare_tasks as prepare_tasks_module
from cm3jax.data.corpus import Corpus, CorpusWriter
from cm3jax.data.mixing import resampled
from cm3jax.data.pipeline import Position
from cm3jax.data.prepare_tasks import prepare_tasks
from cm3jax.data.show import show_row
from cm3jax.data.task_cases import open_cases
from cm3jax.errors import UserError
from cm3jax.io.folders import hold
from cm3jax.sequence.fit import answer_masks
from cm3jax.sequence.rows import Places, Samples, build_rows
from tests.data.corpora import corpus_stream


def experiment(folder, **data):
    base = testing.experiment()
    data = {
        "tasks": (("coco_captions", f"{folder}/coco"), ("segmentation", f"{folder}/maps")),
        "mixture": ((f"{folder}/captions", 1.0), (f"{folder}/maps-made", 1.0)),
        "image_size": 16,
        "batch": 4,
    } | data
    return dataclasses.replace(
        base,
        data=DataConfig(**data),
        cm3=CM3Config(max_masks=6, loss_on="answer"),
        model=dataclasses.replace(base.model, context=160),
    )


def write_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(testing.pictures(1, seed)[0]).save(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An experiment over two small data sets with broken files among them."""
    folder = tmp_path_factory.mktemp("tasks")
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{i}.jpg", "license": 1} for i in range(9)]
        captions = [{"id": i, "image_id": i, "caption": f"a red fox {i}"} for i in range(9)]
        path = folder / f"coco/annotations/captions_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": captions}))
        for i in range(8):
            write_picture(folder / f"coco/{split}2017/{i}.jpg", i)
        (folder / f"coco/{split}2017/7.jpg").write_bytes(b"<html>")
    lines = []
    for i in range(60):
        write_picture(folder / f"maps/{i}.png", i)
        lines.append({"source": f"{i}.png", "target": f"{i}.png", "prompt": f"the moon {i}"})
    (folder / "maps/prompt.json").write_text("\n".join(map(json.dumps, [{}, *lines])))
    made = experiment(folder)
    said = []
    prepare_tasks(made, testing.text_tokenizer(), testing.image_tokenizer(), said.append)
    return made, said


def test_what_is_broken_is_listed_with_its_reason(prepared):
    made, said = prepared
    assert said[0].startswith("coco_captions, train: 7 records in")
    corpus = Corpus.open(f"{made.data.mixture[0][0]}/corpus/train")
    refused = corpus.manifest["refused"]
    assert "7.jpg: it is not an image" in refused["caption-7"]
    assert "8.jpg can't be read" in refused["caption-8"]
    maps = Corpus.open(f"{made.data.mixture[1][0]}/corpus/train")
    assert maps.manifest["refused"] == {"prompt.json:1": "it has no 'prompt'"}
    assert len(maps) == 59
    assert len(Corpus.open(f"{made.data.mixture[1][0]}/corpus/validation")) == 1
    assert corpus.manifest["licence_shares"] == {"COCO image licence 1": 1.0}


def test_a_second_preparation_finds_everything_there(prepared):
    made, _ = prepared
    said = []
    prepare_tasks(made, testing.text_tokenizer(), testing.image_tokenizer(), said.append)
    assert len(said) == 4
    assert all(line.endswith("is complete") for line in said)


@pytest.mark.slow
def test_training_rows_ask_only_for_the_answers(prepared):
    made, _ = prepared
    stream = corpus_stream(made, "train")
    vocab = stream.vocab
    captions, maps = stream.corpora
    row = captions.build(captions.plan(0, 0).slice(0, 1))
    asked = row.targets[row.weights > 0]
    texts = testing.text_tokenizer().decode(
        [id_ - vocab.first_text for id_ in asked.tolist() if id_ >= vocab.first_text]
    )
    assert texts.startswith("a red fox")
    assert (asked == vocab.eoss).sum() == row.segments.max()
    row = maps.build(maps.plan(0, 0).slice(0, 1))
    asked = row.targets[row.weights > 0].reshape(row.segments.max(), -1)
    assert (asked[:, -1] == vocab.eos).all()
    assert asked.shape[1] == vocab.image_tokens + 1
    batch = next(iter(stream.batches(Position()))).data
    assert batch.tokens.shape == (4, 160)


def test_show_draws_what_is_asked(prepared):
    made, _ = prepared
    rows = corpus_stream(made, "train").corpora[0]
    shown = show_row(rows, 3, testing.text_tokenizer()).splitlines()
    assert any("caption-3 (caption), 1 masks drawn" in line for line in shown)
    weighted = [line for line in shown if line.endswith(" 1")]
    assert any("<eoss>" in line for line in weighted)
    assert any(line.endswith(" 0") for line in shown)


@pytest.mark.slow  # only hosts build rows with answers, which other tests read
def test_numpy_and_jax_build_the_same_rows(prepared):
    made, _ = prepared
    rows = corpus_stream(made, "train").corpora[0]
    vocab, count = rows.corpus.vocab, 5
    ids = [rows.corpus.ids(record) for record in range(count)]
    lengths = np.asarray([len(one) for one in ids], np.int32)
    query = np.stack([np.pad(one, (0, lengths.max() - len(one))) for one in ids]).astype(np.int32)
    answers = np.asarray(rows.corpus.answers[:count])
    numbers = np.arange(count, dtype=np.int32)

    def build(xp):
        none = xp.zeros((count, 0, 1), xp.int32)
        samples = Samples(
            none,
            none[..., 0],
            xp.asarray(query),
            xp.asarray(lengths),
            xp.asarray(answer_masks(answers)),
            xp.asarray(numbers),
            xp.asarray(answers),
        )
        places = Places(xp.asarray(numbers), xp.asarray(0 * numbers), xp.asarray(0 * numbers + 1))
        return build_rows(
            xp, samples, places, (count, 160), seed=0, epoch=0, config=made.cm3, vocab=vocab
        )

    device = build(jnp)
    for name, values in vars(build(np)).items():
        np.testing.assert_array_equal(values, getattr(device, name), err_msg=name)


def test_the_mixture_is_resampled_between_its_thresholds(prepared):
    # Equal shares of 1,000 records would be 1/3, 10/3 and 100/3 passes.
    assert resampled([1000, 100, 10], [1.0, 1.0, 1.0], 0.3, 3.0) == pytest.approx([0.37, 3, 3])
    assert resampled([10, 10], [9.0, 1.0], 0.3, 3.0) == pytest.approx([1.8, 0.3])
    made, _ = prepared
    data = dataclasses.replace(made.data, resample=(0.3, 3.0), batch=100_000)
    stream = corpus_stream(dataclasses.replace(made, data=data), "train")
    captions, maps = (rows.corpus for rows in stream.corpora)
    # Equal shares of 66 records are 33 / 7 passes over the captions, of which 3 are allowed.
    passes = np.asarray([3.0, 33 / 59])
    counts = np.bincount(stream._choose(0), minlength=2)
    rows = np.asarray([rows.plan(0, 0).rows for rows in stream.corpora])
    seen = counts / rows  # passes over each corpus, but for a common factor
    assert seen[0] / seen[1] == pytest.approx(passes[0] / passes[1], rel=0.03)
    assert (len(captions), len(maps)) == (7, 59)


def test_answers_are_for_whole_rows(prepared):
    made, _ = prepared
    stream = dataclasses.replace(made, data=dataclasses.replace(made.data, rows="stream"))
    with pytest.raises(UserError, match="has answers to learn"):
        corpus_stream(stream, "train")


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [("cooking", "emblems", "emblems has no task 'cooking'"), ("cooking", "x", "no data set")],
)
def test_unknown_names_are_said(name, folder, message):
    with pytest.raises(UserError, match=message):
        open_cases(name, folder, "train", DataConfig(), 0)


def test_a_data_set_that_is_missing_leaves_nothing_behind(prepared, tmp_path):
    tasks, mixture = (("vqa2", f"{tmp_path}/none"),), ((f"{tmp_path}/home", 1.0),)
    with pytest.raises(UserError, match="an annotation file is missing"):
        prepare_anew(prepared[0], tasks=tasks, mixture=mixture)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_refused_before_any_work(prepared, tmp_path):
    mine = tmp_path / "second" / "corpus" / "train" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    mixture = ((f"{tmp_path}/first", 1.0), (f"{tmp_path}/second", 1.0))
    with pytest.raises(UserError, match="second/corpus/train is not empty and does not hold a c"):
        prepare_anew(prepared[0], mixture=mixture)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thesis.tex"]


def test_records_of_other_licences_are_refused(prepared, tmp_path):
    made = prepared[0]
    one = {"tasks": made.data.tasks[:1], "mixture": ((str(tmp_path), 1.0),)}
    with pytest.raises(UserError, match=r"'COCO image licence 1' is not among data\.licences"):
        prepare_anew(made, **one, licences=("CC0-1.0",))
    prepare_anew(made, **one, licences=("CC0-1.0", "COCO image licence 1"))
    assert len(Corpus.open(tmp_path / "corpus" / "train")) == 7


def prepare_anew(made, say=lambda line: None, **data):
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, **data))
    prepare_tasks(made, testing.text_tokenizer(), testing.image_tokenizer(), say)


def write_maps(folder, count, seed=0):
    """A data set of maps with captions; images of a larger seed are others."""
    lines = []
    for i in range(count):
        write_picture(folder / f"{i}.png", 1000 * seed + i)
        lines.append({"source": f"{i}.png", "target": f"{i}.png", "prompt": f"the moon {i}"})
    (folder / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    return {"tasks": (("segmentation", str(folder)),)}


def documents_of(home, split="train"):
    corpus = Corpus.open(home / "corpus" / split)
    every = map(corpus.document, range(len(corpus)))
    return {document.key: document.ids.tolist() for document in every}


def test_a_data_set_that_changed_is_prepared_again_and_it_is_said(tmp_path):
    folder, home, said = tmp_path / "maps", tmp_path / "home", []
    made, asked = experiment(folder), {"mixture": ((str(home), 1.0),), **write_maps(folder, 51)}
    prepare_anew(made, **asked)
    before = documents_of(home)
    lines = (folder / "prompt.json").read_text().replace("the moon 7", "the sun 7")
    (folder / "prompt.json").write_text(lines)
    write_picture(folder / "9.png", 999)
    prepare_anew(made, said.append, **asked)
    assert "made again: " in said[0]
    assert "has changed since (2 changed (prompt.json:8 first))" in said[0]
    after = documents_of(home)
    differ = {key for key in before if before[key] != after[key]}
    assert differ == {"prompt.json:8", "prompt.json:10"}
    assert said[-1].endswith("validation is complete")  # none of its records has changed
    said.clear()
    prepare_anew(made, said.append, **asked)
    assert all(line.endswith("is complete") for line in said)


@pytest.mark.parametrize("change", ["order", "picture", "none"])
def test_a_data_set_that_changed_between_a_kill_and_the_rerun_is_not_mixed(
    tmp_path, monkeypatch, change
):
    folder, home, said = tmp_path / "maps", tmp_path / "home", []
    made, asked = experiment(folder), {"mixture": ((str(home), 1.0),), **write_maps(folder, 60)}
    asked |= {"shard": 20}
    write = CorpusWriter.write

    def killed(self, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, *rest)

    monkeypatch.setattr(CorpusWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_anew(made, **asked)
    numbers = []
    monkeypatch.setattr(
        CorpusWriter, "write", lambda self, *at: (numbers.append(at[0]), write(self, *at))
    )
    if change == "order":
        lines = (folder / "prompt.json").read_text().splitlines()
        (folder / "prompt.json").write_text("\n".join([*lines[30:], *lines[:30]]))
    elif change == "picture":
        write_picture(folder / "25.png", 999)
    prepare_anew(made, said.append, **asked)
    remade = {"order": [0, 1, 2], "picture": [1, 2], "none": [2]}[change]
    assert numbers == [*remade, 0]  # validation's comes last
    left = {"order": "2 shards that", "picture": "1 shards that", "none": "59 records in"}[change]
    assert left in said[0]
    assert ("(1 changed (prompt.json:26 first))" in said[0]) == (change == "picture")
    once = tmp_path / "once"
    prepare_anew(made, **asked | {"mixture": ((str(once), 1.0),)})
    for split in ("train", "validation"):
        assert documents_of(home, split) == documents_of(once, split)


def test_a_picture_that_changes_while_it_is_prepared_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "maps"
    asked = {"mixture": ((f"{tmp_path}/home", 1.0),), **write_maps(folder, 20)}
    read = prepare_tasks_module.load_with_size

    def change(path, size, over=None):
        found = read(path, size, over)
        write_picture(folder / "0.png", 999)
        return found

    monkeypatch.setattr(prepare_tasks_module, "load_with_size", change)
    with pytest.raises(UserError, match="maps has changed while it was prepared"):
        prepare_anew(experiment(folder), **asked)
    assert not (tmp_path / "home" / "corpus" / "train").exists()


def test_a_case_whose_names_are_no_unicode_is_refused(tmp_path):
    folder, home = tmp_path / "pairs", tmp_path / "home"
    for name in ("a", "b"):
        for place in (0, 1):
            write_picture(folder / name / f"7_{place}.jpg", place)
        (folder / name / "prompt.json").write_text('{"edit": "make it red"}')
    os.rename(folder / "b", os.path.join(os.fsencode(folder), b"\xff"))
    (folder / "seeds.json").write_text(json.dumps([["a", [7]], ["\udcff", [7]]]))
    asked = {"tasks": (("instruct_pix2pix", str(folder)),), "mixture": ((str(home), 1.0),)}
    prepare_anew(experiment(folder), **asked)
    assert documents_of(home).keys() == {"a/7"}
    refused = Corpus.open(home / "corpus/train").manifest["refused"]
    assert refused == {"\\udcff/7": "its name '\\\\udcff/7' is not UTF-8"}


def test_the_second_of_two_concurrent_preparations_is_refused(prepared):
    place = f"{prepared[0].data.mixture[1][0]}/corpus/train"
    with ThreadPoolExecutor(1) as other, hold(place, "preparing elsewhere"):
        second = other.submit(prepare_anew, prepared[0])
        with pytest.raises(UserError, match=r"train is in use: preparing elsewhere \(process "):
            second.result()


def test_two_tasks_never_share_a_directory(prepared, tmp_path):
    made, (home, link) = prepared[0], (tmp_path / "home", tmp_path / "link")
    home.mkdir()
    link.symlink_to(home)
    for other in (home, f"{home}/", f"{home}/../home", f"{home}:caption", link):
        with pytest.raises(UserError, match=r"for both coco_captions .* and segmentation .* give"):
            prepare_anew(made, mixture=((str(home), 1.0), (str(other), 1.0)))
    assert not list(home.iterdir())


def test_a_directory_of_the_mixture_may_name_a_kind(prepared, tmp_path):
    task = prepared[0].data.tasks[0]
    mixture = ((f"{tmp_path}/home:caption", 1.0), (f"{tmp_path}/home", 2.0))
    prepare_anew(prepared[0], tasks=(task, task), mixture=mixture)
    assert len(documents_of(tmp_path / "home")) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("rule", "kept", "reason"),
    [
        ({"min_side": 12}, {0}, "40x10 pixels, a side below data.min_side=12"),
        ({"max_aspect": 2.0}, {0}, "40x10 pixels, longer than data.max_aspect=2 allows"),
        ({"min_words": 3}, {0, 1}, "its text has 2 words, fewer than data.min_words=3"),
        ({"max_words": 2}, {2}, "its text has 3 words, more than data.max_words=2"),
        ({"max_unsafe": 0.5}, {0, 1, 2}, ""),
    ],
)
def test_quality_rules_apply_to_tasks_as_to_pairs(tmp_path, rule, kept, reason):
    folder, said = tmp_path / "maps", []
    asked = {"mixture": ((f"{tmp_path}/home", 1.0),), **write_maps(folder, 3)}
    for name in ("1.png", "2.png"):
        PIL.Image.new("RGB", (40, 10)).save(folder / name)
    lines = (folder / "prompt.json").read_text().replace("the moon 2", "moon 2")
    (folder / "prompt.json").write_text(lines)
    prepare_anew(experiment(folder), said.append, **asked)
    assert len(documents_of(tmp_path / "home")) == 3
    prepare_anew(experiment(folder), said.append, **asked, **rule)
    assert documents_of(tmp_path / "home").keys() == {f"prompt.json:{i + 1}" for i in kept}
    refused = Corpus.open(tmp_path / "home/corpus/train").manifest["refused"]
    assert all(reason in refused[f"prompt.json:{i + 1}"] for i in {0, 1, 2} - kept)
    idle = "data.max_unsafe leaves nothing out: the records have no such score"
    assert said.count(idle) == ("max_unsafe" in rule)
    assert "segmentation, validation: no usable record, so training measures no loss of it" in said


def test_emblems_has_as_many_cases_as_asked():
    data = DataConfig(records=300)
    assert len(open_cases("words", "emblems", "train", data, 0)) == 300
    assert len(open_cases("words", "emblems", "validation", data, 0)) == 100
    assert open_cases("words", "emblems", "train", data, 0)[2].key == "words-train-2"


@pytest.mark.parametrize(
    "data", [{"resample": (0.0, 3.0)}, {"resample": (1.5, 3.0)}, {"mixture": ()}]
)
def test_impossible_settings_are_refused(tmp_path, data):
    with pytest.raises(UserError, match="data"):
        experiment(tmp_path, **data)


def test_more_cases_than_asked_for_are_sampled_and_it_is_said(tmp_path):
    """Not the first ones of the file: those may all be of one kind."""
    lines = [{"source": f"s{n}.png", "target": f"t{n}.png", "prompt": "a"} for n in range(49)]
    (tmp_path / "prompt.json").write_text("\n".join(map(json.dumps, lines)))

    def opened(records, seed=0):
        return open_cases("depth", str(tmp_path), "train", DataConfig(records=records), seed)

    some = opened(10)
    keys = [some[place].key for place in range(len(some))]
    assert len(set(keys)) == 10
    assert keys == sorted(keys, key=lambda key: int(key.split(":")[1]))
    assert int(keys[-1].split(":")[1]) > 20
    assert [some[place].key for place in range(10)] == keys
    assert [opened(10, 1)[place].key for place in range(10)] != keys
    assert some.note == "a sample of 10 of 49 cases; a larger data.records takes more"
    assert len(opened(49)) == 49
    assert not opened(49).note
