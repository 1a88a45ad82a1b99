"""CM3Leon's instruction tuning, 7B (arXiv 2309.02591, section 4, tables 4 and 5).

    python -m launch.prepare sft_7b
    python -m launch.train sft_7b --init-from runs/cm3leon_7b --mesh.fsdp 128

128 A100 of 80 GB. The data sets are under `data/raw/sft`, each as it was published
(`cm3jax.tasks.READERS`). 2 M tokens a batch and 30 B in all are the paper's, the steps follow.
What is not here: its 300,000 images with words, for which no data set is named.
"""

import dataclasses

from cm3jax.config import Experiment

from . import cm3leon_7b

_DATA_SETS = (
    *("instruct_pix2pix", "coco_boxes", "open_images_boxes", "objects365_boxes"),
    *("coco_canny", "coco_scribble", "segmentation", "hed", "openpose", "depth", "normals"),
    *("coco_captions", "flickr30k", "image_paragraphs", "localized_narratives"),
    *("vqa2", "vizwiz", "okvqa", "science_qa"),
)
_FOLDERS = {"coco_boxes": "coco", "coco_canny": "coco", "coco_scribble": "coco"} | {
    "coco_captions": "coco"
}
_ROWS = 512  # of 4,096 tokens: 2 M


def tuned(experiment: Experiment, name: str) -> Experiment:
    """An experiment's instruction tuning, with the figures of table 4."""
    data = dataclasses.replace(
        experiment.data,
        rows="whole",
        batch=_ROWS,
        records=3_000_000,
        image_size=experiment.vqgan.image_size,
        corpus="",
        bank="",
        tasks=tuple((d, f"data/raw/sft/{_FOLDERS.get(d, d)}") for d in _DATA_SETS),
        mixture=tuple((f"data/sft/{d}", 1.0) for d in _DATA_SETS),
        resample=(0.3, 3.0),
    )
    optim = dataclasses.replace(experiment.optim, peak_lr=5e-5, warmup_steps=150)
    tokens = _ROWS * experiment.model.context
    train = dataclasses.replace(experiment.train, steps=30_000_000_000 // tokens)
    return dataclasses.replace(
        experiment,
        name=name,
        init_from=f"runs/{experiment.name}",
        data=data,
        optim=optim,
        train=train,
    )


def get_config() -> Experiment:
    """From the checkpoint of `cm3leon_7b`."""
    return tuned(cm3leon_7b.get_config(), "sft_7b")
