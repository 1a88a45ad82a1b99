"""The parts that a decoder's run was trained with: where its tokenizers and its encoder are now."""

from etils import epath

from cm3jax.learners import clip, vqgan
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.companions import companion, encoder_fingerprint
from cm3jax.training.exported_run import LoadedRun


def text_folder(run_dir: epath.PathLike, run: LoadedRun) -> epath.Path:
    """The folder of the run's text tokenizer; see `companion`."""
    where, wanted = run.experiment.tokenizers.text, run.fingerprints.get("text", "")
    return companion(run_dir, run, where, wanted, lambda path: TextTokenizer.load(path).fingerprint)


def image_folder(run_dir: epath.PathLike, run: LoadedRun) -> epath.Path:
    """The folder of the run's image tokenizer; see `companion`."""
    where, wanted = run.experiment.tokenizers.image, run.fingerprints.get("image", "")
    return companion(run_dir, run, where, wanted, lambda path: vqgan.load(path).fingerprint)


def encoder_folder(run_dir: epath.PathLike, run: LoadedRun) -> epath.Path:
    """The folder of the run's retrieval encoder; see `companion`."""
    where, wanted = run.experiment.retrieval.encoder, encoder_fingerprint(run)
    return companion(run_dir, run, where, wanted, lambda path: clip.load(path).fingerprint)
