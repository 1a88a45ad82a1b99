"""One generator at the service of many requests: reading, drawing, answering, taking documents out.

What runs the model's small parts (tokenizers, retrieval) is done by one worker thread, in turn, and
so is the packing of images as PNG; drawing by the engine's. The event loop that calls waits for
both and computes nothing. Documents are taken out of the bank on a thread of their own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from cm3jax.decode.finished import Finished
from cm3jax.errors import UserError
from cm3jax.generation.answers import Generated, Undecoded
from cm3jax.generation.documents import Document
from cm3jax.generation.generator import Generator
from cm3jax.generation.requests import PromptRequest
from cm3jax.io.folders import hold
from cm3jax.io.texts import brief
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.index import replacing_bank
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.retriever import Retrieved, Retriever
from cm3jax.retrieval.takedown import remove, require_there
from cm3jax.sequence.vocab import Modality
from cm3jax.serve.drawing import Drawing, ServedRequest
from cm3jax.serve.engine import DrawingEngine
from cm3jax.serve.limits import Limits
from cm3jax.serve.packer import Packer
from cm3jax.serve.reading import BodyReader
from cm3jax.shapes import RgbImage

_IMAGES, _PIXELS = 16, 1 << 18
"""Images that are decoded together at most, and pixels of all: of large ones each takes long."""
LOOK_SECONDS = 1.0
"""How often, at most, a studio looks for what other processes took out of the bank."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Gone(Exception):
    """Nobody waits for the answer any more."""


class Withdrawn(Exception):
    """A document that the request shows was taken out of the bank while it ran."""


