"""Captions and answers in the files that COCO's and VQA's servers take, scored.

[{"image_id": 42, "caption": "a cat"}, …]       [{"question_id": 7, "answer": "two"}, …]
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate import caption_scores, vqa
from cm3jax.evaluate.protocol import NOT_KNOWN, PromptSet, Protocol, Score, foreign_stamp
from cm3jax.io.files import read_json
from cm3jax.io.texts import brief, read_regular, shorten

_RESAMPLES = 1000


def score_caption_file(made: epath.PathLike, annotations: epath.PathLike) -> dict[str, Score]:
    """`bleu_1` to `bleu_4`, `rouge_l` and `cider` of captions against COCO's annotations.

    Only images that have a caption count; a reference that is null is none, and ids are the same
    as numbers and as texts. Raises `UserError` for files of another form, for an image with two
    captions, and for one without references.
    """
    answers = _answers(made, "image_id", "caption")
    references = defaultdict(list)
    for one in _rows(annotations, "annotations", ("image_id", "caption")):
        if one["caption"] is not None:
            number = _id(annotations, one, "image_id")
            references[number].append(_text(annotations, one, "caption"))
    bare = [picture for picture in answers if picture not in references]
    if bare:
        raise UserError(
            f"{annotations} has no caption of image {shorten(bare[0], 60)}, which {made} describes."
        )
    texts = list(answers.values())
    found = caption_scores.score_captions(texts, [references[picture] for picture in answers])
    protocol = _stamp(made, annotations, answers, "COCO caption code: PTB words, CIDEr-D")
    scores = {
        f"bleu_{order}": Score(value, len(texts), None, interval, protocol)
        for order, (value, interval) in enumerate(
            zip(found.bleu, found.bleu_intervals(_RESAMPLES), strict=True), 1
        )
    }
    scores["rouge_l"] = Score.mean(found.rouge_l, protocol)
    scores["cider"] = Score.mean(found.cider, protocol)
    return scores


def score_vqa_file(made: epath.PathLike, annotations: epath.PathLike) -> dict[str, Score]:
    """`accuracy`, of all answers and by type (`accuracy.number`), against VQA's annotations.

    Raises `UserError` for files of another form and for questions that they do not share.
    """
    answers = _answers(made, "question_id", "answer")
    people: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for one in _rows(annotations, "annotations", ("question_id", "answers")):
        number = _id(annotations, one, "question_id")
        given = _given(annotations, one, number)
        if people.setdefault(number, given) != given:
            raise UserError(
                f"{annotations} has two sets of answers to question {shorten(number, 60)}; leave "
                "the right one."
            )
        kinds[number] = str(one.get("answer_type") or "")
    odd = sorted(answers.keys() ^ people.keys(), key=str)
    if odd:
        raise UserError(
            f"{made} and {annotations} do not hold the same questions, {shorten(odd[0], 60)} "
            "first; the score is over all."
        )
    right = {number: vqa.accuracy(text, people[number]) for number, text in answers.items()}
    protocol = _stamp(
        made, annotations, answers, "official VQA normalisation, at least 3 of 9 agree"
    )
    scores = {"accuracy.all": Score.mean(list(right.values()), protocol)}
    for kind in sorted(set(kinds.values()) - {""}):
        own = [value for number, value in right.items() if kinds[number] == kind]
        scores[f"accuracy.{kind.replace('/', '_')}"] = Score.mean(own, protocol)
    return scores


def _answers(path: epath.PathLike, key: str, text: str) -> dict[str, str]:
    """The answers by id, in order of the file; null is an empty one, which no word is like."""
    found: dict[str, str] = {}
    for one in _rows(path, None, (key, text)):
        number = _id(path, one, key)
        if number in found:
            raise UserError(f"{path} answers {key} {shorten(number, 60)} twice; leave one.")
        found[number] = "" if one[text] is None else _text(path, one, text)
    if not found:
        raise UserError(f"{path} holds no answers.")
    return found


def _given(path: epath.PathLike, one: Mapping[str, Any], number: str) -> list[str]:
    """What people answered to a question: objects with an `answer`, or texts."""
    given = one["answers"]
    if not isinstance(given, list) or not given:
        raise UserError(
            f"{path} has nobody's answers to question {shorten(number, 60)}; test splits "
            "come without any, give a split that has them."
        )
    rows = [row if isinstance(row, dict) else {"answer": row} for row in given]
    if any(row.get("answer") is None for row in rows):
        raise UserError(f"{path} has answers without `answer` to question {shorten(number, 60)}.")
    return [_text(path, row, "answer") for row in rows]


def _id(path: epath.PathLike, one: Mapping[str, Any], field: str) -> str:
    """An id as text: 1, 1.0 and "1" are the same."""
    value = one[field]
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return str(int(value))
    raise UserError(f"{path} has {field} {brief(value)}, which is neither a number nor a text.")


def _text(path: epath.PathLike, one: Mapping[str, Any], field: str) -> str:
    value = one[field]
    if isinstance(value, int | float | str):
        return str(value)
    raise UserError(f"{path} has {field} {brief(value)}, which is no text.")


def _rows(
    path: epath.PathLike, inside: str | None, fields: Sequence[str]
) -> list[Mapping[str, Any]]:
    value = read_json(path, "the file of answers" if inside is None else "the annotations")
    rows = value.get(inside) if inside and isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(field in row for field in fields) for row in rows
    ):
        where = f"a list `{inside}`" if inside else "a list"
        raise UserError(f"{path} is not {where} of objects with {' and '.join(fields)}.")
    return rows


def _stamp(
    made: epath.PathLike, annotations: epath.PathLike, answers: Mapping[Any, str], reader: str
) -> Protocol:
    """The protocol of a file's answers: nobody knows how they were made, and the stamp says so."""
    name = epath.Path(annotations).name
    content: list[str | bytes] = [read_regular(annotations, None), *map(str, answers)]
    prompts = PromptSet.of(f"{len(answers)} of {name}", name, content)
    return foreign_stamp(prompts, reader, f"{NOT_KNOWN}; answers of {epath.Path(made).name}")
