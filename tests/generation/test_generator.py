import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.config import ONE_DEVICE, DecodeConfig
from cm3jax.errors import UserError
from cm3jax.generation import generator as generation
from cm3jax.generation.prompts import outpaint, read_infill, read_prompt
from cm3jax.generation.requests import BrokenImage, read_answer, to_text
from cm3jax.io.files import read_json, write_json
from cm3jax.sequence.document import Image, Text, parse, render

SIZE = testing.experiment().vqgan.image_size


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    testing.write_chain(directory)
    return directory


@pytest.fixture(scope="module")
def generator(chain):
    return cm3jax.load(str(chain / "decoder"))


@pytest.fixture(scope="module")
def vocab(generator):
    return generator.vocab


@pytest.fixture
def picture_path(tmp_path):
    path = tmp_path / "x.png"
    PIL.Image.fromarray(testing.pictures(1, seed=3)[0]).save(path)
    return path


def words(generator, text):
    return [generator.vocab.first_text + piece for piece in generator.text.encode(text)]


def codes(generator, image):
    return (generator.image.encode(image[None])[0] + generator.vocab.first_image).tolist()


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


def test_the_unconditional_stream_keeps_documents_and_masks_the_text(generator, vocab):
    document = render(testing.documents(1)[0], vocab)
    guided = DecodeConfig(temperature=0.0, guidance_scale=5.0)
    (ask,) = generator.ask.pictures([(("a fox",),)], [[document]], None, guided)
    expected = [vocab.eos, *document, vocab.break_, vocab.sentinel(0), vocab.break_]
    (guide,) = ask.request.guides
    assert guide.prefix.tolist() == expected
    assert guide.scale == 5
    contrasted = DecodeConfig(contrast="half")
    (ask,) = generator.ask.pictures([(("a fox",),)], [[document]], None, contrasted)
    assert ask.request.guides[0].prefix.tolist() == expected
    (ask,) = generator.ask.pictures([(("a fox",),)], None, None, DecodeConfig())
    assert not ask.request.guides, "guidance of scale 1 runs no second stream"
    plain = dataclasses.replace(guided, guidance_scale=1.0)
    first, second = (
        generator.text_to_image(["a red fox", "a large cat"], samples=2, decode=config)
        for config in (guided, plain)
    )
    assert [g[0].ids.tolist() for g in first] != [g[0].ids.tolist() for g in second]


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


def test_several_masks_follow_in_the_order_of_their_places(generator, vocab, picture_path):
    """Text, a part of a picture, text: `m0 … $ m1 I2 I3 $ m2 … $`, as in a training row."""
    hole = np.zeros((SIZE, SIZE), bool)
    hole[8:] = True  # codes 2 and 3
    prompt = read_infill(f"a <mask> fox <image:{picture_path}> <mask>", SIZE, hole)
    (ask,) = generator.ask.fillings([prompt.segments], None, None, generator.decode)
    ((_, sample),) = next(generator.answer([ask], seed=3))
    m0, m1, m2 = map(vocab.sentinel, range(3))
    image = np.asarray(PIL.Image.open(picture_path))
    known = codes(generator, np.where(hole[..., None], np.uint8(128), image))[:2]
    text = [*words(generator, "a"), m0, *words(generator, "fox")]
    seen = [vocab.eos, *text, vocab.break_, *known, m1, vocab.break_, m2, vocab.eos, m0]
    assert sample.prefix.tolist() == seen
    first, drawn, last = sample.segments
    ends = np.flatnonzero(sample.ids == vocab.eoss)
    assert len(ends) == 3
    assert first == to_text(sample.ids[: ends[0]], generator.ask)
    assert sample.ids[ends[0] + 1] == m1
    assert ends[1] == ends[0] + 4
    assert sample.ids[ends[1] + 1] == m2
    assert last == to_text(sample.ids[ends[1] + 2 : -1], generator.ask)
    np.testing.assert_array_equal(drawn[~hole], image[~hole])
    whole = np.asarray([*known, *sample.ids[ends[1] - 2 : ends[1]]]) - vocab.first_image
    np.testing.assert_array_equal(drawn[hole], generator.image.decode(whole[None])[0][hole])
    assert sample.sampled == len(sample.ids) - 3