class Studio:
    """A generator, its engine and its worker."""

    def __init__(
        self, generator: Generator, slots: int, limits: Limits, first: Callable[[float], None]
    ):
        # Images come by few: padded to the generator's 64, each would cost as much as those.
        most = max(1, min(_IMAGES, _PIXELS // generator.image.config.image_size**2))
        self.generator, self.limits = generator.with_picture_batch(1, most), limits
        generator = self.generator
        self.reader = BodyReader(generator, limits)
        self.engine = DrawingEngine(generator, slots, limits.queue, limits.kinds, first)
        self._worker = ThreadPoolExecutor(1, "worker")
        self._packer = Packer(self._worker, generator.image, most)
        self._reading = 0
        """Requests that are read, or wait for it."""
        self._removed = Removed()
        """What was taken out of the bank, by anybody: a request may have been read before."""
        self._current = self._removed
        """What was taken out when the open bank was last compared with it."""
        self._next_look = 0.0
        self._taking = asyncio.Lock()
        """Whoever takes a document out of the bank holds it."""

    def close(self) -> None:
        """Finish what is open and end both threads."""
        self.engine.close()
        self._worker.shutdown()

    async def work(self, function: Callable[..., T], *args: object) -> T:
        """Call a function on the worker."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)

    async def pack(self, begin: Callable[[], Undecoded[T]]) -> T:
        """What `begin` leaves to do once its images are there; by the worker, too."""
        return await asyncio.wrap_future(self._packer.submit(begin))

    def require_room(self) -> None:
        """Raise `Busy` where a request would find no place in the queue."""
        self.engine.require_room(self._reading)

    async def read(self, read: Callable[[], T]) -> T:
        """Read a request on the worker; `Busy` where it would find no place in the queue."""
        self.require_room()
        self._reading += 1
        try:
            return await self.work(self._read, read)
        finally:
            self._reading -= 1

    def _read(self, read: Callable[[], T]) -> T:
        self._look()
        return read()

    def open(self, question: ServedRequest) -> "Session":
        """Send a question to the engine; whoever opens the session closes it."""
        session = Session(self, question)
        self.engine.submit(session.drawing)
        if _shows(question.request, self._removed):
            session.close()
            self.engine.forget_prompts()  # its prompt may have been read by now
            raise _withdrawn()
        return session

    async def document(self, key: str) -> tuple[BankDocument, Document]:
        """A document of the bank, and what it shows; `UserError` if the bank has none."""

        def find() -> tuple[BankDocument, Document]:
            self._look()
            retriever = self.generator.retriever
            row = retriever.row(key)
            meta = retriever.bank.meta(row)
            if _covers(self._removed, meta):
                raise UserError(f"the document {brief(key, 200)} was taken out of the bank.")
            return meta, self.generator.as_document(Retrieved(row, 1.0, meta))

        return await self.work(find)

    async def take_down(self, key: str) -> None:
        """Take a document out of the bank for good, and end the requests that show it.

        Raises `UserError` if the bank has none.
        """
        async with self._taking:
            old = await self.work(lambda: self.generator.retriever)
            # The bank is written again, however large it is: the worker goes on meanwhile.
            await self.work(self._taken_down, await asyncio.to_thread(_without, old, key), key)

    def _taken_down(self, smaller: Retriever, key: str) -> None:
        self.generator.retriever = smaller
        self._withdraw(Removed(keys=(key,)))

    def _withdraw(self, removed: Removed) -> None:
        """End the requests that show what was taken out, and refuse further ones."""
        self._removed |= removed
        self.engine.cancel_where(lambda request: _shows(request, removed), _withdrawn())
        self.engine.forget_prompts()

    def _look(self) -> None:
        """Follow what other processes took out of the bank: it is refused as soon as it is listed,
        and the bank is opened again once they are done."""
        if "retriever" not in vars(self.generator) or time.monotonic() < self._next_look:
            return
        self._next_look, old = time.monotonic() + LOOK_SECONDS, self.generator.retriever
        try:
            removed = Removed.of(old.bank.path)
            if removed == self._current:
                return
            if old.bank.has_any(removed):
                self._withdraw(removed)
                if self._taking.locked():  # it replaces the retriever; looked at again after that
                    return
                self.generator.retriever = Retriever(old.encoder, _reopened(old.bank), old.config)
            self._current = removed
        except (UserError, OSError) as error:  # such as that it is being written: looked at again
            _log.warning("the bank can't be opened again: %s", error)


def _without(old: Retriever, key: str) -> Retriever:
    """A retriever of the bank, as it is by now, when a document is taken out of it."""
    removed = Removed(keys=(key,))
    with hold(old.bank.path, "removing documents"):
        bank = _reopened(old.bank)  # others may have been merged into it since
        require_there(bank, removed)
        with replacing_bank(bank, old.config):
            bank = remove(bank, removed, say=_log.info)
    return Retriever(old.encoder, bank, old.config)


def _reopened(old: Bank) -> Bank:
    """The bank as it is by now; `UserError` if it is of another encoder or vocabulary."""
    return Bank.open(old.path, old.manifest["encoder"], old.manifest["vocab"])


def _withdrawn() -> Withdrawn:
    return Withdrawn(
        "a document that the request shows was taken out of the bank; send the request again."
    )


def _covers(removed: Removed, document: BankDocument) -> bool:
    return removed.covers(document.key, document.source, document.licence)


def _shows(request: PromptRequest, removed: Removed) -> bool:
    """Whether a request shows a document of the bank that was taken out."""
    return any(
        _covers(removed, one.meta) for one in request.documents if isinstance(one, Retrieved)
    )


class Session:
    """One request while it is drawn, as the event loop sees it."""

    def __init__(self, studio: Studio, question: ServedRequest):
        self.question = question
        self._studio = studio
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self.drawing = Drawing(question, self._tell)

    def close(self) -> None:
        """Free the slots of what is not done."""
        self._studio.engine.cancel(self.drawing, Gone())

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # a loop that has ended
            self._loop.call_soon_threadsafe(self._news.set)

    async def news(self) -> None:
        """Wait for a chunk that brought something; raises what ended the drawing early."""
        await self._news.wait()
        self._news.clear()
        if self.drawing.error is not None:
            raise self.drawing.error

    async def finish(self, pack: Callable[[list[Generated]], T]) -> T:
        """What `pack` makes of all samples, in order, when they are done."""
        while len(self.drawing.done) < self.question.samples:
            await self.news()
        return await self._packed(range(self.question.samples), pack)

    async def answer(self, number: int, pack: Callable[[Generated], T]) -> T:
        """What `pack` makes of a sample that is done."""
        return await self._packed([number], lambda samples: pack(*samples))

    async def _packed(self, numbers: Sequence[int], pack: Callable[[list[Generated]], T]) -> T:
        finished = [Finished(0, number, [self.drawing.done[number]]) for number in numbers]

        def begin() -> Undecoded[T]:
            left = self._studio.generator.undecoded(self.question.request, finished)
            return Undecoded(
                left.codes, lambda images: pack([sample for _, sample in left.then(images)])
            )

        return await self._studio.pack(begin)

    def rows(self, number: int) -> int:
        """Whole rows of codes that a running sample's first image has."""
        return len(self._codes(number)) // self._studio.generator.vocab.config.grid

    def text(self, number: int) -> str:
        """The text of a running sample so far, up to its first image or its end."""
        vocab = self._studio.generator.vocab
        ids = self.drawing.emitted.get(number, np.zeros(0, np.int32))
        ends = np.flatnonzero(ids < vocab.first_text)
        return self._studio.generator.text_of(ids[: ends[0]] if len(ends) else ids)

    async def partial(self, number: int, pack: Callable[[RgbImage], T]) -> T:
        """What `pack` makes of the whole rows of a running sample's image; the rest is grey."""
        vocab, codes = self._studio.generator.vocab, self._codes(number)
        grid, rows = vocab.config.grid, len(codes) // vocab.config.grid
        whole = np.zeros(vocab.image_tokens, np.int32)
        whole[: rows * grid] = codes[: rows * grid]

        def then(images: Sequence[RgbImage]) -> T:
            image = images[0]
            image[rows * len(image) // grid :] = 128
            return pack(image)

        return await self._studio.pack(lambda: Undecoded([whole], then))

    def _codes(self, number: int) -> np.ndarray:
        """The codes of the first image so far, those before a hole among them."""
        vocab = self._studio.generator.vocab
        ids = self.drawing.emitted.get(number, np.zeros(0, np.int32))
        holes = self.question.request.holes or ()
        before = next((hole.before for hole in holes if hole is not None), [])
        codes = np.asarray([*before, *ids[vocab.modality(ids) == Modality.IMAGE]], np.int32)
        return codes[: vocab.image_tokens] - vocab.first_image
