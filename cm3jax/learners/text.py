"""Training the text tokenizer: one pass over the captions, no steps and no checkpoints."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from cm3jax.config import DataConfig, Experiment
from cm3jax.data.pipeline import marks_of_records
from cm3jax.data.sources import GENERATED, TextSource, open_source
from cm3jax.data.usable import usable
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import read_as, read_experiment, save_experiment
from cm3jax.io.files import sweep_scratch, write_json
from cm3jax.report.run_page import write_report
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, TextTokenizer
from cm3jax.training.resume import decisive_changes, describe, differences

_DATA = "data.json"
"""Fingerprints of the captions that a run learnt from; earlier versions wrote none."""


class TrainingTexts:
    """The texts of a source's sound records, and their fingerprints once all are read."""

    def __init__(self, data: DataConfig, seed: int):
        self.source: TextSource = open_source(data, "train", seed)
        self._hash, self._count = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[str]:
        for _, texts in usable(self.source, self.source.texts):
            for text in texts:
                self._count += 1
                content = text.encode(errors="surrogatepass")
                self._hash.update(len(content).to_bytes(8, "little") + content)
                yield text

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """As those of other learners' streams."""
        mark = self._hash.hexdigest()[:16]
        return marks_of_records(mark, self._count, {"texts": mark})


def train_text_tokenizer(experiment: Experiment) -> None:
    """Learn `vocab.text_pieces` pieces from the training captions.

    Writes `text.model`, `config.json`, `data.json` and `report.html` into the run directory, and
    does nothing if the model is there. No image is decoded; a record without a sound text is left
    out, and said. Raises `UserError` if the source has no captions or too many characters, or if
    the model there was made with other options or from other captions.
    """
    path = epath.Path(experiment.run_dir) / MODEL_FILE
    if path.exists():
        if (path.parent / "config.json").exists():  # a model that was copied here has none
            changes = differences(read_experiment(path.parent / "config.json"), experiment)
            _require_same(path.parent, changes, experiment.data, experiment.seed)
        tokenizer = TextTokenizer.load(experiment.run_dir)
        print(f"{experiment.name}: finished already, {path} has {tokenizer.pieces} pieces.")
        return
    sweep_scratch(path.parent, r"(config|data)\.json|report\.html|text\.model")
    captions = TrainingTexts(experiment.data, experiment.seed)
    tokenizer = TextTokenizer.train(
        captions, experiment.vocab.text_pieces, experiment.tokenizers.algorithm
    )
    save_experiment(path.parent / "config.json", experiment)
    write_json(path.parent / _DATA, captions.fingerprints)
    write_report(path.parent)
    tokenizer.save(experiment.run_dir)  # last: its presence says that the run is complete
    learnt = tokenizer.pieces - tokenizer.reserved
    rest = f"; {tokenizer.reserved} more are reserved, and in no text" if tokenizer.reserved else ""
    print(f"{experiment.name}: learnt {learnt} pieces from {len(captions.source)} records{rest}.")


def _require_same(
    folder: epath.Path, changes: Mapping[str, tuple[Any, Any]], data: DataConfig, seed: int
) -> None:
    """What is there must be what is asked for: of the same options, from the same captions."""
    before: Mapping[str, str] = {}
    now: Mapping[str, str] = {}
    if (folder / _DATA).exists() and data.source not in GENERATED:
        before = read_as(dict[str, str], folder / _DATA, "the fingerprints of the captions")
        captions = TrainingTexts(data, seed)
        for _ in captions:
            pass
        now = captions.fingerprints
    if decisive := decisive_changes("text_tokenizer", changes, before, now):
        raise UserError(
            f"{folder} holds a text tokenizer that was made with other options: "
            f"{describe(decisive)}; give those again, or another --workdir."
        )
