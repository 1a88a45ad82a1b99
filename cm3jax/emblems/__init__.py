"""The miniature: a procedural dataset with exact ground truth, and a reader of its images."""

from cm3jax.emblems.draw import draw_scene
from cm3jax.emblems.examples import Example, bank_size, example
from cm3jax.emblems.probe_prompts import (
    ProbePrompt,
    confirms,
    confirms_batch,
    confirms_emblems,
    prompts,
    tells,
)
from cm3jax.emblems.reader import Reading, read_batch, read_scene
from cm3jax.emblems.scene import Emblem, Scene, Shape
from cm3jax.emblems.wording import caption, caption_states

__all__ = [
    "Emblem",
    "Example",
    "ProbePrompt",
    "Reading",
    "Scene",
    "Shape",
    "bank_size",
    "caption",
    "caption_states",
    "confirms",
    "confirms_batch",
    "confirms_emblems",
    "draw_scene",
    "example",
    "prompts",
    "read_batch",
    "read_scene",
    "tells",
]
