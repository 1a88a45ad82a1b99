"""CM3Leon-350M (arXiv 2309.02591, table 3): 0.373 B parameters, 1.4 T tokens on 256 A100s.

    python -m launch.train cm3leon_350m --data.corpus PATH --data.bank PATH

The paper gives layers, width, context, batch ("8M" tokens), peak rate, warm-up and tokens. Heads
and feed-forward width are metaseq's at this size; Adam's constants and the decay are those of the
authors' scaling-law paper. 2,048 rows of 4,096 tokens make 8.4 M tokens a step.
"""

from cm3jax.config import (
    CM3Config,
    DataConfig,
    DecoderConfig,
    Experiment,
    OptimConfig,
    RetrievalConfig,
    TrainConfig,
)


def get_config() -> Experiment:
    """The smallest of the three sizes; the others state what differs from it."""
    return Experiment(
        name="cm3leon_350m",
        model=DecoderConfig(
            layers=24, width=1024, heads=16, head_width=64, ffn=4096, context=4096, remat="dots"
        ),
        # Three of four retrieved documents per pair (section 2.1). Four pairs are 4,141 tokens,
        # more than a row holds: rows are cut from a stream and masked as one.
        retrieval=RetrievalConfig(documents=3),
        cm3=CM3Config(no_documents=0.0, mask_retrieved=True),
        data=DataConfig(records=340_000_000, image_size=256, rows="stream", batch=2048),
        optim=OptimConfig(peak_lr=6e-4, warmup_steps=1500),
        train=TrainConfig(steps=166_900),  # 1.4 T tokens
    )
