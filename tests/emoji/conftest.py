import pytest

from cm3jax.emoji.archives import Archives
from cm3jax.emoji.examples import Examples
from cm3jax.emoji.looks import draw_catalogue
from tests.emoji import small

SIZE = 64


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    return Archives.find(small.pack(tmp_path_factory.mktemp("archives")))


@pytest.fixture(scope="session")
def pictures(archives, tmp_path_factory):
    return draw_catalogue(archives, SIZE, tmp_path_factory.mktemp("sprites"))


@pytest.fixture(scope="session")
def examples(pictures):
    return Examples(pictures, seed=3, size=SIZE)
