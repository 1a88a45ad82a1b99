"""The miniature: every part of CM3Leon at a size that trains on two CPU cores.

`weights/` holds what these experiments made. `cm3jax.checkpoint.export_run(RUN, OUT)` writes an
image tokenizer and an encoder, in float32: corpora and banks are bound to their fingerprints.
`export_run(RUN, OUT, "bfloat16")` writes a decoder in half the space: loaded, it is float32 again,
and the emblem decoder scores the same (docs/evaluation.md). The text tokenizer's run is there as it
is.
"""
