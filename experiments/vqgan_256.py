"""CM3Leon's image tokenizer: 256 x 256 pixels as 32 x 32 of 8,192 codes (section 2.1).

    python -m launch.train vqgan_256 --data.source PICTURES --vqgan-loss.lpips lpips.npz

A VQGAN in the manner of Make-A-Scene: squared error, LPIPS, and a discriminator that begins after
250,000 steps. Without LPIPS weights (`cm3jax.tokenizers.lpips` says which), `--vqgan-loss.lpips
random` trains on untrained features. Make-A-Scene's stress on faces and objects needs their masks
in `captions.jsonl` and `--vqgan-loss.region`. Not in the paper: channel multipliers, batch, rate
and number of steps, which are a public replication's where that says them. Never run: this is the
recipe, without a result.
"""

from cm3jax.config import (
    DataConfig,
    Experiment,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    VQGANConfig,
    VQGANLossConfig,
)


def get_config() -> Experiment:
    """f = 8, 256 numbers per code."""
    return Experiment(
        name="vqgan_256",
        learner="vqgan",
        vqgan=VQGANConfig(multipliers=(1, 1, 2, 4)),
        vqgan_loss=VQGANLossConfig(perceptual=1.0, adversarial=0.8),
        data=DataConfig(source="pictures", image_size=256, batch=32),
        optim=OptimConfig(
            peak_lr=32 * 4.5e-6,  # per image, as taming-transformers counts
            warmup_steps=1000,
            end_lr_ratio=1.0,
            beta1=0.5,
            beta2=0.9,
            weight_decay=0.0,
        ),
        train=TrainConfig(steps=500_000, validate_every=5000),
        mesh=MeshConfig(data=-1),
    )
