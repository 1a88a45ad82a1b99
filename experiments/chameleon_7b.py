"""Chameleon-7B (arXiv 2405.09818): 7.01 B parameters, 9.2 T tokens in two passes.

    python -m launch.train chameleon_7b --data.corpus PATH --data.bank PATH

The paper's architecture, dropout, z-loss and batch (2^23 tokens), and AdamW's constants. Not as in
the paper: the rate falls linearly (there exponentially) to 0, the pairs' text always comes first
(there in half of them), the initialisation is CM3Leon's, and the tokenizers are this project's,
here for images of 512 x 512.
"""

from cm3jax.config import (
    CM3Config,
    DataConfig,
    DecoderConfig,
    Experiment,
    LossConfig,
    MeshConfig,
    OptimConfig,
    RetrievalConfig,
    TrainConfig,
    VQGANConfig,
)


def get_config() -> Experiment:
    """A causal model of text and images in the body of Llama 2."""
    return Experiment(
        name="chameleon_7b",
        vqgan=VQGANConfig(image_size=512, multipliers=(1, 1, 2, 2, 4)),
        model=DecoderConfig(
            layers=32,
            width=4096,
            heads=32,
            head_width=128,
            ffn=11008,
            context=4096,
            positions="rope",
            qk_norm=True,
            norm="rms",
            activation="swiglu",
            tied=False,
            dropout=0.1,
            remat="full",
        ),
        loss=LossConfig(z_loss=1e-5),
        retrieval=RetrievalConfig(documents=0),
        cm3=CM3Config(mean_masks=0.0, no_documents=0.0),
        data=DataConfig(image_size=512, batch=2048),
        optim=OptimConfig(
            peak_lr=1e-4, warmup_steps=4000, end_lr_ratio=0.0, beta1=0.9, beta2=0.95, eps=1e-5
        ),
        train=TrainConfig(steps=1_096_700),  # 9.2 T tokens
        mesh=MeshConfig(data=1, fsdp=-1),
    )
