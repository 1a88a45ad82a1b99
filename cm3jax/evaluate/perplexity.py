"""Perplexity of a decoder on held-out rows: of all targets, of text and of image codes.

Perplexities compare only between models of one vocabulary; most targets are image codes.
"""

import dataclasses
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm3jax import partition
from cm3jax.checkpoint import load_run
from cm3jax.config import ONE_STAGE
from cm3jax.data.packing import Position
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import PromptSet, Protocol, Score, stamp, tree_fingerprint
from cm3jax.io.files import digest
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.shapes import Float

_NAMES = {"loss": "all", "loss_text": "text", "loss_image": "image"}
_RESAMPLES = 1000


def evaluate_perplexity(
    run_dir: epath.PathLike, corpus: str = "", bank: str = "", batches: int = 50
) -> dict[str, Score]:
    """`perplexity.all`, `.text` and `.image` over the first `batches` of the validation rows.

    `corpus` and `bank` replace those of the run's config; rows are rotated as in training.
    Raises `UserError` for a run that is no decoder's, and for data that is missing or another's.
    """
    run = load_run(run_dir)
    experiment = run.experiment
    if experiment.learner != "decoder" or batches < 1:
        raise UserError(f"{run_dir} must be a decoder's run and --batches at least 1.")
    data = dataclasses.replace(
        experiment.data,
        corpus=corpus or experiment.data.corpus,
        bank=bank or experiment.data.bank,
        mixture=() if corpus else experiment.data.mixture,
    )
    experiment = dataclasses.replace(experiment, data=data, curriculum=ONE_STAGE)
    learner = DecoderLearner.from_corpus(experiment)
    learner.vocab.require(run.fingerprints["vocab"], f"the decoder {run_dir}")
    corpora = learner.corpora("validation")
    if not corpora:
        raise UserError(
            f"no record of {data.corpus or data.mixture} is held back for validation; prepare more "
            "records, or set data.splits."
        )
    sums, mark = _sums(learner, run.variables, batches)
    shares = [Counter(rows.corpus.manifest["licence_shares"]) for rows in corpora]
    protocol = stamp(
        PromptSet(
            f"{batches} batches of {data.batch} rows of {data.corpus or data.mixture}",
            "validation",
            mark,
        ),
        "exp of the mean nats per target",
        tree_fingerprint(run.variables),
        bank=data.bank,
        licences=sum(shares, Counter()),
        retrieved=experiment.retrieval.documents,
        documents="as in training rows",
        seed=experiment.seed,
    )
    found = {_NAMES[name]: pairs for name, pairs in sums.items() if pairs[:, 1].any()}
    return {f"perplexity.{name}": perplexity(pairs, protocol) for name, pairs in found.items()}


def perplexity(pairs: Float[np.ndarray, "B 2"], protocol: Protocol) -> Score:
    """Perplexity from each batch's nats and number of targets, with a bootstrap interval over
    batches.
    """
    draws = np.random.default_rng(0).integers(0, len(pairs), (_RESAMPLES, len(pairs)))
    nats, targets = pairs[draws].sum(1).T
    low, high = np.quantile(np.exp(nats / np.maximum(targets, 1)), (0.025, 0.975))
    total, count = pairs.sum(0)
    interval = (float(low), float(high))
    return Score(float(np.exp(total / count)), int(count), None, interval, protocol)


def _sums(
    learner: DecoderLearner, variables: dict, batches: int
) -> tuple[dict[str, Float[np.ndarray, "B 2"]], str]:
    """(nats, targets) of every batch by name, and a fingerprint of the rows."""
    mesh = partition.make_mesh(learner.experiment.mesh)
    key, step = jax.random.key(0), jnp.zeros((), jnp.int32)  # of no consequence outside training
    boxed = jax.eval_shape(learner.init, key)
    params = jax.device_put(variables["params"], partition.shardings(mesh, boxed)["params"])

    @jax.jit
    def measure(params, batch):
        return learner.loss(params, {}, batch, key, step, training=False).metrics

    found: dict[str, list] = {name: [] for name in _NAMES}
    marks = []
    with jax.set_mesh(mesh):
        stream = learner.stream("validation").batches(Position())
        for host in itertools.islice(stream, batches):
            batch = jax.device_put(host.data, partition.batch_sharding(mesh))
            metrics = jax.device_get(measure(params, batch))
            for name, pairs in found.items():
                pairs.append([float(part) for part in metrics[name]])
            marks.append(host.fingerprint)
    return {name: np.asarray(pairs, np.float64) for name, pairs in found.items()}, digest(*marks)