def test_outpainting_draws_what_is_around_a_picture(generator, picture_path):
    prompt = read_infill(f"<image:{picture_path}>", SIZE, np.ones((SIZE, SIZE), bool))
    (shown,) = outpaint(prompt, 4, 8, 8).segments
    inside = np.zeros((SIZE, SIZE), bool)
    inside[8:16, 4:12] = True
    np.testing.assert_array_equal(shown.hole, ~inside)
    small = PIL.Image.open(picture_path).resize((8, 8), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown.image[8:16, 4:12], np.asarray(small))
    (ask,) = generator.ask.fillings([(shown,)], None, None, generator.decode)
    ((_, sample),) = next(generator.answer([ask]))
    np.testing.assert_array_equal(sample.image[inside], shown.image[inside])


def test_editing_is_guided_by_the_instruction_and_by_the_picture(generator, vocab):
    image = testing.pictures(1, seed=5)
    config = dataclasses.replace(generator.decode, edit_scales=(7.5, 1.5))
    (ask,) = generator.ask.edits(image, ["a red fox"], None, None, config)
    picture, break_ = codes(generator, image[0]), vocab.break_
    lead = words(generator, "Edit first image following the instruction")  # as in training
    shown = [vocab.eos, *lead, break_, *picture, break_]
    assert ask.request.prefix.tolist() == [*shown, *words(generator, "a red fox"), break_]
    by_text, by_picture = ask.request.guides
    assert (by_text.prefix.tolist(), by_text.scale) == (shown, 7.5)
    blind = [vocab.eos, vocab.sentinel(0), break_]
    assert (by_picture.prefix.tolist(), by_picture.scale) == (blind, 1.5)
    ((sample,),) = generator.edit(image, ["a red fox"], decode=config)
    assert sample.image.shape == (SIZE, SIZE, 3)
    config = dataclasses.replace(config, edit_scales=(1.0, 1.0))
    (ask,) = generator.ask.edits(image, ["a red fox"], None, None, config)
    assert ask.request.guides == (), "no stream that changes nothing is decoded"


def test_stories_have_texts_and_pictures_as_the_model_likes(generator, vocab):
    config = DecodeConfig(max_document_tokens=30)
    segments = [(("a red fox",),), (("a large cat",),)]
    asks = generator.ask.stories(segments, None, None, config)
    kinds = set()
    for finished in generator.answer(asks, 4, 2, config):
        for _, sample in finished:
            assert len(sample.ids) <= 30
            document = parse(sample.ids[:-1], vocab)
            assert len(document) == len(sample.segments)
            for part, segment in zip(document, sample.segments, strict=True):
                assert isinstance(part, Text) == isinstance(segment, str)
                kinds.add(type(part))
    assert kinds == {Text, Image}, "the model wrote or drew nothing; choose another seed"


def test_without_grammar_a_broken_picture_is_reported_with_its_length(generator, vocab):
    config = DecodeConfig(grammar=False)
    found = generator.text_to_image(["a red fox", "a cat"], samples=8, seed=1, decode=config)
    lengths = set()
    for sample in (sample for group in found for sample in group):
        assert not vocab.is_sentinel(sample.ids).any()
        assert sample.ids[-1] == vocab.eos
        for segment in sample.segments:
            if isinstance(segment, BrokenImage):
                lengths.add(segment.length)
            elif not isinstance(segment, str):
                assert segment.shape == (SIZE, SIZE, 3)
    assert lengths - {vocab.image_tokens}
    (ask,) = generator.ask.pictures([(("a fox",),)], None, None, config)
    first = vocab.first_image
    for ids, expected in (
        ([first, vocab.break_, first, first, vocab.eos], [1, 2]),
        ([first] * 6 + [vocab.eos], [6]),
        ([first, first, vocab.first_text, first, vocab.eos], [3]),
    ):
        parts = read_answer(ask, np.asarray(ids), generator.ask)
        assert parts == [BrokenImage(length) for length in expected]
    whole, text = read_answer(
        ask,
        np.asarray([*[first + 1] * 4, vocab.break_, vocab.first_text, vocab.eos]),
        generator.ask,
    )
    assert whole.tolist() == [1] * 4
    assert isinstance(text, str)


