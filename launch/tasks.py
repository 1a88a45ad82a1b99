"""What `launch.generate --task NAME` asks: a task's own inputs become a prompt in the notation."""

from etils import epath

from cm3jax.errors import UserError, nearest
from cm3jax.tasks import TASKS, grounded
from cm3jax.tasks.task import Task, fields, prompt

_OPTIONS = ("image", "boxes", "options", "context")
"""Fields that have an option of their own; the one that is left takes the text."""


def find(name: str) -> Task:
    """The task; `UserError` if there is none."""
    if name not in TASKS:
        raise UserError(
            f"there is no task {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}."
        )
    return TASKS[name]


def text_field(task: Task) -> str:
    """The field of the task that a text fills; empty if it takes none."""
    left = [name for name in fields(task.templates[0]) if name not in (*_OPTIONS, "answer")]
    return left[0] if left else ""


def task_prompt(
    task: Task, text: str, image: str = "", box: str = "", options: str = "", context: str = ""
) -> str:
    """The prompt of a task; empty inputs are not given.

    `box` holds `LABEL:x1,y1,x2,y2`, several with `;` between. Raises `UserError` for inputs that
    the task does not take, or that are missing.
    """
    boxes = grounded.write_boxes([grounded.Box.of(part) for part in box.split(";")]) if box else ""
    named = {"boxes": boxes, "options": options, "context": context}
    values: dict[str, str | epath.Path] = {name: value for name, value in named.items() if value}
    if image:
        values["image"] = epath.Path(image)
    if text:
        values[text_field(task) or "text"] = text
    return prompt(task, values)
