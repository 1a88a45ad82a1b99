"""The server under many clients, compared with `launch.generate` and the same prompts in files.

A server process of `--run` answers mixed requests of `--clients` clients at once: guided and plain
images, streams, images painted over, captions (`serve_clients.py`). After each of `ROUNDS`
rounds this process reads, draws and writes the round's requests as `launch.generate` would from
files, one call for each mode, while the server has nothing to do: `ratio` is the server's tokens
per second over this process's, all rounds together. HTTP, and the clients' own work, which shares
the machine, count on the server's side only. `cpu_ratio` compares tokens per second of a core that
either process took: it leaves out the clients, and depends little on what else the machine does.

Before, the server had answered the same requests one by one: `same` is the share of samples that
have the same codes or the same text under load.

`first_picture_seconds` is how long a server takes from its start to its first image, with the
programs that an earlier start has compiled (`cold_…`: without any), `listening_seconds` until it
can be asked.

`free_seconds` is how long slots were busy after `KILLED` clients, whose requests ran by themselves,
were cut off in the middle, `chunk_seconds` the time of a chunk among them.
"""

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
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
from cm3jax.serve.drawing import ServedRequest
from cm3jax.serve.limits import Limits
from cm3jax.serve.reading import BodyReader
from launch.bench.serve_clients import Asked, Client, Heard, load, make_requests
from launch.gallery import Gallery

ROUNDS = 6
KILLED = 8
WARM_SECONDS, WARM_ROUNDS = 15.0, 12
"""Load that compiles what rounds will run, and is not measured: rounds until one compiles nothing,
at most this many."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Tokens, and what they took."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """CPU time of all threads of the process that made them."""

    @classmethod
    def now(cls, tokens: int = 0) -> "Work":
        """The clocks of this process."""
        return cls(tokens, time.perf_counter(), time.process_time())

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    def __sub__(self, other: "Work") -> "Work":
        return Work(*(a - b for a, b in zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    @property
    def per_second(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Tokens per second of a core."""
        return self.tokens / self.cpu_seconds


def bench_serve(options: argparse.Namespace) -> dict[str, Any]:
    """Serve, load, compare."""
    generator = loading.load(options.run)
    asked = make_requests(generator.image.config.image_size)
    reader = BodyReader(generator.with_picture_batch(1), Limits())  # images as the server reads
    starts = _starts(options, asked[0])
    with _serving(options) as (process, url):
        alone = [Client(url).ask(one) for one in asked]
        _warm(url, asked, options.clients)
        _draw(asked, generator, reader)
        heard: list[tuple[int, Heard]] = []
        rounds: list[tuple[Work, Work]] = []
        memory = [_resident(process)]
        for _ in range(ROUNDS):
            begin = _cpu_seconds(process)
            found, seconds = load(url, asked, options.clients, options.seconds / ROUNDS)
            heard += found
            tokens = sum(one.tokens for _, one in found)
            served = Work(tokens, seconds, _cpu_seconds(process) - begin)
            memory.append(_resident(process))
            answered = [asked[number] for number, one in found if one.status == 200]
            _require(bool(answered), "a round went by without an answer")
            rounds.append((served, _draw(answered, generator, reader)))
        killed = _kill(url, asked)
    return {
        "clients": options.clients,
        **starts,
        **_figures(heard, alone),
        **_compared(rounds),
        **killed,
        "resident_megabytes": memory,
    }


def _starts(options: argparse.Namespace, asked: Asked) -> dict[str, float]:
    """Seconds, and those of a core, from a server's start to its first image: with a user's cache
    that is empty, and with what that start has left there."""
    out = {}
    with tempfile.TemporaryDirectory() as home:
        for name in ("cold_", ""):
            begin = time.perf_counter()
            with _serving(options, XDG_CACHE_HOME=home) as (process, url):
                out[f"{name}listening_seconds"] = time.perf_counter() - begin
                out[f"{name}listening_cpu_seconds"] = _cpu_seconds(process)
                first = Client(url).ask(asked)
                out[f"{name}first_picture_seconds"] = time.perf_counter() - begin
                out[f"{name}first_picture_cpu_seconds"] = _cpu_seconds(process)
                _require(first.status == 200, "the server refused an image")
    return out