def test_samples_are_ranked_by_clip_or_by_perplexity(generator):
    text = "a red fox"
    (group,) = generator.text_to_image([text], samples=5)
    encoder = generator.encoder
    by_hand = [
        float(encoder.encode_images(s.image[None])[0] @ encoder.encode_texts([text])[0])
        for s in group
    ]
    order = sorted(range(5), key=lambda i: -by_hand[i])
    ranked = generator.ranked(group, "clip", text)
    assert [s.sample_id for s in ranked] == order
    (texts,) = generator.caption(testing.pictures(1), samples=5)
    ranked = generator.ranked(texts, "perplexity")
    values = [np.exp(-s.logprob / len(s.ids)) for s in ranked]
    assert values == sorted(values)
    assert values[0] == pytest.approx(ranked[0].perplexity)


def test_prompts_of_both_kinds_in_one_call_match_single_ones(generator, picture_path):
    prompts = [f"<mask> <image:{picture_path}> <infill>", f"a cat <image:{picture_path}> a fox"]
    (caption,), (story,) = generator.generate_samples(prompts, seed=9)
    assert caption.text is not None
    assert story.image is not None
    assert [caption.prompt_id, story.prompt_id] == [0, 1]
    alone = generator.generate(prompts[0], seed=9)
    assert alone.ids.tolist() == caption.ids.tolist()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <mask> fox", "1 <mask> and 0 <infill>"),
        ("a fox <infill>", "0 <mask> and 1 <infill>"),
        ("a <mask> or <mask> <infill> <infill> <infill>", "2 <mask> and 3 <infill>"),
        ("<mask> <infill> fox", "at the prompt's end"),
        ("<image:PICTURE>", "ends with a picture"),
        ("<break>", "marks alone"),
        ("   ", "the prompt is empty"),
        ("<image:nowhere.png> <mask> <infill>", "nowhere.png can't be read"),
    ],
)
def test_prompts_that_make_no_sense(generator, picture_path, prompt, message):
    with pytest.raises(UserError, match=message):
        generator.generate(prompt.replace("PICTURE", str(picture_path)))


def test_marks_in_plain_texts_are_text(generator, vocab):
    sample = generator.text_to_image(["a <mask> and <break>"])[0][0]
    assert not vocab.is_sentinel(sample.prefix).any()
    assert (sample.prefix == vocab.break_).sum() == 1
    with pytest.raises(UserError, match="empty"):
        generator.text_to_image([" "])


def test_documents_come_from_the_live_index(generator):
    sample = generator.generate("the emblem of zorby on a white flag", retrieve=2)
    assert len({document.key for document in sample.documents}) == 2
    scores = [document.score for document in sample.documents]
    assert scores == sorted(scores, reverse=True)
    shown = np.concatenate([document.ids for document in sample.documents])
    assert np.isin(shown, sample.prefix).all()
    text = generator.retrieve(["the emblem of zorby on a white flag"], k=2)[0]
    assert [document.id for document in text] == [document.id for document in sample.documents]
    picture = testing.pictures(1, seed=2)
    best, second = generator.retrieve(images=picture, k=2)[0]
    ((other,),) = generator.retrieve(images=picture, k=1, exclude=[[best.id]])
    assert other.id == second.id != best.id
    everything = generator.retrieve(["a cat"], picture, k=99)[0]
    assert len(everything) == 12


