"""Images of many requests, decoded together: all that were drawn while the worker was busy."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np

from cm3jax.generation.answers import Undecoded
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer

T = TypeVar("T")


class Packer:
    """Makes on one worker, in the order asked, what needs images."""

    def __init__(self, worker: Executor, image: ImageTokenizer):
        self._worker, self._image = worker, image
        self._waiting: deque[tuple[Future, Callable[[], Undecoded]]] = deque()

    def submit(self, begin: Callable[[], Undecoded[T]]) -> "Future[T]":
        """What `begin`, called on the worker, becomes with its images."""
        future: Future[T] = Future()
        self._waiting.append((future, begin))
        self._worker.submit(self._work)
        return future

    def _work(self) -> None:
        """Make all that waits; whoever was to do it later finds nothing left."""
        begun: list[tuple[Future, Undecoded]] = []
        while self._waiting:
            future, begin = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                continue
            try:
                begun.append((future, begin()))
            except Exception as error:
                future.set_exception(error)
        codes = [each for _, left in begun for each in left.codes]
        try:
            images = iter(self._image.decode(np.asarray(codes)) if codes else ())
        except Exception as error:
            for future, _ in begun:
                future.set_exception(error)
            return
        for future, left in begun:
            try:
                future.set_result(left.then([next(images) for _ in left.codes]))
            except Exception as error:
                future.set_exception(error)
