"""Images to codes and back, and the reading of all kinds of image files."""

import io
import os
import struct
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from etils import epath
from PIL.Image import Resampling

from cm3jax.config import VQGANConfig
from cm3jax.errors import UserError
from cm3jax.tokenizers.image_tokenizer import (
    ImageTokenizer,
    decode_picture,
    decode_whole,
    load_picture,
    load_whole,
    load_with_size,
    orientation,
    picture_head,
    picture_size,
    preprocess,
    to_bytes,
    to_pixels,
)
from cm3jax.tokenizers.vqgan_model import VQGAN

CONFIG = VQGANConfig(
    image_size=16,
    patch=8,
    channels=8,
    multipliers=(1,),
    blocks=0,
    attention=False,
    kernel=1,
    codes=16,
    code_width=4,
)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(VQGAN(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def pictures(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def test_bytes_survive():
    values = np.arange(256, dtype=np.uint8)
    images = jnp.asarray(np.stack([values] * 3, -1).reshape(1, 16, 16, 3))
    np.testing.assert_array_equal(to_bytes(to_pixels(images)), images)
    assert float(to_pixels(images).min()) == -1
    assert float(to_pixels(images).max()) == 1
    np.testing.assert_array_equal(to_bytes(jnp.full((1, 1, 1, 3), 1.7)), [[[[255] * 3]]])


def test_codes_do_not_depend_on_the_rest_of_the_batch(variables):
    tokenizer = ImageTokenizer(CONFIG, variables, batch=4)
    images = pictures(9)
    codes = tokenizer.encode(images)
    assert codes.shape == (9, 4)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(tokenizer.encode(list(images[5:6])), codes[5:6])
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(tokenizer.decode(codes[5:6]), decoded[5:6])
    decode = jax.jit(partial(VQGAN(CONFIG).apply, method="decode"))
    np.testing.assert_array_equal(decoded, to_bytes(decode(nn.unbox(variables), codes)))


def test_few_images_are_padded_little(variables):
    tokenizer, plain = ImageTokenizer(CONFIG, variables, 8, 1), ImageTokenizer(CONFIG, variables, 8)
    sizes, run = [], tokenizer._decode
    tokenizer._decode = lambda *args: sizes.append(len(args[1])) or run(*args)
    codes = plain.encode(pictures(11))
    np.testing.assert_array_equal(tokenizer.encode(pictures(11)), codes)
    for count in (1, 2, 3, 5, 11):
        np.testing.assert_array_equal(tokenizer.decode(codes[:count]), plain.decode(codes[:count]))
    assert sizes == [1, 2, 4, 8, 8, 4]


def test_nothing_in_nothing_out(variables):
    tokenizer = ImageTokenizer(CONFIG, variables)
    assert tokenizer.encode([]).shape == (0, 4)
    assert tokenizer.decode(np.zeros((0, 4), np.int32)).shape == (0, 16, 16, 3)


def test_impossible_inputs(variables):
    tokenizer = ImageTokenizer(CONFIG, variables)
    with pytest.raises(ValueError, match="16x16x3"):
        tokenizer.encode(pictures(1, 24))
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(np.full((1, 4), -1, np.int32))
    with pytest.raises(ValueError, match="outside"):
        tokenizer.decode(np.full((1, 4), 16, np.int32))
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(np.zeros((1, 5), np.int32))


def test_fingerprint(variables):
    same = ImageTokenizer(CONFIG, nn.unbox(variables), batch=2)
    assert same.fingerprint == ImageTokenizer(CONFIG, variables).fingerprint
    for collection in ("params", "codebook"):
        changed = jax.tree.map(lambda x: x, nn.unbox(variables))
        changed[collection] = jax.tree.map(lambda x: x + 1e-3, changed[collection])
        assert ImageTokenizer(CONFIG, changed).fingerprint != same.fingerprint


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff"])
def test_a_picture_of_the_size_is_unchanged(tmp_path, name):
    image = pictures(1, 32)[0]
    PIL.Image.fromarray(image).save(tmp_path / name)
    np.testing.assert_array_equal(load_picture(tmp_path / name, 32), image)


def red_left(mode="RGB"):
    """40x20, the left half red (or bright), the right half black."""
    image = PIL.Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    return image.convert(mode)


def test_shorter_side_and_centre():
    out = preprocess(red_left(), 10)
    assert out.shape == (10, 10, 3)
    np.testing.assert_allclose(out[:, 0], [[255, 0, 0]] * 10, atol=12)
    np.testing.assert_allclose(out[:, -1], [[0, 0, 0]] * 10, atol=12)


@pytest.mark.parametrize("shape", [(40, 20), (33, 57), (64, 64), (10, 100), (19, 21)])
@pytest.mark.parametrize("filter_", [Resampling.LANCZOS, Resampling.BICUBIC])
def test_cutting_first_gives_the_bytes_of_cutting_last(shape, filter_):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    image, short = PIL.Image.fromarray(picture), min(shape)
    height, width = (16 * side // short for side in shape)
    left, top = (width - 16) // 2, (height - 16) // 2
    whole = image.resize((width, height), filter_).crop((left, top, left + 16, top + 16))
    np.testing.assert_array_equal(preprocess(image, 16, filter_), np.asarray(whole))


def test_a_ribbon_costs_no_more_than_a_square():
    assert (preprocess(PIL.Image.new("RGB", (200_000, 1), "red"), 64) == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "YCbCr"])
def test_colour_modes(mode):
    np.testing.assert_allclose(preprocess(red_left(mode), 10), preprocess(red_left(), 10), atol=3)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes(mode):
    out = preprocess(PIL.Image.new("L", (8, 8), 255).convert(mode), 8)
    np.testing.assert_array_equal(out, np.full((8, 8, 3), 255))


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.full((8, 8), 32896, np.uint16)  # 128 * 257
    PIL.Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "deep.png", 8), np.full((8, 8, 3), 128))


def test_transparency_becomes_white(tmp_path):
    for image in (PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0)), PIL.Image.new("LA", (8, 8), (0, 0))):
        assert (preprocess(image, 8) == 255).all()
    palette = PIL.Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "clear.gif", transparency=0)
    assert (load_picture(tmp_path / "clear.gif", 8) == 255).all()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_steps(mode):
    """8x8, rows of growing brightness, of a mode of more than 8 bits."""
    steps = np.arange(8)[:, None].repeat(8, 1) * 9362  # 65,534 at last
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    return PIL.Image.frombytes(mode, (8, 8), steps.astype(kind).tobytes())


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF")]
)
def test_deep_grey_is_scaled_from_any_file(mode, kind):
    content = saved(grey_steps(mode), kind)
    wanted = np.round(np.arange(8) * 9362 / 257)[:, None, None].repeat(8, 1).repeat(3, 2)
    np.testing.assert_array_equal(decode_picture(content, 8).pixels, wanted)
    np.testing.assert_array_equal(decode_whole(content), wanted)


