import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.generation.prompts import Wanted, outpaint, read_edit, read_infill

SIZE = testing.experiment().vqgan.image_size


def test_outpainting_draws_what_is_around_a_picture(generator, picture_path):
    prompt = read_infill(f"<image:{picture_path}>", SIZE, np.ones((SIZE, SIZE), bool))
    prompt = outpaint(prompt, 4, 8, 8)
    (shown,) = prompt.segments
    inside = np.zeros((SIZE, SIZE), bool)
    inside[8:16, 4:12] = True
    np.testing.assert_array_equal(shown.hole, ~inside)
    small = PIL.Image.open(picture_path).resize((8, 8), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown.image[8:16, 4:12], np.asarray(small))
    (request,) = generator.requests([prompt])
    ((_, sample),) = next(generator.answer([request]))
    np.testing.assert_array_equal(sample.image[inside], shown.image[inside])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <mask> fox", "1 <mask> and 0 <infill>"),
        ("a fox <infill>", "0 <mask> and 1 <infill>"),
        ("a <mask> or <mask> <infill> <infill> <infill>", "2 <mask> and 3 <infill>"),
        ("<mask> <infill> fox", "at the prompt's end"),
        ("<image:PICTURE>", "ends with an image"),
        ("<break>", "only marks"),
        ("   ", "the prompt is empty"),
        ("<image:nowhere.png> <mask> <infill>", "nowhere.png can't be read"),
    ],
)
def test_prompts_that_make_no_sense(generator, picture_path, prompt, message):
    with pytest.raises(UserError, match=message):
        generator.generate(prompt.replace("PICTURE", str(picture_path)))


@pytest.mark.parametrize("prompt", ["make it red", "<image:PICTURE>", "<mask> red <image:PICTURE>"])
def test_an_edit_is_an_instruction_and_a_picture(picture_path, prompt):
    read = read_edit(f"make it red <image:{picture_path}>", SIZE)
    assert (read.words, read.wanted) == ("make it red", Wanted.EDIT)
    np.testing.assert_array_equal(read.picture, np.asarray(PIL.Image.open(picture_path)))
    with pytest.raises(UserError, match="an instruction and one <image:PATH>"):
        read_edit(prompt.replace("PICTURE", str(picture_path)), SIZE)
