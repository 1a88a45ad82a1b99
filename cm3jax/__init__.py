"""CM3Leon in JAX: retrieval-augmented, token-based generation of text and images."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3jax.generation.generator import Generator

__version__ = "0.2.0"


def load(run_dir: str, bank: str = "") -> "Generator":
    """The generator of a trained decoder: `cm3jax.load(run).generate("…", retrieve=2).image`.

    See `cm3jax.generation.generator.load`; nothing is imported before it is called. Compiled
    programs are kept for the next process, unless jax was told where to keep them, or not to.
    """
    from cm3jax.generation import generator
    from cm3jax.training.program_cache import use_program_cache

    use_program_cache()
    return generator.load(run_dir, bank)
