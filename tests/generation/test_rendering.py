import numpy as np
import pytest

from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.generation.prompts import Shown
from cm3jax.generation.rendering import raster_run, render_rows
from cm3jax.sequence.document import Mark

TEXT, IMAGE, VOCAB = testing.text_tokenizer(), testing.image_tokenizer(), testing.vocab()


def pieces(text):
    return [VOCAB.first_text + piece for piece in TEXT.encode(text)]


def test_each_hole_is_a_sentinel_in_the_order_of_their_places():
    (image,) = testing.pictures(1)
    hole = np.zeros(image.shape[:2], bool)
    hole[0, -1] = hole[-1, 0] = True  # codes 1 and 2 of four
    shown = Shown(image, hole)
    plain, masked = render_rows(
        [(("a fox",), Shown(image)), ((Mark.MASK, "fox"), shown, (Mark.MASK,))], TEXT, IMAGE, VOCAB
    )
    whole, blanked = (IMAGE.encode([image, shown.blanked]) + VOCAB.first_image).tolist()
    assert plain.ids == [*pieces("a fox"), VOCAB.break_, *whole]
    assert plain.holes == []
    m0, m1, m2 = map(VOCAB.sentinel, range(3))
    picture = [blanked[0], m1, blanked[3]]
    assert masked.ids == [m0, *pieces("fox"), VOCAB.break_, *picture, VOCAB.break_, m2]
    text, run, last = masked.holes
    assert text is last is None
    assert (run.before, run.codes, run.after) == ([blanked[0]], (None, None), [blanked[3]])
    assert run.image is image
    assert run.mask is hole


def test_a_run_knows_the_codes_between_two_holes():
    mask = np.zeros((6, 6), bool)
    mask[1, 2] = mask[5, 0] = True  # one pixel of code 1, one of code 6, of 3 x 3
    run = raster_run(mask, 3)
    assert (run.start, run.stop) == (1, 7)
    assert run.masked == [True, False, False, False, False, True]
    with pytest.raises(UserError, match="covers no pixel"):
        raster_run(np.zeros((6, 6), bool), 3)


def test_more_masks_than_sentinels_are_refused():
    count = VOCAB.config.sentinels
    (row,) = render_rows([((Mark.MASK,) * count,)], TEXT, IMAGE, VOCAB)
    assert row.ids == [VOCAB.sentinel(i) for i in range(count)]
    with pytest.raises(UserError, match=f"can have {count} masks"):
        render_rows([((Mark.MASK,) * (count + 1),)], TEXT, IMAGE, VOCAB)
