"""Measure side by side, in one run on one machine; prints one JSON object.

    python -m launch.bench train
    python -m launch.bench train --experiment cm3leon_760m --batch 8
    python -m launch.bench decode --batch 1
    python -m launch.bench decode --batch 1 --samples 8 --prompt 600
    python -m launch.bench decode --experiment cm3leon_7b --batch 1 --guided --new 1024
    python -m launch.bench speculate
    python -m launch.bench scaling --prompt 44 --new 256 --page scaling.html
    python -m launch.bench retrieval --documents 1000000
    python -m launch.bench data
    python -m launch.bench serve --clients 32 --seconds 180
    python -m launch.bench targets --only v5e
    python -m launch.bench quantised --prompts 100 --out quantised.json --page quantised.md
    python -m launch.bench accelerator --out results/h200

`train` times our training step, `decode` our engine, each against transformers with the same
weights. `speculate` is the engine with guesses of what follows against without. `scaling` is its
seconds per image against batch, documents and samples. `retrieval` searches vectors like CLIP's
with our indexes, blocked NumPy and FAISS. `data` reads training rows. `serve` loads a server with
mixed requests, against `launch.generate` with the same ones. `quantised` tells what matrices of 8
and 4 bits cost and save. `targets` compiles training steps for machines that are not here,
`accelerator` checks in eight minutes what only hardware can say. The module of each,
`launch.bench.train` and so on, says how it measures.
"""

import argparse
import json
import os
from typing import Any, NoReturn

from cm3jax.errors import UserError
from launch.bench import accelerator as bench_accelerator
from launch.bench import decode as bench_decode
from launch.bench import scaling as bench_scaling
from launch.bench import targets as bench_targets
from launch.bench import train as bench_train
from launch.bench.model import positive
from launch.env import main
from launch.shipped import SHIPPED

_TYPES = ("float32", "bfloat16", "int8", "int4", "fp8")
"""What `quantised` keeps matrices in; the first two are also the activations' type."""


def run(argv: list[str] | None = None) -> None:
    """Measure and print; options by argparse, since a bare machine has no tyro.

    Raises `UserError` for options that can't be measured.
    """
    options = make_parser().parse_args(argv)
    # torch wants its share of the same accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(json.dumps(options.measure(options), indent=2))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all options.")


def _share(text: str) -> float:
    """A number above 0, at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{number} must be above 0, at most 1")
    return number


_share.__name__ = "share"  # as argparse calls it in a message


def make_parser() -> argparse.ArgumentParser:
    """Each measurement with its own options; `measure` is what measures it."""
    parser = _Parser(
        prog="python -m launch.bench",
        description="Measure side by side, in one run on one machine; prints one JSON object.",
    )
    kinds = parser.add_subparsers(required=True, metavar="WHAT", parser_class=_Parser)

    train = kinds.add_parser("train", help="training steps, against transformers")
    train.set_defaults(measure=bench_train.bench_train)
    bench_train.add_options(train)

    decode = kinds.add_parser("decode", help="decoding, against transformers")
    decode.set_defaults(measure=bench_decode.bench_decode)
    bench_decode.add_options(decode)

    speculate = kinds.add_parser("speculate", help="decoding with and without guesses")
    speculate.set_defaults(measure=_speculate)
    speculate.add_argument("--run", default=str(SHIPPED / "decoder"), help="a decoder of emblems")
    speculate.add_argument("--prompts", type=positive, default=32, help="prompts of each kind")
    speculate.add_argument("--temperature", type=float, help="of the samples; else the run's own")
    speculate.add_argument("--out", default="docs/speculate.json", help="the file of results")
    speculate.add_argument("--page", default="docs/generation.md", help="the page with the table")

    scaling = kinds.add_parser("scaling", help="seconds per image by batch, documents, samples")
    scaling.set_defaults(measure=bench_scaling.bench_scaling)
    bench_scaling.add_options(scaling)

    accelerator = kinds.add_parser("accelerator", help="what only an accelerator can tell")
    accelerator.set_defaults(measure=bench_accelerator.bench_accelerator)
    bench_accelerator.add_options(accelerator)

    retrieval = kinds.add_parser("retrieval", help="indexes, against NumPy and FAISS")
    retrieval.set_defaults(measure=_retrieval)
    retrieval.add_argument("--documents", type=positive, default=100_000, help="vectors to search")
    retrieval.add_argument("--recall", type=_share, default=0.95, help="recall of our ScaNN index")
    retrieval.add_argument("--seed", type=int, default=0, help="seed of the vectors")

    data = kinds.add_parser("data", help="the input pipeline")
    data.set_defaults(measure=_data)
    data.add_argument("--batch", type=positive, default=8, help="rows of a step")

    serve = kinds.add_parser("serve", help="the server under many clients")
    serve.set_defaults(measure=_serve)
    serve.add_argument("--run", default=str(SHIPPED / "decoder"), help="the decoder to serve")
    serve.add_argument("--clients", type=positive, default=32, help="clients that ask at once")
    serve.add_argument("--seconds", type=positive, default=180, help="length of the load")
    serve.add_argument("--slots", type=positive, default=32, help="slots of the server")

    quantised = kinds.add_parser("quantised", help="images and speed with fewer bits")
    quantised.set_defaults(measure=_quantised)
    add = quantised.add_argument
    add("--run", default=str(SHIPPED / "decoder"), help="a decoder of the miniature")
    add("--prompts", type=positive, default=600, help="images of each type")
    add("--only", nargs="+", choices=_TYPES, default=_TYPES, help="measure only these")
    add("--cache", choices=["int8"], default="", help="type of keys and values")
    add("--out", default="docs/quantised.json", help="the file of results")
    add("--page", default="docs/benchmarks.md", help="the page with the table")

    targets = kinds.add_parser("targets", help="steps compiled for absent accelerators")
    targets.set_defaults(measure=bench_targets.bench_targets)
    bench_targets.add_options(targets)
    return parser


def _retrieval(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench.retrieval import bench_retrieval  # ScaNN is no part of a bare machine

    return bench_retrieval(options)


def _speculate(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench.speculate import bench_speculate  # nor are the tokenizers

    return bench_speculate(options)


def _quantised(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench.quantised import bench_quantised  # nor are tokenizers

    return bench_quantised(options)


def _data(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench.data import bench_data  # nor is Grain

    return bench_data(options)


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    from launch.bench.serve import bench_serve  # nor is what the extra `serve` brings

    return bench_serve(options)


if __name__ == "__main__":
    main(run)
