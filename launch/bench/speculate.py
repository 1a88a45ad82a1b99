"""Images with and without guesses (`decode.speculate`), side by side: passes and seconds.

The shipped decoder draws emblems that it knows only from the two documents shown, and scenes that
its captions describe. Windows take turns, batch by batch, so that whatever else runs on the machine
slows them alike. Of each batch the fastest run counts: what prompts and passes took, without the
pixels (`decode.throughput`). Results go to `--out`, case by case, and the table into `--page`.
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
from cm3jax.io.files import write_atomic, write_json
from cm3jax.training.hardware import in_words
from launch.bench.tables import require_results, text_of, with_table

WINDOWS = (0, 4, 8, 16, AUTO)
REPEATS = 8
"""Timed runs of each batch, after one that compiles; the fastest counts."""
BATCHES = (1, 8)
_GUIDANCE = 3.0
_SINGLE = 4
"""One of this many prompts is also drawn by itself."""
_GUESSING = [str(window) for window in WINDOWS if window > 0]
_HEAD = (
    "| documents | guidance | images at once | seconds per image without guesses "
    f"| codes in a pass of {', '.join(_GUESSING)} | times as fast with {', '.join(_GUESSING)} "
    "| with auto |\n"
    "|---|---|---|---|---|---|---|\n"
)


def bench_speculate(options: argparse.Namespace) -> dict[str, Any]:
    """Each kind of prompt, with and without guidance, one by one and eight at once."""
    require_results(options.out, lambda found: {"prompts", "cases"} <= found.keys())
    _ = text_of(options.page)  # what is wrong with it is said before minutes of drawing
    generator = loading.load(options.run)
    found: dict[str, Any] = {"device": in_words(), "prompts": options.prompts, "cases": []}
    for documents in (0, 2):
        for scale in (1.0, _GUIDANCE):
            given = {} if options.temperature is None else {"temperature": options.temperature}
            config = Sampling.of(given | {"guidance_scale": scale}, generator.decode).decode
            requests = _requests(generator, options.prompts, documents, config)
            for batch in BATCHES:
                some = requests if batch > 1 else requests[::_SINGLE]
                groups = [some[at : at + batch] for at in range(0, len(some), batch)]
                about = {"documents": documents, "guidance": scale, "batch": batch}
                found["cases"].append(about | {"windows": _windows(generator, groups, config)})
                write_json(options.out, found)
    write_atomic(options.page, written_into(text_of(options.page), found))
    return found


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
) -> dict[str, dict[str, float]]:
    """Figures of each window."""
    rows = 2 * len(groups[0])
    ways = {window: Sampling.of({"speculate": window, "batch": rows}, config) for window in WINDOWS}
    seconds = {window: np.full((REPEATS, len(groups)), np.inf) for window in WINDOWS}
    drawn: dict[int, list[tuple[int, ...]]] = {}
    counted = {window: Meter() for window in WINDOWS}
    for repeat in range(-1, REPEATS):  # the first one compiles
        drawn = {window: [] for window in WINDOWS}
        for place, group in enumerate(groups):
            first = (repeat + place) % len(WINDOWS)  # none always follows the same other
            for window in WINDOWS[first:] + WINDOWS[:first]:
                meter = Meter()
                drawn[window] += _draw(generator, group, ways[window], meter)
                counted[window].emitted_by(meter.passes, meter.emitted)
                if repeat >= 0 and not meter.compile_seconds:
                    taken = meter.prefill_seconds + meter.decode_seconds
                    seconds[window][repeat, place] = taken
    pictures = sum(map(len, groups))
    totals = {window: float(each.min(0).sum()) for window, each in seconds.items()}
    return {
        "auto" if window == AUTO else str(window): {
            "same_pictures": float(np.mean([a == b for a, b in zip(drawn[0], found, strict=True)])),
            "tokens_per_pass": counted[window].emitted / counted[window].passes,
            "passes_per_picture": counted[window].passes / pictures / (REPEATS + 1),
            "seconds_per_picture": totals[window] / pictures,
            "times_faster": totals[0] / totals[window],
        }
        for window, found in drawn.items()
    }


def _draw(
    generator: Generator, group: Sequence[PromptRequest], way: Sampling, meter: Meter
) -> list[tuple[int, ...]]:
    """The ids of an image for each request."""
    found: dict[int, tuple[int, ...]] = {}
    for finished in generator.answer(group, way, meter):
        found |= {place: tuple(one.ids.tolist()) for place, one in finished}
    return [found[place] for place in range(len(group))]


def written_into(page: str, found: dict[str, Any]) -> str:
    """The page with the table of these results in place of the one in it, or at its end."""
    return with_table(page, _HEAD, map(_line, found["cases"]))


def _line(case: dict[str, Any]) -> str:
    windows = case["windows"]
    cells = (
        case["documents"],
        "none" if case["guidance"] == 1 else f"{case['guidance']:g}",
        case["batch"],
        f"{windows['0']['seconds_per_picture']:.4f}",
        " / ".join(f"{windows[window]['tokens_per_pass']:.2f}" for window in _GUESSING),
        " / ".join(f"{windows[window]['times_faster']:.2f}" for window in _GUESSING),
        f"{windows['auto']['times_faster']:.2f}",
    )
    return f"| {' | '.join(map(str, cells))} |\n"
