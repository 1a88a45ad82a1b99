"""Experiments by name: each module's `get_config()` returns one resolved `Experiment`.

A module states only what differs from the defaults of `cm3jax.config`; its header gives the
command, the cost and the result to expect. Modules import each other relatively: an installed
library has them as `cm3jax.experiments`, where `cm3jax.load_experiment(NAME)` finds them.
"""
