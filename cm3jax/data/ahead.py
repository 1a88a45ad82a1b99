"""Reading ahead of the step that needs it, in threads."""

import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterator[T], make: Callable[[T], R], threads: int) -> Iterator[R]:
    """What `make` makes of each item, in order, made a few items ahead in Grain's threads."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    # Grain wants a sequence: a stretch of the endless one at a time.
    while stretch := list(itertools.islice(items, 4 * threads)):
        yield from grain.MapDataset.source(stretch).map(make).to_iter_dataset(options)
