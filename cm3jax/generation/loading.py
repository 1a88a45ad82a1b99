"""Loads trained decoders as generators, with their tokenizers and their retrieval encoder."""

import functools

from etils import epath

from cm3jax import partition
from cm3jax.checkpoint import load_run, require_same
from cm3jax.config import CacheType, Experiment, MeshConfig, WeightType
from cm3jax.errors import UserError
from cm3jax.generation.generator import Generator
from cm3jax.generation.requests import CaptionRequestBuilder, RequestBuilder
from cm3jax.learners import clip, vqgan
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.learners.parti import PartiLearner
from cm3jax.learners.parts import encoder_folder, image_folder, text_folder
from cm3jax.model.quantised import require_qwix
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.retrieval.retriever import Retriever
from cm3jax.sequence.vocab import Vocab
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.companions import companion, encoder_fingerprint
from cm3jax.training.exported_run import LoadedRun
from cm3jax.training.state import plan_layout

_KINDS: dict[str, tuple[type[DecoderLearner | PartiLearner], type[RequestBuilder]]] = {
    "decoder": (DecoderLearner, RequestBuilder),
    "parti": (PartiLearner, CaptionRequestBuilder),
}
"""By `Experiment.learner`: what trained the model, and how it is asked."""


def load(
    run_dir: epath.PathLike,
    bank: epath.PathLike = "",
    mesh: MeshConfig | None = None,
    weights: WeightType = "",
    cache: CacheType = "",
    prefix_cache: int = 0,
) -> Generator:
    """The generator of a trained decoder, `parti` too: a run directory, exported weights, or the
    id of a run on the hub, `hf:OWNER/NAME` (`training.hub_runs`).

    The tokenizers are those of the run's config, found beside the run or where the config says;
    so is the encoder, which is loaded with the bank when documents are first asked for. `bank`
    replaces the config's. The devices of `mesh` share the decoder and its rows; without one it is
    the first device. `weights` and `cache` replace `model.weights` and `model.cache` of the run's
    config. `prefix_cache` bytes keep what was read of prompts for the next ones that begin alike
    (`decode.prefix_cache`; nothing is kept on several devices). Raises `UserError` for what is
    missing or doesn't belong together.
    """
    if mesh is None:
        run = load_run(run_dir)
    else:
        devices = partition.make_mesh(mesh)
        run = load_run(run_dir, lambda own: plan_layout(_learner(run_dir, own), devices).abstract)
    return assemble(run.kept_as(weights, cache), run_dir, bank, prefix_cache)


def assemble(
    run: LoadedRun, run_dir: epath.PathLike, bank: epath.PathLike = "", prefix_cache: int = 0
) -> Generator:
    """The generator of a decoder that is in memory, with what `load` would find for `run_dir`."""
    experiment = run.experiment
    for name in ("weights", "cache"):
        if kind := getattr(experiment.model, name):
            require_qwix(f"model.{name}={kind}")
    model = _learner(run_dir, experiment).model
    text = TextTokenizer.load(text_folder(run_dir, run))
    image = vqgan.load(image_folder(run_dir, run))
    vocab = Vocab(experiment.vocab, text.fingerprint, image.fingerprint)
    vocab.require(run.fingerprints["vocab"], f"the decoder {run_dir}")
    _, builder = _KINDS[experiment.learner]

    def open_retriever(encoder: ClipEncoder) -> Retriever:
        where = bank or companion(run_dir, run, experiment.data.bank)
        if not (bank or experiment.data.bank):
            raise UserError(
                f"{run_dir} names no memory bank (data.bank); give one, or ask for no documents."
            )
        opened = Bank.open(where, encoder.fingerprint, vocab.fingerprint)
        return Retriever(encoder, opened, experiment.retrieval)

    return Generator(
        model,
        run.variables,
        builder(vocab, text, image, model.room),
        functools.partial(load_encoder, run_dir, run),
        open_retriever,
        experiment.decode,
        prefix_cache,
    )


def load_encoder(run_dir: epath.PathLike, run: LoadedRun) -> ClipEncoder:
    """The retrieval encoder that a decoder's run names; `UserError` where it names none, or is not
    the one whose documents the run was trained with."""
    if not run.experiment.retrieval.encoder:
        raise UserError(
            f"{run_dir} names no encoder (retrieval.encoder); ask for no documents and no ranking "
            "by CLIP."
        )
    encoder = clip.load(encoder_folder(run_dir, run))
    if wanted := encoder_fingerprint(run):
        require_same({"encoder": wanted}, {"encoder": encoder.fingerprint}, str(run_dir))
    return encoder


def _learner(run_dir: epath.PathLike, experiment: Experiment) -> DecoderLearner | PartiLearner:
    """What made the run, without data; `UserError` if it draws nothing."""
    if experiment.learner not in _KINDS:
        raise UserError(f"{run_dir} is a run of a {experiment.learner}; give a decoder's.")
    learner, _ = _KINDS[experiment.learner]
    return learner(experiment, Vocab(experiment.vocab), {})
