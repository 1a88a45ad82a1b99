"""Raw data, the prepared corpus and training rows."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import COUNTED, require, require_not_negative, require_range


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training rows come from."""

    source: str = "emblems"
    """Raw data: `emblems`; `emoji`; a folder of images with a `captions.jsonl`, whose lines are
    `{"file": "a.png", "caption": "a cat"}` and may have `subjects` (a list of names), `licence`,
    `source`, `split` and `mask`, or with a `metadata.jsonl` (`file_name`, `text`), or with `a.txt`
    beside `a.png`, in folders named by what is shown; a folder with a `documents.jsonl` of
    interleaved documents, or such a file; a folder of tar shards (webdataset, img2dataset) or of
    parquet files; `tfds:NAME` for a dataset of tensorflow-datasets."""
    records: int = 50_000
    """Most records to generate or to take from the source for training; a larger source is sampled
    by the seed."""
    splits: tuple[tuple[str, Literal["train", "validation", "bank"]], ...] = ()
    """Splits for a source that has none of its own: pairs of a folder in it (or a pattern of its
    files' names) and `train`, `validation` or `bank` (only in the bank: found at generation,
    never seen in training), e.g. `flags/new bank "shard-9*" validation`, or `. bank` for all of
    it. A record's own `split` takes precedence. Where nothing is for validation, data.hold_back
    chooses."""
    hold_back: Literal["pictures", "subjects"] = "pictures"
    """What is held back for validation where no split decides it: every 50th image with all of
    its captions, or every 50th of the records' `subjects` with all records that name it."""
    emblems: int = 3000
    """Emblems to train on, where the source is `emblems`. The more there are, the less a model can
    memorise them instead of copying them from documents."""
    raw: str = "data/raw"
    """Where generated raw data (`emblems`) and datasets of tensorflow-datasets are kept."""
    licences: tuple[str, ...] = ()
    """Licences that a record may have, e.g. `CC0-1.0 CC-BY-4.0`. A record with another licence, or
    with none, is refused and listed; empty allows all."""
    min_side: int = 0
    """Least pixels along an image's shorter side, as stored in its file; smaller ones are
    refused."""
    max_aspect: float = 0.0
    """Greatest ratio of an image's longer side to its shorter one; 0 allows all."""
    min_words: int = 1
    """Fewest words of a record's text; a record without any text is not refused."""
    max_words: int = 0
    """Most words of a record's text; 0 allows all."""
    max_watermark: float = 1.0
    """Refuse records whose `watermark` or `pwatermark`, where there is one, is above this."""
    max_unsafe: float = 1.0
    """Refuse records whose `unsafe`, `punsafe` or `NSFW`, where there is one, is above this."""
    shard: int = 2048
    """Records that are prepared and saved at a time: the most that an interruption loses."""
    image_size: int = 32
    """Pixels along one side that raw images are resized to, equal to the image tokenizer's."""
    corpus: str = ""
    """The prepared corpus, as `launch.prepare` wrote it under `data/`."""
    bank: str = ""
    """The memory bank that the corpus's neighbours point into, and that generation searches."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Train on several prepared directories, each with a `corpus` and a `bank` in it, instead of
    data.corpus. Each directory is followed by its weight, which decides its share of the rows, e.g.
    `data/emblems 3 data/words 1`; `data/emblems:pair 1` takes only its records of that kind."""
    online: bool = False
    """Make rows inside the training step from the pairs of data.source and the bank data.bank
    (encode images, search, rotate; one sample per row) instead of reading data.corpus. A pair is
    shown the documents nearest to its vector; of the rules in `retrieval`, only `documents`
    applies."""
    resample: tuple[float, float] | None = None
    """Least and greatest number of times that each corpus of data.mixture is seen, whatever its
    weight, while all corpora are seen once on average: 0.3 and 3 in instruction tuning."""
    tasks: tuple[tuple[str, str], ...] = ()
    """Instruction tuning: the data sets that `launch.prepare` turns into the corpora of
    data.mixture, in the same order. Each is a name in `cm3jax.tasks.READERS` and the folder of its
    files, or the name of a task and `emblems`, e.g. `vqa2 data/raw/vqa2 words emblems`. For COCO,
    the folder may also be `tfds:coco_captions/2014:1.1.0` or another version, in data.raw."""
    image_first: bool = False
    """Put the image before the text where a task's answer is a text."""
    rows: Literal["whole", "stream"] = "whole"
    """How samples become rows: `whole` packs whole samples, each masked by itself and unable to see
    the others; `stream` cuts one stream of samples at the rows' ends and masks and attends to each
    row as one (the paper's way)."""
    batch: int = 16
    """Rows (decoder) or records (tokenizer, CLIP) of a global batch."""
    threads: int = 2
    """Reading threads of each process."""

    def __post_init__(self):
        require_range(self, "data", ("records", "emblems", "shard"), most=COUNTED)
        require_range(self, "data", ("image_size", "batch", "threads"))
        least = ("min_side", "min_words", "max_words", "max_watermark", "max_unsafe")
        require_not_negative(self, "data", least)
        require(
            self.max_aspect == 0 or self.max_aspect >= 1,
            f"data.max_aspect={self.max_aspect} must be at least 1, or 0 to allow all.",
        )
        for directory, weight in self.mixture:
            require(
                weight > 0,
                f"data.mixture gives {directory} the weight {weight}; give a positive one, or "
                "leave it out.",
            )
        low, high = self.resample or (1.0, 1.0)
        require(
            0 < low <= 1 <= high,
            f"data.resample={low} {high} must be two positive numbers around 1, lower one first.",
        )
        require(
            not self.tasks or len(self.tasks) == len(self.mixture),
            f"data.tasks names {len(self.tasks)} data sets and data.mixture {len(self.mixture)} "
            "directories; give one for each.",
        )
