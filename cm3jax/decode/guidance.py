"""Classifier-free guidance: streams that see other prompts and share each sampled token."""

from cm3jax.shapes import Array, Float


def streams(scale: float) -> int:
    """Rows per sample: guidance of scale 1 changes nothing, so it runs no second stream."""
    return 1 if scale == 1 else 2


def guide(logits: Float[Array, "W B V"], scale: Float[Array, ""]) -> Float[Array, "B V"]:
    """Logits of the conditional stream, moved away from the unconditional one if there is one.

    `logits[0]` is conditional, `logits[1]` unconditional. The form c + (s - 1)(c - u) equals the
    paper's u + s(c - u) (section 3.1) and is exactly c at scale 1.
    """
    if logits.shape[0] == 1:
        return logits[0]
    conditional, unconditional = logits
    return conditional + (scale - 1) * (conditional - unconditional)
