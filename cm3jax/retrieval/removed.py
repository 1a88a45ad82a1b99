"""What was taken out of a memory bank and stays out: listed beside the bank and in its manifest."""

import dataclasses
import functools
import re

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_json, sweep_scratch, write_json
from cm3jax.io.paths import real
from cm3jax.io.typed_json import fits


@dataclasses.dataclass(frozen=True)
class Removed:
    """What was taken out of a bank and stays out: documents by key, by source, by licence."""

    keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    # Not in the `repr`, by which older banks say what they are made from.
    marks: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """Marks of the documents (`bank_files.mark_of`), by which pages that show them are found."""

    def covers(self, key: str, source: str, licence: str) -> bool:
        """Whether a document must not be in the bank."""
        return key in self._keys or source in self.sources or licence in self.licences

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.keys)

    def __or__(self, other: "Removed") -> "Removed":
        """What either takes out."""
        fields = (field.name for field in dataclasses.fields(self))
        return Removed(
            **{f: tuple(sorted({*getattr(self, f), *getattr(other, f)})) for f in fields}
        )

    @staticmethod
    def of(bank: epath.PathLike) -> "Removed":
        """What was taken out of the bank at a path, whether it is there or is prepared again."""
        removed = Removed.beside(bank)
        note = epath.Path(bank) / "manifest.json"
        if note.exists():  # its list goes where the bank is moved or copied
            removed |= Removed.listed(note, "the memory bank", "removed")
        return removed

    @staticmethod
    def beside(bank: epath.PathLike) -> "Removed":
        """What is listed beside the bank at a path, or beside a link to it."""
        removed = Removed()
        for path in (epath.Path(bank), real(bank)):
            if _file(path).exists():
                removed |= Removed.listed(_file(path), "the list of removed documents", "")
        return removed

    @staticmethod
    def listed(path: epath.Path, what: str, field: str) -> "Removed":
        """From a JSON file, or from a field of it; an earlier version's list has keys only.

        Names are whatever a bank has: an archive's member may have a null in its own. Raises
        `UserError` where it makes no sense: what was taken out must not come back.
        """
        value = read_json(path, what)
        if field:
            value = value.get(field, {}) if isinstance(value, dict) else None
        value = {"keys": value} if isinstance(value, list) else value
        known = {field.name for field in dataclasses.fields(Removed)}
        if not fits(value, dict[str, list[str]]) or not value.keys() <= known:
            raise UserError(f"{what} {path} is damaged or of a later version; restore it.")
        return Removed(**{name: tuple(listed) for name, listed in value.items()})

    def save(self, bank: epath.PathLike) -> None:
        """Remember it beside the bank, which is replaced as a whole; for the bank's writer."""
        path = _file(real(bank))
        sweep_scratch(path.parent, re.escape(path.name))
        write_json(path, dataclasses.asdict(self))

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.keys or self.sources or self.licences)


def _file(bank: epath.Path) -> epath.Path:
    return bank.parent / f"{bank.name}-removed.json"
