"""What a tuned model of the miniature does, task by task, read from its answers by programs.

Every case is held out (`data.emblems.tasks`, split `prompts`), asked once in the notation that a
user types, with its images as files, and answered freely. Each score comes with chance, which
is what the right answer to another case scores, and, if asked for, the model before tuning.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from cm3jax.config import CacheType, MeshConfig, WeightType
from cm3jax.emblems import confirms, read_scene, tells
from cm3jax.emblems.annotations import annotate
from cm3jax.emblems.scene import Scene
from cm3jax.emblems.task_cases import NAMES, Asked, asked, boxes
from cm3jax.emblems.wording import caption_states
from cm3jax.errors import UserError
from cm3jax.evaluate.exam import Exam, Examinee
from cm3jax.evaluate.protocol import PromptSet, Score
from cm3jax.evaluate.results import Cell, Figure
from cm3jax.generation.answers import AnswerPart
from cm3jax.generation.generator import Generator
from cm3jax.generation.prompts import Wanted, read_prompt
from cm3jax.shapes import RgbImage
from cm3jax.tasks import TASKS, grounded
from cm3jax.tasks.task import ANSWER, prompt

Answer = tuple[AnswerPart, ...]
"""The segments that were given: one text, one image, or those of a story."""


@dataclasses.dataclass(frozen=True)
class Tested:
    """Scores by name, and cases that show them."""

    scores: dict[str, Score]
    figures: list[Figure]


def picture_exact(case: Asked, answer: Answer) -> float:
    """Whether the image shows the expected scene exactly."""
    return float(confirms(_picture(answer), case.scenes[0]))


def word_exact(case: Asked, answer: Answer) -> float:
    """Whether the image shows the word, on any background."""
    scene = read_scene(_picture(answer)).scene
    return float(scene is not None and scene.word == case.scenes[0].word)


def class_iou(case: Asked, answer: Answer) -> float:
    """Intersection over union of the pixels of each class, over the classes in either image."""
    picture = _picture(answer)
    found = read_scene(picture).scene
    if found is None:
        return 0.0
    size = len(picture)
    expected, drawn = (_class_pixels(scene, size) for scene in (case.scenes[0], found))
    none = np.zeros((size, size), bool)
    shares = []
    for name in expected.keys() | drawn.keys():
        a, b = expected.get(name, none), drawn.get(name, none)
        shares.append((a & b).sum() / (a | b).sum())
    return float(np.mean(shares))


def _class_pixels(scene: Scene, size: int) -> dict[str, np.ndarray]:
    """The pixels of each class; those outside of shapes have a class of their own."""
    owners = annotate(scene, "read", size).segmentation if _has_boxes(scene) else None
    if owners is None or not scene.shapes:
        return {"other": np.ones((size, size), bool)}
    pixels: dict[str, np.ndarray] = {}
    first = 1 + len(scene.emblems)
    for number, shape in enumerate(scene.shapes, first):
        pixels[shape.shape] = pixels.get(shape.shape, False) | (owners == number)
    return pixels


def _has_boxes(scene: Scene) -> bool:
    """Whether the scene can be annotated: an emblem that was read has a look and no name."""
    return not scene.emblems


def attributes(case: Asked, answer: Answer) -> float:
    """The share of right attributes: the background, and of each shape its place, form, colour and
    size; a shape too many counts as four wrong ones."""
    found, expected = read_scene(_picture(answer)).scene, case.scenes[0]
    if found is None:
        return 0.0
    by_cell = {shape.cell: shape for shape in found.shapes}
    right = int(found.background == expected.background)
    for shape in expected.shapes:
        drawn = by_cell.get(shape.cell)
        if drawn is not None:
            pairs = ((shape.shape, drawn.shape), (shape.colour, drawn.colour))
            right += 1 + sum(a == b for a, b in (*pairs, (shape.size, drawn.size)))
    return right / (1 + 4 * max(len(expected.shapes), len(found.shapes)))


def box_iou(case: Asked, answer: Answer) -> float:
    """Intersection over union of each box with the drawn box of its colour and form that fits best,
    over the boxes asked for or, if those are more, drawn."""
    found = read_scene(_picture(answer)).scene
    if found is None or not _has_boxes(found) or not found.shapes:
        return 0.0
    left, shares = boxes(found), []
    wanted = boxes(case.scenes[0])
    for box in wanted:
        fitting = [other for other in left if other.label == box.label]
        best = max(fitting, key=lambda other: grounded.overlap(box, other), default=None)
        if best is not None:
            left.remove(best)
            shares.append(grounded.overlap(box, best))
    return sum(shares) / (len(wanted) + len(left))


def caption_exact(case: Asked, answer: Answer) -> float:
    """Whether the text says exactly what the image shows."""
    return float(tells(_text(answer), case.scenes[0]))


def long_caption_exact(case: Asked, answer: Answer) -> float:
    """The same, with at least one relation between shapes."""
    related = any(" is " in clause for clause in _text(answer).split(", "))
    return float(related and tells(_text(answer), case.scenes[0]))


def answer_exact(case: Asked, answer: Answer) -> float:
    """Whether the answer, without the full stop behind it, is the right one."""
    parse, truth = case.case.task.parse, case.case.values[ANSWER]
    return float(isinstance(truth, str) and parse(_text(answer)) == parse(truth))


def _text(answer: Answer) -> str:
    return answer[0] if answer and isinstance(answer[0], str) else ""


def _picture(answer: Answer) -> RgbImage:
    """The image of an answer that begins with one; `TypeError` for another."""
    if not isinstance(answer[0], np.ndarray):
        raise TypeError("the answer has no picture")
    return answer[0]


_STORY = (False, True, False, True, False)  # which segments after the first text are texts


def story_order(case: Asked, answer: Answer) -> float:
    """Whether as many texts and images follow as a story has, in turn."""
    return float(tuple(isinstance(segment, str) for segment in answer) == _STORY)


def story_scenes(case: Asked, answer: Answer) -> float:
    """The share of a story's three images that show what its texts have told up to there."""
    beginning = case.case.values["beginning"]
    told = caption_states(beginning) if isinstance(beginning, str) else None
    right, pictures = 0, 0
    for segment in answer:
        if isinstance(segment, str):
            told = caption_states(segment, told)
        elif isinstance(segment, np.ndarray) and pictures < len(case.scenes):
            pictures += 1
            right += told is not None and confirms(segment, told)
    return right / len(case.scenes)


