"""From raw records to a corpus, a memory bank and the neighbours of every record.

    bank                the source's `bank` split: rendered documents and their CLIP vectors
    bank-removed.json   what was taken out of the bank and stays out
    corpus/SPLIT        `train` and `validation`: rendered documents, each with candidates from the
                        bank
    corpus-report.json  what was refused and why, what leaked, how long it took

Work is cut into shards and saved one by one; what is finished is not done again.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from cm3jax.config import DataConfig, Experiment, RetrievalConfig, identity
from cm3jax.data.changes import say_why_again
from cm3jax.data.corpus import Corpus, CorpusWriter
from cm3jax.data.probe_queries import asking
from cm3jax.data.quality import idle_rules
from cm3jax.data.runners import Engine, InProcess, Report
from cm3jax.data.shard_jobs import (
    SplitJob,
    bank_writer,
    corpus_writer,
    marks,
    state_of,
    writer_of,
)
from cm3jax.data.sources import ItemSource, open_source
from cm3jax.data.summary import Timing, is_report, report_path, summarise
from cm3jax.data.tokenize import Tools
from cm3jax.errors import UserError
from cm3jax.io.files import digest, require_replaceable, sweep_scratch
from cm3jax.io.folders import hold, settle
from cm3jax.io.paths import real
from cm3jax.io.shard_writer import STATE, source_state
from cm3jax.io.typed_json import read_fields
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import DUPLICATES, bank_files
from cm3jax.retrieval.bank_writer import BankWriter, sweep_parts
from cm3jax.retrieval.duplicates import save_duplicates
from cm3jax.retrieval.index import Ask, keep_index, replacing_bank, training_index
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import merge, remove, require_alike, require_there

SPLITS = ("train", "validation")


def prepare(
    experiment: Experiment,
    tools: Tools,
    report: Report = print,
    engine: Engine | None = None,
    hourly_price: float = 0.0,
) -> None:
    """Make the bank `data.bank` and the corpus `data.corpus`, or what is missing of them.

    `engine` makes the shards, this process if none is given; `hourly_price` is that of the machine,
    for the summary. Raises `UserError` when a path is not set, is another's folder or is being
    written by somebody else, and when the source has no usable record.
    """
    for name in ("corpus", "bank"):
        if not getattr(experiment.data, name):
            raise UserError(f"data.{name} is empty; say where it goes, e.g. data/NAME/{name}.")
    engine, timings = engine or InProcess(tools), {}
    about = report_path(experiment.data.corpus)
    require_replaceable(about, is_report, "the report on the corpus")
    bank_job, *jobs = (SplitJob(experiment, split) for split in ("bank", *SPLITS))
    data = experiment.data
    if any(real(data.bank) == real(writer_of(job).path) for job in jobs):
        raise UserError(
            f"data.bank={data.bank} is a folder of data.corpus={data.corpus}, where a corpus goes; "
            "give another data.bank."
        )
    with _held(bank_job, *jobs):
        sweep_scratch(about.parent, re.escape(about.name))
        bank = prepare_bank(bank_job, tools, report, engine)
        for job in [_corpus_job(job, tools, bank) for job in jobs]:
            if corpus_writer(job).complete:
                report(f"{job.split}: {corpus_writer(job).path} is complete")
                continue
            about.unlink(missing_ok=True)  # of what is replaced
            timings[job.split] = _corpus(job, tools, bank, engine, report)
        if not about.exists():
            cores, corpus = os.cpu_count() or 1, experiment.data.corpus
            for line in summarise(corpus, timings, cores, hourly_price):
                report(line)


@contextlib.contextmanager
def _held(*jobs: SplitJob) -> Iterator[None]:
    """Be the only writer of what these jobs make; `UserError` where it is another's."""
    with contextlib.ExitStack() as stack:
        for job in jobs:
            writer = writer_of(job)
            writer.require_ours()
            stack.enter_context(hold(writer.path, f"preparing {job.experiment.name}"))
        yield


def is_prepared(experiment: Experiment, tools: Tools) -> bool:
    """Whether `prepare` would find nothing to do."""
    bank = standing_bank(SplitJob(experiment, "bank"), tools)
    if bank is None:
        return False
    jobs = (_corpus_job(SplitJob(experiment, split), tools, bank) for split in SPLITS)
    return all(corpus_writer(job).complete for job in jobs)


