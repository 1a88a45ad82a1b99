import pytest

from cm3jax.errors import UserError
from launch.cli import parse_experiment


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.steps", "99999999999999"),
        ("optim.warmup-steps", "99999999999999"),
        ("optim.warmup-steps", "-5"),
        ("retrieval.documents", "99999999999999"),
        ("model.layers", "-5"),
        ("model.heads", "0"),
        ("model.head-width", "0"),
        ("model.unroll", "-5"),
        ("model.context", "99999999999999"),
        ("model.lora-rank", "-5"),
        ("clip.vision-layers", "-5"),
        ("clip.text-context", "99999999999999"),
        ("clip.text-heads", "0"),
        ("clip.pair-loss", "nan"),
        ("vqgan.channels", "0"),
        ("vqgan.blocks", "99999999999999"),
        ("vqgan.ema-decay", "1.5"),
        ("vqgan.latent-width", "-5"),
        ("parti.encoder-layers", "-5"),
        ("parti.text-tokens", "99999999999999"),
        ("vocab.specials", "-5"),
        ("vocab.grid", "99999999999999"),
        ("train.validate-every", "-5"),
        ("train.validation-batches", "-5"),
        ("optim.beta1", "2.0"),
        ("optim.eps", "nan"),
        ("optim.clip-norm", "-1.0"),
        ("optim.weight-decay", "-1.0"),
        ("data.batch", "99999999999999"),
        ("cm3.max-masks", "-5"),
        ("seed", "-5"),
        ("seed", "99999999999999"),
    ],
)
def test_numbers_that_no_run_has_raise_user_error(option, value):
    with pytest.raises(UserError, match=f"{option.replace('-', '_')}={value} "):
        parse_experiment(["quickstart", f"--{option}", value], "")
