"""Raw data, the prepared corpus and training rows."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import require


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training rows come from."""

    source: str = "emblems"
    """Raw data: `emblems`; `emoji`; a folder of pictures with a `captions.jsonl`, whose lines are
    `{"file": "a.png", "caption": "a cat"}` and may have `subjects` (a list of names), `licence`,
    `source` and `mask`, or with a `metadata.jsonl` (`file_name`, `text`), or with `a.txt` beside
    `a.png`, in folders named by what is shown; a folder with a `documents.jsonl` of interleaved
    documents, or such a file; a folder of tar shards (webdataset, img2dataset) or of parquet files;
    `tfds:NAME` for a dataset of tensorflow-datasets."""
    records: int = 50_000
    """Records to generate or to take from the source for training, at most; of more, a sample by
    the seed is taken."""
    splits: tuple[tuple[str, Literal["train", "validation", "bank"]], ...] = ()
    """Splits of parts of a source that has none: a folder in it, or a pattern of its files' names,
    with `train`, `validation` or `bank` (only in the bank: found at generation, never seen in
    training), e.g. `flags/new bank "shard-9*" validation`, or `. bank` for all of it. A record's
    own `split` goes before. Where nothing is for validation, data.hold_back chooses."""
    hold_back: Literal["pictures", "subjects"] = "pictures"
    """What is held back for validation where no split says it: every 50th picture with all of its
    captions, or every 50th of the records' `subjects` with all records that name it."""
    emblems: int = 3000
    """Emblems to train on, where the source is `emblems`: the more there are, the less their looks
    can be learnt by heart instead of being copied from documents."""
    raw: str = "data/raw"
    """Where generated raw data (`emblems`) and datasets of tensorflow-datasets are kept."""
    licences: tuple[str, ...] = ()
    """Licences that a record may have, e.g. `CC0-1.0 CC-BY-4.0`: one with another or none is
    refused, and listed; empty allows all."""
    min_side: int = 0
    """Pixels of a picture's shorter side, in its file; a record below is refused."""
    max_aspect: float = 0.0
    """Longer side of a picture over its shorter one, at most; 0 allows all."""
    min_words: int = 1
    """Words of a record's text; a record with fewer is refused (one without any text is not)."""
    max_words: int = 0
    """Words of a record's text, at most; 0 allows all."""
    max_watermark: float = 1.0
    """Refuse records whose `watermark` or `pwatermark`, where there is one, is above this."""
    max_unsafe: float = 1.0
    """Refuse records whose `unsafe`, `punsafe` or `NSFW`, where there is one, is above this."""
    shard: int = 2048
    """Records that are prepared and saved at a time; what an interruption costs at most."""
    image_size: int = 32
    """Pixels along one side of raw pictures as they are read; the image tokenizer's."""
    corpus: str = ""
    """The prepared corpus, as `launch.prepare` wrote it under `data/`."""
    bank: str = ""
    """The memory bank that the corpus's neighbours point into, and that generation searches."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Train on several prepared directories, each with a `corpus` and a `bank` in it, instead of
    data.corpus: every directory with its weight, which decides its share of the rows, e.g.
    `data/emblems 3 data/words 1`, or `data/emblems:pair 1` for its records of one kind alone."""
    online: bool = False
    """Make rows in the training step from the pairs of data.source and the bank data.bank: encode
    pictures, search, rotate, one sample to a row, instead of reading data.corpus. A pair is shown
    the best documents by its vector; the rules of `retrieval` beside its number have no part."""
    resample: tuple[float, float] | None = None
    """Least and greatest number of times that a corpus of data.mixture may be seen while all of
    them are seen once on average, whatever its weight asks for: 0.3 and 3 in instruction tuning."""
    tasks: tuple[tuple[str, str], ...] = ()
    """Instruction tuning: the data sets that `launch.prepare` turns into the corpora of
    data.mixture, one for one. Each is a name in `cm3jax.tasks.READERS` and the folder where its
    files lie, or the name of a task and `emblems`, e.g. `vqa2 data/raw/vqa2 words emblems`. COCO's
    also take `tfds:coco_captions/2014:1.1.0` or another version, in data.raw, for a folder."""
    image_first: bool = False
    """Put the picture before the text where a task's answer is a text."""
    rows: Literal["whole", "stream"] = "whole"
    """How samples become rows: whole ones, packed, each masked by itself and blind to the others;
    or one stream of samples cut at the rows' ends, each row masked and attended to as one (the
    paper's way)."""
    batch: int = 16
    """Rows (decoder) or records (tokenizer, CLIP) of a global batch."""
    threads: int = 2
    """Reading threads of each process."""

    def __post_init__(self):
        for name in ("shard", "batch", "threads"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name}={value} must be at least 1.")
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
