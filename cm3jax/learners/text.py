"""Training the text tokenizer: one pass over the captions, no steps and no checkpoints."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from cm3jax.config import Experiment
from cm3jax.data.sources import open_source
from cm3jax.data.usable import usable
from cm3jax.errors import UserError
from cm3jax.io.experiment_json import read_experiment, save_experiment
from cm3jax.report.run_page import write_report
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, TextTokenizer
from cm3jax.training.resume import decisive_changes, describe, differences


def train_text_tokenizer(experiment: Experiment) -> None:
    """Learn `vocab.text_pieces` pieces from the training captions.

    Writes `text.model`, `config.json` and `report.html` into the run directory, and does nothing
    if the model is there. No picture is decoded; a record without a sound text is left out, and
    said. Raises `UserError` if the source has no captions or too many characters, or if the model
    there was made with other options.
    """
    path = epath.Path(experiment.run_dir) / MODEL_FILE
    if path.exists():
        config = path.parent / "config.json"
        if config.exists():  # a model that was copied here has none
            changes = differences(read_experiment(config), experiment)
            _require_same_options(experiment.run_dir, changes)
        tokenizer = TextTokenizer.load(experiment.run_dir)
        print(f"{experiment.name}: finished already, {path} has {tokenizer.pieces} pieces.")
        return
    source = open_source(experiment.data, "train", experiment.seed)
    texts = (text for _, own in usable(source, source.texts) for text in own)
    tokenizer = TextTokenizer.train(
        texts, experiment.vocab.text_pieces, experiment.tokenizers.algorithm
    )
    save_experiment(path.parent / "config.json", experiment)
    write_report(path.parent)
    tokenizer.save(experiment.run_dir)  # last: its presence says that the run is complete
    learnt = tokenizer.pieces - tokenizer.reserved
    rest = f"; {tokenizer.reserved} more are reserved, and in no text" if tokenizer.reserved else ""
    print(f"{experiment.name}: learnt {learnt} pieces from {len(source)} records{rest}.")


def _require_same_options(run_dir: str, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """What is there must be what is asked for."""
    if decisive := decisive_changes("text_tokenizer", changes, {}, {}):
        raise UserError(
            f"{run_dir} holds a text tokenizer that was made with other options: "
            f"{describe(decisive)}; give those again, or another --workdir."
        )
