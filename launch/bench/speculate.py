"""Pictures with and without guesses (`decode.speculate`), side by side: passes and seconds.

The shipped decoder draws emblems that it knows only from the two documents shown, and scenes that
its captions describe. Windows take turns, batch by batch, so that whatever else runs on the machine
slows them alike. Of each batch the fastest run counts: what prompts and passes took, without the
pixels (`decode.throughput`).
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from cm3jax.config import DecodeConfig
from cm3jax.config.decoding import AUTO
from cm3jax.decode.throughput import Meter
from cm3jax.emblems import sample
from cm3jax.emblems.examples import bank_documents, example
from cm3jax.emblems.probe_prompts import prompts
from cm3jax.generation import loading
from cm3jax.generation.documents import Document
from cm3jax.generation.generator import Generator
from cm3jax.generation.options import Sampling
from cm3jax.generation.prompts import picture_prompt
from cm3jax.generation.requests import PromptRequest

WINDOWS = (0, 2, 4, 8, 16, AUTO)
REPEATS = 3
"""Timed runs of each batch, after one that compiles; the fastest counts."""
_GUIDANCE = 3.0


def bench_speculate(options: argparse.Namespace) -> dict[str, Any]:
    """Each kind of prompt, with and without guidance, one by one and eight at once."""
    generator = loading.load(options.run)
    cases = []
    for documents in (0, 2):
        for scale in (1.0, _GUIDANCE):
            given = {} if options.temperature is None else {"temperature": options.temperature}
            config = Sampling.of(given | {"guidance_scale": scale}, generator.decode).decode
            requests = _requests(generator, options.prompts, documents, config)
            for batch in (1, 8):
                groups = [requests[at : at + batch] for at in range(0, len(requests), batch)]
                about = {"documents": documents, "guidance": scale, "batch": batch}
                cases += [about | row for row in _windows(generator, groups, config)]
    return {"run": options.run, "prompts": options.prompts, "cases": cases}


def _requests(
    generator: Generator, count: int, documents: int, config: DecodeConfig
) -> list[PromptRequest]:
    asked = prompts("heldout" if documents else "scene", count)
    shown = []
    for number in range(count if documents else 0):
        places = bank_documents(sample.memory_only(number))[:documents]
        shown.append([Document(*example("bank", place, 0).segments) for place in places])
    read = [picture_prompt(prompt.text) for prompt in asked]
    return generator.requests(read, shown or None, config)


def _windows(
    generator: Generator, groups: Sequence[Sequence[PromptRequest]], config: DecodeConfig
) -> list[dict[str, Any]]:
    """A row of figures for each window."""
    rows = 2 * len(groups[0])
    ways = {window: Sampling.of({"speculate": window, "batch": rows}, config) for window in WINDOWS}
    seconds = {window: np.full((REPEATS, len(groups)), np.inf) for window in WINDOWS}
    drawn: dict[int, list[tuple[int, ...]]] = {}
    passes = dict.fromkeys(WINDOWS, 0)
    for repeat in range(-1, REPEATS):  # the first one compiles
        drawn = {window: [] for window in WINDOWS}
        passes = dict.fromkeys(WINDOWS, 0)
        for place, group in enumerate(groups):
            for window, way in ways.items():
                meter = Meter()
                drawn[window] += _draw(generator, group, way, meter)
                passes[window] += meter.passes
                if repeat >= 0 and not meter.compile_seconds:
                    taken = meter.prefill_seconds + meter.decode_seconds
                    seconds[window][repeat, place] = taken
    pictures = sum(map(len, groups))
    totals = {window: float(each.min(0).sum()) for window, each in seconds.items()}
    return [
        {
            "window": "auto" if window == AUTO else window,
            "same_pictures": float(np.mean([a == b for a, b in zip(drawn[0], found, strict=True)])),
            "tokens_per_pass": sum(map(len, found)) / passes[window],
            "passes_per_picture": passes[window] / pictures,
            "seconds_per_picture": totals[window] / pictures,
            "times_faster": totals[0] / totals[window],
        }
        for window, found in drawn.items()
    ]


def _draw(
    generator: Generator, group: Sequence[PromptRequest], way: Sampling, meter: Meter
) -> list[tuple[int, ...]]:
    """The ids of a picture for each request."""
    found: dict[int, tuple[int, ...]] = {}
    for finished in generator.answer(group, way, meter):
        found |= {place: tuple(one.ids.tolist()) for place, one in finished}
    return [found[place] for place in range(len(group))]
