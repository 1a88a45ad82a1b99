"""What the members of a chain are trained on: a source that changes on the way is never mixed into
it in silence, and what was trained on is never held back later.
"""

import io
import re
from collections.abc import Callable

import numpy as np
from etils import epath

from cm3jax.config import Experiment
from cm3jax.data.changes import SourceState
from cm3jax.data.shard_jobs import SplitJob, state_of
from cm3jax.errors import UserError
from cm3jax.io.files import write_atomic
from cm3jax.io.shard_writer import load_column
from cm3jax.shapes import Bool

FILE = "source.npy"
_TRAIN, _VALIDATION, _EARLIER = range(3)
"""Records of the two splits, and those that were trained on before a change that was accepted."""
_ROW_OF_TABLE = re.compile(r"#\d+$")
_ROW = np.dtype([("name", "<u8"), ("state", "<u8"), ("split", "i1")])


def _trained_on(validation: SourceState, rows: np.ndarray) -> Bool[np.ndarray, " V"]:
    """Which of the records that are held back now were trained on, or may have been: under their
    name; under another one, if only one record was read from such files; and rows of a table that
    was written again, since these are known by their place alone."""
    table, seen = validation.table, rows[rows["split"] != _VALIDATION]
    states, counts = np.unique(rows["state"], return_counts=True)
    single = np.intersect1d(seen["state"], states[counts == 1])
    again = np.isin(table["name"], rows["name"]) & ~np.isin(table["state"], rows["state"])
    by_place = np.asarray([bool(_ROW_OF_TABLE.search(name)) for name in validation.names], bool)
    known = np.isin(table["name"], seen["name"]) | np.isin(table["state"], single)
    return known | (again & by_place)


class ChainSource:
    """The raw records of the chain in a folder, as they are and as they were when it was begun.

    Records that are only in the bank may change: nothing is trained on them.
    """

    def __init__(self, out: epath.PathLike, decoder: Experiment, say: Callable[[str], None]):
        self._out, self._decoder, self._say = epath.Path(out), decoder, say

    def begin(self) -> None:
        """Note the records that a chain is trained on. To be called before anything is."""
        now = self._now()
        if now is not None:
            self._save(*now, np.zeros(0, _ROW))

    def require_same(self, trained: bool, with_changes: bool) -> None:
        """Raise `UserError` if the records have changed since, unless all members are `trained` or
        it is to go on `with_changes`; these never excuse that a record which was trained on would
        be held back now. Nothing is known of a chain of an earlier version."""
        now = self._now() if self._path.exists() else None
        if now is None:
            return
        rows = load_column(self._path, "the chain's source", f"remove {self._path}", _ROW)
        before = rows[rows["split"] != _EARLIER]
        train, validation = now
        known = SourceState(np.asarray(before[["name", "state"]].tolist(), train.table.dtype))
        state = SourceState.joined(now)
        if state.mark == known.mark and len(train.table) == (before["split"] == _TRAIN).sum():
            return
        changed = (
            f"{self._decoder.data.source} has changed since {self._out} was begun "
            f"({state.since(known)})"
        )
        held = np.flatnonzero(_trained_on(validation, rows))
        if len(held):
            raise UserError(
                f"{changed}: it holds back {len(held)} records now that were trained on, or may "
                f"have been ({validation.names[held[0]]} first), so that scores would not be of "
                "unseen images; give another --out, or put the source back as it was."
            )
        if trained:
            return  # the bank follows the source, and says so
        if not with_changes:
            raise UserError(
                f"{changed}, and what is trained by now has not seen that; give another --out, or "
                "go on with the changes by --resume-with-changes."
            )
        self._say(f"{changed}; what is trained by now has not seen that.")
        gone = rows[(rows["split"] != _VALIDATION) & ~np.isin(rows["name"], train.table["name"])]
        self._save(train, validation, gone)

    @property
    def _path(self) -> epath.Path:
        return self._out / FILE

    def _now(self) -> tuple[SourceState, SourceState] | None:
        """The states of the training and the validation records; None where they are drawn."""
        train, validation = (state_of(SplitJob(self._decoder, s)) for s in ("train", "validation"))
        return None if train is None or validation is None else (train, validation)

    def _save(self, train: SourceState, validation: SourceState, gone: np.ndarray) -> None:
        rows = np.zeros(len(train.table) + len(validation.table) + len(gone), _ROW)
        rows["split"][len(train.table) :] = _VALIDATION
        for name in ("name", "state"):
            rows[name] = np.concatenate([train.table[name], validation.table[name], gone[name]])
        rows["split"][len(rows) - len(gone) :] = _EARLIER
        buffer = io.BytesIO()
        np.save(buffer, rows)
        write_atomic(self._path, buffer.getvalue())
