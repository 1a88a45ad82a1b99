"""Test environment: CPU, eight virtual devices, run-time shape checks; set before jax starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Virtual devices wait for each other on a thread pool of the size of the machine: with fewer
# threads than devices a collective never ends.
os.environ["NPROC"] = "32"

from jaxtyping import install_import_hook

install_import_hook("cm3jax", "beartype.beartype")
