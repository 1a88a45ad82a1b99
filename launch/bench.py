"""Measure side by side, in one run on one machine; prints one JSON object.

    python -m launch.bench train
    python -m launch.bench train --experiment cm3leon_760m --batch 8
    python -m launch.bench decode --batch 1
    python -m launch.bench decode --batch 1 --samples 8 --prompt 600
    python -m launch.bench decode --experiment cm3leon_7b --batch 1 --guided --new 1024
    python -m launch.bench scaling --prompt 44 --new 256 --page scaling.html
    python -m launch.bench retrieval --documents 1000000
    python -m launch.bench data

`train` times our training step against the same architecture in transformers and torch, with the
same weights, rows and optimiser. Without `--experiment` it is Chameleon's, 8 layers of width 512;
an experiment's model has no counterpart in transformers and is timed alone. It needs jax, flax,
optax, orbax and numpy; where torch and transformers are missing, our side runs alone.

`decode` times our engine against `generate` of transformers with the same weights: see
`launch.bench_decode`. `scaling` is its seconds per picture against batch, documents and samples:
see `launch.bench_scaling`.

`retrieval` searches vectors like CLIP's with our indexes, blocked NumPy and FAISS; every engine
gets the cores that the process may run on (`taskset -c 0,1` before the command gives two).

`data` reads training rows of short and of long documents, with two retrieved ones each.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from cm3jax import partition
from cm3jax.config import (
    DataConfig,
    DecoderConfig,
    Experiment,
    OptimConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.errors import UserError
from cm3jax.hardware import peak_flops
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.sequence import Batch
from cm3jax.state import TrainState, plan
from cm3jax.train import make_train_step, require_attention
from cm3jax.vocab import Vocab
from launch.bench_decode import bench_decode
from launch.bench_scaling import DOCUMENTS, bench_scaling, prompt_tokens
from launch.env import main
from launch.names import load_experiment
from launch.rivals import chameleon, missing

LEARNING_RATE = 1e-4


def run(argv: list[str] | None = None) -> None:
    """Measure and print; options by argparse, since a bare machine has no tyro.

    Raises `UserError` for options that can't be measured.
    """
    options = _options().parse_args(argv)
    # torch wants its share of the same accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(json.dumps(_BENCHES[options.what](options), indent=2))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all options.")


def _positive(text: str) -> int:
    """An integer above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def _share(text: str) -> float:
    """A number above 0, at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{number} must be above 0, at most 1")
    return number


# What argparse calls them in a message.
_positive.__name__, _share.__name__ = "integer", "share"


def _options() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch.bench",
        description="Measure side by side, in one run on one machine; prints one JSON object.",
    )
    parser.add_argument(
        "what",
        choices=list(_BENCHES),
        help="what to measure: training steps, decoding, its scaling, indexes, the input pipeline",
    )
    parser.add_argument("--experiment", default="", help="time this experiment's decoder alone")
    parser.add_argument("--batch", type=_positive, default=8, help="rows of a step, or prompts")
    parser.add_argument(
        "--length", type=_positive, help="tokens of a row; default the model's, or 512"
    )
    parser.add_argument("--layers", type=_positive, default=8, help="layers of the Chameleon")
    parser.add_argument("--width", type=_positive, default=512, help="its width; heads are of 64")
    parser.add_argument("--vocab", type=_positive, default=16_384, help="its ids")
    parser.add_argument("--unroll", type=_positive, default=1, help="layers per turn of our scan")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=_positive, default=10, help="timed steps, after two others")
    parser.add_argument("--compile-torch", action="store_true", help="torch.compile as well")
    parser.add_argument("--prompt", type=_positive, default=64, help="decode: ids of a prompt")
    parser.add_argument("--new", type=_positive, default=64, help="decode: ids after each prompt")
    parser.add_argument("--samples", type=_positive, default=1, help="decode: of each prompt")
    parser.add_argument("--guided", action="store_true", help="decode: with a second stream")
    parser.add_argument("--page", default="", help="scaling: a page to write, with plots")
    parser.add_argument("--documents", type=_positive, default=100_000, help="retrieval: vectors")
    parser.add_argument("--recall", type=_share, default=0.95, help="retrieval: of our ScaNN index")
    parser.add_argument("--seed", type=int, default=0, help="retrieval: of the vectors")
    return parser


@dataclasses.dataclass(frozen=True)
class Side:
    """One side's measurement."""

    losses: list[float]
    seconds: list[float]
    """Of each timed step, from the call to its loss on the host."""