def _compared(rounds: Sequence[tuple[Work, Work]]) -> dict[str, Any]:
    """The server against `launch.generate`, all rounds together, and how far rounds differ."""
    served, drawn = (sum(works, Work()) for works in zip(*rounds, strict=True))
    ratios = [one.per_second / other.per_second for one, other in rounds]
    return {
        "server_tokens_per_second": served.per_second,
        "generate_tokens_per_second": drawn.per_second,
        "ratio": served.per_second / drawn.per_second,
        "ratio_of_rounds": ratios,
        "server_tokens_per_cpu_second": served.per_cpu_second,
        "generate_tokens_per_cpu_second": drawn.per_cpu_second,
        "cpu_ratio": served.per_cpu_second / drawn.per_cpu_second,
    }


def _figures(heard: Sequence[tuple[int, Heard]], alone: Sequence[Heard]) -> dict[str, Any]:
    """What clients saw."""
    good = [(number, one) for number, one in heard if one.status == 200]
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
def _serving(
    options: argparse.Namespace, **environment: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process with further variables in its environment, and its address."""
    command = ["-m", "launch.serve", options.run, "--port", "0", "--slots", str(options.slots)]
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
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


def _warm(url: str, asked: Sequence[Asked], clients: int) -> None:
    """Load until nothing is compiled any more."""
    compiled, before = -1.0, -2.0
    for _ in range(WARM_ROUNDS):
        if compiled == before:
            return
        load(url, asked, clients, WARM_SECONDS)
        before, compiled = compiled, _gauge(Client(url), "cm3jax_compile_seconds")


def _gauge(client: Client, name: str) -> float:
    """A figure of the server's `/metrics`."""
    lines = client.get("/metrics").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _draw(asked: Sequence[Asked], generator: Generator, reader: BodyReader) -> Work:
    """The same as `launch.generate` reads, draws and writes it: a call for each mode and number of
    samples, with the guidance that each brings. One that compiled something is made again, and
    only that counts."""
    begin = Work.now()
    calls: dict[tuple, list[tuple[str, ServedRequest]]] = {}
    for one in asked:
        read = one.read(reader)
        kind = SizeClass.of(read.request, generator.vocab), read.samples
        calls.setdefault(kind, []).append((one.fields.get("prompt", "a caption"), read))
    work = Work.now() - begin
    for members in calls.values():
        compiled = True
        while compiled:
            meter, begin = Meter(), Work.now()
            tokens = _written(members, generator, meter)
            compiled = meter.compile_seconds > 0
        work += Work.now(tokens) - begin
    return work


def _written(
    members: Sequence[tuple[str, ServedRequest]], generator: Generator, meter: Meter
) -> int:
    """Draw requests of one kind and write them as files; their tokens."""
    prompts, read = zip(*members, strict=True)
    requests = [one.request for one in read]
    sampling = Sampling(samples=read[0].samples, decode=read[0].config)
    recipe: dict[str, Any] = {"mode": "", "docs": []}
    tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(epath.Path(folder), generator, recipe, prompts, requests)
        for answers in generator.answer(requests, sampling, meter):
            tokens += sum(len(sample.ids) for _, sample in answers)
            list(gallery.add(answers, show_sequence=False))
    return tokens


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
    while _gauge(watcher, "cm3jax_slots_busy") and time.perf_counter() < begin + 60:
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


def _cpu_seconds(process: subprocess.Popen) -> float:
    """What a process took of all cores so far; NaN where the system does not tell."""
    clocks = Path(f"/proc/{process.pid}/stat")
    if not clocks.exists():
        return math.nan
    user, system = clocks.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _require(good: bool, why: str) -> None:
    if not good:
        raise UserError(f"{why}; run launch.serve by hand to see how.")
