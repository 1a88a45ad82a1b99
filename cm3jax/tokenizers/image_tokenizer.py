"""Images <-> codes on the host: uint8 in, uint8 out, and the reading of image files."""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from etils import epath
from PIL.Image import Resampling, Transpose
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)

from cm3jax.config import VQGANConfig, identity
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.texts import read_regular, require_regular
from cm3jax.shapes import Array, Float, Int, UInt8
from cm3jax.tokenizers.vqgan_model import VQGAN

T = TypeVar("T")


class ImageTokenizer:
    """A trained VQGAN behind arrays of bytes.

    Works in batches of one size (the last one padded), so that it compiles once each way and what
    an image becomes does not depend on its company. With `least`, fewer inputs than `batch` make a
    batch of `least`, doubled until it holds them: a program for each size, which may round
    differently.
    """

    def __init__(
        self, config: VQGANConfig, variables: Mapping[str, Any], batch: int = 64, least: int = 0
    ):
        self.config = config
        self._variables = nn.unbox(dict(variables))
        self._batch, self._least = batch, least or batch
        model = VQGAN(config)
        self._encode = jax.jit(
            lambda variables, images: model.apply(variables, to_pixels(images), method="encode")
        )
        self._decode = jax.jit(
            lambda variables, codes: to_bytes(nn.apply(VQGAN.decode, model)(variables, codes))
        )

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables of the `VQGAN`, unboxed."""
        return self._variables

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the configuration, the parameters and the codebook."""
        leaves = jax.tree.leaves_with_path(self._variables)
        parts = [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves]
        return digest(identity(self.config), *(part for pair in parts for part in pair))

    def encode(
        self, images: UInt8[np.ndarray, "B Y X 3"] | Sequence[UInt8[np.ndarray, "Y X 3"]]
    ) -> Int[np.ndarray, "B T"]:
        """Row-major codes, int32; `ValueError` for images of another size than the model's."""
        side, grid = self.config.image_size, self.config.grid
        images = np.asarray(images, np.uint8)
        if len(images) and images.shape[1:] != (side, side, 3):
            raise ValueError(f"this tokenizer reads {side}x{side}x3, not {images.shape[1:]}")
        return self._batched(self._encode, images, np.zeros((0, grid * grid), np.int32))

    def decode(self, codes: Int[np.ndarray, "B T"]) -> UInt8[np.ndarray, "B Y X 3"]:
        """Images of row-major codes, clamped and rounded; `ValueError` for impossible codes."""
        side, grid, limit = self.config.image_size, self.config.grid, self.config.codes
        codes = np.asarray(codes, np.int32)
        if codes.shape[1:] != (grid * grid,):
            raise ValueError(f"expected codes [B, {grid * grid}], not {codes.shape}")
        if codes.size and not (codes.min() >= 0 and codes.max() < limit):
            raise ValueError(f"there are codes outside 0..{limit - 1}")
        if "conv_in" not in self._variables["params"]["decoder"]:
            raise UserError(
                "this image tokenizer only reads images: it was converted from weights without a "
                "decoder; convert them again with --vqgan, the file that has it."
            )
        return self._batched(self._decode, codes, np.zeros((0, side, side, 3), np.uint8))

    def _batched(self, function, inputs: np.ndarray, empty: np.ndarray) -> np.ndarray:
        outputs = [empty]
        for start in range(0, len(inputs), self._batch):
            part = inputs[start : start + self._batch]
            size = self._least
            while size < len(part):
                size *= 2
            fill = [(0, min(size, self._batch) - len(part))] + [(0, 0)] * (inputs.ndim - 1)
            output = function(self._variables, np.pad(part, fill))
            outputs.append(np.asarray(output)[: len(part)])
        return np.concatenate(outputs)


def to_pixels(images: UInt8[Array, "B Y X 3"]) -> Float[Array, "B Y X 3"]:
    """Bytes to -1..1, float32."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(pixels: Float[Array, "B Y X 3"]) -> UInt8[Array, "B Y X 3"]:
    """-1..1 to bytes, clamped and rounded; undoes `to_pixels`."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