def bench_train(options: argparse.Namespace) -> dict[str, Any]:
    """Time the sides one after another."""
    experiment = _experiment(options)
    learner = DecoderLearner(experiment, Vocab(experiment.vocab), {})
    weights, tokens = _weights(learner), _tokens(learner)
    work = learner.work
    matrix_rate = measured_matrix_rate(experiment.model.dtype)
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
        "dtype": experiment.model.dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)),
        "tokens_per_step": work.tokens,
        "flops_per_step": work.flops,
        "matrix_flops_per_second": matrix_rate,
        "ours": summary(_ours(learner, weights, tokens, options.steps)),
    }
    if why := _no_rival(options):
        return answer | {"torch": None, "torch_left_out_because": why}
    for name, compiles in (("torch", False), ("torch_compiled", True)):
        if compiles and not options.compile_torch:
            continue
        answer[name] = summary(_torch(experiment, weights, tokens, options.steps, compiles))
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


def _experiment(options: argparse.Namespace) -> Experiment:
    optim = OptimConfig(
        peak_lr=LEARNING_RATE, warmup_steps=1, end_lr_ratio=1.0, weight_decay=0.1, clip_norm=1.0
    )
    if options.experiment:
        experiment = load_experiment(options.experiment)
        model, vocab, vqgan = experiment.model, experiment.vocab, experiment.vqgan
        length = options.length or model.context
        model = dataclasses.replace(model, context=length)
    else:
        model = DecoderConfig(
            layers=options.layers,
            width=options.width,
            heads=options.width // 64,
            head_width=64,
            ffn=-(-options.width * 8 // 3 // 64) * 64,  # Llama's: 8/3 of the width
            context=options.length or 512,
            dtype=options.dtype,
            positions="rope",
            qk_norm=True,
            norm="rms",
            activation="swiglu",
            tied=False,
            unroll=options.unroll,
        )
        vocab = VocabConfig()
        pieces = options.vocab - vocab.specials - vocab.image_codes
        if pieces < 1 or options.width % 64:
            raise UserError(
                f"--vocab {options.vocab} must be above {vocab.specials + vocab.image_codes}, and "
                f"--width {options.width} a multiple of 64."
            )
        vocab, vqgan = dataclasses.replace(vocab, text_pieces=pieces), VQGANConfig()
    return Experiment(
        name="bench",
        vocab=vocab,
        vqgan=vqgan,
        model=model,
        data=DataConfig(batch=options.batch),
        optim=optim,
    )


def _weights(learner: DecoderLearner) -> Any:
    """Random parameters; none is zero, or a layer would do nothing in the first step."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        gain = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return (0.02 * generator.standard_normal(leaf.shape) + gain).astype(np.float32)

    variables = jax.eval_shape(learner.init, jax.random.key(0))
    shapes = jax.tree.map(lambda box: box.value, variables["params"], is_leaf=_is_box)
    return jax.tree.map_with_path(draw, shapes)


def _is_box(leaf: Any) -> bool:
    return hasattr(leaf, "names")


def _tokens(learner: DecoderLearner) -> np.ndarray:
    """Rows of random ids, one longer than the model reads."""
    experiment = learner.experiment
    shape = (experiment.data.batch, experiment.model.context + 1)
    return np.random.default_rng(1).integers(0, learner.vocab.size, shape, dtype=np.int32)


def _ours(learner: DecoderLearner, weights: Any, tokens: np.ndarray, steps: int) -> Side:
    mesh = partition.make_mesh(learner.experiment.mesh)
    require_attention(learner.experiment, mesh)
    losses: list[float] = []
    with jax.set_mesh(mesh):
        layout = plan(learner.init, learner.experiment, mesh)
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
        lr=LEARNING_RATE,
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


def _decode(options: argparse.Namespace) -> dict[str, Any]:
    if not options.experiment:
        options.length = options.prompt + options.new + 1
    experiment = _experiment(options)
    learner = DecoderLearner(experiment, Vocab(experiment.vocab), {})
    return bench_decode(experiment, _weights(learner), _no_rival(options), options)


def _scaling(options: argparse.Namespace) -> dict[str, Any]:
    if not options.experiment:
        options.length = prompt_tokens(options, max(DOCUMENTS)) + options.new
    experiment = _experiment(options)
    learner = DecoderLearner(experiment, Vocab(experiment.vocab), {})
    return bench_scaling(experiment, _weights(learner), options)


def _no_rival(options: argparse.Namespace) -> str:
    return "an experiment's model has no counterpart" if options.experiment else missing()


def _retrieval(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench_retrieval import bench_retrieval  # ScaNN is no part of a bare machine

    return bench_retrieval(options)


def _data(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench_data import bench_data  # nor is Grain

    return bench_data(options)


_BENCHES = {
    "train": bench_train,
    "decode": _decode,
    "scaling": _scaling,
    "retrieval": _retrieval,
    "data": _data,
}


if __name__ == "__main__":
    main(run)
