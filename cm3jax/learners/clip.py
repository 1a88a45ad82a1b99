"""Training the retrieval encoder: the pair loss of CLIP and a document loss.

The pair loss by itself never learns that an unseen name is *the same* name in two captions. The
document loss asks for just that: the text or the image of one document must find the document
vector (section 2.1) of another document of the same subject.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from cm3jax import checkpoint
from cm3jax.config import ClipConfig, Experiment
from cm3jax.data.contrastive import NO_SUBJECT, CaptionedRecords, Couples, CoupleStream
from cm3jax.data.pipeline import NoRecords, Stream
from cm3jax.data.sources import open_source
from cm3jax.errors import UserError
from cm3jax.retrieval.clip_encoder import (
    CLIP,
    ClipEncoder,
    document_vectors,
    normalise_pixels,
    text_length,
)
from cm3jax.shapes import AnyArray, Array, Bool, Float, Int, Key
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, TextTokenizer
from cm3jax.training.companions import run_folder
from cm3jax.training.loss import LossOutput, Mean
from cm3jax.training.metrics import StepCost


@dataclasses.dataclass(frozen=True, eq=False)
class CLIPLearner:
    """A `CLIP`, its two losses and its couples."""

    experiment: Experiment
    tokenizer: TextTokenizer | None
    """Reads the source's texts; without one there are no couples, only a loss to compile."""

    @classmethod
    def from_source(cls, experiment: Experiment) -> "CLIPLearner":
        """A learner with the couples of `data.source`; the run directory keeps its tokenizer.

        Every record is read once, and its texts are held in memory. Raises `UserError` when the
        text tokenizer is missing or `clip.text_vocab` does not fit it.
        """
        tokenizer = TextTokenizer.load(experiment.tokenizers.text)
        require_vocabulary(experiment.clip, tokenizer)
        _keep_tokenizer(experiment.run_dir, tokenizer)
        return cls(experiment, tokenizer)

    @property
    def model(self) -> CLIP:
        """The module."""
        return CLIP(self.experiment.clip)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The text tokenizer's fingerprint."""
        return {} if self.tokenizer is None else {"text": self.tokenizer.fingerprint}

    @functools.cached_property
    def records(self) -> CaptionedRecords:
        """What is trained on."""
        return self._records("train")

    @functools.cached_property
    def longest(self) -> int:
        """Pieces of the longest text that is trained on."""
        if self.tokenizer is None:
            return self.experiment.clip.text_context
        return max(map(len, self.records.texts))

    @functools.cached_property
    def _validation(self) -> Stream:
        try:
            records = self._records("validation")
        except UserError as error:  # none is held back, or those that are are broken
            print(f"nothing is validated: {error}")
            return NoRecords()
        return self._couples(records)

    def _records(self, split: Literal["train", "validation"]) -> CaptionedRecords:
        assert self.tokenizer is not None
        source = open_source(self.experiment.data, split, self.experiment.seed)
        return CaptionedRecords(source, self.tokenizer, self.experiment.clip)

    @property
    def work(self) -> StepCost:
        """The cost of one global batch."""
        config = self.experiment.clip
        length = text_length(self.longest, config)
        return couple_work(config, 2 * self.experiment.data.batch, length)

    def init(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """The parameters of both towers, boxed with their logical axes."""
        size = self.experiment.clip.image_size
        return self.model.init(key, jnp.zeros((1, 16), jnp.int32), jnp.zeros((1, size, size, 3)))

    def loss(
        self,
        params: Any,
        extra: Any,
        batch: Couples,
        key: Key[Array, ""],
        step: Int[Array, ""],
        training: bool = True,
    ) -> LossOutput:
        """The configured sum of pair loss and document loss, in nats."""
        config = self.experiment.clip
        rows = batch.records.shape[0]
        texts = jnp.moveaxis(batch.texts, 1, 0).reshape(2 * rows, -1)
        images = jnp.moveaxis(batch.images, 1, 0).reshape(2 * rows, *batch.images.shape[2:])
        variables = {"params": params}
        text, image = nn.apply(CLIP.__call__, self.model)(
            variables, texts, normalise_pixels(images)
        )
        scale = nn.apply(CLIP.scale, self.model)(variables)
        pair = pair_loss(text, image, batch.same, scale)
        metrics = {"loss_pair": pair}
        total = config.pair_loss * _value(pair)
        if config.document_loss:
            by_text, by_image, hits = document_loss(text, image, batch, scale)
            metrics |= {"loss_document_text": by_text, "loss_document_image": by_image}
            metrics |= hits
            total += config.document_loss * (_value(by_text) + _value(by_image)) / 2
        return LossOutput(total, {"loss": Mean(total, 1.0), **metrics}, extra)

    def stream(self, split: Literal["train", "validation"]) -> Stream:
        """Couples of the source's split."""
        return self._couples(self.records) if split == "train" else self._validation

    def _couples(self, records: CaptionedRecords) -> CoupleStream:
        own = self.experiment
        return CoupleStream(
            records,
            own.data,
            own.clip,
            own.seed,
            own.retrieval.query_dropout,
            jax.process_index(),
            jax.process_count(),
        )


def _keep_tokenizer(run_dir: str, tokenizer: TextTokenizer) -> None:
    """Save the run's own copy: an encoder without its text tokenizer is nothing. One that is there
    already belongs to what was trained there, and stays."""
    if (epath.Path(run_dir) / MODEL_FILE).exists():
        kept = {"text": TextTokenizer.load(run_dir).fingerprint}
        checkpoint.require_same(kept, {"text": tokenizer.fingerprint}, f"the encoder {run_dir}")
    else:
        tokenizer.save(run_dir)


def contrast(
    queries: Float[Array, "B E"],
    keys: Float[Array, "C E"],
    scale: Float[Array, ""],
    allowed: Bool[Array, "B C"],
    weights: Float[Array, " B"],
) -> tuple[Mean, Mean]:
    """InfoNCE of each query against its own key, that of the same row, and the share of hits.

    Keys that are not `allowed` are no negatives of a query: they may be as right as its own.
    """
    own = jnp.arange(keys.shape[0]) == jnp.arange(queries.shape[0])[:, None]
    scores = jnp.where(allowed | own, scale * queries @ keys.T, -jnp.inf)
    right = jnp.sum(jnp.where(own, scores, 0.0), axis=1)
    losses = jax.nn.logsumexp(scores, axis=1) - right
    hits = (right >= scores.max(1)).astype(jnp.float32)
    return Mean(weights @ losses, weights.sum()), Mean(weights @ hits, weights.sum())


def pair_loss(
    text: Float[Array, "B E"],
    image: Float[Array, "B E"],
    same: Int[AnyArray, "half 2 2"],
    scale: Float[Array, ""],
) -> Mean:
    """CLIP's loss: each text against its own image among all of the batch, and the reverse.

    Rows are the asking documents, then their partners. `same` is that of `Couples`: a record that
    is in the batch twice is no negative of itself, nor is one with its image or its caption.
    """
    rows = jnp.moveaxis(same, 1, 0).reshape(-1, 2)
    allowed = _apart(rows, rows)
    weights = jnp.ones(len(rows))
    by_text, _ = contrast(text, image, scale, allowed, weights)
    by_image, _ = contrast(image, text, scale, allowed, weights)
    return Mean(*jax.tree.map(jnp.add, by_text, by_image))


def document_loss(
    text: Float[Array, "B E"],
    image: Float[Array, "B E"],
    couples: Couples,
    scale: Float[Array, ""],
) -> tuple[Mean, Mean, dict[str, Mean]]:
    """Each text, and each image, against the document vector of its couple's other document.

    Rows are the first documents of all couples, then the second. The batch's other documents are
    negatives, unless they share a subject, the image or the caption with who asks. A document
    that names two subjects counts twice: it has two others to find. One without a subject, or
    without a partner, does not ask.
    Returns both losses and the shares of hits.
    """
    other = jnp.roll(jnp.arange(text.shape[0]), text.shape[0] // 2)
    documents = document_vectors(text, image)[other]
    records = couples.records.T.reshape(-1)
    subjects = jnp.moveaxis(couples.subjects, 1, 0).reshape(len(records), -1)
    same = jnp.moveaxis(couples.same, 1, 0).reshape(len(records), 2)
    allowed = ~_share(subjects, subjects[other]) & _apart(same, same[other])
    wanted = (subjects != NO_SUBJECT).sum(1)
    asks = jnp.where(records == records[other], 0, wanted).astype(jnp.float32)
    by_text, text_hits = contrast(text, documents, scale, allowed, asks)
    by_image, image_hits = contrast(image, documents, scale, allowed, asks)
    return by_text, by_image, {"hit_text": text_hits, "hit_image": image_hits}


def _share(left: Int[Array, "B I"], right: Int[Array, "C I"]) -> Bool[Array, "B C"]:
    """Which documents have a subject in common."""
    equal = left[:, None, :, None] == right[None, :, None, :]
    return (equal & (left != NO_SUBJECT)[:, None, :, None]).any((2, 3))


def _apart(left: Int[Array, "B 2"], right: Int[Array, "C 2"]) -> Bool[Array, "B C"]:
    """Which documents have neither the image nor the caption in common."""
    return (left[:, None] != right[None]).all(2)


def _value(mean: Mean) -> Float[Array, ""]:
    return mean.total / jnp.maximum(mean.weight, 1.0)


def couple_work(config: ClipConfig, documents: int, text_length: int) -> StepCost:
    """Tokens and floating-point operations (6 per weight and token) of `documents` documents."""
    patches = (config.image_size // config.patch) ** 2 + 1
    text = 12 * config.text_layers * config.text_width**2
    image = 12 * config.vision_layers * config.vision_width**2
    per_document = 6.0 * (text * text_length + image * patches)
    return StepCost(documents * (text_length + patches), documents * per_document)


def require_vocabulary(config: ClipConfig, tokenizer: TextTokenizer) -> None:
    """Raise `UserError` unless the text tower has an entry per piece, for begin and for end."""
    if config.text_vocab != tokenizer.pieces + 2:
        raise UserError(
            f"clip.text_vocab={config.text_vocab} does not fit the text tokenizer of "
            f"{tokenizer.pieces} pieces; set it to {tokenizer.pieces + 2}."
        )


def load(run_dir: epath.PathLike) -> ClipEncoder:
    """The encoder of a run or of exported weights, with the text tokenizer saved beside them.

    Raises `UserError` if either is missing, if they do not belong together, or for another run.
    """
    run = checkpoint.load_run(run_dir)
    if run.experiment.learner != "clip":
        raise UserError(
            f"{run_dir} is the run of a {run.experiment.learner}, not of a retrieval encoder; give "
            "one of learner `clip`."
        )
    tokenizer = TextTokenizer.load(run_folder(run_dir)[0])
    ours = {"text": tokenizer.fingerprint}
    checkpoint.require_same(run.fingerprints, ours, f"the encoder {run_dir}")
    require_vocabulary(run.experiment.clip, tokenizer)
    return ClipEncoder(run.experiment.clip, run.variables, tokenizer)
