"""`Experiment` to plain JSON values and back, strictly: what a run saves, a run can read."""

import dataclasses
import math
import sys
import types
import typing
from typing import Any

from etils import epath

from cm3jax.config import Experiment
from cm3jax.errors import UserError
from cm3jax.io.files import read_json, write_json


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Nested dictionaries of JSON values, every field included."""
    return dataclasses.asdict(experiment)


def from_dict(values: Any, what: str = "the config") -> Experiment:
    """The experiment that `to_dict` wrote; `what` names the file in errors.

    Fields that are absent take their defaults, so that old runs stay readable when a field is
    added. Raises `UserError` for a field that does not exist or has a value of another type.
    """
    return build(Experiment, values, what)


def save_experiment(path: epath.PathLike, experiment: Experiment) -> None:
    """Write a resolved `config.json`, atomically."""
    write_json(path, to_dict(experiment))


def read_experiment(path: epath.PathLike) -> Experiment:
    """Read a `config.json`; `UserError` if it is missing, damaged or has unknown fields."""
    return from_dict(read_json(path, "the run's config"), str(path))


def read_as(kind: Any, path: epath.PathLike, what: str) -> Any:
    """A JSON file as a dataclass, or as another type that `build` makes; `UserError` where it is
    missing or damaged."""
    return build(kind, read_json(path, what), str(path))


def build(kind: Any, value: Any, what: str, where: str = "") -> Any:
    """JSON's `value` as an instance of the annotation `kind`, found at the dotted field `where`.

    Raises `UserError` that names `what` and the field where they don't fit.
    """
    try:
        return _build(kind, value, what, where)
    except _WrongError:
        raise UserError(
            f"{what}: {where or 'it'} is {_shown(value)}, which is not {_name(kind)}; correct it."
        ) from None


class _WrongError(Exception):
    """A value that its annotation does not take."""


def _build(kind: Any, value: Any, what: str, where: str) -> Any:
    prefix = f"{where}." if where else ""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, what, prefix)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(value, dict):
        return {name: build(args[1], v, what, prefix + name) for name, v in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[1:] == (...,) else args
        if len(kinds) != len(value):
            raise _WrongError
        return tuple(build(k, v, what, where) for k, v in zip(kinds, value, strict=True))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return build(next(k for k in args if k is not type(None)), value, what, where)
    if not _fits(kind, value):
        raise _WrongError
    return float(value) if kind is float else value


def _build_dataclass(kind: type, value: Any, what: str, prefix: str) -> Any:
    if not isinstance(value, dict):
        raise _WrongError
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise UserError(
                f"{what} has a field {prefix}{name} that this version does not know; remove it or "
                "use the version that wrote it."
            )
    fields = {n: build(hints[n], v, what, prefix + n) for n, v in value.items()}
    for field in dataclasses.fields(kind):
        if field.name not in fields and field.default is field.default_factory:
            raise UserError(f"{what} has no field {prefix}{field.name}; it is damaged, restore it.")
    return kind(**fields)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value without parts is of a type."""
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (abs(value) <= sys.float_info.max or value in (math.inf, -math.inf))
    return type(value) is kind and not (kind is str and _is_broken(value))


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return "nested too deeply"


def _is_broken(text: str) -> bool:
    """Whether a text can be no argument, path or output: it holds half a character or a null."""
    return "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
