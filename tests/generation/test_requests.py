import dataclasses

import numpy as np
import PIL.Image

from cm3jax import testing
from cm3jax.config import DecodeConfig
from cm3jax.generation.answers import AnswerReader
from cm3jax.generation.options import Sampling
from cm3jax.generation.prompts import edit_prompt, picture_prompt, read_infill
from cm3jax.sequence.document import render
from tests.generation.ids import codes, words

SIZE = testing.experiment().vqgan.image_size


def test_the_unconditional_stream_keeps_documents_and_masks_the_text(generator, vocab):
    document = render(testing.documents(1)[0], vocab)
    guided = DecodeConfig(temperature=0.0, guidance_scale=5.0)
    fox = picture_prompt("a fox")
    (request,) = generator.requests([fox], [[document]], guided)
    expected = [vocab.eos, *document, vocab.break_, vocab.sentinel(0), vocab.break_]
    (guide,) = request.guides
    assert guide.prefix.tolist() == expected
    assert guide.scale == 5
    contrasted = DecodeConfig(contrast="half")
    (request,) = generator.requests([fox], [[document]], contrasted)
    assert request.guides[0].prefix.tolist() == expected
    (request,) = generator.requests([fox], None, DecodeConfig())
    assert not request.guides, "guidance of scale 1 runs no second stream"
    plain = dataclasses.replace(guided, guidance_scale=1.0)
    first, second = (
        generator.text_to_image(["a red fox", "a large cat"], samples=2, decode=config)
        for config in (guided, plain)
    )
    assert [g[0].ids.tolist() for g in first] != [g[0].ids.tolist() for g in second]


def test_several_masks_follow_in_the_order_of_their_places(generator, vocab, picture_path):
    """Text, a part of an image, text: `m0 … $ m1 I2 I3 $ m2 … $`, as in a training row."""
    hole = np.zeros((SIZE, SIZE), bool)
    hole[8:] = True  # codes 2 and 3
    prompt = read_infill(f"a <mask> fox <image:{picture_path}> <mask>", SIZE, hole)
    (request,) = generator.requests([prompt])
    ((_, sample),) = next(generator.answer([request], Sampling(seed=3, decode=generator.decode)))
    reader = AnswerReader(vocab, generator.text, generator.image)
    m0, m1, m2 = map(vocab.sentinel, range(3))
    image = np.asarray(PIL.Image.open(picture_path))
    known = codes(generator, np.where(hole[..., None], np.uint8(128), image))[:2]
    text = [*words(generator, "a"), m0, *words(generator, "fox")]
    seen = [vocab.eos, *text, vocab.break_, *known, m1, vocab.break_, m2, vocab.eos, m0]
    assert sample.prefix.tolist() == seen
    first, drawn, last = sample.segments
    ends = np.flatnonzero(sample.ids == vocab.eoss)
    assert len(ends) == 3
    assert first == reader.text(sample.ids[: ends[0]])
    assert sample.ids[ends[0] + 1] == m1
    assert ends[1] == ends[0] + 4
    assert sample.ids[ends[1] + 1] == m2
    assert last == reader.text(sample.ids[ends[1] + 2 : -1])
    np.testing.assert_array_equal(drawn[~hole], image[~hole])
    whole = np.asarray([*known, *sample.ids[ends[1] - 2 : ends[1]]]) - vocab.first_image
    np.testing.assert_array_equal(drawn[hole], generator.image.decode(whole[None])[0][hole])
    assert sample.sampled == len(sample.ids) - 3


def test_editing_is_guided_by_the_instruction_and_by_the_picture(generator, vocab):
    image = testing.pictures(1, seed=5)
    config = dataclasses.replace(generator.decode, edit_scales=(7.5, 1.5))
    (request,) = generator.requests([edit_prompt(image[0], "a red fox")], decode=config)
    picture, break_ = codes(generator, image[0]), vocab.break_
    lead = words(generator, "Edit first image following the instruction")  # as in training
    shown = [vocab.eos, *lead, break_, *picture, break_]
    assert request.prefix.tolist() == [*shown, *words(generator, "a red fox"), break_]
    by_text, by_picture = request.guides
    assert (by_text.prefix.tolist(), by_text.scale) == (shown, 7.5)
    blind = [vocab.eos, vocab.sentinel(0), break_]
    assert (by_picture.prefix.tolist(), by_picture.scale) == (blind, 1.5)
    ((sample,),) = generator.edit(image, ["a red fox"], decode=config)
    assert sample.image.shape == (SIZE, SIZE, 3)
    config = dataclasses.replace(config, edit_scales=(1.0, 1.0))
    (request,) = generator.requests([edit_prompt(image[0], "a red fox")], decode=config)
    assert request.guides == (), "no stream that changes nothing is decoded"
