"""Experiments by name: each module's `get_config()` returns one resolved `Experiment`.

A module states only what differs from the defaults of `cm3jax.config`; its header gives the
command, the cost and the result to expect. Modules import each other as `cm3jax.experiments`, which
is this folder by a link, and its place in an installed library: `cm3jax.load_experiment(NAME)`.
"""
