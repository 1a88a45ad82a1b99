"""Words printed in a picture ("how to write")."""

from cm3jax.tasks.task import Task

WORDS = Task(
    "words",
    templates=(
        'draw "{text}"<break>{answer}',
        'draw the word "{text}"<break>{answer}',
    ),
)
"""A picture with a text in it."""
