"""Images of many requests, decoded together: those that were drawn while the worker was busy."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np

from cm3jax.generation.answers import Undecoded
from cm3jax.shapes import Int
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer

T = TypeVar("T")


class Packer:
    """Makes on one worker, in the order asked, what needs images.

    It takes what waits until there are `most` images to decode. Nobody gets an image before all of
    these are decoded, so that more would keep the first waiting for the last.
    """

    def __init__(self, worker: Executor, image: ImageTokenizer, most: int):
        self._worker, self._image, self._most = worker, image, most
        self._waiting: deque[tuple[Future, Callable[[], Undecoded]]] = deque()

    def submit(self, begin: Callable[[], Undecoded[T]]) -> "Future[T]":
        """What `begin`, called on the worker, becomes with its images."""
        future: Future[T] = Future()
        self._waiting.append((future, begin))
        self._worker.submit(self._work)
        return future

    def _work(self) -> None:
        """Make what waits, up to `most` images. Each `submit` brings a call, which makes something
        if anything waits, so nothing is left behind; a later call may find nothing left."""
        begun: list[tuple[Future, Undecoded]] = []
        codes: list[Int[np.ndarray, " codes"]] = []
        while self._waiting and len(codes) < self._most:
            future, begin = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                continue
            try:
                left = begin()
            except Exception as error:
                future.set_exception(error)
                continue
            begun.append((future, left))
            codes += left.codes
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
