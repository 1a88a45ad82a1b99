"""The glossary of dimension letters, and the array types that public signatures use.

    B  rows of a batch          D  model width (d_model)      R  documents in front of a query
    L  tokens of a row          F  feed-forward width         M  documents in a memory bank
    V  vocabulary               N  layers                     C  channels
    H  query heads              P  prompts or prefixes        Y  height (pixels or cells)
    K  key-value heads          G  samples of one prompt      X  width (pixels or cells)
    A  head width               S  cached tokens              E  width of a retrieval vector

Letters are written in jaxtyping strings at public boundaries (`Float[Array, "B L D"]`) and reused
in einsum; `*B` is any number of leading axes.
"""

from typing import Any

import numpy as np

try:
    from jaxtyping import Array, Bool, Float, Int, Key, UInt8, UInt32
except ImportError:  # accelerator machines without packages of their own still train and decode
    from jax import Array

    class _Unchecked:
        def __class_getitem__(cls, item: Any) -> type:
            return Array

    # There are no shapes to check then, neither here nor for type checkers.
    Bool = Float = Int = Key = UInt8 = UInt32 = _Unchecked  # type: ignore[assignment]

AnyArray = Array | np.ndarray
"""An array of jax, or of numpy on the host."""
RgbImage = UInt8[np.ndarray, "Y X 3"]
"""An image of bytes, red, green and blue."""

__all__ = ["AnyArray", "Array", "Bool", "Float", "Int", "Key", "RgbImage", "UInt8", "UInt32"]