def grey_tiff(bits: int, photometric: int, data: bytes) -> bytes:
    """A TIFF of 4 x 1 grey pixels, as scanners and microscopes write it."""
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def test_deep_grey_of_a_tiff_is_as_deep_as_it_says_and_may_be_inverted():
    deep = struct.pack("<4H", 0, 257, 32896, 65535)
    for photometric, wanted in ((1, [0, 1, 128, 255]), (0, [255, 254, 127, 0])):
        assert decode_whole(grey_tiff(16, photometric, deep))[0, :, 0].tolist() == wanted
    twelve = bytes.fromhex("000 00f 7ff fff".replace(" ", ""))
    assert decode_whole(grey_tiff(12, 1, twelve))[0, :, 0].tolist() == [0, 1, 127, 255]
    shallow = bytes([0, 1, 128, 255])
    assert decode_whole(grey_tiff(8, 0, shallow))[0, :, 0].tolist() == [255, 254, 127, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_sizes_are_those_of_the_file_however_it_is_turned(kind, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    content = saved(red_left(), kind, exif=exif)
    (tmp_path / "a").write_bytes(content)
    assert picture_size(content) == (40, 20)
    assert picture_head(epath.Path(tmp_path / "a")) == ((40, 20), 6)
    assert decode_picture(content, 8).width == 40
    shown = decode_whole(content)
    assert shown.shape == (40, 20, 3)
    assert (shown[:15, :, 1] < 90).all(), "what was left is above"


@pytest.mark.parametrize("turn", range(1, 9))
def test_maps_are_turned_with_the_picture_that_they_were_drawn_over(turn, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    red_left().save(tmp_path / "picture.png", exif=exif)
    shown = load_picture(tmp_path / "picture.png", 10)
    red_left().save(tmp_path / "map.png")  # over the pixels of the file
    found = load_with_size(tmp_path / "map.png", 10, tmp_path / "picture.png")
    np.testing.assert_array_equal(found.pixels, shown)
    if turn > 4:  # over the image as it is shown, which its size tells
        PIL.Image.fromarray(load_whole(tmp_path / "picture.png")).save(tmp_path / "map.png")
        found = load_with_size(tmp_path / "map.png", 10, tmp_path / "picture.png")
        np.testing.assert_array_equal(found.pixels, shown)
    red_left().save(tmp_path / "map.png", exif=exif)  # it says so itself
    found = load_with_size(tmp_path / "map.png", 10, tmp_path / "picture.png")
    np.testing.assert_array_equal(found.pixels, shown)
    red_left().save(tmp_path / "map.png")
    found = load_with_size(tmp_path / "map.png", 10, tmp_path / "missing.png")
    np.testing.assert_array_equal(found.pixels, preprocess(red_left(), 10))


def test_transparent_colours_of_every_mode_are_white():
    one_bit = PIL.Image.new("1", (8, 8), 0)
    assert (decode_picture(saved(one_bit, "PNG", transparency=0), 8).pixels == 255).all()
    grey = PIL.Image.new("L", (8, 8), 7)
    assert (decode_picture(saved(grey, "PNG", transparency=7), 8).pixels == 255).all()
    colour = PIL.Image.new("RGB", (8, 8), (1, 2, 3))
    clear = saved(colour, "PNG", transparency=(1, 2, 3))
    assert (decode_picture(clear, 8).pixels == 255).all()
    deep = grey_steps("I;16")
    deep.info["transparency"] = 0
    assert preprocess(deep, 8)[:2, 0, 0].tolist() == [255, 36]
    half = PIL.Image.new("LA", (8, 8), (0, 127))
    assert (decode_picture(saved(half, "PNG"), 8).pixels == 128).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (PIL.Image.new("F", (8, 8), 0.5), r"floating-point numbers \(mode F\)"),
        (PIL.Image.new("I", (8, 8), 70_000), "integers from 70000 to 70000"),
        (PIL.Image.new("I", (8, 8), -1), "integers from -1 to -1"),
    ],
)
def test_what_has_no_brightness_is_refused_by_name(image, reason):
    for decode in (partial(decode_picture, size=8), decode_whole):
        with pytest.raises(ValueError, match=reason):
            decode(saved(image, "TIFF"))


def test_exif_orientation(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    red_left().save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        load_picture(tmp_path / "turned.png", 20), preprocess(red_left(), 20)[::-1, ::-1]
    )
    content = (tmp_path / "turned.png").read_bytes()
    assert (orientation(content), picture_size(content)) == (3, (40, 20))
    assert orientation(saved(red_left(), "PNG")) == 1


def test_first_frame_of_an_animation(tmp_path):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_picture(tmp_path / "moving.gif", 8)[0, 0], [0, 0, 255])


def test_files_that_are_not_pictures_raise_user_error(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        load_picture(tmp_path / "missing.png", 8)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, reason in ((".", "a folder"), ("pipe.png", "a pipe"), ("zero.png", "a device")):
        with pytest.raises(UserError, match=f"it is {reason}, not a file"):
            load_picture(tmp_path / name, 8)
    path = tmp_path / "broken.png"
    PIL.Image.fromarray(pictures(1, 32)[0]).save(path)
    for content in (b"", b"not a picture", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not an image"):
            load_picture(path, 8)
