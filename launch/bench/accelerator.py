"""What only hardware can say, in eight minutes on a machine with jax, flax, optax, orbax, numpy.

    python -m launch.bench accelerator --out results/h200

Each kernel beside plain operations, training of the 760M with whole and packed rows and in int8,
its memory beside the plan's, decoding of the 7B with guidance and documents, and batches. After
each part `DIR/accelerator.json` and the table `DIR/accelerator.md` are written; a second run goes
on with what was skipped or failed. On CPUs, which cannot tell, everything is tiny.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm3jax import memory, partition
from cm3jax.config import ONE_STAGE, DataConfig, DecodeConfig, Experiment, MeshConfig
from cm3jax.decode.grammar import Codes
from cm3jax.decode.loop import decode_each
from cm3jax.decode.params import as_read
from cm3jax.decode.request import Guide, Request
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.io.files import require_replaceable, write_atomic, write_json
from cm3jax.io.typed_json import read_fields
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.model.attention import row_attention
from cm3jax.model.decoder import Decoder
from cm3jax.model.kernels import kernel_for
from cm3jax.presets import load_experiment
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Vocab
from cm3jax.targets import of_kind
from cm3jax.train import make_train_step
from cm3jax.training.hardware import copy_rate, in_words, peak_flops
from cm3jax.training.precision import require_quantiser
from cm3jax.training.state import plan_layout


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    training: str = "cm3leon_760m"
    decoding: str = "cm3leon_7b"
    rows: tuple[int, ...] = (16, 8, 4, 2, 1)
    """Rows of a training step, of which the first that fits is taken."""
    steps: int = 8
    """Timed steps, after two others."""
    heads: tuple[int, int, int, int] = (4, 4096, 16, 64)
    """Queries of the kernels' test: rows, tokens, heads, width."""
    caption: int = 64
    picture: int = 1024
    batches: tuple[int, ...] = (1, 4, 16)
    """Prompts that are decoded at once."""


TINY = Sizes(
    *("miniature/decoder", "miniature/decoder", (2,), 1, (1, 256, 2, 32), 8, 16, (1, 2)),
)

Kernel = Literal["xla", "cudnn", "splash", "triton"]
_KERNELS: dict[str, tuple[Kernel, ...]] = {"tpu": ("splash",), "gpu": ("cudnn", "triton")}
"""Kernels by platform."""

Part = Callable[[Sizes], dict[str, Any]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--out", required=True, help="folder of results; those in it are kept")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time in all: no part begins that takes longer"
    )


_KEPT = {"device": str, "jax": str, "parts": dict[str, dict[str, Any]]}
"""What the file of results holds for certain."""


def bench_accelerator(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing and fits into the time; all results.

    Raises `UserError` if the folder holds results of another machine.
    """
    begin, path = time.monotonic(), Path(options.out) / "accelerator.json"
    require_replaceable(path.with_suffix(".md"), lambda page: page.startswith(b"| | "), "the table")
    about = {"device": in_words(), "jax": jax.__version__}
    found: dict[str, Any] = {**about, "parts": {}}
    if path.exists():
        found = read_fields(path, _KEPT, "earlier results")
    if any(found[name] != value for name, value in about.items()):
        raise UserError(
            f"{path} is of {found['device']} with jax {found['jax']}, not of {about['device']} "
            f"with jax {about['jax']}; give another --out."
        )
    tiny = jax.default_backend() == "cpu"
    for name, (part, need) in PARTS.items():
        if "seconds" in found["parts"].get(name, {}):
            continue
        left = 60 * options.minutes - (time.monotonic() - begin)
        if left < (1 if tiny else need):
            reason = f"{max(left, 0):.0f} s are left, it takes {need}; run the command again"
            found["parts"][name] = {"skipped": reason}
        else:
            found["parts"][name] = _run(part, TINY if tiny else Sizes())
        write_json(path, found)
        write_atomic(path.with_suffix(".md"), table(found))
    return found


def _run(part: Part, sizes: Sizes) -> dict[str, Any]:
    """A part's figures and seconds, or why there are none: the others do not depend on it."""
    begin = time.monotonic()
    try:
        figures = part(sizes)
    except UserError as error:
        return {"skipped": str(error)}
    except Exception as error:  # what hardware does at its limits is just what is asked
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {**figures, "seconds": round(time.monotonic() - begin, 1)}


def kernels(sizes: Sizes) -> dict[str, Any]:
    """Largest relative differences to plain operations, forward and in gradients, and times."""
    rows, length, _, _ = sizes.heads
    packed = np.repeat(np.arange(1, 5), length // 4)[None].repeat(rows, 0).astype(np.int32)
    whole = np.ones_like(packed)
    names = _KERNELS.get(partition.platform(), ("splash", "triton"))
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, sizes.heads, jnp.bfloat16) for key in keys]

    def run(name: Kernel, segments: np.ndarray) -> tuple[list[np.ndarray], float]:
        @jax.jit
        def both(queries, keys, values, slope):
            function = row_attention(jnp.asarray(segments), name)
            out, transpose = jax.vjp(function, queries, keys, values)
            return [out, *transpose(slope)]

        seconds = _timed(lambda: jax.block_until_ready(both(*arrays)), sizes.steps)
        return [np.asarray(x, np.float32) for x in both(*arrays)], seconds

    answer: dict[str, Any] = {}
    for name in names:
        segments = whole if name == "cudnn" else packed
        (found, seconds), (plain, slower) = run(name, segments), run("xla", segments)
        pairs = zip(found, plain, strict=True)
        differences = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]
        answer[name] = {
            "difference": differences[0],
            "gradient_difference": max(differences[1:]),
            "milliseconds": 1e3 * seconds,
            "times_faster_than_operations": slower / seconds,
        }
    return answer


