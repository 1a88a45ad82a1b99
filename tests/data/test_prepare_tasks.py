"""Corpora of tasks: what `launch.prepare` writes, training reads with its answers in place."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import CM3Config, DataConfig
from cm3jax.data.corpus import Corpus
from cm3jax.data.pipeline import Position, resampled
from cm3jax.data.prepare_tasks import open_cases, prepare_tasks
from cm3jax.data.readers.datasets import TfdsSplit
from cm3jax.data.show import show_row
from cm3jax.errors import UserError
from cm3jax.report.html import png
from cm3jax.sequence.fit import answer_masks
from cm3jax.sequence.rows import Places, Samples, build_rows
from cm3jax.tasks.task import Case, Skipped
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
    assert "7.jpg: it is not a picture" in refused["caption-7"]
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
def test_training_rows_ask_for_the_answers_alone(prepared):
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

    for name, values in vars(build(np)).items():
        np.testing.assert_array_equal(values, getattr(build(jnp), name), err_msg=name)


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


def prepare_anew(made, **data):
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, **data))
    prepare_tasks(made, testing.text_tokenizer(), testing.image_tokenizer(), lambda line: None)


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


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """COCO in the layout of tensorflow-datasets' `coco_captions`, written by its own writer."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("coco")

    class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "coco_captions"
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            f = tfds.features
            label = f.ClassLabel(names=["person", "bicycle"])
            objects = {"area": np.int64, "bbox": f.BBoxFeature(), "id": np.int64}
            objects |= {"is_crowd": np.bool_, "label": label}
            features = {
                "image": f.Image(),
                "image/filename": f.Text(),
                "image/id": np.int64,
                "captions": f.Sequence({"id": np.int64, "text": f.Text()}),
                "objects": f.Sequence(objects),
            }
            return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "val": self._generate_examples(1)}

        def _generate_examples(self, count):
            box, whole = tfds.features.BBox, tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
            for i in range(count):
                objects = [
                    {"area": 1, "bbox": b, "id": n, "is_crowd": crowd, "label": n % 2}
                    for n, (b, crowd) in enumerate(
                        [(box(0.25, 0.5, 0.5, 0.75), False), (whole, False), (whole, True)][: 3 * i]
                    )
                ]
                texts = [{"id": j, "text": f"picture {i}, caption {j}"} for j in range(5 - i)]
                yield (
                    i,
                    {
                        "image": png(np.full((64, 64, 3), 40 * i, np.uint8)),
                        "image/filename": f"{i}.jpg",
                        "image/id": i,
                        "captions": texts,
                        "objects": objects,
                    },
                )

    builder = CocoCaptions(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def of_coco(coco, name, split="train", records=100):
    data = DataConfig(raw=str(coco), image_size=16, records=records)
    found = open_cases(name, "tfds:coco_captions:1.1.0", split, data, 0)
    return [found[place] for place in range(len(found))]


def test_coco_of_tfds_gives_captions_maps_and_boxes(coco):
    cases = of_coco(coco, "coco_captions")
    good = {case.values["answer"]: case for case in cases if isinstance(case, Case)}
    assert set(good) == {f"picture {i}, caption {j}" for i in range(3) for j in range(5 - i)}
    assert sorted(case.reason for case in cases if isinstance(case, Skipped)) == [
        "it has no caption 4",
        "it has no caption 5",
        "it has no caption 5",
    ]
    for text, case in good.items():
        shown = case.values["image"]
        assert shown.shape == (16, 16, 3)
        assert (shown == 40 * int(text.split()[1].rstrip(","))).all()
        assert case.source == "tfds:coco_captions:1.1.0"
    (edges,) = {case.task.name for case in of_coco(coco, "coco_canny") if isinstance(case, Case)}
    assert edges == "edges"
    boxes = {
        case.values["caption"]: case.values["boxes"]
        for case in of_coco(coco, "coco_boxes")
        if isinstance(case, Case)
    }
    told = "person at (128, 64) -> (192, 128), bicycle at (0, 0) -> (255, 255)"
    assert boxes == {f"picture {i}, caption 0": told for i in (1, 2)}


def test_a_record_of_tfds_without_objects_is_skipped(coco, monkeypatch):
    read = TfdsSplit.record
    bare = {"image", "captions"}
    monkeypatch.setattr(
        TfdsSplit, "record", lambda *at: {k: v for k, v in read(*at).items() if k in bare}
    )
    assert {case.reason for case in of_coco(coco, "coco_boxes")} == {"it has no objects"}


def test_coco_of_tfds_stops_at_the_records_asked_for_and_knows_its_splits(coco):
    assert len(of_coco(coco, "coco_captions", records=4)) == 4
    assert len(of_coco(coco, "coco_captions", "validation")) == 5


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("vqa2", "tfds:coco_captions:1.1.0", "vqa2 is not read from tensorflow-datasets, which"),
        ("coco_captions", "tfds:coco_captions:9.9.9", "the dataset coco_captions:9.9.9, split"),
    ],
)
def test_a_dataset_of_tfds_that_is_not_there_is_one_sentence(coco, name, dataset, message):
    with pytest.raises(UserError, match=message):
        open_cases(name, dataset, "train", DataConfig(raw=str(coco)), 0)
