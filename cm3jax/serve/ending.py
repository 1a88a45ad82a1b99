"""How a server ends: patiently at the first signal, soon at the second, at once at the third."""

import os
from types import FrameType

import uvicorn

from cm3jax.serve.engine import DrawingEngine


class EndingServer(uvicorn.Server):
    """A server that a signal tells to finish what is running, a second one to give that up with a
    sentence to each client, and a third one to end the process.

    Uvicorn's own second Ctrl-C cancels what runs: a traceback for each request, and no reason to
    its client.
    """

    def __init__(self, config: uvicorn.Config, engine: DrawingEngine):
        super().__init__(config)
        self._engine = engine
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn has it."""
        self._signals += 1
        if self._signals == 1:
            super().handle_exit(sig, frame)
        elif self._signals == 2:
            self._engine.give_up()
        else:  # say while it compiles; whatever it writes can be killed at any moment
            os._exit(128 + sig)