Judge = Callable[[Asked, Answer], float]
JUDGES: dict[str, tuple[tuple[str, Judge], ...]] = {
    "editing": (("editing", picture_exact),),
    "segmentation": (("segmentation_iou", class_iou),),
    "edges": (("edges_attributes", attributes),),
    "depth": (("depth_attributes", attributes),),
    "grounded": (("grounded_iou", box_iou),),
    "words": (("words", word_exact),),
    "caption": (("caption", caption_exact),),
    "long_caption": (("long_caption", long_caption_exact),),
    "vqa": (("vqa", answer_exact),),
    "science": (("science", answer_exact),),
    "story": (("story_order", story_order), ("story_scenes", story_scenes)),
}
"""The scores of each task: a name, and what judges an answer."""


def evaluate_tasks(
    run_dir: epath.PathLike,
    before: epath.PathLike = "",
    tasks: Sequence[str] = NAMES,
    count: int = 200,
    seed: int = 0,
    say: Callable[[str], None] = print,
    mesh: MeshConfig | None = None,
    keep: epath.PathLike = "",
    weights: WeightType = "",
    cache: CacheType = "",
) -> Tested:
    """Scores of the tasks, `tuned.NAME`, over `count` held-out cases each, sampled with `seed`.

    With `before`, a run or weights, the same of that model as `before.NAME`. The devices of `mesh`
    share the work; `weights` and `cache` are as in `cm3jax.load`. Samples are kept in the folder
    `keep`, and those that are there are not drawn again.
    `say` gets a line per score. Raises `UserError` for an unknown task and for a run that can't be
    loaded.
    """
    for task in tasks:
        if task not in JUDGES:
            raise UserError(f"emblems has no task {task!r}; it has {', '.join(NAMES)}.")
    found = Tested({}, [])
    for name, run in (("before", before), ("tuned", run_dir)):
        if not run:
            continue
        examinee = Examinee.load(
            run, mesh=mesh, keep=keep, retrieves=False, weights=weights, cache=cache
        )
        exam = _TaskExam(examinee, count, seed, say, f"{name}.")
        for task in tasks:
            exam.take(task)
        found.scores.update(exam.scores)
        found.figures.extend(exam.figures)
    return found


