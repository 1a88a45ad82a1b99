"""The server under many clients, beside `launch.generate` with the same prompts in files.

A server process of `--run` answers mixed requests of `--clients` clients at once: guided and plain
pictures, streams, pictures painted over, captions (`serve_clients.py`). After each of `ROUNDS`
rounds this process draws and writes the round's requests as `launch.generate` would from files, one
call for each mode, while the server has nothing to do: `ratio` is the server's tokens per second
over this process's, all rounds together. Before, the server had answered the same requests one by
one: `same` is the share of samples that have the same codes or the same text under load.

`free_seconds` is how long slots were busy after `KILLED` clients, whose requests ran by themselves,
were cut off in the middle, `chunk_seconds` the time of a chunk among them.
"""

import argparse
import contextlib
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from cm3jax.decode.plan import SizeClass
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.generation import loading
from cm3jax.generation.generator import Generator
from cm3jax.generation.options import Sampling
from cm3jax.serve.limits import Limits
from cm3jax.serve.reading import BodyReader, ServedRequest
from launch.bench.serve_clients import Asked, Client, Heard, load, make_requests
from launch.gallery import Gallery

ROUNDS = 6
KILLED = 8
WARM_SECONDS = 15.0
"""Load that compiles what rounds will run, and is not measured."""


def bench_serve(options: argparse.Namespace) -> dict[str, Any]:
    """Serve, load, compare."""
    generator = loading.load(options.run)
    asked = make_requests(generator.image.config.image_size)
    begin = time.perf_counter()
    with _serving(options) as (process, url):
        first = Client(url).ask(asked[0])
        started = time.perf_counter() - begin
        _require(first.status == 200, "the server refused a picture")
        alone = [Client(url).ask(one) for one in asked]
        load(url, asked, options.clients, WARM_SECONDS)
        _draw(asked, generator)
        heard: list[tuple[int, Heard]] = []
        served = drawn = 0.0
        tokens = 0
        memory = [_resident(process)]
        for _ in range(ROUNDS):
            found, seconds = load(url, asked, options.clients, options.seconds / ROUNDS)
            heard += found
            served += seconds
            memory.append(_resident(process))
            answered = [asked[number] for number, one in found if one.status == 200]
            more, seconds = _draw(answered, generator)
            tokens, drawn = tokens + more, drawn + seconds
        killed = _kill(url, asked)
    return {
        "clients": options.clients,
        "first_picture_seconds": started,
        **_figures(heard, alone),
        "server_tokens_per_second": sum(one.tokens for _, one in heard) / served,
        "generate_tokens_per_second": tokens / drawn,
        "ratio": sum(one.tokens for _, one in heard) / served / (tokens / drawn),
        **killed,
        "resident_megabytes": memory,
    }


def _figures(heard: Sequence[tuple[int, Heard]], alone: Sequence[Heard]) -> dict[str, Any]:
    """What clients saw."""
    good = [(number, one) for number, one in heard if one.status == 200]
    _require(bool(good), "no request was answered")
    same = [
        mine == other
        for number, one in good
        for mine, other in itertools.zip_longest(one.said, alone[number].said)
    ]
    rows = [one.first_row for _, one in good if one.first_row is not None]
    return {
        "requests": len(good),
        "statuses": dict(Counter(one.status for _, one in heard)),
        "same": sum(same) / len(same),
        **_quantiles("seconds", [one.seconds for _, one in good]),
        **_quantiles("seconds_to_first_row", rows),
    }


def _quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {f"{name}_p50": cuts[9], f"{name}_p95": cuts[18]}


@contextlib.contextmanager
def _serving(options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process and its address."""
    command = ["-m", "launch.serve", options.run, "--port", "0", "--slots", str(options.slots)]
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        told = re.search(r"http://\S+", process.stdout.readline())
        if told is None:
            raise UserError(f"the server of {options.run} did not start; it says why above.")
        yield process, told[0]
    finally:
        process.terminate()
        process.wait()


def _draw(asked: Sequence[Asked], generator: Generator) -> tuple[int, float]:
    """Tokens and seconds, without compilation, of the same as `launch.generate` draws and writes
    them: a call for each mode and number of samples, with the guidance that each brings."""
    reader = BodyReader(generator, Limits())
    calls: dict[tuple, list[tuple[str, ServedRequest]]] = {}
    for one in asked:
        read = one.read(reader)
        kind = SizeClass.of(read.request, generator.vocab), read.samples
        calls.setdefault(kind, []).append((one.fields.get("prompt", "a caption"), read))
    tokens = seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, members) in enumerate(calls.items()):
            prompts = [prompt for prompt, _ in members]
            requests = [read.request for _, read in members]
            sampling = Sampling(samples=kind[1], decode=members[0][1].config)
            out, meter, begin = epath.Path(folder, str(number)), Meter(), time.perf_counter()
            gallery = Gallery(out, generator, {"mode": "", "docs": []}, prompts, requests)
            for answers in generator.answer(requests, sampling, meter):
                tokens += sum(len(sample.ids) for _, sample in answers)
                list(gallery.add(answers, show_sequence=False))
            seconds += time.perf_counter() - begin - meter.compile_seconds
    return int(tokens), seconds


def _kill(url: str, asked: Sequence[Asked]) -> dict[str, float]:
    """How soon the slots of clients that vanish are free."""
    long = next(one for one in asked if one.kind == "stream")
    long = Asked(long.kind, {**long.fields, "n": Limits().samples}, {})
    watcher, clients = Client(url), [Client(url) for _ in range(KILLED)]
    answers = [client.begin(long) for client in clients]
    rows = [time.perf_counter() for line in itertools.islice(_rows(answers[0]), 2)]
    begin = time.perf_counter()
    for answer, client in zip(answers, clients, strict=True):
        answer.close()  # it holds the connection, too
        client.close()
    while (
        "cm3jax_slots_busy 0.0" not in watcher.get("/metrics") and time.perf_counter() < begin + 60
    ):
        time.sleep(0.002)
    return {"chunk_seconds": rows[1] - rows[0], "free_seconds": time.perf_counter() - begin}


def _rows(answer: Iterable[bytes]) -> Iterator[bytes]:
    """The events of a stream's first sample."""
    return (line for line in answer if b'"sample": 0,' in line)


def _resident(process: subprocess.Popen) -> float | None:
    """MB of memory of a process, where the system tells."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    return int(found[1]) / 1000 if found else None


def _require(good: bool, why: str) -> None:
    if not good:
        raise UserError(f"{why}; run launch.serve by hand to see how.")
