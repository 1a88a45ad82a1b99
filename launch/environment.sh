#!/usr/bin/env bash
# Makes the Python environment of this checkout, or finds it up to date. Run it, or source it (as
# test.sh and quickstart.sh do) to have $PYTHON_IN_VENV, its interpreter.
#
#   PYTHON  an interpreter, or a version such as 3.12; default: the first of 3.11, 3.12, 3.13 found
#   VENV    where the environment is made; default: .venv at the checkout's root

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
# Container images often set this; every command would then compile the libraries' sources again.
unset PYTHONDONTWRITEBYTECODE

fail() {
  echo "error: $*" >&2
  exit 2
}

# Prints the path of the first interpreter of one of the versions given. It is tried by running it: a
# pyenv shim may stand for a version that is not there, a system Python may lack venv.
find_python() {
  local pyenv_root version candidate
  pyenv_root="${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")}"
  for version in "$@"; do
    for candidate in "python$version" python3 python "$pyenv_root/versions/$version".*/bin/python; do
      "$candidate" -c "
import ensurepip, sys
if '%d.%d' % sys.version_info[:2] != '$version':
    sys.exit(1)
print(sys.executable)" 2>/dev/null && return
    done
  done
  return 1
}

case "${PYTHON:-}" in
  "") python="$(find_python 3.11 3.12 3.13)" ||
    fail "no Python 3.11, 3.12 or 3.13 with venv was found; install one, or set PYTHON to it." ;;
  3.11 | 3.12 | 3.13) python="$(find_python "$PYTHON")" ||
    fail "no Python $PYTHON with venv was found; install it, or set PYTHON to an interpreter." ;;
  *) python="$("$PYTHON" -c 'import ensurepip, sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13); print(sys.executable)' \
    2>/dev/null)" || fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with venv." ;;
esac

PYTHON_IN_VENV="$VENV/bin/python"
version="$("$python" -c 'import sys; print(*sys.version_info[:3], sep=".")')"
# The environment is up to date when these were the same at the end of its last installation.
wanted="$version $(cat setup.py requirements.lock | cksum)"

if [ "$(cat "$VENV/cm3jax.stamp" 2>/dev/null)" != "$wanted" ]; then
  if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
    fail "$VENV is there, but is not a Python environment; remove it, or set VENV to another path."
  fi
  echo "environment: installing into $VENV with Python $version (one to three minutes)"
  if ! "$PYTHON_IN_VENV" -c "import pip, sys; assert sys.version.startswith('$version ')" 2>/dev/null
  then
    "$python" -m venv --clear "$VENV"
  fi
  # uv installs in seconds; where it cannot be had or cannot reach packages, pip does the same.
  { "$PYTHON_IN_VENV" -m pip install -qq uv &&
    UV_SYSTEM_CERTS=true "$VENV/bin/uv" pip install --quiet --python "$PYTHON_IN_VENV" \
      --editable ".[test]" --constraint requirements.lock; } ||
    "$PYTHON_IN_VENV" -m pip install --quiet --editable ".[test]" --constraint requirements.lock
  echo "$wanted" >"$VENV/cm3jax.stamp"
fi
