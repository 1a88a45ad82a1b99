"""The sound records of a source: a broken or refused one is left out, counted and named.

Every training that reads raw data reads it through here, so that one bad image ends none.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from cm3jax.data.readers.items import BadRecord, RefusedByRule
from cm3jax.data.sources import Source
from cm3jax.errors import UserError

MOST_BROKEN = 0.5
"""Share of records that may be broken; with more, the source itself is taken to be wrong."""
_NAMED = 3

Item = TypeVar("Item")


def usable(
    source: Source, read: Callable[[int], Item], say: Callable[[str], None] = print
) -> Iterator[tuple[int, Item]]:
    """Each sound record's number and what `read` gives for it, in order.

    At the end `say` is told how many were left out and the first of them. Raises `UserError` when
    more than half are broken; those that a quality rule leaves out do not count for that.
    """
    left_out: list[str] = []
    count = broken = 0
    for number in range(len(source)):
        try:
            item = read(number)
        except BadRecord as bad:
            count += 1
            broken += not isinstance(bad, RefusedByRule)
            if len(left_out) < _NAMED:
                left_out.append(str(bad))
            continue
        yield number, item
    if broken > MOST_BROKEN * len(source):
        raise UserError(
            f"{broken} of {len(source)} records can't be read, the first one being {left_out[0]}; "
            "check data.source."
        )
    if count:
        more = f"; and {count - len(left_out)} more" if count > len(left_out) else ""
        say(f"left out {count} of {len(source)} records: {'; '.join(left_out)}{more}")
