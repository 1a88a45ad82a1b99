"""What a folder of pictures scores against real ones: FID, KID, and CLIP score."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate import fid
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.fid import Frechet, Gaussian
from cm3jax.evaluate.protocol import Protocol, Score
from cm3jax.files import read_json, write_json
from cm3jax.retrieval.clip import ClipEncoder, fit
from cm3jax.shapes import Float, UInt8
from cm3jax.tokenizers.image import load_picture

_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def files_in(folder: epath.PathLike) -> list[epath.Path]:
    """The picture files of a folder, by name; `UserError` if there are fewer than two."""
    folder = epath.Path(folder)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in found if path.suffix.lower() in _KINDS]
    if len(files) < 2:
        raise UserError(
            f"{folder} holds {len(files)} pictures ({', '.join(_KINDS)}); distances need a folder "
            "of many."
        )
    return files


def read(path: epath.PathLike, crop: int) -> UInt8[np.ndarray, "Y X 3"]:
    """The centre square at `crop` pixels a side (Lanczos), or with 0 the picture as it is."""
    if crop:
        return load_picture(path, crop)
    try:
        with epath.Path(path).open("rb") as file, PIL.Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a picture that can be read ({error}).") from None


def extract(
    extractor: Extractor, files: Sequence[epath.Path], crop: int, store: epath.PathLike
) -> Float[np.ndarray, "B D"]:
    """Features of picture files, on disk as `STORE.npy`; read again where nothing has changed.

    No more than a batch of pictures is in memory, and of the features what is looked at.
    """
    note, path = epath.Path(f"{store}.json"), epath.Path(f"{store}.npy")
    made_from = _made_from(extractor, files, crop)
    if note.exists() and read_json(note, "a note on features")["made_from"] == made_from:
        return np.load(path, mmap_mode="r")
    note.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(files), extractor.width)
    out = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    row = 0
    for piece in extractor.features(read(file, crop) for file in files):
        out[row : row + len(piece)] = piece
        row += len(piece)
    out.flush()
    write_json(note, {"made_from": made_from})
    return np.load(path, mmap_mode="r")


def _made_from(extractor: Extractor, files: Sequence[epath.Path], crop: int) -> str:
    state = hashlib.sha256(f"{extractor.name} {extractor.mode} {crop}".encode())
    for file in files:
        state.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real pictures: their statistics, and their features where the pictures are at hand."""

    name: str
    """What they are, for the stamp."""
    gaussian: Gaussian
    features: Float[np.ndarray, "R D"] | None


def open_reference(
    path: epath.PathLike, extractor: Extractor, crop: int, out: epath.PathLike
) -> Reference:
    """From an `.npz` of statistics, or from a folder of pictures.

    A folder's statistics are written to `reference.npz` in `out`, for the next time and for others.
    """
    path = epath.Path(path)
    if path.suffix == ".npz":
        return Reference(f"statistics {path.name}", Gaussian.load(path), None)
    files = files_in(path)
    features = extract(extractor, files, crop, epath.Path(out) / "features" / "reference")
    gaussian = fid.moments(_pieces(features), extractor.width).gaussian
    gaussian.save(epath.Path(out) / "reference.npz")
    cut = f"centre squares of {crop} pixels (Lanczos)" if crop else "as they are"
    return Reference(f"{len(files)} pictures of {path.name}, {cut}", gaussian, features)


def distances(
    features: Float[np.ndarray, "B D"], reference: Reference, protocol: Protocol
) -> dict[str, Score]:
    """`fid`, with its bootstrap interval, and `kid` where the reference has pictures."""
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
    """CLIP's cosine of each text and its picture: no factor, no prefix, nothing clipped at 0."""
    batch = encoder.batch
    out = [np.zeros(0, np.float32)]
    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        pictures = encoder.encode_images(
            [fit(read(file, 0), encoder.config) for file in files[part]]
        )
        out.append((pictures * encoder.encode_texts(list(texts[part]))).sum(-1))
    return np.concatenate(out)


def _pieces(features: Float[np.ndarray, "B D"]) -> Iterator[Float[np.ndarray, "_ D"]]:
    for start in range(0, len(features), 1024):
        yield features[start : start + 1024]