def _timed(step: Callable[[], Any], times: int) -> float:
    """The median of `times` calls after two others, in seconds."""
    seconds = []
    for _ in range(times + 2):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def train_whole(sizes: Sizes) -> dict[str, Any]:
    """Rows of one segment."""
    return _train(_training(sizes, "stream"), sizes)


def train_packed(sizes: Sizes) -> dict[str, Any]:
    """Rows of three samples."""
    return _train(_training(sizes, "whole"), sizes)


def train_int8(sizes: Sizes) -> dict[str, Any]:
    """Rows of one segment, the layers' products in int8."""
    require_quantiser("int8")
    config = _training(sizes, "stream")
    model = dataclasses.replace(config.model, quantised="int8")
    return _train(dataclasses.replace(config, model=model), sizes)


def _training(sizes: Sizes, rows: Literal["whole", "stream"]) -> Experiment:
    """The model on rows of this kind, on one device, with as many of them as memory holds."""
    found = load_experiment(sizes.training)
    device = of_kind(jax.devices()[0].device_kind)
    memory = math.inf if device is None else device.memory
    for batch in sizes.rows:
        config = dataclasses.replace(
            found,
            data=DataConfig(batch=batch, rows=rows),
            curriculum=ONE_STAGE,
            mesh=MeshConfig(data=1),
            optim=dataclasses.replace(found.optim, accumulate=1),
        )
        if _planned(config) < 0.85 * memory:
            return config
    raise UserError(f"a row of {sizes.training} does not fit into {memory / 1e9:.0f} GB.")


def _planned(config: Experiment) -> int:
    """Bytes of a step by the formula of `launch.plan`."""
    mesh, learner = partition.make_mesh(config.mesh), memory.planned(config)
    layout = plan_layout(learner, mesh)
    return memory.footprint(learner, layout, memory.abstract_batch(learner, mesh)).total


def _train(config: Experiment, sizes: Sizes) -> dict[str, Any]:
    learner = DecoderLearner(config, Vocab(config.vocab), {})
    mesh, length = partition.make_mesh(config.mesh), config.model.context
    with jax.set_mesh(mesh):
        layout = plan_layout(learner, mesh)
        state, step = layout.init(jax.random.key(0)), make_train_step(learner, layout)
        batch = jax.device_put(_batch(config, learner.vocab), partition.batch_sharding(mesh))
        kernel = kernel_for(config.model, length, config.one_segment)
        losses = []

        def once():
            nonlocal state
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"][0]) / float(metrics["loss"][1]))

        seconds = _timed(once, sizes.steps)
    stats = jax.local_devices()[0].memory_stats() or {}
    peak, measured = peak_flops(jax.devices()[0].device_kind), stats.get("peak_bytes_in_use")
    planned = _planned(config)
    return {
        "rows": config.data.batch,
        "tokens_per_row": length,
        "kernel": kernel,
        "tokens_per_second": learner.work.tokens / seconds,
        "seconds_per_step": seconds,
        "mfu": learner.work.flops / seconds / peak if peak else None,
        "losses": [losses[0], losses[-1]],
        "planned_bytes": planned,
        "peak_bytes_so_far": measured,
        "planned_share": planned / measured if measured else None,
    }


