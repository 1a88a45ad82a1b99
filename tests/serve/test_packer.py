"""What waits for the worker is decoded together, and one that fails fails by itself."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cm3jax import testing
from cm3jax.generation.answers import Undecoded
from cm3jax.serve.packer import Packer
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer


class Counted(ImageTokenizer):
    """A tokenizer that keeps how many images it was given at once."""

    def decode(self, codes):
        self.counts = [*getattr(self, "counts", []), len(codes)]
        return super().decode(codes)


@pytest.fixture(scope="module")
def image():
    plain = testing.image_tokenizer()
    return Counted(plain.config, plain.variables, 8, 1)


@pytest.fixture
def packer(image):
    """One whose worker is held up until `go` is set."""
    image.counts = []
    with ThreadPoolExecutor(1) as worker:
        packer = Packer(worker, image, most=8)
        packer.go = threading.Event()
        worker.submit(packer.go.wait, 60)
        yield packer
        packer.go.set()


def undecoded(image, seed, count):
    codes = np.random.default_rng(seed).integers(
        0, image.config.codes, (count, image.config.grid**2), np.int32
    )
    return codes, lambda: Undecoded(list(codes), lambda images: np.asarray(images))


def test_what_waits_is_decoded_together(image, packer):
    asked = [undecoded(image, seed, count) for seed, count in enumerate((1, 3, 0, 2))]
    futures = [packer.submit(begin) for _, begin in asked]
    packer.go.set()
    found = [future.result(60) for future in futures]
    assert image.counts == [6]
    for (codes, _), images in zip(asked, found, strict=True):
        assert len(images) == len(codes)
        if len(codes):
            np.testing.assert_array_equal(images, image.decode(codes))


def test_nobody_waits_for_more_images_than_a_batch_takes(image, packer):
    """Of large images a batch is one: the first request has its own before the next one begins."""
    asked = [undecoded(image, seed, count) for seed, count in enumerate((5, 4, 0, 1))]
    futures = [packer.submit(begin) for _, begin in asked]
    packer.go.set()
    assert [len(future.result(60)) for future in futures] == [5, 4, 0, 1]
    assert image.counts == [9, 1]


def test_one_that_fails_or_is_given_up_disturbs_no_other(image, packer):
    codes, begin = undecoded(image, 0, 1)
    late = packer.submit(lambda: Undecoded(list(codes), lambda _: 1 / 0))
    early = packer.submit(lambda: 1 / 0)
    gone = packer.submit(begin)
    good = packer.submit(begin)
    assert gone.cancel()
    packer.go.set()
    np.testing.assert_array_equal(good.result(60), image.decode(codes))
    for future in (late, early):
        with pytest.raises(ZeroDivisionError):
            future.result(60)
    assert image.counts[0] == 2


def test_where_no_image_can_be_decoded_everybody_hears_why(image, packer):
    _, begin = undecoded(image, 0, 1)
    futures = [
        packer.submit(begin),
        packer.submit(lambda: Undecoded([np.zeros(3, np.int32)], list)),
    ]
    packer.go.set()
    for future in futures:
        with pytest.raises(ValueError, match="inhomogeneous"):
            future.result(60)
