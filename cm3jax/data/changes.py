"""What a bank or a corpus was made from, record by record, so that a changed source is noticed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from cm3jax.io.files import digest
from cm3jax.io.shard_writer import MANIFEST, load_column
from cm3jax.io.texts import printable


class Made(NamedTuple):
    """What a record is read from, without reading its images."""

    name: str
    """Its file, or its place; several records may share it."""
    state: str
    """Another one when the record's files change: lines, sizes, times."""


SOURCE = "source"
"""The column of states in a bank or a corpus."""
_DTYPE = np.dtype([("name", "<u8"), ("state", "<u8")])


@dataclasses.dataclass(frozen=True, eq=False)
class SourceState:
    """The names and states of a split's raw records, bad ones included, in order."""

    table: np.ndarray
    """Hashes of each record's name and of what it is read from."""
    names: Sequence[str] = ()

    @staticmethod
    def of(made: Sequence[Made]) -> "SourceState":
        """The state of some records."""
        rows = [(_hash(one.name), _hash(one.state)) for one in made]
        return SourceState(np.asarray(rows, _DTYPE), [printable(one.name) for one in made])

    @staticmethod
    def saved(folder: epath.Path) -> "SourceState | None":
        """What the folder was made from; None where it does not say."""
        file = folder / f"{SOURCE}.npy"
        if not file.exists():
            return None
        table = load_column(
            file, "the prepared data", f"remove {folder} and prepare it again", _DTYPE
        )
        return SourceState(table)

    @property
    def mark(self) -> str:
        """Equal for equal states of equal records in equal order."""
        return digest(self.table.tobytes())

    def part(self, span: range) -> "SourceState":
        """The state of some of the records."""
        return SourceState(self.table[span.start : span.stop], self.names[span.start : span.stop])

    def since(self, before: "SourceState") -> str:
        """What is different now, in half a sentence."""
        old, new = before.by_name(), self.by_name()
        named = dict(zip(self.table["name"].tolist(), self.names, strict=True))
        kinds = {
            "new": [name for name in new if name not in old],
            "changed": [name for name in new if name in old and old[name] != new[name]],
            "gone": [name for name in old if name not in new],
        }
        said = []
        for kind, names in kinds.items():
            if names:
                first = f" ({named[names[0]]} first)" if names[0] in named else ""
                said.append(f"{len(names)} {kind}{first}")
        return ", ".join(said) or "in another order"

    @staticmethod
    def joined(parts: "Sequence[SourceState]") -> "SourceState":
        """The states of several spans of records, in order."""
        names = [name for part in parts for name in part.names]
        return SourceState(np.concatenate([part.table for part in parts]), names)

    def by_name(self) -> dict[int, tuple[int, ...]]:
        """The states of the records of each name, by its hash."""
        states: dict[int, tuple[int, ...]] = {}
        for name, state in self.table.tolist():
            states[name] = (*states.get(name, ()), state)
        return states


def say_why_again(
    path: epath.Path,
    outdated: Sequence[tuple[int, np.ndarray]],
    now: Callable[[], SourceState | None],
    size: int,
    source: str,
    say: Callable[[str], None],
) -> None:
    """Tell `say` why what is at a path, or what an interrupted preparation left beside it, is made
    again; nothing where neither is there.

    `outdated` are the shards, of `size` records each, whose raw records have changed since
    (`ShardWriter.outdated` of `SOURCE`), `now` gives the state of all, and `source` is where they
    are.
    """
    stands = (path / MANIFEST).exists()
    state = now() if stands or outdated else None
    if stands:
        before = SourceState.saved(path)
        why = "it was made with other settings, another source or another bank"
        if before and state and before.mark != state.mark:
            why = f"{source} has changed since ({state.since(before)})"
        say(f"{path} is made again: {why}")
    if outdated and state:
        parts = [state.part(range(n * size, (n + 1) * size)) for n, _ in outdated]
        since = SourceState.joined(parts).since(
            SourceState(np.concatenate([table for _, table in outdated]))
        )
        say(
            f"{len(outdated)} shards that an interrupted preparation left beside {path} are made "
            f"again: {source} has changed since ({since})"
        )


def _hash(text: str) -> int:
    return int(digest(text), 16)
