import pytest

from cm3jax.errors import UserError
from launch.cli import parse_experiment


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.steps", "99999999999999"),
        ("optim.warmup-steps", "99999999999999"),
        ("optim.warmup-steps", "-5"),
    ],
)
def test_steps_that_no_run_counts_raise_user_error(option, value):
    with pytest.raises(UserError, match=f"{option.replace('-', '_')}={value} "):
        parse_experiment(["quickstart", f"--{option}", value], "")
