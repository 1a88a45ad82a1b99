"""Runs a job's shards in this process or on Apache Beam's workers.

Both give the same bytes, since a shard depends only on its number and is saved by whoever made it.
This process is the default: encoding keeps all its cores or its accelerator busy, it needs no
further package, and a preparation is a few hundred lines of plain Python to whoever reads it. Beam
is for what one machine does not do in time.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from cm3jax.config import Experiment
from cm3jax.data.shard_jobs import SplitJob, Work, bank_writer, corpus_writer, make_work
from cm3jax.data.tokenize import Tools
from cm3jax.errors import UserError

Report = Callable[[str], None]
ToolMaker = Callable[[Experiment], Tools]
_WATCH_SECONDS = 5.0


@runtime_checkable
class Engine(Protocol):
    """What makes shards."""

    def run(self, job: SplitJob, numbers: Sequence[int], total: int, report: Report) -> None:
        """Make the shards of these numbers, of `total` in all."""
        ...


class InProcess:
    """One shard after the other, here."""

    def __init__(self, tools: Tools):
        self._tools = tools

    def run(self, job: SplitJob, numbers: Sequence[int], total: int, report: Report) -> None:
        """Make the shards of these numbers, of `total` in all."""
        work = make_work(job, self._tools)
        progress = ShardProgress(job, len(numbers), total, report)
        for done, number in enumerate(numbers, 1):
            work(number)
            progress.say(done)


class Beam:
    """A pipeline of Apache Beam: shard numbers are spread over the workers of any runner.

    `make_tools` is called once in each worker and must be importable there; the paths of the
    experiment must lead to the same files. `options` are Beam's own, e.g.
    `--runner=DirectRunner --direct_num_workers=4 --direct_running_mode=multi_processing`.
    Raises `UserError` where Beam is not installed.
    """

    def __init__(self, make_tools: ToolMaker, options: Sequence[str]):
        try:
            import apache_beam  # noqa: F401 - three seconds, and only to fail early
        except ImportError:
            raise UserError(
                "--runner needs Apache Beam; install it (the extra `pipeline`), or "
                "leave --runner out to prepare in this process."
            ) from None
        self._make_tools, self._options = make_tools, list(options)

    def run(self, job: SplitJob, numbers: Sequence[int], total: int, report: Report) -> None:
        """Make the shards of these numbers, of `total` in all."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        work = functools.partial(_work, job, self._make_tools)
        with _watched(job, self._make_tools, numbers, total, report):
            with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
                shards = pipeline | "shards" >> beam.Create(list(numbers))
                _ = shards | beam.Reshuffle() | "make" >> beam.Map(work)


def _work(job: SplitJob, make_tools: ToolMaker, number: int) -> int:
    """In a worker: a shard, by the tools that the worker has loaded once."""
    with _LOADING:  # Beam's threads ask at the same time
        work = _loaded(job, make_tools)
    return work(number)


_LOADING = threading.Lock()


@functools.lru_cache(maxsize=1)
def _loaded(job: SplitJob, make_tools: ToolMaker) -> Work:
    return make_work(job, make_tools(job.experiment))


@contextlib.contextmanager
def _watched(
    job: SplitJob, make_tools: ToolMaker, numbers: Sequence[int], total: int, report: Report
) -> Iterator[None]:
    """Report, while the body runs, how many of the shards are made."""
    bank = job.split == "bank"
    writer = bank_writer(job, make_tools(job.experiment)) if bank else corpus_writer(job)
    progress, ended = ShardProgress(job, len(numbers), total, report), threading.Event()

    def watch() -> None:
        said = 0
        while not ended.wait(_WATCH_SECONDS):
            done = sum(writer.has(number) for number in numbers)
            if done > said:
                progress.say(said := done)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress.say(len(numbers))


class ShardProgress:
    """One line whenever shards are done."""

    def __init__(self, job: SplitJob, count: int, total: int, report: Report):
        self._job, self._count, self._total, self._report = job, count, total, report
        self._start = time.perf_counter()

    def say(self, done: int) -> None:
        """Report that `done` of the shards are made."""
        stand = self._total - self._count + done
        rate = done * self._job.experiment.data.shard / (time.perf_counter() - self._start)
        self._report(f"{self._job.split}: {stand}/{self._total} shards, about {rate:.0f} records/s")
