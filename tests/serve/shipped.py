"""The shipped weights behind a server, with a small memory bank of emblems that they have never
seen, and a browser to look at it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import playwright.sync_api
import pytest

from cm3jax.emblems.examples import bank_documents, example
from cm3jax.generation import loading
from cm3jax.generation.documents import Document
from cm3jax.generation.generator import Generator
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from tests.serve.conftest import Listening, serving

WEIGHTS = Path(__file__).resolve().parents[2] / "experiments/miniature/weights"
HOSTILE = '<img src="x" onerror="alert(1)">'
"""A source, a licence and a caption that must stay texts."""


def write_emblem_bank(path: Path, generator: Generator, emblems: int = 6) -> None:
    """Write the documents of some emblems, and one that shows `HOSTILE` wherever it can."""
    found = [example("bank", row, size=32) for n in range(emblems) for row in bank_documents(n)]
    shown = [Document(*one.segments) for one in found]
    known = [(one.key, one.source, one.licence) for one in found]
    shown.append(Document(f"the {HOSTILE} emblem", *shown[0].segments[1:]))
    known.append(("hostile", HOSTILE, HOSTILE))
    rows = [
        BankDocument(
            key,
            generator.as_shown(document),
            document.text or "",
            document.text is not None,
            document.image is not None,
            source,
            licence,
        )
        for document, (key, source, licence) in zip(shown, known, strict=True)
    ]
    vectors = generator.encoder.encode_documents([(one.text, one.image) for one in shown])
    Bank.build(path, rows, vectors, generator.encoder.fingerprint, generator.vocab.fingerprint)


@contextlib.contextmanager
def shipped_server(folder: Path, name: str) -> Iterator[Listening]:
    """A server of the shipped weights of that name, with a bank in `folder`."""
    generator = loading.load(WEIGHTS / name, folder / "bank")
    write_emblem_bank(folder / "bank", generator)
    with serving(generator, name=name) as running:
        yield running


@contextlib.contextmanager
def chromium() -> Iterator[playwright.sync_api.Browser]:
    """The machine's own Chromium, driven by Playwright, whose download is not needed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no Chromium is on PATH; install one (Debian: apt install chromium).", False)
    with playwright.sync_api.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=path)
