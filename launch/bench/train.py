"""Our training step compared with the same architecture in transformers and torch.

Same weights, rows and optimiser. An experiment's model has no counterpart in transformers, so only
our side is timed, and the same holds where torch or transformers are missing. Our side needs jax,
flax, optax, orbax and numpy.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax import partition
from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Vocab
from cm3jax.train import make_train_step
from cm3jax.training.hardware import peak_flops
from cm3jax.training.mesh_checks import require_attention
from cm3jax.training.state import TrainState, plan_layout
from launch.bench.model import add_model, experiment, no_rival, positive, random_weights
from launch.env import keep_freed_memory
from launch.rivals import chameleon


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_model(parser)
    add = parser.add_argument
    add("--length", type=positive, help="ids of a row; default the experiment's context, or 512")
    add("--unroll", type=positive, help="layers per turn of the Chameleon's scan; default 1")
    add("--steps", type=positive, default=10, help="steps that are timed, after two more")
    add("--compile-torch", action="store_true", help="measure torch.compile as well")


@dataclasses.dataclass(frozen=True)
class Side:
    """One side's measurement."""

    losses: list[float]
    seconds: list[float]
    """Seconds of each timed step, from the call to its loss on the host."""


def make_learner(options: argparse.Namespace) -> DecoderLearner:
    """What trains the options' model."""
    config = experiment(options, options.length or 512)
    if options.length:
        model = dataclasses.replace(config.model, context=options.length)
        config = dataclasses.replace(config, model=model)
    return DecoderLearner(config, Vocab(config.vocab), {})


def bench_train(options: argparse.Namespace) -> dict[str, Any]:
    """Time the sides one after another; both profit from the memory that the process keeps.

    Raises `UserError` where torch is asked for and can't be measured.
    """
    why = no_rival(options)
    if options.compile_torch and why:
        raise UserError(f"--compile-torch can't be measured: {why}; leave it out.")
    keep_freed_memory()
    learner = make_learner(options)
    model = learner.experiment.model
    weights, tokens = random_weights(learner), _tokens(learner)
    work = learner.work
    matrix_rate = measured_matrix_rate(model.dtype)
    device = jax.devices()[0].device_kind
    peak = peak_flops(device)

    def summary(side: Side) -> dict[str, Any]:
        seconds = statistics.median(side.seconds)
        rate = work.flops / seconds
        return {
            "tokens_per_second": work.tokens / seconds,
            "seconds_per_step": seconds,
            "slowest_step": max(side.seconds),
            "mfu": rate / peak if peak else None,
            "share_of_matrix_rate": rate / matrix_rate,
            "first_loss": side.losses[0],
            "last_loss": side.losses[-1],
        }

    answer = {
        "device": device,
        "dtype": model.dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)),
        "tokens_per_step": work.tokens,
        "flops_per_step": work.flops,
        "matrix_flops_per_second": matrix_rate,
        "ours": summary(_ours(learner, weights, tokens, options.steps)),
    }
    if why:
        return answer | {"torch": None, "torch_left_out_because": why}
    for name, compiles in (("torch", False), ("torch_compiled", True)):
        if compiles and not options.compile_torch:
            continue
        answer[name] = summary(_torch(learner.experiment, weights, tokens, options.steps, compiles))
        rates = [answer[side]["tokens_per_second"] for side in ("ours", name)]
        answer[f"ratio_to_{name}"] = rates[0] / rates[1]
        first = [answer[side]["first_loss"] for side in ("ours", name)]
        answer[f"first_loss_difference_to_{name}"] = abs(first[0] - first[1])
    return answer


def measured_matrix_rate(dtype: str) -> float:
    """Operations per second of a large product of square matrices on one device."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    seconds = _timed(lambda: product(matrix, matrix).block_until_ready(), 8)
    return 2 * size**3 / min(seconds)


def _timed(step: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each call, after two that are not counted: they compile and warm up."""
    seconds = []
    for _ in range(times + 2):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds[2:]


def _tokens(learner: DecoderLearner) -> np.ndarray:
    """Rows of random ids, one longer than the model reads."""
    experiment = learner.experiment
    shape = (experiment.data.batch, experiment.model.context + 1)
    return np.random.default_rng(1).integers(0, learner.vocab.size, shape, dtype=np.int32)


def _ours(learner: DecoderLearner, weights: Any, tokens: np.ndarray, steps: int) -> Side:
    mesh = partition.make_mesh(learner.experiment.mesh)
    require_attention(learner.experiment.model, mesh)
    losses: list[float] = []
    with jax.set_mesh(mesh):
        layout = plan_layout(learner, mesh)
        shardings = layout.shardings
        params = jax.device_put(weights, shardings.params)
        moments = jax.jit(layout.optimizer.init, out_shardings=shardings.opt_state)(params)
        state = TrainState(jax.device_put(np.int32(0), shardings.step), params, moments, {})
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        ones = np.ones_like(inputs)
        places = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
        batch = Batch(inputs, targets, ones.astype(np.float32), ones, places)
        batch = jax.device_put(batch, partition.batch_sharding(mesh))
        step = make_train_step(learner, layout)

        def once():
            nonlocal state
            state, metrics = step(state, batch)
            total, weight = metrics["loss"]
            losses.append(float(total) / float(weight))

        seconds = _timed(once, steps)
    return Side(losses, seconds)


def _torch(
    experiment: Experiment, weights: Any, tokens: np.ndarray, steps: int, compiles: bool
) -> Side:
    import torch

    network = chameleon(experiment, weights).train()
    network.model.vqmodel.requires_grad_(False)
    device, model = network.device.type, experiment.model
    trained = [p for p in network.parameters() if p.requires_grad]
    settings = experiment.optim
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.peak_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)

    def loss() -> "torch.Tensor":
        mixed = torch.autocast(device, torch.bfloat16, enabled=model.dtype == "bfloat16")
        with mixed:
            # Not the model's own loss: it forbids image ids.
            hidden = network.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = network.lm_head(hidden)
        scores = logits.float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(scores, ids[:, 1:].reshape(-1))

    compute = torch.compile(loss) if compiles else loss
    losses: list[float] = []

    def once():
        value = compute()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value.item())

    return Side(losses, _timed(once, steps))
