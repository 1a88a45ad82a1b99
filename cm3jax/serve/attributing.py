"""What the documents of a drawn sample did, measured a forward pass at a time."""

import numpy as np

from cm3jax.decode.finished import Sample
from cm3jax.generation.attribution import DocumentEffect, effects
from cm3jax.generation.generator import Generator
from cm3jax.generation.requests import PromptRequest
from cm3jax.shapes import Float


class Attribution:
    """One sample's passes; the engine runs them between the chunks of other requests."""

    def __init__(self, generator: Generator, request: PromptRequest, sample: Sample):
        self._shown, self._vocab = (request.documents, sample.ids), generator.vocab
        self._passes = generator.document_logprobs(request.prefix, *self._shown)
        self._left = 1 + len(request.documents) if request.documents else 0
        self._found: list[Float[np.ndarray, " T"]] = []

    def step(self) -> bool:
        """Run a pass; whether none is left."""
        if self._left:
            self._found.append(next(self._passes))
            self._left -= 1
        return not self._left

    def effects(self) -> list[DocumentEffect]:
        """What each document did, once no pass is left."""
        documents, ids = self._shown
        return effects(ids, documents, self._found, self._vocab) if documents else []