def _corpus_job(job: SplitJob, tools: Tools, bank: Bank) -> SplitJob:
    """The job of a corpus with what it is to be made from."""
    # Where the encoder is, and what of the candidates is shown later, decides nothing here.
    rules = dataclasses.replace(
        job.experiment.retrieval, encoder="", documents=1, queries="both", milvus=""
    )
    decides = (job.vocab(tools).fingerprint, bank.fingerprint, repr((job.room, rules)))
    return _dated(_identified(job, *decides))


def _dated(job: SplitJob) -> SplitJob:
    """The job with the state that its raw records are in now."""
    state = state_of(job)
    states = () if state is None else marks(state, job.experiment.data.shard)
    return dataclasses.replace(job, states=states)


def _identified(job: SplitJob, *decides: str) -> SplitJob:
    """The job with the mark of its raw records and of what else decides its content."""
    data, seed = job.experiment.data, job.experiment.seed
    others = ("raw", "corpus", "bank", "mixture", "rows", "batch", "threads")
    fields = dataclasses.fields(DataConfig)
    defaults: dict[str, Any] = {f.name: f.default for f in fields if f.name in others}
    raw = dataclasses.replace(data, **defaults)
    # As a tuple of them is printed.
    made_from = digest(f"({identity(raw)}, {seed!r}, {job.split!r})", *decides)
    return dataclasses.replace(job, made_from=made_from)


