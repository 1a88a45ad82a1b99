"""Templates, what a case becomes in ids, and that a prompt is the beginning of a training row."""

import numpy as np
import pytest
from etils import epath

from cm3jax import testing
from cm3jax.config import CM3Config, DecodeConfig
from cm3jax.errors import UserError
from cm3jax.generation.prompts import read_prompt
from cm3jax.generation.requests import RequestBuilder
from cm3jax.sequence.document import Mark, parse_prompt
from cm3jax.sequence.fit import answer_masks
from cm3jax.sequence.rows import Places, Samples, build_rows
from cm3jax.tasks import TASKS
from cm3jax.tasks.example import Answer, to_document
from cm3jax.tasks.questions import conclusion, explained, without_full_stop
from cm3jax.tasks.task import Case, choose_template, fields, fill, prompt

CODES = [3, 1, 4, 1]
X = epath.Path("x.png")


def test_a_template_is_filled_part_by_part():
    template = "Question: {question} Answer: {answer}.<break>{image}"
    filled = fill(template, {"question": "why?", "answer": "so", "image": X})
    assert filled.parts == ("Question: why? Answer:", "so", ".", Mark.BREAK, X)
    assert list(filled.answer) == [1]


def test_a_story_is_many_segments_with_breaks_between():
    filled = fill("{beginning}<break>{answer}", {"beginning": "a", "answer": (X, "b", X)})
    assert filled.parts == ("a", Mark.BREAK, X, Mark.BREAK, "b", Mark.BREAK, X)
    assert list(filled.answer) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("values", [{"question": "why?"}, {"question": " ", "answer": "so"}])
def test_a_missing_or_empty_value_is_said(values):
    with pytest.raises(ValueError, match=r"answer|question"):
        fill("{question} {answer}", values)


def test_a_template_has_exactly_the_fields_that_are_given():
    science = TASKS["science"]
    with_context = {"question", "options", "context", "image"}
    assert "{context}" in science.fitting(with_context)[0]
    assert "{context}" not in science.fitting(with_context - {"context"})[0]
    with pytest.raises(UserError, match="science takes context and image"):
        science.fitting({"image"})


def test_cases_are_spread_over_templates_by_seed_and_key():
    def drawn(key, seed=0):
        case = Case(key, TASKS["vqa"], {"question": "why?", "answer": "so", "image": X})
        return choose_template(case, seed)

    parts = [drawn(str(i)).parts for i in range(60)]
    assert len(set(parts)) == 3
    assert parts == [drawn(str(i)).parts for i in range(60)]
    assert parts != [drawn(str(i), seed=1).parts for i in range(60)]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("image_first", [False, True])
def test_every_template_is_a_prompt_and_a_document(name, image_first):
    task = TASKS[name]
    for template in (task.image_first if image_first else task.templates) or task.templates:
        values = {field: X if field == "image" else "a red fox" for field in fields(template)}
        filled = fill(template, values)
        assert filled.parts[filled.answer.start] == "a red fox"
        given = {field: value for field, value in values.items() if field != "answer"}
        assert parse_prompt(prompt(task, given, image_first))


def test_image_first_puts_the_picture_before_the_text():
    given = {"question": "why?", "image": X}
    assert prompt(TASKS["vqa"], given, image_first=True).startswith("<image:x.png><break>Question")
    assert prompt(TASKS["vqa"], given).endswith("<image:x.png><infill>")


def row(filled, loss_on="all"):
    """The training row of a filled template."""
    found = to_document(filled, [CODES] * 2, testing.text_tokenizer(), testing.vocab())
    answers = np.asarray([found.answer], np.int32)
    samples = Samples(
        documents=np.zeros((1, 0, 1), np.int32),
        document_lengths=np.zeros((1, 0), np.int32),
        query=found.ids[None],
        query_lengths=np.asarray([len(found.ids)], np.int32),
        masks=answer_masks(answers),
        records=np.zeros(1, np.int64),
        answers=answers,
    )
    batch = build_rows(
        np,
        samples,
        Places(*(np.asarray([value], np.int32) for value in (0, 0, 1))),
        (1, 256),
        seed=0,
        epoch=0,
        config=CM3Config(loss_on=loss_on, max_masks=6),
        vocab=testing.vocab(),
    )
    return found, batch


