"""DALL-E in one model family with CM3Leon (arXiv 2102.12092): 12 B parameters, text before image.

    python -m launch.train dalle --data.corpus PATH --data.bank PATH

A plain causal model: nothing is masked, nothing retrieved, and a row holds one caption and image.
Layers, heads, widths and pairs are the paper's, of its rows of 256 + 1,024 tokens three are for
structure. Not as in the paper: attention is dense, text and image tokens weigh the same (there 1/8
and 7/8 of the loss) and share the vocabulary, tokenizers and optimiser of CM3Leon. Batch and steps
are the paper's as remembered.
"""

from cm3jax.config import (
    CM3Config,
    DataConfig,
    DecoderConfig,
    Experiment,
    MeshConfig,
    OptimConfig,
    RetrievalConfig,
    TrainConfig,
)


def get_config() -> Experiment:
    """Text to image, one sample per row."""
    return Experiment(
        name="dalle",
        model=DecoderConfig(
            layers=64,
            width=3968,
            heads=62,
            head_width=64,
            ffn=15872,
            context=256 + 1024,
            remat="full",
        ),
        retrieval=RetrievalConfig(documents=0),
        cm3=CM3Config(mean_masks=0.0, no_documents=0.0),
        data=DataConfig(records=250_000_000, image_size=256, batch=1024),
        optim=OptimConfig(peak_lr=1.2e-4),
        train=TrainConfig(steps=430_000),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
