"""What a folder of images scores against real ones: FID, KID, and CLIP score."""

import dataclasses
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate import fid
from cm3jax.evaluate.drawing import ALL, Share, chunks
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.fid import Frechet, Gaussian
from cm3jax.evaluate.protocol import Protocol, Score, code_version
from cm3jax.io.files import digest, write_array
from cm3jax.io.shard_writer import load_column
from cm3jax.retrieval.clip_encoder import ClipEncoder, fit_picture
from cm3jax.shapes import Float, UInt8
from cm3jax.tokenizers.image_tokenizer import load_picture, load_whole

_KINDS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm"),
)
_SAID = 8  # chunks between two lines of progress


def files_in(folder: epath.PathLike) -> list[epath.Path]:
    """The image files of a folder, by name; `UserError` if there are fewer than two."""
    folder = epath.Path(folder)
    files = [path for path in _visible(folder) if path.suffix.lower() in _KINDS]
    if len(files) < 2:
        raise UserError(
            f"{folder} holds {len(files)} images ({', '.join(_KINDS)}); distances need a folder "
            "of many."
        )
    return files


def say_left_out(folder: epath.PathLike, say: Callable[[str], None]) -> None:
    """Say which files of a folder are not images by their names: the score is of the others."""
    others = [path for path in _visible(epath.Path(folder)) if path.suffix.lower() not in _KINDS]
    if others:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        say(f"{folder}: left out {len(others)} that are not images by their names ({counts})")


def _visible(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder but hidden files, by name; nothing where there is no folder."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith(".")]


def read_picture(path: epath.PathLike, crop: int) -> UInt8[np.ndarray, "Y X 3"]:
    """The centre square at `crop` pixels a side (Lanczos), or with 0 the image as it is."""
    return load_picture(path, crop) if crop else load_whole(path)


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of image files, each chunk of them in a file of its own in `folder`.

    So a killed extraction goes on, and several processes share the work. Files are named after the
    contents of the images, the network, the code, and how images are cut and resized: others
    are never taken for them. A few batches of images are in memory, and no features.
    """

    extractor: Extractor
    files: Sequence[epath.Path]
    crop: int
    """As in `read_picture`."""
    folder: epath.Path

    def extract(self, share: Share = ALL, say: Callable[[str], None] = print) -> None:
        """Compute what is missing of this process's share of the chunks.

        Raises `UserError` for what is not an image.
        """
        parts = list(enumerate(chunks(self.files)))
        index, count = share
        mine = {self._path(*part): part[1] for part in parts[index::count]}
        missing = {path: files for path, files in mine.items() if not path.exists()}
        pictures = (read_picture(file, self.crop) for files in missing.values() for file in files)
        rows = itertools.chain.from_iterable(self.extractor.features(pictures))
        for done, (path, files) in enumerate(missing.items(), 1):
            write_array(path, np.stack(list(itertools.islice(rows, len(files)))))
            if done % _SAID == 0 or done == len(missing):
                say(f"{self.folder.name}: {done} of {len(missing)} chunks of features computed")

    def all_there(self) -> bool:
        """Whether every share has been extracted, others' too."""
        return all(
            all(file.exists() for file in files) and self._path(number, files).exists()
            for number, files in enumerate(chunks(self.files))
        )

    def gather(self) -> Float[np.ndarray, "B D"]:
        """All features in order of the files, once all are there; on disk, until they are dropped.

        The file has no name: no other process sees it, and a killed one leaves none behind.
        """
        shape = (len(self.files), self.extractor.width)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            out = np.memmap(file, np.float32, "w+", shape=shape)
        row = 0
        for number, files in enumerate(chunks(self.files)):
            path = self._path(number, files)
            part = load_column(path, "the evaluation", f"remove {path}", np.float32, axes=2)
            if part.shape != (len(files), self.extractor.width):
                raise UserError(f"{path} is damaged (it has the shape {part.shape}); remove it.")
            out[row : row + len(files)] = part
            row += len(files)
        return out

    def _path(self, number: int, files: Sequence[epath.Path]) -> epath.Path:
        how = f"{self.extractor.name} {self.extractor.mode} {self.crop} {code_version()}"
        contents = (digest(file.read_bytes()) for file in files)
        return self.folder / f"{number:05d}-{digest(how, *contents)}.npy"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Real images: their statistics, and their features where the images are at hand."""

    name: str
    """What they are, for the stamp."""
    gaussian: Gaussian
    features: Float[np.ndarray, "R D"] | None


def measure(real: Features, name: str, out: epath.PathLike) -> Reference:
    """The reference that a folder of this name is, once all features are there.

    Its statistics are written to `reference.npz` in `out`, for the next time and for others.
    """
    features, crop = real.gather(), real.crop
    gaussian = fid.moments(_pieces(features), features.shape[1]).gaussian
    gaussian.save(epath.Path(out) / "reference.npz")
    cut = f"centre squares of {crop} pixels (Lanczos)" if crop else "as they are"
    return Reference(f"{len(features)} pictures of {name}, {cut}", gaussian, features)


def distances(
    features: Float[np.ndarray, "B D"], reference: Reference, protocol: Protocol
) -> dict[str, Score]:
    """`fid`, with its bootstrap interval, and `kid` where the reference has images."""
    frechet = Frechet(reference.gaussian)
    gaussian = fid.moments(_pieces(features), features.shape[1]).gaussian
    interval = frechet.interval(features, protocol.seed)
    scores = {"fid": Score(frechet(gaussian), len(features), None, interval, protocol)}
    if reference.features is not None:
        value, interval = fid.kid(features, reference.features)
        scores["kid"] = Score(value, len(features), None, interval, protocol)
    return scores


def cosines(
    encoder: ClipEncoder, texts: Sequence[str], files: Sequence[epath.Path]
) -> Float[np.ndarray, " B"]:
    """CLIP's cosine of each text and its image: no factor, no prefix, nothing clipped at 0."""
    batch = encoder.batch
    out = [np.zeros(0, np.float32)]
    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        pictures = encoder.encode_images(
            [fit_picture(read_picture(file, 0), encoder.config) for file in files[part]]
        )
        out.append((pictures * encoder.encode_texts(list(texts[part]))).sum(-1))
    return np.concatenate(out)


def _pieces(features: Float[np.ndarray, "B D"]) -> Iterator[Float[np.ndarray, "_ D"]]:
    for start in range(0, len(features), 1024):
        yield features[start : start + 1024]
