"""Captions, short and long: COCO, Flickr30k, Localized Narratives, Stanford Image Paragraphs."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.paths import matching
from cm3jax.io.texts import shorten
from cm3jax.tasks.records import (
    BadCase,
    Read,
    by_id,
    held_back,
    id_of,
    inside,
    json_lines,
    lines,
    listed,
    sound,
    text_of,
    to_cases,
)
from cm3jax.tasks.task import Case, Task

CAPTION = Task(
    "caption",
    templates=("{answer}<break>{image}", "Describe the given picture. {answer}<break>{image}"),
    image_first=("{image}<break>Describe the given picture. {answer}",),
)

LONG_CAPTION = Task(
    "long_caption",
    templates=(
        "Describe the given picture in every detail. {answer}<break>{image}",
        "Describe all the things in the picture. {answer}<break>{image}",
        "Write a long caption of the given picture. {answer}<break>{image}",
    ),
    image_first=("{image}<break>Describe the given picture in every detail. {answer}",),
)

NARRATION = Task(
    "narration",
    templates=("Narrate in detail what the picture shows. {answer}<break>{image}",),
    image_first=("{image}<break>Narrate in detail what the picture shows. {answer}",),
)


def coco_captions(folder: epath.Path, split: str) -> Iterator[Read]:
    """`annotations/captions_train2017.json` and `train2017/` (cocodataset.org, "data format")."""
    part = coco_split(split)
    path = folder / "annotations" / f"captions_{part}.json"
    images = by_id(listed(path, "images"))

    def make(key: str, record: Any) -> Case:
        number = id_of(record, "image_id")
        image = images.get(number)
        if image is None:
            raise BadCase(f"there is no image {shorten(number, 60)}")
        picture = inside(folder / part, image["file_name"])
        return Case(
            key,
            CAPTION,
            {"answer": text_of(record, "caption"), "image": picture},
            "COCO",
            coco_licence(image),
        )

    return to_cases(coco_keys("caption", listed(path, "annotations")), make)


def coco_split(split: str) -> str:
    """COCO's name of a split, of the edition of 2017."""
    return "val2017" if split == "validation" else "train2017"


def coco_licence(image: dict[str, Any]) -> str:
    """The licence of a COCO image, by its number in the annotation file."""
    return "unknown" if image.get("license") is None else f"COCO image licence {image['license']}"


def coco_keys(what: str, records: list[Any]) -> Iterator[tuple[str, Any]]:
    """Records that have ids, each with a name; others by their place."""
    for place, record in enumerate(records):
        try:
            name = id_of(record, "id")
        except (BadCase, KeyError):
            name = f"at-{place}"
        yield f"{what}-{name}", record


def flickr30k(folder: epath.Path, split: str) -> Iterator[Read]:
    """`results_20130124.token`, lines `PICTURE#N<tab>CAPTION`, and `flickr30k-images/`.

    The layout is that of the archive that the authors give (Young et al. 2014). The five captions
    of an image are in one split.
    """

    def make(key: str, line: str) -> Case:
        name, tab, caption = line.partition("\t")
        file, mark, _ = name.partition("#")
        if not tab or not mark or not caption.strip():
            raise BadCase("it is not PICTURE#N, a tab and a caption")
        picture = inside(folder / "flickr30k-images", file)
        return Case(key, CAPTION, {"answer": sound(caption), "image": picture}, "Flickr30k")

    pictures: dict[str, list[tuple[str, str]]] = {}
    for key, line in lines(folder / "results_20130124.token"):
        pictures.setdefault(line.partition("#")[0], []).append((key, line))
    chosen = held_back(pictures.values(), split)
    return to_cases((line for group in chosen for line in group), make)


def localized_narratives(folder: epath.Path, split: str) -> Iterator[Read]:
    """`*SPLIT*_localized_narratives*.jsonl` and `images/ID.jpg` (google.github.io/localized-
    narratives, "file formats"); a COCO image has the file name that COCO gives it."""
    word = "val" if split == "validation" else "train"
    files = sorted(matching(folder, f"*{word}*localized_narratives*.jsonl"))
    if not files:
        raise UserError(f"{folder} has no *{word}*localized_narratives*.jsonl; put it there.")

    def make(key: str, record: Any) -> Case:
        caption, name = text_of(record, "caption"), id_of(record, "image_id")
        if str(record.get("dataset_id")).startswith("mscoco"):
            name = name.zfill(12)
        values = {"answer": caption, "image": inside(folder / "images", f"{name}.jpg")}
        return Case(key, NARRATION, values, "Localized Narratives", "CC-BY-4.0")

    return to_cases((item for file in files for item in json_lines(file)), make)


def image_paragraphs(folder: epath.Path, split: str) -> Iterator[Read]:
    """`paragraphs_v1.json`, `train_split.json` and `VG_100K*/ID.jpg` (Krause et al. 2017).

    The last two parts of a record's url are the image's place, as in Visual Genome's archives.
    """
    name = "val" if split == "validation" else "train"
    wanted = set(map(str, listed(folder / f"{name}_split.json")))
    records = listed(folder / "paragraphs_v1.json")

    def make(key: str, record: Any) -> Case:
        text = text_of(record, "paragraph")
        place = "/".join(text_of(record, "url").split("/")[-2:])
        values = {"answer": text, "image": inside(folder, place)}
        return Case(key, LONG_CAPTION, values, "Image Paragraphs")

    def chosen(record: Any) -> bool:
        return not isinstance(record, dict) or str(record.get("image_id")) in wanted

    numbered = ((f"paragraph-{place}", record) for place, record in enumerate(records))
    return to_cases((item for item in numbered if chosen(item[1])), make)