def test_why_there_are_fewer_documents_is_said(generator):
    read, lines = [read_prompt("a cat", SIZE)], []
    assert len(generator.documents_for(read, 99, say=lines.append)[0]) == 12
    assert lines.pop() == "12 of 99 documents for 'a cat'; the bank has 12"
    (shown,) = generator.documents_for(read, 2, floor=2.0, say=lines.append)
    assert shown == []
    assert lines.pop().startswith("0 of 2 documents for 'a cat'; scores below the floor of 2 were")
    assert len(generator.documents_for(read, 2, say=lines.append)[0]) == 2
    assert lines == []


def test_hand_picked_documents_come_before_retrieved_ones(generator, vocab):
    mine = render(testing.documents(1, seed=8)[0], vocab)
    sample = generator.generate("a red fox", retrieve=1, documents=[mine])
    assert sample.prefix[1 : 1 + len(mine)].tolist() == mine.tolist()
    assert sample.documents[1].key.startswith("tiny-")


def test_a_prompt_too_long_is_refused_with_lengths(generator):
    with pytest.raises(UserError, match=r"tokens long and asks for 4 more.* room for"):
        generator.text_to_image(["a fox " * 100])


def test_ids_can_be_read(generator, vocab):
    ids = [vocab.eos, vocab.sentinel(0), vocab.break_, vocab.first_image + 3, vocab.eos]
    ids = np.asarray([*ids, *words(generator, "a fox"), vocab.eoss])
    assert generator.describe(ids) == "<eos> <mask:0> <break> I3 <eos> 'a fox' <eoss>"


def test_parts_that_do_not_belong_together_are_refused(chain, tmp_path):
    with pytest.raises(UserError, match="is a run of a clip"):
        cm3jax.load(str(chain / "clip"))
    with pytest.raises(UserError, match="is a run of a clip; give a decoder's"):
        generation.load(chain / "clip", mesh=ONE_DEVICE)
    moved = shutil.copytree(chain, tmp_path / "moved")
    config = read_json(moved / "decoder" / "config.json", "config")
    write_json(moved / "decoder" / "config.json", config | {"data": {"bank": ""}})
    other = cm3jax.load(str(moved / "decoder"))
    with pytest.raises(UserError, match="names no memory bank"):
        other.retrieve(["a fox"])
    found = cm3jax.load(str(moved / "decoder"), str(chain / "bank")).retrieve(["a fox"])
    assert len(found[0]) == 2
    type(other.text).train(["another text"], 300).save(moved / "text")
    with pytest.raises(UserError, match="was made with vocabulary"):
        cm3jax.load(str(moved / "decoder"))


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, cm3jax; assert 'jax' not in sys.modules and callable(cm3jax.load)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_answers_are_compared_by_their_likelihood(chain, generator):
    rows = [(("a red fox",),), (("two green squares on the left",),)]
    asks = generator.ask.pictures(rows, None, None, generator.decode)
    answers = [np.array([20, 21, 300], np.int32), np.array([22], np.int32)]
    run = load_run(chain / "decoder")
    for ask, answer, nats in zip(asks, answers, generator.logprobs(asks, answers), strict=True):
        ids = jnp.concatenate([ask.request.prefix, answer])[None]
        places = jnp.arange(ids.shape[1])[None]
        hidden = generator.model.apply(run.variables, ids, places, jnp.ones_like(ids))
        scores = generator.model.apply(run.variables, hidden, method="logits")
        each = np.log(jax.nn.softmax(scores[0, -1 - len(answer) : -1]))
        expected = each[np.arange(len(answer)), answer].sum()
        np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_an_answer_that_does_not_fit_is_one_sentence(generator):
    asks = generator.ask.pictures([(("a red fox",),)], None, None, generator.decode)
    with pytest.raises(UserError, match=r"an answer of 96 tokens follows a prompt of .* room for"):
        generator.logprobs(asks, [np.zeros(96, np.int32)])
