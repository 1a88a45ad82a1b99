"""Instruction tuning: tasks, and the public data sets that teach them (section 4, appendix E)."""

from collections.abc import Callable, Iterator
from functools import partial

from etils import epath

from cm3jax.tasks import captions, editing, grounded, questions, stories, structure, writing
from cm3jax.tasks.task import Case, Skipped, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        editing.EDITING,
        structure.SEGMENTATION,
        structure.EDGES,
        structure.SCRIBBLE,
        structure.DEPTH,
        structure.HED,
        structure.OPENPOSE,
        structure.NORMALS,
        grounded.GROUNDED,
        writing.WORDS,
        captions.CAPTION,
        captions.LONG_CAPTION,
        captions.NARRATION,
        questions.VQA,
        questions.SCIENCE,
        stories.STORY,
    )
}
"""By name, as commands take them."""

CaseReader = Callable[[epath.Path, str], Iterator[Case | Skipped]]
"""The cases of a split, `train` or `validation`, of a data set in a folder."""

READERS: dict[str, CaseReader] = {
    "instruct_pix2pix": editing.instruct_pix2pix,
    "coco_canny": structure.coco_canny,
    "coco_scribble": structure.coco_scribble,
    **{
        task.name: partial(structure.given_maps, task)
        for task in (
            structure.SEGMENTATION,
            structure.DEPTH,
            structure.HED,
            structure.OPENPOSE,
            structure.NORMALS,
        )
    },
    "coco_boxes": grounded.coco_boxes,
    "open_images_boxes": grounded.open_images_boxes,
    "objects365_boxes": grounded.objects365_boxes,
    "coco_captions": captions.coco_captions,
    "flickr30k": captions.flickr30k,
    "localized_narratives": captions.localized_narratives,
    "image_paragraphs": captions.image_paragraphs,
    "vqa2": questions.vqa2,
    "okvqa": questions.okvqa,
    "vizwiz": questions.vizwiz,
    "science_qa": questions.science_qa,
}
"""Public data sets by name; each function's docstring says which files it reads."""
