"""Checks of values, shared by all configs."""

from collections.abc import Iterable

from cm3jax.errors import UserError

LARGEST = 2**24
"""More than any size of a network, of an image or of a row."""
COUNTED = 2**31 - 1
"""What 32 bits count."""


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with this message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_range(
    config: object, where: str, names: Iterable[str], least: int = 1, most: int = LARGEST
) -> None:
    """Raise `UserError` unless all these fields of a config, called `where`, are in a range."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{where}.{name}={value} must be at least {least}.")
        require(value <= most, f"{where}.{name}={value} must be at most {most}.")


def require_not_negative(config: object, where: str, names: Iterable[str]) -> None:
    """Raise `UserError` unless all these fields of a config, called `where`, are 0 or more."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{where}.{name}={value} must not be negative.")  # which NaN isn't


def require_decays(config: object, where: str, names: Iterable[str]) -> None:
    """Raise `UserError` unless all these fields of a config, called `where`, are below 1, and not
    negative."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < 1, f"{where}.{name}={value} is a decay; give 0 or more, below 1.")
