"""What our builders of tensorflow-datasets share: writing without TensorFlow and without noise.

TFDS takes a second to import, so import this module where a dataset is written.
"""

import contextlib
import io
import re
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from PIL import Image

from cm3jax.io.folders import Held, delete, hold, is_held
from cm3jax.io.paths import files_below
from cm3jax.shapes import UInt8

WriteProgress = Callable[[int, int], None]
"""Called with the number of documents written and of all documents."""


class NumberedBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder whose record i of a split is a function of i; it says how far it is."""

    progress: WriteProgress | None = None

    def record(self, split: str, index: int) -> dict[str, object]:
        """The features of a record."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Records of each split."""
        raise NotImplementedError

    def _log_download_bytes(self) -> None:
        """Say nothing: nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Say nothing: `progress` says it."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing to download
        generators, done = {}, 0
        for split, count in self.counts().items():
            generators[split] = self._generate_examples(split, count, done)
            done += count
        return generators

    def _generate_examples(self, split: str, count: int, done: int):
        """Records of one split; `done` of other splits were written before."""
        total = sum(self.counts().values())
        for index in range(count):
            if self.progress and not (done + index) % 1000:
                self.progress(done + index, total)
            yield index, self.record(split, index)
        if self.progress and done + count == total:
            self.progress(total, total)


def written(make: Callable[[], NumberedBuilder], progress: WriteProgress | None) -> NumberedBuilder:
    """The builder that `make` gives, its files written unless they are there whole already.

    Of several processes that write them at once, the first one's stay.
    """
    tfds.disable_progress_bar()
    builder = _quiet(make)
    builder.progress = progress
    with contextlib.ExitStack() as alone:
        if not builder.data_path.exists():
            with contextlib.suppress(Held):
                alone.enter_context(hold(builder.data_path, "writing a data set"))
                _sweep(builder)
        try:
            builder.download_and_prepare()
        except OSError:
            if not builder.data_path.exists():
                raise
            builder = _quiet(make)  # another process's were there before ours were moved there
            builder.download_and_prepare()
    return builder


def _sweep(builder: NumberedBuilder) -> None:
    """Delete what killed processes left beside the builder's folder, if nobody else writes it."""
    path = epath.Path(builder.data_path)
    if not is_held(path):
        return
    left = re.compile(rf"incomplete\.[A-Z0-9]{{6}}_{re.escape(path.name)}")
    record = rf"{re.escape(builder.name)}-\w+\.array_record-\d{{5}}-of-\d{{5}}"
    ours = re.compile(rf"(incomplete\.\w+\.)?({record}|dataset_info\.json|features\.json)")
    for folder in list(path.parent.iterdir()):
        if left.fullmatch(folder.name) and folder.is_dir():
            delete(folder, lambda one: [n for n in files_below(one) if ours.fullmatch(n)])


def _quiet(make: Callable[[], NumberedBuilder]) -> NumberedBuilder:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every configuration that it can't list
    builder = make()
    logging.set_verbosity(verbosity)
    return builder


def fast_png(image: UInt8[np.ndarray, "Y X 3"]) -> bytes:
    """TFDS would call TensorFlow to encode an array, so encode it here."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
