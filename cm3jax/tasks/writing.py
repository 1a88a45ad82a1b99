"""Words printed in an image ("how to write")."""

from cm3jax.tasks.task import Task

WORDS = Task(
    "words",
    templates=(
        'draw "{text}"<break>{answer}',
        'draw the word "{text}"<break>{answer}',
    ),
)
"""An image with a text in it."""
