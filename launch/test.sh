#!/usr/bin/env bash
# Runs the tests on a fresh machine: makes the environment (launch/environment.sh says how to choose
# another Python), then pytest with the arguments given. Without any it is the whole default suite;
# `-m slow` runs what takes long. CM3JAX_SHAPES=1 checks the shapes in signatures at every call, as
# pytest by itself does, which takes half as long again.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export CM3JAX_SHAPES="${CM3JAX_SHAPES:-0}"
# A crashed worker ends the run: replaced, it leaves pytest-xdist 3.8 waiting for ever.
exec "$PYTHON_IN_VENV" -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 "$@"
