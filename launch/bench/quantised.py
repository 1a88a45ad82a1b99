"""What fewer bits cost and save: a run's images and codes with matrices of each type.

Half of the prompts are scenes without documents, half name emblems that training never showed, each
after two documents that show it. An image is right if the reader of emblems finds the prompt's
scene in it exactly; all types draw with the same noise. `nats_per_code` is of the images that the
prompts describe. Results are kept in `--out`, type by type, and the table is written from them.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cm3jax.checkpoint import load_run
from cm3jax.decode.params import as_read, read_by_steps
from cm3jax.decode.throughput import Meter
from cm3jax.emblems import confirms_batch, example, prompts
from cm3jax.emblems import sample as emblems_sample
from cm3jax.emblems.examples import bank_documents
from cm3jax.generation import loading
from cm3jax.generation.answers import image_of
from cm3jax.generation.documents import Document
from cm3jax.generation.generator import Generator
from cm3jax.generation.options import Sampling
from cm3jax.generation.prompts import picture_prompt
from cm3jax.generation.requests import PromptRequest
from cm3jax.io.files import read_json, write_atomic, write_json
from cm3jax.model.quantised import contracted_by, quantise, stored_bytes
from cm3jax.training.exported_run import LoadedRun
from launch.bench.tables import require_results, text_of, with_table

_HEAD = (
    "| matrices | drawn exactly | scenes | emblems | nats per code | MB of weights per step |\n"
    "|---|---|---|---|---|---|\n"
)
_SINGLE = 8
"""Prompts that are drawn one by one."""


def bench_quantised(options: argparse.Namespace) -> dict[str, Any]:
    """Measure type by type; what is kept of other types stays."""
    path = Path(options.out)
    require_results(
        options.out,
        lambda found: all(
            isinstance(one, dict) and "nats_per_code" in one for one in found.values()
        ),
    )
    _ = text_of(options.page)  # what is wrong with it is said before minutes of drawing
    kept = read_json(path, "results") if path.exists() else {}
    run = load_run(options.run)
    for name in options.only:
        label = f"{name}, cache {options.cache}" if options.cache else name
        kept[label] = _measure(run, options.run, name, options.cache, options.prompts)
        write_json(path, kept)
    write_atomic(options.page, written_into(text_of(options.page), kept))
    return kept


def _measure(run: LoadedRun, where: str, name: str, cache: Any, count: int) -> dict[str, Any]:
    model = run.experiment.model
    plain = name in ("float32", "bfloat16")
    dtype: Any = name if plain else "float32"
    weights: Any = "" if plain else name
    model = dataclasses.replace(model, dtype=dtype, weights=weights, cache=cache)
    experiment = dataclasses.replace(run.experiment, model=model)
    generator = loading.assemble(dataclasses.replace(run, experiment=experiment), where)
    asked, scenes, truth = _questions(generator, count)
    drawn = Sampling(decode=generator.decode)
    single = dataclasses.replace(drawn, decode=dataclasses.replace(generator.decode, batch=1))
    for warm, how in ((asked[:64], drawn), (asked[:1], single)):
        _drawn(generator, warm, how, Meter())
    meter, alone = Meter(), Meter()
    pictures = _drawn(generator, asked, drawn, meter)
    _drawn(generator, asked[:_SINGLE], single, alone)
    right = confirms_batch(pictures, scenes)
    logprobs = np.concatenate(generator.token_logprobs(asked, truth))
    return {
        "prompts": count,
        "exact": float(np.mean(right)),
        "exact_scenes": float(np.mean(right[: count // 2])),
        "exact_emblems": float(np.mean(right[count // 2 :])),
        "nats_per_code": float(-logprobs.mean()),
        "tokens_per_second": meter.report(count)["decode_tokens_per_second"],
        "tokens_per_second_batch_1": alone.report(1)["decode_tokens_per_second"],
        "weight_bytes_per_step": _bytes_per_step(run.variables, model.dtype, model.weights),
        "rows": generator.decode.batch,
        "device": jax.devices()[0].device_kind,
    }


def _questions(generator: Generator, count: int) -> tuple[list[PromptRequest], list, list]:
    """Requests, the scenes that they describe, and the ids of those images."""
    plain = prompts("scene", count // 2)
    named = prompts("heldout", count - len(plain))
    documents: list[list[Document]] = [[] for _ in plain]
    documents += [_documents(index) for index in range(len(named))]
    asked = [*plain, *named]
    requests = generator.requests([picture_prompt(one.text) for one in asked], documents)
    codes = generator.image.encode([one.image for one in asked])
    truth = list(codes + generator.vocab.first_image)
    return requests, [one.scene for one in asked], truth


def _documents(index: int) -> list[Document]:
    """Two documents of the bank that show the emblem of a prompt."""
    places = bank_documents(emblems_sample.memory_only(index))
    return [Document(*example("bank", place).segments) for place in places[:2]]


def _drawn(
    generator: Generator, asked: Sequence[PromptRequest], how: Sampling, meter: Meter
) -> np.ndarray:
    """One image of each request."""
    found = {}
    for answers in generator.answer(asked, how, meter):
        found.update({place: image_of(sample) for place, sample in answers})
    return np.stack([found[place] for place in range(len(asked))])


def _bytes_per_step(variables: dict, dtype: str, weights: Any) -> int:
    """Bytes of parameters that a step reads where matrices are widened inside the product."""

    def kept(variables: dict) -> dict:
        def one(path, leaf):
            matrix = weights and path[-1].key == "kernel"
            return quantise(leaf, contracted_by(path), weights) if matrix else leaf

        return jax.tree.map_with_path(one, variables)

    shapes = jax.eval_shape(kept, as_read(variables, dtype))
    return sum(map(stored_bytes, read_by_steps(shapes)))


def written_into(page: str, kept: dict[str, Any]) -> str:
    """The page with the results as its table, in place of the one in it, or at its end."""
    return with_table(page, _HEAD, (_line(name, one) for name, one in kept.items()))


def _line(name: str, one: dict[str, Any]) -> str:
    """A row of the table, without rates: one machine's, of one moment."""
    shares = (f"{one[part]:.1%}" for part in ("exact", "exact_scenes", "exact_emblems"))
    cells = (*shares, f"{one['nats_per_code']:.5f}")
    return f"| {name} | {' | '.join(cells)} | {one['weight_bytes_per_step'] / 1e6:.2f} |\n"
