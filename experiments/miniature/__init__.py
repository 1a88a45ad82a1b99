"""The miniature: every part of CM3Leon at a size that trains on two CPU cores.

`weights/` holds what these experiments made: `cm3jax.checkpoint.export_run(RUN, OUT)` wrote each
member's, and the text tokenizer's run is there as it is.
"""
