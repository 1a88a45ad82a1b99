"""Tasks that learn from COCO as tensorflow-datasets has it."""

import numpy as np
import pytest

from cm3jax.config import DataConfig
from cm3jax.data.readers.datasets import TfdsSplit
from cm3jax.data.task_cases import open_cases
from cm3jax.errors import UserError
from cm3jax.report.html import png
from cm3jax.tasks.task import Case, Skipped


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
    some = [case.key for case in of_coco(coco, "coco_captions", records=4)]
    every = [case.key for case in of_coco(coco, "coco_captions")]
    assert some == [key for key in every if key in some]
    assert len(some) == 4
    assert some != every[:4]  # a sample
    assert len(of_coco(coco, "coco_captions", "validation")) == 5


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("vqa2", "tfds:coco_captions:1.1.0", "vqa2 is not read from tensorflow-datasets, which"),
        ("coco_captions", "tfds:coco_captions:9.9.9", "the dataset coco_captions:9.9.9, split"),
    ],
)
def test_a_dataset_of_tfds_that_is_not_there_raises_user_error(coco, name, dataset, message):
    with pytest.raises(UserError, match=message):
        open_cases(name, dataset, "train", DataConfig(raw=str(coco)), 0)


def test_a_dataset_of_tfds_that_is_written_again_is_another_one(coco):
    found = open_cases(
        *("coco_captions", "tfds:coco_captions:1.1.0", "train"),
        *(DataConfig(raw=str(coco), image_size=16), 0),
    )
    assert [made.name for made in found.made(range(4, 6))] == ["image-0-4", "image-1-0"]
    (file,) = (coco / "coco_captions/1.1.0").glob("*train*")
    before = found.made(range(2))
    file.touch()
    again = open_cases(
        *("coco_captions", "tfds:coco_captions:1.1.0", "train"),
        *(DataConfig(raw=str(coco), image_size=16), 0),
    )
    assert [a.state == b.state for a, b in zip(before, again.made(range(2)), strict=True)] == [
        False,
        False,
    ]


def test_cases_of_tfds_know_the_sizes_of_their_pictures(coco):
    cases = [case for case in of_coco(coco, "coco_captions") if isinstance(case, Case)]
    assert {case.sizes for case in cases} == {((64, 64),)}
