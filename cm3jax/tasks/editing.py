"""Text-guided editing: InstructPix2Pix."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from cm3jax.io.files import read_json
from cm3jax.tasks.records import BadCase, Read, held_back, inside, listed, text_of, to_cases
from cm3jax.tasks.task import Case, Task

EDITING = Task(
    "editing",
    templates=(
        "Edit first image following the instruction<break>{image}<break>{instruction}"
        "<break>{answer}",
        "Edit the image as told<break>{image}<break>{instruction}<break>{answer}",
    ),
)

_LONGEST = 200
"""Characters of a name that are part of a key."""


def instruct_pix2pix(folder: epath.Path, split: str) -> Iterator[Read]:
    """`seeds.json`, a list of `[NAME, [SEED, …]]`, and in each folder NAME a `prompt.json` with
    the field `edit` beside `SEED_0.jpg` and `SEED_1.jpg`, before and after
    (github.com/timothybrooks/instruct-pix2pix, edit_dataset.py)."""

    def make(key: str, record: Any) -> Case:
        name, seed = record
        home = inside(folder, name)
        try:
            prompt = read_json(home / "prompt.json", "the prompt")
        except ValueError as error:
            raise BadCase(str(error)) from None
        values = {
            "instruction": text_of(prompt, "edit"),
            "image": inside(home, f"{seed}_0.jpg"),
            "answer": inside(home, f"{seed}_1.jpg"),
        }
        return Case(key, EDITING, values, "InstructPix2Pix")

    def pairs() -> Iterator[tuple[str, Any]]:
        for place, entry in enumerate(held_back(listed(folder / "seeds.json"), split)):
            if not _is_entry(entry):
                yield f"seeds.json:{place}", ("", "")
                continue
            name = str(entry[0])[:_LONGEST]
            yield from ((f"{name}/{str(seed)[:_LONGEST]}", (entry[0], seed)) for seed in entry[1])

    return to_cases(pairs(), make)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list)
