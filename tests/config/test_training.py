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
    ],
)
def test_numbers_that_no_run_has_raise_user_error(option, value):
    with pytest.raises(UserError, match=f"{option.replace('-', '_')}={value} "):
        parse_experiment(["quickstart", f"--{option}", value], "")
