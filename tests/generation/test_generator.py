import dataclasses
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.config import DecodeConfig
from cm3jax.errors import UserError
from cm3jax.generation.options import Sampling
from cm3jax.generation.prompts import Wanted, picture_prompt
from cm3jax.sequence.document import Image, Text, parse, render
from tests.generation.ids import codes, words

SIZE = testing.experiment().vqgan.image_size


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pictures_follow_documents_and_the_text(generator, vocab, count):
    documents = [render(d, vocab) for d in testing.documents(count, seed=5)]
    prompts = ["a red fox", "two green squares on the left"]
    found = generator.text_to_image(prompts, [documents] * 2, samples=2, seed=1)
    front = [vocab.eos]
    for document in documents:
        front += [*document, vocab.break_]
    for prompt, group in zip(prompts, found, strict=True):
        assert [sample.sample_id for sample in group] == [0, 1]
        for sample in group:
            assert sample.prefix.tolist() == [*front, *words(generator, prompt), vocab.break_]
            shown = generator.image.decode(sample.ids[None] - vocab.first_image)[0]
            np.testing.assert_array_equal(sample.image, shown)
            assert len(sample.documents) == count
            assert sample.text is None
            assert sample.logprob < 0
            assert sample.temperature == 1


def test_prompt_ids_name_the_noise(generator):
    prompts = ["a red fox", "a large cat"]
    first = generator.text_to_image(prompts, samples=2)[1]
    again = generator.text_to_image([prompts[1], "two stars"], samples=2, prompt_ids=[1, 9])[0]
    assert [s.ids.tolist() for s in first] == [s.ids.tolist() for s in again]


def test_captioning_recalls_the_masked_text_of_a_pair(generator, vocab):
    images = testing.pictures(2, seed=4)
    document = render(testing.documents(1)[0], vocab)
    found = generator.caption(images, [[document], []], seed=3)
    mask = vocab.sentinel(0)
    for image, front, (sample,) in zip(images, ([*document, vocab.break_], []), found, strict=True):
        seen = [vocab.eos, *front, mask, vocab.break_, *codes(generator, image), vocab.eos, mask]
        assert sample.prefix.tolist() == seen
        assert sample.ids[-1] == vocab.eoss
        (text,) = parse(sample.ids[:-1], vocab)
        assert isinstance(text, Text)
        assert sample.text == generator.text.decode(text.pieces)
        assert len(sample.ids) <= generator.decode.max_text_tokens


def test_infilling_draws_the_run_and_leaves_everything_else(generator, vocab):
    image, mask = testing.pictures(1, seed=6)[0], np.zeros((SIZE, SIZE), bool)
    mask[2:6, 9:12] = True  # a part of code 1
    mask[12:14, 0:3] = True  # a part of code 2; the run is both
    captions = ["a red fox", ""]
    found = generator.infill(captions, np.stack([image, image]), np.stack([mask, mask]), seed=2)
    blanked = codes(generator, np.where(mask[..., None], np.uint8(128), image))
    m0 = vocab.sentinel(0)
    for caption, (sample,) in zip(captions, found, strict=True):
        front = [*words(generator, caption), vocab.break_] if caption else []
        seen = [vocab.eos, *front, blanked[0], m0, blanked[3], vocab.eos, m0]
        assert sample.prefix.tolist() == seen
        assert len(sample.ids) == 2
        whole = np.asarray([blanked[0], *sample.ids, blanked[3]]) - vocab.first_image
        drawn = generator.image.decode(whole[None])[0]
        np.testing.assert_array_equal(sample.image[mask], drawn[mask])
        np.testing.assert_array_equal(sample.image[~mask], image[~mask])


def test_infilling_forces_known_codes_inside_the_run_and_never_sees_the_hole(generator, vocab):
    image, mask = testing.pictures(1, seed=7)[0], np.zeros((SIZE, SIZE), bool)
    mask[:8, :8] = mask[8:, 8:] = True  # the first and the last code
    twice = np.stack([mask, mask])
    found = generator.infill(["a red fox"] * 2, np.stack([image, image]), twice)
    known = codes(generator, image)
    for (sample,) in found:
        assert sample.ids[1:3].tolist() == known[1:3]
    assert found[0][0].ids.tolist() != found[1][0].ids.tolist()
    other = image.copy()
    other[mask] = 255 - other[mask]
    again = generator.infill(["a red fox"] * 2, np.stack([other, other]), twice)
    assert [s.ids.tolist() for (s,) in again] == [s.ids.tolist() for (s,) in found]
    with pytest.raises(UserError, match="covers no pixel"):
        generator.infill(["a red fox"], image[None], np.zeros_like(mask)[None])


