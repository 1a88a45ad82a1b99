"""How seconds per image grow with the batch, with documents and with samples of one prompt.

An image is `--new` ids, its caption `--prompt` ids, a document a caption and an image. Prompts
are random ids and decoding is greedy: what is drawn plays no part. Every line is the second run of
its kind; the first one compiles.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.decode.grammar import Codes
from cm3jax.decode.loop import decode_each
from cm3jax.decode.params import as_read
from cm3jax.decode.plan import CHUNK, bucket
from cm3jax.decode.request import Request
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.io.files import require_replaceable, write_atomic
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.model.decoder import Decoder
from cm3jax.report import html
from cm3jax.sequence.vocab import Vocab
from cm3jax.training.hardware import copy_rate
from launch.bench.model import add_model, experiment, positive, random_weights

BATCHES = (1, 2, 4, 8, 16, 32, 64)
DOCUMENTS = (0, 1, 2)
SAMPLES = (1, 2, 4, 8, 16, 32)
_TITLE = "Seconds per image"
_TITLES = (_TITLE, "Seconds per picture")
"""Those of its pages; earlier versions wrote the last one."""


def prompt_tokens(options: argparse.Namespace, documents: int) -> int:
    """Ids of a prompt with this many documents: `<eos>`, a `<break>` behind each text and
    image."""
    return 1 + documents * (options.prompt + options.new + 2) + options.prompt + 1


@dataclasses.dataclass(frozen=True)
class _Bench:
    """What all measurements share."""

    model: Decoder
    variables: dict
    vocab: Vocab
    options: argparse.Namespace

    def meter(self, prompts: int, documents: int, samples: int) -> Meter:
        """What decoding this many samples of each of this many prompts took."""
        length = prompt_tokens(self.options, documents)
        ids = np.random.default_rng(1).integers(
            self.vocab.first_text, self.vocab.size, (prompts, length), dtype=np.int32
        )
        program = (Codes((None,) * self.options.new),)
        requests = [Request(row, (), program, place) for place, row in enumerate(ids)]
        config = DecodeConfig(temperature=0.0, batch=prompts * samples)
        for meter in (Meter(), Meter()):
            call = (self.model, self.variables, self.vocab, requests, config, samples, 0, meter)
            for _ in decode_each(*call):
                pass
        return meter


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_model(parser)
    add = parser.add_argument
    add("--prompt", type=positive, default=64, help="ids of a caption")
    add("--new", type=positive, default=64, help="ids of an image")
    add("--page", default="", help="a page to write, with plots")


def bench_scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Both tables as lists of lines; with `--page` also as a page with plots.

    Raises `UserError`, before anything is measured, for a page in a folder that does not exist, or
    in place of another file.
    """
    folder = Path(options.page).parent
    if not folder.is_dir():
        raise UserError(f"--page {options.page}: {folder} is not a folder; make it first.")
    if options.page:
        require_replaceable(options.page, _is_ours, "the page")
    config = experiment(options, prompt_tokens(options, max(DOCUMENTS)) + options.new)
    vocab = Vocab(config.vocab)
    weights = random_weights(DecoderLearner(config, vocab, {}))
    variables = jax.device_put(as_read({"params": weights}, config.model.dtype))
    bench = _Bench(Decoder(config.model, vocab.size), variables, vocab, options)
    rate = copy_rate()
    batches = [_line(bench, n, k, 1, rate) for k in DOCUMENTS for n in BATCHES]
    samples = [_shared(bench, n, rate) for n in SAMPLES]
    answer = {
        "device": jax.devices()[0].device_kind,
        "dtype": config.model.dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)),
        "picture_tokens": options.new,
        "copy_gigabytes_per_second": rate / 1e9,
        "batches": batches,
        "samples_of_one_prompt": samples,
    }
    if options.page:
        write_atomic(options.page, page(answer))
    return answer


def _is_ours(content: bytes) -> bool:
    return any(html.is_titled(content, title) for title in _TITLES)


def _line(bench: _Bench, prompts: int, documents: int, samples: int, rate: float) -> dict[str, Any]:
    meter = bench.meter(prompts, documents, samples)
    figures = meter.report(prompts * samples, rate)
    return {
        "prompts": prompts,
        "documents": documents,
        "prompt_tokens": prompt_tokens(bench.options, documents),
        "samples": samples,
        "prefill_seconds": meter.prefill_seconds,
        "decode_seconds": meter.decode_seconds,
        "bytes_per_step": meter.decode_bytes // (-(-bench.options.new // CHUNK) * CHUNK),
        "share_of_copy_rate": figures["share_of_copy_rate"],
        "seconds_per_picture": figures["seconds_per_picture"],
    }


def _shared(bench: _Bench, samples: int, rate: float) -> dict[str, Any]:
    """Samples of one prompt with two documents, and the same number of prompts beside it.

    By arithmetic, apart each has its own prompt to prefill and its own prefix to read, and steps
    take longer as they read more bytes.
    """
    together = _line(bench, 1, DOCUMENTS[-1], samples, rate)
    apart = _line(bench, samples, DOCUMENTS[-1], 1, rate)
    model = bench.model.config
    width = bucket(together["prompt_tokens"] - 1)
    entry = 2 * model.layers * model.groups * model.head_width * np.dtype(model.dtype).itemsize
    steps = together["decode_seconds"] * apart["bytes_per_step"] / together["bytes_per_step"]
    predicted = together["prefill_seconds"] + steps / samples
    return together | {
        "seconds_per_picture_apart": apart["seconds_per_picture"],
        "seconds_per_picture_apart_by_arithmetic": predicted,
        "prefill_seconds_apart": apart["prefill_seconds"],
        "bytes_per_step_apart": apart["bytes_per_step"],
        "bytes_saved_per_step": apart["bytes_per_step"] - together["bytes_per_step"],
        "bytes_saved_by_arithmetic": (samples - 1) * width * entry,
    }


def page(answer: dict[str, Any]) -> str:
    """The tables and their plots."""
    by_documents = {
        f"{k} documents": [
            (line["prompts"], line["seconds_per_picture"])
            for line in answer["batches"]
            if line["documents"] == k
        ]
        for k in DOCUMENTS
    }
    lines = answer["samples_of_one_prompt"]
    by_sharing = {
        "one prefix": [(line["samples"], line["seconds_per_picture"]) for line in lines],
        "a prefix each": [(line["samples"], line["seconds_per_picture_apart"]) for line in lines],
    }
    facts = {key: value for key, value in answer.items() if not isinstance(value, list)}
    return html.page(
        _TITLE,
        html.tag("h1", _TITLE),
        html.facts([(key, str(value)) for key, value in facts.items()]),
        html.curves(by_documents, "seconds per image", over="prompts in a batch"),
        html.table([_rounded(line) for line in answer["batches"]]),
        html.curves(by_sharing, "seconds per image", over="samples of one prompt"),
        html.table([_rounded(line) for line in lines]),
    )


def _rounded(line: dict[str, Any]) -> dict[str, Any]:
    return {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()}