CASES = {
    "vqa": {"question": "what is it?", "answer": "a fox", "image": X},
    "editing": {"instruction": "make it red", "answer": X, "image": X},
    "caption": {"answer": "a fox", "image": X},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("image_first", [False, True])
def test_a_prompt_is_the_training_row_up_to_its_answer(name, image_first, monkeypatch):
    monkeypatch.setattr(
        "cm3jax.generation.prompts.load_picture",
        lambda path, size: np.zeros((size, size, 3), np.uint8),
    )
    task, vocab = TASKS[name], testing.vocab()
    image = testing.image_tokenizer()
    monkeypatch.setattr(image, "encode", lambda pictures: np.asarray([CODES] * len(pictures)))
    values = CASES[name]
    given = {field: value for field, value in values.items() if field != "answer"}
    template = task.fitting(set(given), image_first)[0]
    _, batch = row(fill(template, values))
    read = read_prompt(prompt(task, given, image_first), image.config.image_size)
    builder = RequestBuilder(vocab, testing.text_tokenizer(), image, lambda prompt: 256 - prompt)
    (request,) = builder.build([read], DecodeConfig())
    prefix = request.prefix.tolist()
    tokens = batch.tokens[0].tolist()
    assert tokens[: len(prefix)] == prefix
    answer = tokens[len(prefix) :]
    if name == "editing":
        assert answer[:5] == [*(vocab.first_image + code for code in CODES), vocab.eos]
    else:
        pieces = testing.text_tokenizer().encode("a fox")
        assert answer[: len(pieces) + 1] == [*(vocab.first_text + p for p in pieces), vocab.eoss]


@pytest.mark.parametrize("name", CASES)
def test_loss_on_the_answer_covers_only_it_and_the_id_that_ends_it(name):
    filled = fill(TASKS[name].templates[0], CASES[name])
    found, batch = row(filled, "answer")
    vocab = testing.vocab()
    end = vocab.eoss if found.answer.recalled else vocab.eos
    asked = batch.targets[batch.weights > 0].tolist()
    assert asked == [*found.ids[found.answer.start : found.answer.stop].tolist(), end]
    _, whole = row(filled, "all")
    # All ids and the closing <eos>; if recalled, the sentinel's second place and <eoss> too.
    assert (whole.weights > 0).sum() == len(found.ids) + 1 + 2 * found.answer.recalled
    np.testing.assert_array_equal(whole.tokens, batch.tokens)


def test_only_a_text_may_be_asked_for_in_the_middle():
    filled = fill("{answer}<break>{image}", {"answer": X, "image": X})
    with pytest.raises(ValueError, match="neither a text nor the end"):
        to_document(filled, [CODES] * 2, testing.text_tokenizer(), testing.vocab())


def test_the_answer_of_an_example_is_where_it_says():
    filled = fill(TASKS["vqa"].templates[0], CASES["vqa"])
    found = to_document(filled, [CODES], testing.text_tokenizer(), testing.vocab())
    assert isinstance(found.answer, Answer)
    assert found.answer.recalled
    pieces = found.ids[found.answer.start : found.answer.stop] - testing.vocab().first_text
    assert testing.text_tokenizer().decode(pieces.tolist()) == "a fox"


def test_answers_are_parsed():
    assert without_full_stop(" two. ") == "two"
    told = explained("there is a circle at a1.", "one")
    assert told == "there is a circle at a1. So the answer is one."
    assert conclusion(told) == "one"
    assert conclusion("no reason") == "no reason"
