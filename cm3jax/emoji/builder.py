"""The dataset on disk: a TFDS builder over four archives that a user downloads.

    npm pack --pack-destination data/raw/downloads/manual @iconify-json/noto@1.2.9 ...
    builder = Emoji(data_dir="data/raw", config=EmojiConfig(records=50_000, archives=...))
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["text"]

The builder belongs to TFDS, so this module imports it at once; import the module when you need it.
"""

import dataclasses
import functools

import tensorflow_datasets as tfds
from etils import epath

from cm3jax.data.tfds_writing import NumberedBuilder, WriteProgress, fast_png, written
from cm3jax.emoji.archives import Archives, instructions
from cm3jax.emoji.examples import Examples
from cm3jax.emoji.looks import EmojiCatalogue, draw_catalogue

MANUAL = "downloads/manual"
"""Where TFDS looks for what a user downloads, below its data directory."""


@dataclasses.dataclass(eq=False, kw_only=True)
class EmojiConfig(tfds.core.BuilderConfig):
    """What decides the dataset; it makes up its name, hence its folder."""

    archives: Archives
    name: str = ""
    records: int = 50_000
    """Documents for training; validation has a fiftieth of that, at least 200."""
    seed: int = 0
    size: int = 64
    """Pixels along one side of an image."""

    def __post_init__(self):
        self.name = f"{self.size}px-{self.records}-seed{self.seed}-{self.archives.digest[:8]}"


class Emoji(NumberedBuilder):
    """`emoji` as a TFDS dataset; record i of a split is `Examples.example(split, i)`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"From data_dir: {instructions(MANUAL)}"

    @functools.cached_property
    def examples(self) -> Examples:
        """The documents."""
        config = self.builder_config
        pictures = open_catalogue(str(self._data_dir_root), config.archives, config.size)
        return Examples(pictures, config.seed, config.size)

    def counts(self) -> dict[str, int]:
        """Documents of each split."""
        records = self.builder_config.records
        return {
            "train": records,
            "validation": max(200, records // 50),
            "bank": self.examples.bank_size,
        }

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.size
        features = tfds.features.FeaturesDict(
            {
                "key": tfds.features.Text(),
                "kind": tfds.features.Text(),
                "text": tfds.features.Text(),
                "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                "scene": tfds.features.Text(),
                "subjects": tfds.features.Sequence(tfds.features.Text()),
                "source": tfds.features.Text(),
                "licence": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji of four artists at places and sizes, with captions.",
            features=features,
            disable_shuffling=True,  # record i stays document i
        )

    def record(self, split: str, index: int) -> dict[str, object]:
        """The features of a document."""
        document = self.examples.example(split, index)
        return {
            "key": document.key,
            "kind": document.kind,
            "text": document.caption,
            "image": fast_png(document.picture),
            "scene": document.scene.to_json(),
            "subjects": list(document.scene.nouns),
            "source": document.source,
            "licence": document.licence,
        }


@functools.lru_cache(maxsize=1)
def _catalogue(data_dir: str, digest: str, size: int) -> EmojiCatalogue:
    archives = Archives.find(epath.Path(data_dir) / MANUAL)
    return draw_catalogue(archives, size, epath.Path(data_dir) / "emoji")


def open_catalogue(data_dir: epath.PathLike, archives: Archives, size: int) -> EmojiCatalogue:
    """The catalogue of the archives below `data_dir`, kept for the next who asks.

    Raises `UserError` if an archive can't be read.
    """
    return _catalogue(str(data_dir), archives.digest, size)


def open_examples(data_dir: epath.PathLike, seed: int, size: int) -> Examples:
    """The documents of the archives below `data_dir`, without writing any.

    Raises `UserError` as `build_emoji` does.
    """
    archives = Archives.find(epath.Path(data_dir) / MANUAL)
    return Examples(open_catalogue(data_dir, archives, size), seed, size)


def build_emoji(
    data_dir: epath.PathLike,
    records: int,
    seed: int,
    size: int,
    progress: WriteProgress | None = None,
) -> Emoji:
    """Write the dataset under `data_dir`, unless it is there whole already.

    Raises `UserError` with the command that gets the archives, unless they are in
    `data_dir/downloads/manual`.
    """
    archives = Archives.find(epath.Path(data_dir) / MANUAL)
    config = EmojiConfig(archives=archives, records=records, seed=seed, size=size)
    return written(
        lambda: Emoji(data_dir=str(data_dir), config=config, file_format="array_record"), progress
    )