MOST_PIXELS = 1 << 26
"""Pixels of the largest image that is read, 8192 x 8192: decoding one stays below 1 GiB."""


_UNDEFINED = {"F": "floating-point numbers", "LAB": "CIE L*a*b* colours"}
"""Modes whose black and white, or whose white point, a file does not give."""


MIRRORED = 4
"""EXIF's orientations up to this keep width and height, those above exchange them."""
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image file's content, ready to be encoded."""

    pixels: UInt8[np.ndarray, "S S 3"]
    width: int
    """Pixels across in the file."""
    height: int
    """Pixels down in the file."""


def decode_picture(content: bytes, size: int, over: epath.PathLike | None = None) -> Picture:
    """Decode and `preprocess` the content of an image file of any kind that Pillow knows.

    `over` is the image that this one was drawn over, as its mask or map: it is turned with that.
    Raises `ValueError`, with the reason, if it is not an image, is cut off, has no brightness that
    its file defines (see `to_rgb`), or has more than `MOST_PIXELS` pixels, which are not decoded
    then.
    """
    with _opened(content) as image:
        width, height = _stored_size(image)
        shown = image if over is None else _turned_with(image, epath.Path(over))
        return Picture(preprocess(shown, size), width, height)


def decode_whole(content: bytes) -> UInt8[np.ndarray, "Y X 3"]:
    """The RGB bytes of an image file at its own size; raises as `decode_picture`."""
    with _opened(content) as image:
        return np.asarray(to_rgb(image))


def picture_size(content: bytes) -> tuple[int, int]:
    """Width and height from the head of an image file, as stored; `ValueError` if it has none."""
    with _opened(content) as image:
        return _stored_size(image)


def picture_head(path: epath.Path) -> tuple[tuple[int, int], int]:
    """Width and height of an image file as stored, and `orientation`; reads only its head.

    Raises `ValueError` if it is not an image, `OSError` if it can't be read.
    """
    require_regular(path)
    with path.open("rb") as file, _opened(file) as image:
        return _stored_size(image), _turn(image)


def orientation(content: bytes) -> int:
    """How EXIF says to turn an image file, from 1 (as it is stored) to 8.

    Raises `ValueError` if it is not an image.
    """
    with _opened(content) as image:
        return _turn(image)


def _stored_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Width and height as stored: of a TIFF, Pillow gives those that it will have when turned."""
    if not isinstance(image, TiffImageFile):
        return image.size
    return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]


def _turn(image: PIL.Image.Image) -> int:
    try:
        found = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    except Exception:  # a broken block says nothing, as in `to_rgb`
        return 1
    return found if found in range(1, 9) else 1


def _turned_with(image: PIL.Image.Image, over: epath.Path) -> PIL.Image.Image:
    """A map turned as EXIF says to turn the image that it was drawn over.

    Tools draw over the pixels of a file; what has the size of the image as it is shown was drawn
    over that, and what says itself how to turn it is turned so.
    """
    try:
        stored, turn = picture_head(over)
    except (OSError, ValueError):  # what is wrong with it is said where it is read
        return image
    shown = stored[::-1] if turn > MIRRORED else stored
    if turn == 1 or _turn(image) != 1 or image.size == shown != stored:
        return image
    return image.transpose(_TURNS[turn])


@contextlib.contextmanager
def _opened(content: bytes | BinaryIO) -> Iterator[PIL.Image.Image]:
    """An image that is not too large; whatever its decoder raises is a `ValueError`."""
    if content == b"":
        raise ValueError("it is empty, not an image")
    try:
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with PIL.Image.open(file) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise Unfit(
                    f"the image has {width}x{height} pixels, more than {MOST_PIXELS} in all"
                )
            yield image
    except Unfit:
        raise
    except PIL.Image.DecompressionBombError:
        raise ValueError(f"the image has far more than {MOST_PIXELS} pixels") from None
    except Exception as error:  # decoders raise whatever their bytes lead them to
        name = type(error).__name__
        raise ValueError(f"it is not an image that can be read ({name})") from None


class Unfit(ValueError):
    """An image that can be read but not be shown as RGB bytes; the message is the reason."""


def load_picture(path: epath.PathLike, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Read and `preprocess` an image file of any kind that Pillow knows.

    Raises `UserError` if the file is missing, is a pipe or a device, is not an image, is cut off
    or is too large.
    """
    return load_with_size(path, size).pixels


