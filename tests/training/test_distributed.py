"""Joining processes by their environment; real processes are in `launch/test_processes.py`."""

import jax
import pytest

from cm3jax.errors import UserError
from cm3jax.training import distributed

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(monkeypatch, *values):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    distributed.initialize()


def test_nothing_set_is_a_single_process(monkeypatch):
    initialize(monkeypatch, "", "", "")
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("localhost:1", "", ""), "has no JAX_NUM_PROCESSES and no JAX_PROCESS_ID; set all of"),
        (("", "2", "0"), "has no JAX_COORDINATOR_ADDRESS; set all of"),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID=2 and JAX_NUM_PROCESSES=2 name no process"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES=two name no process"),
    ],
)
def test_a_half_set_environment_is_refused(monkeypatch, values, message):
    with pytest.raises(UserError, match=message):
        initialize(monkeypatch, *values)


@pytest.mark.parametrize("text", ["", "a b", '{"step": 5}', "größer"])
def test_what_the_first_process_says(text):
    assert distributed.from_first(text) == text
