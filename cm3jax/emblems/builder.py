"""The dataset on disk: a TFDS builder that writes ArrayRecord files, without TensorFlow.

    builder = Emblems(data_dir="data/raw", config=EmblemsConfig(records=50_000))
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["texts"]

The builder belongs to TFDS, so this module imports it at once; import the module when you need it.
"""

import dataclasses

import tensorflow_datasets as tfds
from etils import epath

from cm3jax.data.tfds_writing import NumberedBuilder, WriteProgress, fast_png, written
from cm3jax.emblems.draw import SIZE
from cm3jax.emblems.examples import Example, bank_size, example
from cm3jax.emblems.looks import TRAINING


@dataclasses.dataclass(eq=False, kw_only=True)
class EmblemsConfig(tfds.core.BuilderConfig):
    """Size and seed of the dataset; they make up its name, hence its folder."""

    name: str = ""
    records: int = 50_000
    """Documents for training; validation has a fiftieth of that, at least 200."""
    emblems: int = TRAINING
    """Emblems to train on; the bank has three documents of each, and 3,000 of emblems that training
    never shows."""
    seed: int = 0
    size: int = SIZE
    """Pixels along one side of an image."""

    def __post_init__(self):
        self.name = f"{self.size}px-{self.records}-of-{self.emblems}-seed{self.seed}"

    @property
    def counts(self) -> dict[str, int]:
        """Documents of each split."""
        return {
            "train": self.records,
            "validation": max(200, self.records // 50),
            "bank": bank_size(self.emblems),
        }


class Emblems(NumberedBuilder):
    """`emblems` as a TFDS dataset; record i of a split is `example(split, i)`.

    Images of a document are in `images`, texts in `texts`; `order` says how they alternate
    ("ti" a pair, "t" only a text, "tititi" a story). `scenes` are `Scene.to_json` lines, from
    which `annotations.annotate` derives boxes, segmentation, depth, edges, questions and an edit.
    """

    VERSION = tfds.core.Version("2.0.0")

    def counts(self) -> dict[str, int]:
        """Documents of each split."""
        return self.builder_config.counts

    def record(self, split: str, index: int) -> dict[str, object]:
        """The features of a document."""
        config = self.builder_config
        return _record(example(split, index, config.seed, config.size, config.emblems))

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.size
        features = tfds.features.FeaturesDict(
            {
                "key": tfds.features.Text(),
                "kind": tfds.features.Text(),
                "order": tfds.features.Text(),
                "texts": tfds.features.Sequence(tfds.features.Text()),
                "images": tfds.features.Sequence(
                    tfds.features.Image(shape=(side, side, 3), encoding_format="png")
                ),
                "scenes": tfds.features.Sequence(tfds.features.Text()),
                "emblems": tfds.features.Sequence(tfds.features.Text()),
                "source": tfds.features.Text(),
                "licence": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural pictures and captions with exact ground truth.",
            features=features,
            disable_shuffling=True,  # record i stays document i
        )


def _record(document: Example) -> dict[str, object]:
    texts = [part for part in document.segments if isinstance(part, str)]
    images = [part for part in document.segments if not isinstance(part, str)]
    return {
        "key": document.key,
        "kind": document.kind,
        "order": "".join("t" if isinstance(part, str) else "i" for part in document.segments),
        "texts": texts,
        "images": [fast_png(image) for image in images],
        "scenes": [scene.to_json() for scene in document.scenes],
        "emblems": list(document.emblems),
        "source": document.source,
        "licence": document.licence,
    }


def build_dataset(
    data_dir: epath.PathLike, config: EmblemsConfig, progress: WriteProgress | None = None
) -> Emblems:
    """Write the dataset under `data_dir`, unless it is there whole already."""
    return written(
        lambda: Emblems(data_dir=str(data_dir), config=config, file_format="array_record"), progress
    )