def load_with_size(path: epath.PathLike, size: int, over: epath.PathLike | None = None) -> Picture:
    """`load_picture` with the size that the file has; `over` is as in `decode_picture`."""
    return _load(path, lambda content: decode_picture(content, size, over))


def load_whole(path: epath.PathLike) -> UInt8[np.ndarray, "Y X 3"]:
    """Read the RGB bytes of an image file at its own size; raises as `load_picture`."""
    return _load(path, decode_whole)


def _load(path: epath.PathLike, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(read_regular(path))
    except OSError:
        raise UserError(f"the image {path} can't be read; check the path.") from None
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; give a whole PNG, JPEG, WebP, GIF or similar file."
        ) from None


def preprocess(
    image: PIL.Image.Image, size: int, filter_: Resampling = Resampling.LANCZOS
) -> UInt8[np.ndarray, "S S 3"]:
    """RGB bytes (see `to_rgb`): the shorter side becomes `size`, then the centre square is cut out.

    An image that has the size already passes unchanged. The cut goes first, into the image that
    is resized, so that a long one costs no more than a square one; 0.05 % of the bytes, of noise
    3 %, differ from those of the other order, by 2 at most.
    """
    image = to_rgb(image)
    width, height = image.size
    short = min(width, height)
    # transformers' rounding of the longer side and of the place of the cut.
    resized = (size * width // short, size * height // short)
    left, top = ((side - size) // 2 for side in resized)
    across, down = width / resized[0], height / resized[1]
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(image.resize((size, size), filter_, box))


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """What an image of any mode shows, in RGB.

    Turned as EXIF says; transparency on white; of an animation the first frame; 16 bits scaled to
    8. Every way into the system reads images with it: training, maps of depth, prompts, FID.

    Raises `ValueError`, with the reason, for pixels whose black and white no file defines:
    floating-point numbers, and integers outside of 16 bits.
    """
    white, inverted = _grey_range(image)
    # A broken EXIF block says nothing about the pixels, so they are taken as they are.
    with contextlib.suppress(Exception):
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_16_bits(image, white, inverted)
    if image.mode in _UNDEFINED:
        raise Unfit(
            f"the image's pixels are {_UNDEFINED[image.mode]} (mode {image.mode}), which no file "
            "maps to RGB; save it as RGB or as grey of 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _grey_range(image: PIL.Image.Image) -> tuple[int, bool]:
    """The largest number that an image's deep grey may have, and whether it is black: a TIFF may
    have 12 bits, and black as its largest number, for which Pillow only cares in 8 bits."""
    if not isinstance(image, TiffImageFile):
        return 65535, False
    bits = image.tag_v2.get(BITSPERSAMPLE, (16,))[0]
    return 4095 if bits == 12 else 65535, image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _from_16_bits(image: PIL.Image.Image, white: int, inverted: bool) -> PIL.Image.Image:
    """Grey of 0 to `white`, which Pillow would clip instead of scaling."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise Unfit(
            f"the image's pixels are integers from {low:.0f} to {high:.0f} (mode {image.mode}); "
            "scale them to 0..65535"
        )
    grey = np.round(values * 255 / white).astype(np.uint8)
    grey = 255 - grey if inverted else grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return PIL.Image.fromarray(grey).convert("RGB")
