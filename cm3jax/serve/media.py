"""Uploaded images, decoded under limits: only from the request's own bytes, never from a path."""

import base64
import binascii
import io
import re

import numpy as np
import PIL.Image

from cm3jax.errors import UserError
from cm3jax.serve.limits import Limits
from cm3jax.shapes import Bool, RgbImage
from cm3jax.tokenizers.image_tokenizer import decode_picture, preprocess

_KINDS = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that are read: other decoders are no strangers' business."""
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)


def from_base64(text: str, what: str) -> bytes:
    """The bytes of `data:image/…;base64,…`, or of base64 only; `UserError` for anything else."""
    head = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[head.end() if head else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise UserError(
            f"{what} is no image in base64; send it as data:image/png;base64,… in the request."
        ) from None


def decode_upload(content: bytes, size: int, limits: Limits, what: str) -> RgbImage:
    """An uploaded image at the model's size; `UserError` if it is none, or too large."""
    _require_small(content, limits, what)
    try:
        return decode_picture(content, size).pixels
    except ValueError as error:
        raise UserError(f"{what}: {error}; send a whole PNG, JPEG, WebP or GIF.") from None


def decode_mask(content: bytes, size: int, limits: Limits, what: str) -> Bool[np.ndarray, "Y X"]:
    """Which pixels of an image a mask marks: as in OpenAI's API those that are transparent;
    where nothing is, the light ones. Raises as `decode_upload`."""
    light = decode_upload(content, size, limits, what).mean(-1) >= 128
    with PIL.Image.open(io.BytesIO(content), formats=_KINDS) as image:
        if not image.has_transparency_data:
            return light
        opacity = image.convert("RGBA").getchannel("A")
    if opacity.getextrema()[0] == 255:
        return light
    return preprocess(opacity, size).mean(-1) < 128


def _require_small(content: bytes, limits: Limits, what: str) -> None:
    """Refuse, from the file's head only, what is of another kind or would decode to too much."""
    try:
        with PIL.Image.open(io.BytesIO(content), formats=_KINDS) as image:
            width, height = image.size
    except Exception:  # decoders raise whatever their bytes lead them to
        raise UserError(
            f"{what} is not an image that can be read; send a whole PNG, JPEG, WebP or GIF."
        ) from None
    if width * height > limits.upload_pixels:
        raise UserError(
            f"{what} has {width}x{height} pixels, more than {limits.upload_pixels}; make it "
            "smaller."
        )
