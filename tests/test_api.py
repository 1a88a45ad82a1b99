"""The front door: what `import cm3jax` gives, and what it costs."""

import importlib
import inspect
import pydoc
import subprocess
import sys

import pytest

import cm3jax

PROBE = """
import sys
before = set(sys.modules)
import cm3jax
dir(cm3jax)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_it_imports_nothing_of_others():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert "cm3jax" in names
    assert set(names) - {"cm3jax"} <= sys.stdlib_module_names


def test_every_name_is_there_and_documented():
    modules = {"Decoder", "SequenceBuilder", "TokenizerBridge"}
    names = {*cm3jax.__all__, *modules}
    assert names <= set(dir(cm3jax))
    for name in names:
        value = getattr(cm3jax, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert len(inspect.getdoc(value)) > 60
        assert f"    {name}" in cm3jax.__doc__
    with pytest.raises(AttributeError, match="no attribute 'Generater'"):
        _ = cm3jax.Generater


def test_help_names_what_can_be_asked():
    page = pydoc.plain(pydoc.render_doc(cm3jax))
    for word in ("generate(", "load_experiment(NAME)", "    SequenceBuilder ", "UserError"):
        assert word in page
    assert "class Generator" in page
    assert page.count("\n") < 1000  # with the manual of Flax it has thousands
    # Of an object `help` shows its class.
    page = pydoc.plain(pydoc.render_doc(cm3jax.Generator))
    for word in ("cm3jax.load(", "retrieve=2", "uint8", "in nats", "UserError", "temperature"):
        assert word in page
