"""One thread that draws for all requests: continuous batching over a bounded queue.

Pools (`pools.py`) take turns, of as many passes each. Where a request wants to know what its
documents did, the passes that tell are turns too.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from cm3jax.decode import loop
from cm3jax.decode.plan import CHUNK
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.generation.generator import Generator
from cm3jax.generation.requests import PromptRequest
from cm3jax.serve.attributing import Attribution
from cm3jax.serve.drawing import Drawing
from cm3jax.serve.pools import Pool, Pools

_log = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full."""

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; send the request again in {retry_after} s.")
        self.retry_after = retry_after


class Closing(Exception):
    """The engine takes no more requests."""


class DrawingEngine:
    """Draws on a thread of its own until it is closed."""

    def __init__(
        self,
        generator: Generator,
        slots: int,
        queue: int,
        kinds: int,
        first: Callable[[float], None],
    ):
        self._generator, self._queue = generator, queue
        self._slots = generator.whole_slots(slots)
        self._first = first
        """Gets the seconds from a request's start to its first tokens."""
        self.meter = Meter()
        self.tokens = 0
        """Tokens of finished samples."""
        self._pools = Pools(generator, self._slots, kinds, self.meter)
        self._passes: deque[tuple[Drawing, int, Attribution]] = deque()
        """Samples whose documents' effects are measured."""
        self._open: dict[int, Drawing] = {}
        """Submitted and not over, by number."""
        self._inbox: list[Drawing] = []
        self._gone: list[Drawing] = []
        self._forgets = False
        """Whether what is kept of prompts is to go."""
        self._numbers = itertools.count()
        self._typical = 1.0
        """Seconds that a request took of late."""
        self._closing = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, drawing: Drawing) -> None:
        """Queue a drawing.

        Raises `Busy` where the queue is full, `UserError` for a prompt that leaves no room for its
        answer, `Closing` after `close`.
        """
        loop.require_fit(drawing.asked.request, self._generator.model)
        with self._news:
            if self._closing:
                raise Closing("the server takes no more requests.")
            self.require_room()
            drawing.number, drawing.started = next(self._numbers), time.monotonic()
            self._open[drawing.number] = drawing
            self._inbox.append(drawing)
            self._news.notify()

    def require_room(self, others: int = 0) -> None:
        """Raise `Busy` where the queue is full, or will be with `others`."""
        if len(self._open) + others >= self._queue:
            raise Busy(max(1, min(60, round(self._typical))))

    def cancel(self, drawing: Drawing, why: Exception) -> None:
        """End a drawing that nobody waits for; its slots are free before the next chunk."""
        with self._news:
            if not drawing.over:
                drawing.error = why
                self._gone.append(drawing)
                self._news.notify()

    def cancel_where(self, shows: Callable[[PromptRequest], bool], why: Exception) -> None:
        """End the drawings of requests of which `shows` is true."""
        with self._news:
            drawings = list(self._open.values())
        for drawing in drawings:
            if shows(drawing.asked.request):
                self.cancel(drawing, why)

    def forget_prompts(self) -> None:
        """Drop all that is kept of prompts (`Generator.prefixes`), after what is cancelled by now
        and before the next chunk."""
        with self._news:
            self._forgets = True
            self._news.notify()

    def close(self) -> None:
        """Take no more requests, finish those that are open, and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def give_up(self) -> None:
        """Take no more requests, and end those that are open before the next chunk."""
        with self._news:
            self._closing = True
        self.cancel_where(lambda _: True, Closing("the server ends; the request was given up."))

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def load(self) -> dict[str, int]:
        """Open requests, samples that wait, slots that are busy, and slots there are."""
        return {
            "open": len(self._open),
            "waiting": sum(pool.waiting for pool in self._pools),
            "busy": sum(pool.busy for pool in self._pools),
            "slots": self._slots,
        }

    def _work(self) -> None:
        try:
            while self._take():
                for pool in self._pools.turns():
                    self._turn(pool)
                self._measure()
        except Exception as error:  # nobody may wait for a thread that has ended
            with self._news:
                self._closing, drawings = True, list(self._open.values())
            self._pools.clear()
            self._passes.clear()
            self._fail(drawings, error)

    def _take(self) -> bool:
        """Wait for something to do and sort it in; false when there will be nothing more."""
        with self._news:
            self._news.wait_for(
                lambda: self._inbox or self._gone or self._forgets or self._busy or self._closing
            )
            inbox, self._inbox = self._inbox, []
            gone, self._gone = self._gone, []
            forgets, self._forgets = self._forgets, False
        for drawing in inbox:
            if drawing.error is None:
                self._sort_in(drawing)
        for drawing in gone:
            self._drop(drawing)
        if forgets and self._generator.prefixes is not None:
            self._generator.prefixes.clear()
        # In this order: what is submitted is there before the engine is told to close.
        return not self._closing or self._busy or bool(self._inbox)

    @property
    def _busy(self) -> bool:
        return self._pools.active or bool(self._passes)

    def _sort_in(self, drawing: Drawing) -> None:
        try:
            self._pools.add(drawing)
        except Exception as error:
            self._fail([drawing], error)

    def _drop(self, drawing: Drawing) -> None:
        self._pools.drop(drawing)
        self._passes = deque(each for each in self._passes if each[0] is not drawing)
        self._end(drawing)

    def _turn(self, pool: Pool) -> None:
        """A chunk of one pool, or as many short ones as make up a whole one: where somebody looks
        at each row, a turn is not shorter for it. Ends early where somebody has gone."""
        left = CHUNK
        while self._step(pool):
            left -= pool.passes
            if left <= 0 or self._gone or not pool.ready:
                return

    def _step(self, pool: Pool) -> bool:
        """A chunk of one pool; false where its state is lost."""
        try:
            finished = pool.step(self._generator.vocab.config.grid)
        except Exception as error:  # of the device: this pool's state is lost, others go on
            self._pools.lose(pool)
            self._fail(list(pool.drawings.values()), error)
            return False
        for drawing in pool.drawings.values():
            if drawing.emitted and not drawing.begun:
                drawing.begun = True
                self._first(time.monotonic() - drawing.started)
        for done in finished:
            drawing = pool.drawings[done.request]
            self._drawn(drawing, done.first, done.samples[0])
        for drawing in list(pool.drawings.values()):
            if len(drawing.drawn) == drawing.asked.samples:
                del pool.drawings[drawing.number]
            if drawing.over:
                self._end(drawing)
            elif drawing.asked.watched and drawing.emitted:
                drawing.changed()
        return True

    def _drawn(self, drawing: Drawing, number: int, sample: loop.Sample) -> None:
        drawing.drawn[number] = sample
        self.tokens += len(sample.ids)
        if drawing.asked.attribute:
            attribution = Attribution(self._generator, drawing.asked.request, sample)
            self._passes.append((drawing, number, attribution))
        else:
            drawing.done[number] = sample

    def _measure(self) -> None:
        """One pass for one sample; samples take turns."""
        if not self._passes:
            return
        drawing, number, attribution = self._passes.popleft()
        if drawing.error is not None:  # another of its samples failed
            return
        try:
            if not attribution.step():
                self._passes.append((drawing, number, attribution))
                return
            drawing.effects[number] = attribution.effects()
        except Exception as error:
            self._fail([drawing], error)
            self._drop(drawing)
            return
        drawing.done[number] = drawing.drawn[number]
        if drawing.over:
            self._end(drawing)
        else:
            drawing.changed()

    def _fail(self, drawings: list[Drawing], error: Exception) -> None:
        if not isinstance(error, UserError):
            _log.exception("drawing failed", exc_info=error)
        for drawing in drawings:
            drawing.error = drawing.error or error
            self._end(drawing)

    def _end(self, drawing: Drawing) -> None:
        with self._news:
            if self._open.pop(drawing.number, None) is None:
                return
            if drawing.error is None:
                seconds = time.monotonic() - drawing.started
                self._typical += (seconds - self._typical) / 8
        drawing.changed()