def test_the_three_lines_that_people_know(generator, vocab, picture_path):
    m0 = vocab.sentinel(0)
    for prompt in ("A photo of a cat shown on a dslr", "Image of a chameleon:"):
        sample = generator.generate(prompt)
        assert sample.prefix.tolist() == [vocab.eos, *words(generator, prompt), vocab.break_]
        assert sample.image.shape == (SIZE, SIZE, 3)
    sample = generator.generate(f"Image of a <mask>: <image:{picture_path}> <infill>")
    picture = codes(generator, np.asarray(PIL.Image.open(picture_path)))
    text = [*words(generator, "Image of a"), m0, *words(generator, ":")]
    assert sample.prefix.tolist() == [vocab.eos, *text, vocab.break_, *picture, vocab.eos, m0]
    assert sample.image is None
    assert isinstance(sample.text, str)


def test_stories_have_texts_and_pictures_as_the_model_likes(generator, vocab):
    config = DecodeConfig(max_document_tokens=30)
    prompts = [
        dataclasses.replace(picture_prompt(text), wanted=Wanted.DOCUMENT)
        for text in ("a red fox", "a large cat")
    ]
    requests = generator.requests(prompts, decode=config)
    kinds = set()
    for finished in generator.answer(requests, Sampling(4, 2, config)):
        for _, sample in finished:
            assert len(sample.ids) <= 30
            document = parse(sample.ids[:-1], vocab)
            assert len(document) == len(sample.segments)
            for part, segment in zip(document, sample.segments, strict=True):
                assert isinstance(part, Text) == isinstance(segment, str)
                kinds.add(type(part))
    assert kinds == {Text, Image}, "the model wrote or drew nothing; choose another seed"


def test_prompts_of_both_kinds_in_one_call_match_single_ones(generator, picture_path):
    prompts = [f"<mask> <image:{picture_path}> <infill>", f"a cat <image:{picture_path}> a fox"]
    (caption,), (story,) = generator.generate_samples(prompts, seed=9)
    assert caption.text is not None
    assert story.image is not None
    assert [caption.prompt_id, story.prompt_id] == [0, 1]
    alone = generator.generate(prompts[0], seed=9)
    assert alone.ids.tolist() == caption.ids.tolist()


def test_marks_in_plain_texts_are_text(generator, vocab):
    sample = generator.text_to_image(["a <mask> and <break>"])[0][0]
    assert not vocab.is_sentinel(sample.prefix).any()
    assert (sample.prefix == vocab.break_).sum() == 1
    with pytest.raises(UserError, match="empty"):
        generator.text_to_image([" "])


def test_a_single_text_or_a_picture_of_another_size_raises_user_error(generator):
    for call in (generator.text_to_image, generator.generate_samples, generator.retrieve):
        with pytest.raises(UserError, match="takes a list of texts; put 'a red fox' into brackets"):
            call("a red fox")
    large = np.zeros((1, 2 * SIZE, 2 * SIZE, 3), np.uint8)
    with pytest.raises(UserError, match=r"a list of uint8 arrays, 16 x 16 x 3, and one"):
        generator.caption(large)
    with pytest.raises(UserError, match=r"one here is uint8 \(32, 32, 3\)"):
        generator.edit(large, ["make it blue"])


def test_a_prompt_too_long_is_refused_with_lengths(generator):
    with pytest.raises(UserError, match=r"tokens long and asks for 4 more.* room for"):
        generator.text_to_image(["a fox " * 100])


def test_ids_can_be_read(generator, vocab):
    ids = [vocab.eos, vocab.sentinel(0), vocab.break_, vocab.first_image + 3, vocab.eos]
    ids = np.asarray([*ids, *words(generator, "a fox"), vocab.eoss])
    assert generator.describe(ids) == "<eos> <mask:0> <break> I3 <eos> 'a fox' <eoss>"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, cm3jax; assert 'jax' not in sys.modules and callable(cm3jax.load)"
    subprocess.run([sys.executable, "-c", code], check=True)
