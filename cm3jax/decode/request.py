"""What is asked of the engine."""

import dataclasses

import numpy as np

from cm3jax.decode import grammar
from cm3jax.errors import UserError
from cm3jax.model.language_model import LanguageModel
from cm3jax.shapes import Int


@dataclasses.dataclass(frozen=True, eq=False)
class Guide:
    """A stream that knows less than the one before it."""

    prefix: Int[np.ndarray, " U"]
    """Ids that it has seen; at least one."""
    scale: float
    """How strongly samples are pushed away from it; 1 changes nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One prompt and what to emit after it."""

    prefix: Int[np.ndarray, " L"]
    """Ids that the conditional stream has seen; at least one."""
    guides: tuple[Guide, ...]
    """Further streams, each knowing less."""
    program: grammar.Program
    """What follows."""
    prompt_id: int
    """Names the prompt's noise."""

    @property
    def prefixes(self) -> list[Int[np.ndarray, " _"]]:
        """The prefixes of all streams, the conditional one first."""
        return [self.prefix, *(guide.prefix for guide in self.guides)]

    @property
    def longest(self) -> int:
        """Ids of the longest prefix."""
        return max(map(len, self.prefixes))


def require_fit(request: Request, model: LanguageModel) -> None:
    """Raise `UserError` for a request whose prompt leaves less room than its answer needs."""
    new, room = grammar.steps(request.program), model.room(request.longest)
    if new > room:
        raise UserError(
            f"prompt {request.prompt_id} is {request.longest} tokens long and asks for {new} more, "
            f"but leaves the model room for {max(room, 0)}; show fewer documents or shorten the "
            "text."
        )
