"""What one request, and all of them together, may take of a server."""

import dataclasses

from cm3jax.config.checks import require


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a server; what is beyond them is refused with one sentence."""

    queue: int = 64
    """Requests that wait or run at once; more are refused, to be sent again (429)."""
    kinds: int = 4
    """Kinds of requests (docs/server.md) that are drawn at once, with slots of their own each."""
    samples: int = 8
    """Samples of one request (`n`)."""
    documents: int = 8
    """Documents of one request, given and retrieved together."""
    pictures: int = 8
    """Images of one chat."""
    characters: int = 20_000
    """Characters of one text, or of all messages of a chat together."""
    tokens: int = 4096
    """Tokens of one sample: longer texts and documents end there."""
    upload_bytes: int = 16 << 20
    """Bytes of one request's body."""
    upload_pixels: int = 1 << 24
    """Pixels of one uploaded image."""
    body_seconds: float = 30.0
    """How long a request's body may take to arrive."""
    seconds: float = 600.0
    """How long a request may take, with its wait; then its slots are freed."""

    def __post_init__(self):
        for name, value in vars(self).items():
            require(value > 0, f"{name.replace('_', '-')}={value} must be more than 0.")
