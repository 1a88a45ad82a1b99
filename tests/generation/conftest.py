"""A tiny trained decoder with all that it needs, shared by the tests of generation."""

import PIL.Image
import pytest

import cm3jax
from cm3jax import testing


@pytest.fixture(scope="package")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    testing.write_chain(directory)
    return directory


@pytest.fixture(scope="package")
def generator(chain):
    return cm3jax.load(str(chain / "decoder"))


@pytest.fixture(scope="package")
def vocab(generator):
    return generator.vocab


@pytest.fixture
def picture_path(tmp_path):
    path = tmp_path / "x.png"
    PIL.Image.fromarray(testing.pictures(1, seed=3)[0]).save(path)
    return path
