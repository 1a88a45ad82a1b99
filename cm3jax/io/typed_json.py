"""What JSON files must hold, checked where they are read, so that damage ends in a sentence."""

import types
import typing
from collections.abc import Mapping
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_json


def read_fields(
    path: epath.PathLike, fields: Mapping[str, Any], what: str, remedy: str = "make it again"
) -> dict[str, Any]:
    """A file's JSON object, which has at least `fields` of these types, e.g. `dict[str, int]`.

    Raises `UserError` where it is missing or damaged; `what` names it, e.g. "the bank", and
    `remedy` says what to do.
    """
    return require_fields(read_json(path, what), fields, str(path), remedy)


def require_fields(
    value: Any, fields: Mapping[str, Any], where: str, remedy: str = "make it again"
) -> dict[str, Any]:
    """`value` as an object with `fields` of these types; `UserError` if it is none, which names
    `where` it was read and the first field that is wrong."""
    values = value if isinstance(value, dict) else {}
    wrong = next((n for n, kind in fields.items() if not fits(values.get(n), kind)), None)
    if wrong is not None or not isinstance(value, dict):
        about = "" if wrong is None else f" (its {wrong!r})"
        raise UserError(f"{where} is damaged or of an earlier version{about}; {remedy}.")
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type: a plain one, `Any`, `list[...]`, `dict[str, ...]`,
    `Mapping[str, ...]` or `... | None`. A float may be whole."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(part, args[1]) for part in value.values())
    if origin is list:
        return isinstance(value, list) and all(fits(part, args[0]) for part in value)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in args)
    if kind is types.NoneType:
        return value is None
    return type(value) is kind or (kind is float and type(value) is int)
