"""Image-caption datasets of tensorflow-datasets, as array_record files and without TensorFlow."""

import contextlib
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from cm3jax.data.changes import Made
from cm3jax.data.readers.items import (
    CAPTIONS,
    BadRecord,
    Facts,
    RawItem,
    file_mark,
    first_text,
)
from cm3jax.data.readers.lines import origin
from cm3jax.errors import UserError

_TEXTS = (*CAPTIONS, "title")
_READ = frozenset([*_TEXTS, "image", "licence", "license", "subjects", "label"])


class TfdsSplit:
    """A split of a prepared dataset, e.g. `coco_captions/2014:1.1.0`, `train`.

    A record is the feature `image` and the first text of `caption`, `text`, `captions` or `title`.
    It is about its `subjects` (texts), or about the classes in its `label` or, as in COCO, of its
    `objects`. Its other single numbers and texts are what rules may ask for (`punsafe`), those of
    classes by name (LAION's `nsfw`). `by_subjects` lets `facts` read every record.
    Raises `UserError` if the dataset is not below `data_dir` in a format that needs no TensorFlow.
    """

    def __init__(self, name: str, split: str, data_dir: str, by_subjects: bool = False):
        import tensorflow_datasets as tfds  # a second to import

        try:
            builder = tfds.builder(name, data_dir=str(epath.Path(data_dir)))
            decoders = {"image": tfds.decode.SkipDecoding()}
            records = builder.as_data_source(split=split, decoders=decoders)
            self._records, self._count = records, len(records)
        except Exception as error:  # anything from a missing folder to a missing TensorFlow
            first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"the dataset {name}, split {split}, can't be read from {data_dir} ({first}); "
                "prepare it there with file_format='array_record' and name its version, e.g. "
                "tfds:coco_captions/2014:1.1.0."
            ) from None
        self.name, self._split, self._by_subjects = name, split, by_subjects
        self._features = builder.info.features
        self._state = ", ".join(map(file_mark, sorted(builder.data_path.iterdir())))

    def __len__(self) -> int:
        return self._count

    def class_names(self, sequence: str, feature: str) -> list[str]:
        """The names of the classes that a feature of a sequence has by number."""
        return self._features[sequence].feature[feature].names

    def record(self, place: int) -> dict[str, Any]:
        """One record, its image as bytes; `BadRecord` if it can't be read or has none."""
        try:
            record = self._records[place]
        except Exception as error:
            reason = f"the record can't be read ({type(error).__name__})"
            raise BadRecord(self._key(place), reason) from None
        if not isinstance(record.get("image"), bytes):
            raise BadRecord(self._key(place), "it has no image")
        return record

    def item(self, place: int) -> RawItem:
        """One record; `BadRecord` says what is wrong with it."""
        key, record = self._key(place), self.record(place)
        try:
            texts = (_text(record.get(name)) for name in _TEXTS)
            caption = next((text for text in texts if text.strip()), "")
            if not caption:
                raise ValueError("it has no caption")
            names = [name for name in ("licence", "license") if name in record]
            given: dict[str, Any] = {name: record[name] for name in names}
            source, licence = origin(given, f"tfds:{self.name}")
        except ValueError as error:
            raise BadRecord(key, str(error)) from None
        parts, subjects = (caption, record["image"]), self._subjects(record)
        return RawItem(key, parts, source, licence, self._columns(record), subjects=subjects)

    def facts(self) -> Iterator[Facts]:
        """Only the keys, and the subjects if they decide: a dataset has an image per record, and
        splits of its own."""
        for place in range(self._count):
            subjects: tuple[str, ...] = ()
            if self._by_subjects:
                with contextlib.suppress(BadRecord):
                    subjects = self._subjects(self.record(place))
            yield Facts(self._key(place), subjects=subjects)

    def made(self, place: int) -> Made:
        """The state of the dataset's files."""
        return Made(self._key(place), self._state)

    def _subjects(self, record: dict[str, Any]) -> tuple[str, ...]:
        if "subjects" in record:
            given = record["subjects"]
            names = [_text(name) for name in ([given] if isinstance(given, bytes) else given)]
            return tuple(dict.fromkeys(filter(None, names)))
        if "objects" in record and "label" in record["objects"]:
            classes, names = record["objects"]["label"], self.class_names("objects", "label")
        elif "label" in record and hasattr(self._features["label"], "names"):
            classes, names = [record["label"]], self._features["label"].names
        else:
            return ()
        return tuple(dict.fromkeys(names[int(number)] for number in classes if number >= 0))

    def _columns(self, record: dict[str, Any]) -> dict[str, Any]:
        return {
            name.lower(): self._single(name, value)
            for name, value in record.items()
            if name not in _READ and isinstance(value, bytes | numbers.Number)
        }

    def _single(self, name: str, value: Any) -> Any:
        """A number or a text; of a class its name."""
        names = getattr(self._features[name], "names", None)
        if names is not None:
            return names[int(value)] if 0 <= value < len(names) else None
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def _key(self, place: int) -> str:
        return f"{self.name}/{self._split}#{place}"


def _text(value: Any) -> str:
    """The first text in a feature: `first_text`, or that of a dictionary's `text`."""
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return next((text for text in map(_text, value) if text.strip()), "")
    return first_text(value)
