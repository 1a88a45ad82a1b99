"""A task of instruction tuning: its templates, how a case fills them, and what is asked for.

A template is a prompt (`document.parse_prompt`) with fields in braces:

    Question: {question} Answer: {answer}.<break>{image}                    (section 4, Table 5)

`{answer}` is what the model is to give. A text is masked where it is and recalled at the
sample's end, so that captions and answers may come before their image, as in the paper; an
image, or the rest of a story, ends the document and simply follows.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.sequence.document import Mark

ANSWER = "answer"
"""The field that is asked for."""


@dataclasses.dataclass(frozen=True)
class Derived:
    """An image that is computed from another one."""

    path: epath.Path
    by: Callable[[np.ndarray], np.ndarray]
    """From uint8 pixels [Y, X, 3] to such pixels."""


@dataclasses.dataclass(frozen=True)
class Overlay:
    """An image that was drawn over another one, and is turned with it."""

    path: epath.Path
    over: epath.Path


CasePicture: TypeAlias = np.ndarray | epath.Path | Derived | Overlay
"""Pixels, uint8 [Y, X, 3], the file that has them, or what is computed from one or drawn over it.
"""
Value: TypeAlias = str | CasePicture | tuple[str | CasePicture, ...]
"""The value of a field: a text, an image, or the segments of a story."""
Part: TypeAlias = str | CasePicture | Mark
"""A part of a filled template: text, image or `<break>`."""

_FIELD = re.compile(r"\{(\w+)\}|(<break>)")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task."""

    name: str
    templates: tuple[str, ...]
    """Text first where an answer is a text (the paper's way); a case takes one that has exactly its
    fields."""
    image_first: tuple[str, ...] = ()
    """Templates with the image first; none where the answer is an image."""
    parse: Callable[[str], str] = str.strip
    """The answer proper in a text that the model gave."""

    def fitting(self, given: set[str], image_first: bool = False) -> list[str]:
        """The templates that have exactly the fields `given` and the answer, in order.

        Raises `UserError` where there is none.
        """
        templates = self.image_first if image_first and self.image_first else self.templates
        found = [template for template in templates if fields(template) == {*given, ANSWER}]
        if not found:
            each = dict.fromkeys(_names(fields(template) - {ANSWER}) for template in templates)
            wanted = " or ".join(each)
            raise UserError(f"the task {self.name} takes {wanted}, not {_names(given)}.")
        return found


def _names(given: set[str]) -> str:
    return " and ".join(sorted(given)) or "nothing"


def fields(template: str) -> set[str]:
    """The fields of a template."""
    return {match[1] for match in _FIELD.finditer(template) if match[1]}


@dataclasses.dataclass(frozen=True)
class Case:
    """One example of a task, before a template is chosen."""

    key: str
    task: Task
    values: Mapping[str, Value]
    """By field, the answer among them."""
    source: str = "unknown"
    licence: str = "unknown"
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of its images as stored, where `values` have them resized."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A record that gives no case."""

    key: str
    reason: str


class Filled(NamedTuple):
    """A template with its values."""

    parts: tuple[Part, ...]
    answer: range
    """Which of the parts are asked for."""


def fill(template: str, values: Mapping[str, Value]) -> Filled:
    """The parts of a filled template; `ValueError` for a value that is missing or an empty text."""
    parts: list[Part] = []
    answer, place, text = range(0), 0, ""

    def end_text() -> None:
        nonlocal text
        parts.extend([text.strip()] if text.strip() else [])
        text = ""

    for match in _FIELD.finditer(template):
        text += template[place : match.start()]
        place = match.end()
        if match[2]:
            end_text()
            parts.append(Mark.BREAK)
            continue
        added = _segments(match[1], values)
        if match[1] != ANSWER and isinstance(added[0], str):
            # One text with what is around it, as in the prompt that a user types: a tokenizer
            # gives a word in quotes other pieces than the word and the quotes.
            text += added[0]
            continue
        end_text()
        if match[1] == ANSWER:
            answer = range(len(parts), len(parts) + len(added))
        parts += added
    text += template[place:]
    end_text()
    return Filled(tuple(parts), answer)


def _segments(field: str, values: Mapping[str, Value]) -> list[Part]:
    """The parts of a value: the segments of a story have breaks between them."""
    if field not in values:
        raise ValueError(f"there is no {field}")
    value = values[field]
    parts: list[Part] = []
    for segment in value if isinstance(value, tuple) else (value,):
        if isinstance(segment, str):
            segment = segment.strip()
            if not segment:
                raise ValueError(f"the {field} is empty")
        parts += [Mark.BREAK, segment] if parts else [segment]
    return parts


def choose_template(case: Case, seed: int, image_first: bool = False) -> Filled:
    """The case in one of its templates, drawn by (seed, key)."""
    given = set(case.values) - {ANSWER}
    templates = case.task.fitting(given, image_first)
    rng = random.Random(f"template {seed} {case.task.name} {case.key}")
    return fill(templates[int(rng.random() * len(templates))], case.values)


def prompt(task: Task, values: Mapping[str, str | epath.Path], image_first: bool = False) -> str:
    """The prompt, in the notation, that asks for the answer with the task's first fitting template.

    `values` are the fields but the answer. Raises `UserError` where no template has them.
    """
    template = task.fitting(set(values), image_first)[0]
    front, _, rest = template.partition("{answer}")
    out = front.removesuffix("<break>")
    if rest or not front.endswith("<break>"):
        out = f"{front}<mask>{rest}<infill>"
    given = {
        name: f"<image:{value}>" if isinstance(value, epath.Path) else value
        for name, value in values.items()
    }
    return _FIELD.sub(lambda match: given[match[1]] if match[1] else "<break>", out)
