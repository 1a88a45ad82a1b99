"""CM3Leon in JAX: retrieval-augmented, token-based generation of text and images."""

__version__ = "0.1.0"
