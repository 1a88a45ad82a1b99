"""Checks of values, shared by all configs."""

from cm3jax.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with this message unless the condition holds."""
    if not condition:
        raise UserError(message)
