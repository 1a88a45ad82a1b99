"""Which kernel attends over training rows, where `model.attention=auto` leaves the choice."""

from typing import Literal

import jax

from cm3jax import partition
from cm3jax.config import DecoderConfig

Kernel = Literal["xla", "cudnn", "splash", "triton"]


def kernel_for(model: DecoderConfig, length: int, one_segment: bool) -> Kernel:
    """`model.attention`, or what `auto` stands for on the mesh that is set, or on jax's devices.

    `one_segment` says that no row of `length` tokens holds several samples. Splash attention runs
    on TPUs. On GPUs cuDNN's is the fastest for rows of one segment, but takes no segments; of those
    that do, Triton's in jax needs no other package, runs on any GPU from Ampere on, computes the
    mask from the segments that rows have, and can be interpreted in tests. (cuDNN's packed layout
    wants the samples' lengths and a largest number of them, Tokamax a later Python than 3.11.)
    Whatever a kernel cannot do, plain operations do.
    """
    if model.attention != "auto":
        return model.attention
    mesh, platform = jax.sharding.get_abstract_mesh(), partition.platform()
    if platform not in ("tpu", "gpu") or (not mesh.empty and model.groups % mesh.shape["tensor"]):
        return "xla"
    blocks = length % 128 == 0
    if platform == "tpu":
        return "splash" if blocks else "xla"
    if model.dtype != "bfloat16" or model.head_width % 8 or model.head_width > 128:
        return "xla"
    if not _has_kernels():
        return "xla"
    if one_segment:
        return "cudnn"
    return "triton" if blocks else "xla"


def _has_kernels() -> bool:
    """Whether GPUs are NVIDIA's from Ampere on; those of a target, which are not here, are."""
    generation = getattr(jax.local_devices()[0], "compute_capability", "8.0")
    return generation.replace(".", "").isdigit() and float(generation) >= 8  # AMD's are words


IN_WORDS = {
    "xla": "plain operations",
    "cudnn": "cuDNN's kernel",
    "splash": "splash attention",
    "triton": "a Triton kernel",
}
"""The kernels' names for people."""