def _batch(config: Experiment, vocab: Vocab) -> Batch:
    """Random ids: rows of one segment, or of three."""
    shape = (config.data.batch, config.model.context + 1)
    ids = np.random.default_rng(0).integers(0, vocab.size, shape, dtype=np.int32)
    tokens, targets = ids[:, :-1], ids[:, 1:]
    places = np.arange(tokens.shape[1], dtype=np.int32)
    part = tokens.shape[1] if config.one_segment else -(-tokens.shape[1] // 3)
    segments, positions = (
        np.broadcast_to(x, tokens.shape) for x in (places // part, places % part)
    )
    return Batch(tokens, targets, np.ones(tokens.shape, np.float32), segments + 1, positions)


def decode_documents(sizes: Sizes) -> dict[str, Any]:
    """One guided image with 0 and with 2 documents, beside the rate that memory copies at."""
    bench, rate = _decoder(sizes), copy_rate()
    return {f"{k}_documents": _decode(bench, sizes, 1, k, rate) for k in (0, 2)}


def decode_batches(sizes: Sizes) -> dict[str, Any]:
    """Guided images of several prompts at once."""
    bench, rate = _decoder(sizes), copy_rate()
    return {f"batch_{n}": _decode(bench, sizes, n, 0, rate) for n in sizes.batches}


def _decoder(sizes: Sizes) -> tuple[Decoder, dict[str, Any], Vocab]:
    """Model, random variables as decoding reads them, and vocabulary."""
    config = load_experiment(sizes.decoding)
    vocab = Vocab(config.vocab)
    shapes = jax.eval_shape(DecoderLearner(config, vocab, {}).init, jax.random.key(0))
    # Drawn where they are needed and as narrow: 27 GB would take long to arrive.
    draw = jax.jit(lambda key, leaf: 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype))

    def fill(path, leaf):
        narrow = jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
        dtype = jnp.dtype(config.model.dtype) if narrow else leaf.dtype
        return draw(jax.random.key(leaf.size), jnp.zeros(leaf.shape, dtype))

    variables = jax.tree.map_with_path(fill, nn.unbox(shapes))
    return Decoder(config.model, vocab.size), as_read(variables, config.model.dtype), vocab


def _decode(bench, sizes: Sizes, prompts: int, documents: int, rate: float) -> dict[str, Any]:
    model, variables, vocab = bench
    length = 2 + documents * (sizes.caption + sizes.picture + 2) + sizes.caption
    ids = np.random.default_rng(1).integers(
        vocab.first_text, vocab.size, (prompts, length), dtype=np.int32
    )
    blind = np.asarray([vocab.eos, vocab.sentinel(0), vocab.break_], np.int32)
    program = (Codes((None,) * sizes.picture),)
    requests = [Request(row, (Guide(blind, 3.0),), program, i) for i, row in enumerate(ids)]
    settings = DecodeConfig(batch=2 * prompts)
    for meter in (Meter(), Meter()):  # the first run compiles
        for _ in decode_each(model, variables, vocab, requests, settings, 1, 0, meter):
            pass
    return meter.report(prompts, rate)


PARTS: Mapping[str, tuple[Part, int]] = {
    "kernels": (kernels, 40),
    "train_whole": (train_whole, 80),
    "train_packed": (train_packed, 80),
    "decode_documents": (decode_documents, 120),
    "train_int8": (train_int8, 90),
    "decode_batches": (decode_batches, 150),
}
"""By name, in order of what matters most, with about how many seconds each takes."""

_ROWS = (
    ("training, whole rows: MFU", "train_whole", "mfu", "{:.1%}"),
    ("the same, tokens/s", "train_whole", "tokens_per_second", "{:,.0f}"),
    ("the same, memory planned / used", "train_whole", "planned_share", "{:.2f}"),
    ("training, packed rows: MFU", "train_packed", "mfu", "{:.1%}"),
    ("the same, tokens/s", "train_packed", "tokens_per_second", "{:,.0f}"),
    ("training in int8: tokens/s", "train_int8", "tokens_per_second", "{:,.0f}"),
    *(
        row
        for k in (0, 2)
        for row in (
            (
                f"guided image, {k} documents: s",
                "decode_documents",
                (f"{k}_documents", "seconds_per_picture"),
                "{:.2f}",
            ),
            (
                "the same, share of the copy rate",
                "decode_documents",
                (f"{k}_documents", "share_of_copy_rate"),
                "{:.0%}",
            ),
        )
    ),
)
"""Lines of the table: what, part, figure, form."""


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown: a column beside those of other machines in the manual."""
    lines = [f"| | {found['device']}, jax {found['jax']} |", "|---|---|"]
    parts = found["parts"]
    known = {k: v for k, v in parts.get("kernels", {}).items() if isinstance(v, dict)}
    for name, figures in known.items():
        lines.append(
            f"| {name}: difference forward, in gradients; times faster | "
            f"{figures['difference']:.1e}, {figures['gradient_difference']:.1e}; "
            f"{figures['times_faster_than_operations']:.2f} |"
        )
    for what, part, figure, form in _ROWS:
        value: Any = parts.get(part, {})
        for key in (figure,) if isinstance(figure, str) else figure:
            value = value.get(key) if isinstance(value, Mapping) else None
        lines.append(f"| {what} | {'open' if value is None else form.format(value)} |")
    for name, figures in parts.get("decode_batches", {}).items():
        if isinstance(figures, Mapping):
            seconds = figures["seconds_per_picture"]
            lines.append(f"| {name.replace('_', ' of ')}: s per image | {seconds:.3f} |")
    for name, figures in parts.items():
        lines += [
            f"\n{name} {why}: {figures[why]}" for why in ("skipped", "failed") if why in figures
        ]
    return "\n".join(lines) + "\n"