class _TaskExam(Exam):
    """The exam of one model over `count` held-out cases of each task."""

    def __init__(
        self, examinee: Examinee, count: int, seed: int, say: Callable[[str], None], prefix: str
    ):
        super().__init__(examinee, seed, say, prefix=prefix)
        self._data_seed = examinee.experiment.seed
        self._size = examinee.experiment.vqgan.image_size
        self._count = count

    def take(self, task: str) -> None:
        """The scores of a task."""
        cases = [
            asked(task, "prompts", index, self._data_seed, self._size)
            for index in range(self._count)
        ]
        with tempfile.TemporaryDirectory() as folder:
            texts = [write_prompt(case, Path(folder)) for case in cases]
            given = answers(self.generator, task, texts, self.seed)
        name = f"emblems task {task}, dataset seed {self._data_seed}, {self._size} pixels"
        content = [part for case in cases for part in _content(case)]
        prompts = PromptSet.of(name, "scenes that no other split shows", content)
        for name, judge in JUDGES[task]:
            values = [judge(case, answer) for case, answer in zip(cases, given, strict=True)]
            self.score(name, values, by_chance(cases, judge), prompts, judge.__name__)
            shown = [_words(case) for case in cases]
            self.show(name, values, shown, partial(_cells, cases, given, values))


def _words(case: Asked) -> str:
    """The texts that were given."""
    values = case.case.values
    return " | ".join(v for name, v in values.items() if name != ANSWER and isinstance(v, str))


def _cells(
    cases: Sequence[Asked], given: Sequence[Answer], values: Sequence[float], place: int
) -> Iterator[Cell]:
    """The images that were given with a case, what came of it, and what is right."""
    of_case = dict(cases[place].case.values)
    truth = of_case.pop(ANSWER)
    for one in of_case.values():
        if isinstance(one, np.ndarray):
            yield Cell.of("given", one)
    for segment in given[place]:
        yield _cell(f"answer, {values[place]:.2f}", segment)
    for segment in truth if isinstance(truth, tuple) else (truth,):
        yield _cell("as it should be", segment)


def _cell(label: str, segment: Any) -> Cell:
    if isinstance(segment, np.ndarray):
        return Cell.of(label, segment)
    return Cell(label, text=segment if isinstance(segment, str) else "(no whole picture)")


def _content(case: Asked) -> list[str | np.ndarray]:
    values = [case.case.values[name] for name in sorted(case.case.values)]
    return [part for value in values for part in (value if isinstance(value, tuple) else (value,))]


def write_prompt(case: Asked, folder: Path) -> str:
    """The prompt of a case; its images are written to files in `folder`."""
    values: dict[str, str | epath.Path] = {}
    for name, value in case.case.values.items():
        if name == ANSWER:
            continue
        if isinstance(value, np.ndarray):
            path = folder / f"{case.case.key}-{name}.png"
            PIL.Image.fromarray(value).save(path)
            values[name] = epath.Path(path)
        elif isinstance(value, str):
            values[name] = value
    return prompt(case.case.task, values)


def answers(generator: Generator, task: str, prompts: Sequence[str], seed: int) -> list[Answer]:
    """What the model gives to prompts of a task, one sample each."""
    if task == TASKS["story"].name:
        return _stories(generator, prompts, seed)
    found = [group[0] for group in generator.generate_samples(prompts, seed=seed)]
    return [((s.text or "") if s.image is None else s.image,) for s in found]


def _stories(generator: Generator, prompts: Sequence[str], seed: int) -> list[Answer]:
    """What follows each first text: as many texts and images as the model likes."""
    size = generator.image.config.image_size
    read = [read_prompt(prompt, size) for prompt in prompts]
    asked = [dataclasses.replace(prompt, wanted=Wanted.DOCUMENT) for prompt in read]
    return [group[0].segments for group in generator.sample(asked, seed=seed)]


def by_chance(cases: Sequence[Asked], judge: Judge) -> float:
    """What the right answer to the next case scores, on average."""
    truths = [case.case.values[ANSWER] for case in cases]
    turned = [*truths[1:], *truths[:1]]
    return float(
        np.mean(
            [
                judge(case, truth if isinstance(truth, tuple) else (truth,))
                for case, truth in zip(cases, turned, strict=True)
            ]
        )
    )