def _shards(job: SplitJob, report: Report) -> int:
    source = open_source(job.experiment.data, job.split, job.experiment.seed)
    if isinstance(source, ItemSource) and source.note:
        report(f"{job.split}: {source.note}")
    columns = source.columns() if isinstance(source, ItemSource) else ()
    if job.split == "train" and (idle := idle_rules(job.experiment.data, columns)):
        report(idle)
    return max(1, -(-len(source) // job.experiment.data.shard))  # one may be empty


def _say_why(job: SplitJob, writer: BankWriter | CorpusWriter, report: Report) -> None:
    """Report what has changed since what the job's place holds was made, if anything does."""
    data = job.experiment.data
    outdated, say = writer.outdated(), lambda line: report(f"{job.split}: {line}")
    say_why_again(writer.path, outdated, lambda: state_of(job), data.shard, data.source, say)


def _corpus(job: SplitJob, tools: Tools, bank: Bank, engine: Engine, report: Report) -> Timing:
    """Make what is missing of a split."""
    start, writer = time.perf_counter(), corpus_writer(job)
    _say_why(job, writer, report)
    total = _shards(job, report)
    # One that is saved, all workers read.
    training_index(bank, job.experiment.retrieval, _ask(job, tools))
    missing = [number for number in range(total) if not writer.has(number)]
    engine.run(job, missing, total, report)
    vocab = job.vocab(tools)
    facts = {
        "split": job.split,
        "source": job.experiment.data.source,
        "vocab": dataclasses.asdict(vocab.config),
        "vocab_fingerprint": vocab.fingerprint,
        "text_fingerprint": vocab.text_fingerprint,
        "image_fingerprint": vocab.image_fingerprint,
        "encoder": tools.encoder.fingerprint,
        "bank": bank.fingerprint,
    }
    writer.finish(total, facts, may_be_empty=job.split == "validation")
    manifest = Corpus.open(writer.path).manifest
    if not manifest["records"]:
        report(f"{job.split}: no usable record, so training measures no validation loss")
    seen = max(manifest["selection"]["seen"], 1)
    share = {name: n / seen for name, n in manifest["selection"].items()}
    leaks = len(manifest["leaks"])
    leaked = f"; {leaks} are also in the bank, exactly or nearly" if leaks else ""
    report(
        f"{job.split}: {manifest['records']} records in {writer.path}, {len(manifest['refused'])} "
        f"refused{leaked}; of the neighbours seen, {share['too_relevant']:.1%} were too "
        f"relevant, {share['irrelevant']:.1%} irrelevant and {share['not_diverse']:.1%} not diverse"
    )
    done = len(missing) * job.experiment.data.shard
    return Timing(min(done, manifest["records"]), time.perf_counter() - start)


# -------------------------------------------------------------------------------------------- bank


def prepare_bank(
    job: SplitJob, tools: Tools, report: Report = print, engine: Engine | None = None
) -> Bank:
    """The bank of the job of a split `bank`, made now unless it is there.

    Raises `UserError` if the source has no usable record, where another's folder is in the way or
    somebody else is writing the bank, and rather than replace a bank into which others were merged.
    """
    rules = job.experiment.retrieval
    with _held(job):
        sweep_parts(job.experiment.data.bank)
        bank = standing_bank(job, tools)
        if bank is None:
            with replacing_bank(_replaced(job.experiment.data.bank, rules), rules):
                return _make_bank(job, tools, report, engine or InProcess(tools))
        keep_index(bank, rules, _ask(job, tools))  # a merge or a removal leaves none
        if not (bank.path / DUPLICATES).exists():  # killed before, or made by a merge or removal
            save_duplicates(bank, rules)
        report(f"bank: {bank.path} is complete")
        return bank


def _make_bank(job: SplitJob, tools: Tools, report: Report, engine: Engine) -> Bank:
    data, rules = job.experiment.data, job.experiment.retrieval
    _require_replaceable(data.bank)
    job = _dated(_bank_job(job, tools, Removed()))
    writer = bank_writer(job, tools)
    _say_why(job, writer, report)
    total = _shards(job, report)
    missing = [number for number in range(total) if not writer.has(number)]
    engine.run(job, missing, total, report)
    if not total or not writer.records(total):
        raise UserError(f"data.source={data.source} gives no documents for the bank.")
    writer.finish(total)
    bank = Bank.open(writer.path)
    keep_index(bank, rules, _ask(job, tools))
    marked = save_duplicates(bank, rules)
    refused = f", {len(bank.manifest['refused'])} refused" if bank.manifest["refused"] else ""
    report(
        f"bank: {len(bank)} documents{refused}; {marked.exact} are copies of others and "
        f"{marked.near} nearly so"
    )
    return bank


def standing_bank(job: SplitJob, tools: Tools) -> Bank | None:
    """The bank that is where the job's would be, if it is what `prepare_bank` would make."""
    path = epath.Path(job.experiment.data.bank)
    settle(path, bank_files)
    note = path / "manifest.json"
    if not note.exists():
        return None
    manifest = read_fields(note, {}, "the memory bank")
    # An earlier version counted what was taken out among what a bank is made from.
    versions = (Removed(), Removed.of(path))
    jobs = [_bank_job(job, tools, removed) for removed in versions]
    if manifest.get("made_from") not in [job.made_from for job in jobs]:
        return None
    # Nor did one look at the state of its source.
    if STATE in manifest and manifest[STATE] != source_state(_dated(jobs[0]).states):
        return None
    return Bank.open(path, tools.encoder.fingerprint, job.vocab(tools).fingerprint)


def remove_documents(
    path: str,
    config: RetrievalConfig,
    removed: Removed,
    folders: Sequence[epath.PathLike] = (),
    report: Report = print,
) -> Bank:
    """Take documents out of the bank at a path, so that no later preparation brings them back, and
    out of the pages below `folders`.

    Raises `UserError` for a key, a source or a licence that is not there, and at the end for pages
    that cannot be written.
    """
    with hold(path, "removing documents"):
        bank = Bank.open(path)
        require_there(bank, removed)
        with replacing_bank(bank, config):
            return remove(bank, removed, folders, report)


def merge_banks(
    path: str,
    config: RetrievalConfig,
    others: Sequence[str],
    folders: Sequence[epath.PathLike] = (),
    report: Report = print,
) -> Bank:
    """Add the documents of other banks to the bank at a path. What was taken out of any of them is
    not added, and leaves the pages below `folders`, too.

    Raises `UserError` for banks of another encoder or vocabulary.
    """
    with hold(path, "merging banks into it"):
        bank = Bank.open(path)
        banks = [bank, *(Bank.open(path) for path in others)]
        require_alike(banks)
        with replacing_bank(bank, config):  # what was removed from another one may be in it
            return merge(bank.path, banks, bank.manifest.get("made_from", ""), folders, report)


def _replaced(path: str, config: RetrievalConfig) -> Bank | None:
    """The bank at a path that another one is to replace, if a server may hold its vectors; None
    where it cannot be opened."""
    try:
        return Bank.open(path) if config.index == "milvus" else None
    except UserError:
        return None


def _ask(job: SplitJob, tools: Tools) -> Ask:
    data, seed = job.experiment.data, job.experiment.seed
    return lambda: asking(data, seed, tools.encoder, "train").queries


def _require_replaceable(path: str) -> None:
    note = epath.Path(path) / "manifest.json"
    if note.exists() and read_fields(note, {}, "the memory bank").get("merged"):
        raise UserError(
            f"the bank {path} was made from other data or settings, and banks were merged into it "
            "since; give another data.bank, or move this one away."
        )


def _bank_job(job: SplitJob, tools: Tools, removed: Removed) -> SplitJob:
    """The job of a bank with what it is to be made from."""
    vocab, encoder = job.vocab(tools).fingerprint, tools.encoder.fingerprint
    return _identified(job, vocab, encoder, repr(removed))
