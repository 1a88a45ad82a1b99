"""Parti-20B (arXiv 2206.10789): an encoder reads the caption, a decoder draws the image.

    python -m launch.train parti --data.corpus PATH

16 + 64 layers of width 4,096, captions of up to 128 tokens, images of 1,024, 450,000 steps of
8,192 pairs, a tenth of them without their caption. Activation, norms, vocabulary, tokenizers and
optimiser are CM3Leon's, so that comparing the two compares the architectures. It reads the corpus
that `launch.prepare cm3leon_350m` makes, and no neighbours.
"""

from cm3jax.config import (
    DataConfig,
    DecoderConfig,
    Experiment,
    MeshConfig,
    OptimConfig,
    PartiConfig,
    TrainConfig,
)


def get_config() -> Experiment:
    """The largest of the paper's four sizes."""
    return Experiment(
        name="parti",
        learner="parti",
        model=DecoderConfig(
            layers=64, width=4096, heads=64, head_width=64, ffn=16384, remat="full"
        ),
        parti=PartiConfig(encoder_layers=16, text_tokens=128, drop_captions=0.1),
        data=DataConfig(records=340_000_000, image_size=256, batch=8192),
        optim=OptimConfig(peak_lr=1.2e-4),
        train=TrainConfig(steps=450_000),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
