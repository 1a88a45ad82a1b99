"""Killing what writes banks and corpora, again and again: is nothing lost, nothing shown that was
removed, and nothing touched that is somebody else's?

python -m tests.retrieval.kills --kills 100

Each life is a process of its own that does one thing after the other in one folder until it gets
SIGKILL or SIGINT, at a random moment. After each, the folder is opened as any reader would.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cm3jax.data.corpus import Corpus, CorpusWriter
from cm3jax.io.folders import hold
from cm3jax.io.shard_writer import shard_files
from cm3jax.report.html import cell, figure, page
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument, bank_files, mark_of
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import merge, remove
from tests.data.corpora import VOCAB, facts, shard

PROCESSES = multiprocessing.get_context("forkserver")
"""Imports are paid once, and no thread is forked."""
PROCESSES.set_forkserver_preload(
    ["cm3jax.retrieval.takedown", "tests.data.corpora", "array_record.python.array_record_module"]
)
DOCUMENTS, ADDED = 300, 60
SECRET = "document number "
"""In every text: what is removed must be in no file."""


def documents(numbers: range) -> list[BankDocument]:
    return [
        BankDocument(
            f"k{i}",
            VOCAB.first_text + np.arange(i % 9 + 1, dtype=np.int32),
            *(f"{SECRET}{i};", True, False, "source", "licence"),
        )
        for i in numbers
    ]


def vectors(count: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(path: Path, numbers: range) -> Bank:
    return Bank.build(path, documents(numbers), vectors(len(numbers)), "e", VOCAB.fingerprint)


def prepare_corpus(folder: Path, made_from: str) -> None:
    """Make the corpus anew, from something else."""
    bank = Bank.open(folder / "bank")
    writer = CorpusWriter(folder / "corpus" / "train", made_from)
    writer.require_ours()
    with hold(writer.path, "preparing"):
        for number in range(3):
            if not writer.has(number):
                writer.write(number, shard(range(20 * number, 20 * number + 20), len(bank)))
        writer.finish(3, facts(bank))


def live(folder: Path, doing: str, seed: int, log: str) -> None:
    """One thing after the other, until killed; the log says what was asked and what was done."""
    draw, file = random.Random(seed), os.open(log, os.O_WRONLY | os.O_APPEND)

    def say(*words) -> None:
        os.write(file, f"{' '.join(map(str, words))}\n".encode())

    with contextlib.suppress(KeyboardInterrupt):
        say("begun")  # from now on it may be killed
        try:
            work(folder, doing, draw, say)
        except Exception:
            say("failed", traceback.format_exc())
            raise


def work(folder: Path, doing: str, draw: random.Random, say: Callable) -> None:
    for step in range(1000):
        match doing:
            case "remove":
                bank = Bank.open(folder / "bank")
                key = bank.meta(draw.randrange(len(bank))).key
                say("asked", key)
                remove(bank, Removed(keys=(key,)), [folder / "pages"], lambda line: None)
                say("removed", key)
            case "merge":
                first = DOCUMENTS + ADDED * draw.randrange(8)
                other = build(folder / "others" / f"from-{first}", range(first, first + ADDED))
                bank = Bank.open(folder / "bank")
                merge(bank.path, [bank, other, Bank.open(folder / "copy")], "this")
                say("merged", first)
            case "build":
                build(folder / "built", range(DOCUMENTS))
            case "prepare":
                prepare_corpus(folder, f"{draw.random()}-{step}")
            case "replace carelessly":  # as no code of ours may, to see that the watch notices
                shutil.rmtree(folder / "bank")
                shutil.copytree(folder / "copy", folder / "bank")


def write_page(path: Path, bank: Bank) -> None:
    """A page that shows all documents of a bank."""
    cells = [cell(d.text, document=mark_of(d)) for d in bank.documents()]
    path.parent.mkdir(parents=True)
    path.write_text(page("A run", figure("documents", *cells)))


class Watch:
    """A folder, what it must hold, and what it must not."""

    def __init__(self, folder: Path):
        self.folder = folder
        build(folder / "bank", range(DOCUMENTS))
        build(folder / "copy", range(DOCUMENTS))
        build(folder / "built", range(DOCUMENTS))
        prepare_corpus(folder, "first")
        write_page(folder / "pages" / "run" / "report.html", Bank.open(folder / "bank"))
        self.known = {f"k{i}" for i in range(DOCUMENTS)}
        self.removed: set[str] = set()
        self.blanked: set[str] = set()
        self.canaries: dict[Path, str] = {}
        places = [folder, folder / "corpus", folder / "others"]
        for home in ("bank", "copy", "built", "corpus/train"):
            places += [folder / home, folder / home / "sub", folder / home / "scann" / "00000"]
        for number, place in enumerate(places):
            place.mkdir(parents=True, exist_ok=True)
            for name in ("thesis.tex", ".bank.notes", "manifest-of-mine.json"):
                self.canaries[place / name] = f"{number} {name}"
                (place / name).write_text(f"{number} {name}")

    def kill(self, doing: str, draw: random.Random) -> None:
        """One life, and what is left of it."""
        log = self.folder.parent / "log"
        log.write_text("")
        arguments = (self.folder, doing, draw.randrange(1 << 30), str(log))
        process = PROCESSES.Process(target=live, args=arguments)
        process.start()
        while not log.read_text() and process.is_alive():
            time.sleep(0.002)
        time.sleep(draw.random() * 0.15)
        wanted = draw.choice((signal.SIGKILL, signal.SIGINT))
        assert process.pid
        with contextlib.suppress(ProcessLookupError):  # it failed, as its exit code says
            os.kill(process.pid, wanted)
        process.join(2)
        if process.exitcode is None:  # Python drops a Ctrl-C that comes while an object is deleted
            process.kill()
            process.join()
        said = log.read_text()
        assert process.exitcode in (-9, 0), f"it failed by itself ({process.exitcode}): {said}"
        asked = set()
        for line in said.splitlines():
            word, _, what = line.partition(" ")
            if word == "begun":
                continue
            if word == "asked":
                asked.add(what)
            elif word == "removed":
                self.removed.add(what)
            else:
                self.known |= {f"k{i}" for i in range(int(what), int(what) + ADDED)}
        self.check(asked)

    def check(self, asked: set[str]) -> None:
        """Nothing lost, nothing shown, nothing touched."""
        bank = Bank.open(self.folder / "bank")
        bank.verify()
        there = {document.key for document in bank.documents()}
        taken_out = set(Removed.of(bank.path).keys)
        assert self.removed <= taken_out <= self.removed | asked, "only what was asked for"
        self.removed = taken_out
        assert not there & self.removed, "a removed document is shown"
        assert self.known - self.removed <= there, "documents are lost"
        self.known |= there
        for place in ("copy", "built"):
            Bank.open(self.folder / place).verify()
            assert len(Bank.open(self.folder / place)) == DOCUMENTS
        corpus = Corpus.open(self.folder / "corpus" / "train")
        corpus.verify()
        assert len(corpus) == 60
        self.blanked |= self.removed | asked  # pages come first: a killed removal may end there
        shown = (self.folder / "pages" / "run" / "report.html").read_text()
        for number in range(DOCUMENTS):
            if f">{SECRET}{number};<" in shown:
                assert f"k{number}" not in self.removed, "a page shows a removed document"
            else:
                assert f"k{number}" in self.blanked, "a page lost a document"
        for path, text in self.canaries.items():
            assert path.read_text() == text, f"{path} was touched"
        self.check_files()

    def check_files(self) -> None:
        """Once a writer has opened the bank, nobody's text is in any file beside it."""
        gone = [f'"{SECRET}{key[1:]};"'.encode() for key in self.removed]
        with hold(self.folder / "bank", "looking"):
            for path in self.folder.rglob("*"):
                inside = path.relative_to(self.folder).parts[0]
                if path.is_file() and inside.strip(".").startswith("bank"):
                    content = path.read_bytes()
                    assert not [text for text in gone if text in content], path


def left_over(folder: Path) -> list[Path]:
    """Hidden folders of ours, which the next writer is to sweep."""
    return [
        path
        for path in (*folder.glob(".*"), *folder.glob("corpus/.*"))
        if path.is_dir() and (bank_files(path) or shard_files(path))
    ]


def disturb(folder: Path, kills: int, seed: int) -> Counter:
    """Kill this many lives and check after each; what they were doing."""
    watch, draw, done = Watch(folder), random.Random(seed), Counter[str]()
    for _ in range(kills):
        doing = draw.choice(("remove", "merge", "build", "prepare"))
        watch.kill(doing, draw)
        done[doing] += 1
    # An undisturbed life of each leaves nothing behind.
    for doing in ("bank", "built"):
        bank = Bank.open(folder / doing)
        merge(bank.path, [bank])
    prepare_corpus(folder, "last")
    watch.check(set())
    assert not left_over(folder)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "data").mkdir()
        done = disturb(Path(home) / "data", given.kills, given.seed)
        print(f"{done.total()} kills:", ", ".join(f"{n} of {what}" for what, n in done.items()))


if __name__ == "__main__":
    main()
