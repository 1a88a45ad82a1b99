"""Stories: texts and images in turn, which the model continues from a first text."""

from cm3jax.tasks.task import Task

STORY = Task("story", templates=("{beginning}<break>{answer}",))
"""The answer are all segments after the first."""
