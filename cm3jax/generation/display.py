"""How images, samples and documents show themselves in a notebook, and how images are saved."""

import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import TypeGuard

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import write_atomic
from cm3jax.report.html import Html, png, png_uri, tag
from cm3jax.shapes import RgbImage

_SHOWN_SIDE = 128
"""Images with fewer pixels a side are enlarged to about as many, pixel by pixel."""


class ImageArray(np.ndarray):
    """An image, uint8, height x width x 3: an array that a notebook shows and `save` writes.

    Whatever is computed from it is an array too; `np.asarray` gives a plain one.
    """

    def save(self, path: epath.PathLike) -> None:
        """Write the image; the ending of `path` says the format: .png, .jpg, .webp, …

        Raises `UserError` for an ending that names no format of images, and for an array that is
        no image any more, such as half of one's values.
        """
        import PIL.Image

        if not is_picture(self):
            raise UserError(
                f"only images are saved, uint8 of height x width x 3; this is {self.dtype} of "
                f"{' x '.join(map(str, self.shape))}."
            )
        kind = PIL.Image.registered_extensions().get(PurePath(path).suffix.lower())
        if kind not in PIL.Image.SAVE:
            raise UserError(f"{path} does not end in a format of images; call it NAME.png.")
        buffer = io.BytesIO()
        try:
            PIL.Image.fromarray(np.asarray(self)).save(buffer, kind)
        except OSError as error:  # a format without colours, or one that Pillow only reads
            raise UserError(
                f"{path} can't be written as {kind} ({error}); call it NAME.png."
            ) from None
        write_atomic(path, buffer.getvalue())

    def _repr_png_(self) -> bytes | None:
        return png(enlarged(self)) if is_picture(self) else None


def is_picture(value: object) -> TypeGuard[np.ndarray]:
    """Whether a value is an array of height x width x 3 bytes."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
        and value.size > 0
    )


def require_sized(image: object, side: int) -> RgbImage:
    """A value that is an image of `side` x `side` pixels; `UserError` for any other."""
    if not is_picture(image) or image.shape != (side, side, 3):
        kind = getattr(image, "dtype", type(image).__name__)
        raise UserError(
            f"images are a list of uint8 arrays, {side} x {side} x 3, and one here is {kind} "
            f"{np.asarray(image).shape}; <image:PATH> in a prompt reads a file of any size."
        )
    return image


def enlarged(image: np.ndarray) -> np.ndarray:
    """The image, or a small one with each pixel repeated."""
    times = max(1, _SHOWN_SIDE // max(image.shape[:2]))
    return np.asarray(image).repeat(times, 0).repeat(times, 1)


def segments_html(segments: Sequence[object], caption: str = "") -> Html:
    """Texts and images side by side, with a line in grey below them."""
    shown = [
        tag("img", src=png_uri(enlarged(segment)), alt="an image")
        if is_picture(segment)
        else tag("span", str(segment), style="max-width:24em")
        for segment in segments
    ]
    row = tag("div", *shown, style="display:flex;gap:1em;align-items:center")
    below = [tag("div", caption, style="color:gray;font-size:small")] if caption else []
    return tag("div", row, *below, style="margin:.5em 0")
