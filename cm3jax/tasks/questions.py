"""Questions about images, and with a rationale: VQA2, OKVQA, VizWiz, ScienceQA."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import read_json
from cm3jax.io.texts import brief, shorten
from cm3jax.tasks.records import (
    BadCase,
    Read,
    by_id,
    id_of,
    inside,
    listed,
    majority,
    text_of,
    to_cases,
)
from cm3jax.tasks.task import Case, Task

_CONCLUSION = "So the answer is "


def without_full_stop(answer: str) -> str:
    """An answer without the full stop that a model may put behind it."""
    return answer.strip().rstrip(".").strip()


def conclusion(answer: str) -> str:
    """What an explanation comes to: the text behind its last "So the answer is"."""
    return without_full_stop(answer.rpartition(_CONCLUSION)[2])


def explained(rationale: str, answer: str) -> str:
    """An explanation that ends with its answer; `conclusion` finds it."""
    return f"{rationale.strip().rstrip('.')}. {_CONCLUSION}{answer}."


VQA = Task(
    "vqa",
    templates=(
        "Question: {question} Answer: {answer}.<break>{image}",
        "Question: {question}\n{answer}<break>{image}",
        "Question: {question} The answer is {answer}.<break>{image}",
    ),
    image_first=("{image}<break>Question: {question} Answer: {answer}.",),
    parse=without_full_stop,
)

SCIENCE = Task(
    "science",
    templates=(
        "Question: {question}\nContext: {context}\nOptions: {options}\nAnswer: {answer}"
        "<break>{image}",
        "Question: {question}\nOptions: {options}\nAnswer: {answer}<break>{image}",
    ),
    image_first=("{image}<break>Question: {question}\nOptions: {options}\nAnswer: {answer}",),
    parse=conclusion,
)


def vqa2(folder: epath.Path, split: str) -> Iterator[Read]:
    """`v2_OpenEnded_mscoco_train2014_questions.json`, `v2_mscoco_train2014_annotations.json` and
    `train2014/` (visualqa.org/download, "input questions format")."""
    return _coco_questions(folder, split, "v2_", "VQA2")


def okvqa(folder: epath.Path, split: str) -> Iterator[Read]:
    """`OpenEnded_mscoco_train2014_questions.json`, `mscoco_train2014_annotations.json` and
    `train2014/` (okvqa.allenai.org: VQA's layout)."""
    return _coco_questions(folder, split, "", "OKVQA")


def _coco_questions(folder: epath.Path, split: str, edition: str, source: str) -> Iterator[Read]:
    part = "val2014" if split == "validation" else "train2014"
    questions = by_id(
        listed(folder / f"{edition}OpenEnded_mscoco_{part}_questions.json", "questions"),
        "question_id",
    )
    answers = listed(folder / f"{edition}mscoco_{part}_annotations.json", "annotations")

    def make(key: str, record: Any) -> Case:
        number = id_of(record, "question_id")
        question = questions.get(number)
        if question is None:
            raise BadCase(f"there is no question {shorten(number, 60)}")
        file = f"COCO_{part}_{int(id_of(record, 'image_id')):012}.jpg"
        values = {
            "question": text_of(question, "question"),
            "answer": majority(record["answers"]),
            "image": folder / part / file,
        }
        return Case(key, VQA, values, source, "CC-BY-4.0")

    return to_cases(((f"answer-{n}", record) for n, record in enumerate(answers)), make)


def vizwiz(folder: epath.Path, split: str) -> Iterator[Read]:
    """`Annotations/train.json` and `train/` (vizwiz.org, "visual question answering")."""
    part = "val" if split == "validation" else "train"
    records = listed(folder / "Annotations" / f"{part}.json")

    def make(key: str, record: Any) -> Case:
        values = {
            "question": text_of(record, "question"),
            "answer": majority(record["answers"]),
            "image": inside(folder / part, record["image"]),
        }
        return Case(key, VQA, values, "VizWiz", "CC-BY-4.0")

    return to_cases(((f"question-{n}", record) for n, record in enumerate(records)), make)


def science_qa(folder: epath.Path, split: str) -> Iterator[Read]:
    """`problems.json`, `pid_splits.json` and `images/train/ID/image.png` (github.com/lupantech/
    ScienceQA, its data folder); a question without an image is skipped."""
    part = "val" if split == "validation" else "train"
    problems = read_json(folder / "problems.json", "the problems")
    splits = read_json(folder / "pid_splits.json", "the splits")
    numbers = splits.get(part) if isinstance(splits, dict) else None
    if not isinstance(problems, dict) or not isinstance(numbers, list):
        raise UserError(f"{folder} is not as ScienceQA was published; give its data folder.")

    def make(key: str, record: Any) -> Case:
        question = text_of(record, "question")
        if not record["image"]:
            raise BadCase("it has no image")
        if not isinstance(record["choices"], list):
            raise BadCase("its 'choices' is not a list")
        choices = [str(choice) for choice in record["choices"]]
        if not 0 <= record["answer"] < len(choices):
            raise BadCase(f"its answer {brief(record['answer'])} is none of {len(choices)} choices")
        answer = choices[record["answer"]]
        solution = " ".join(str(record["solution"] or "").split())
        values = {
            "question": question,
            "options": ", ".join(choices),
            "answer": explained(solution, answer) if solution else answer,
            "image": inside(folder / "images" / part, f"{key}/{record['image']}"),
        }
        if hint := " ".join(str(record["hint"] or "").split()):
            values["context"] = hint
        return Case(key, SCIENCE, values, "ScienceQA", "CC-BY-NC-SA-4.0")

    return to_cases(((str(key), problems.get(str(key))) for key in numbers), make)
