"""Image-caption datasets of tensorflow-datasets, as array_record files and without TensorFlow."""

from typing import Any

import numpy as np
from etils import epath

from cm3jax.data.readers.items import BadRecord, RawItem, first_text
from cm3jax.data.readers.lines import origin
from cm3jax.errors import UserError

_TEXTS = ("caption", "text", "captions", "texts", "title")


class TfdsSplit:
    """A split of a prepared dataset, e.g. `coco_captions/2014:1.1.0`, `train`.

    A record is the feature `image` and the first text of `caption`, `text`, `captions` or `title`.
    Raises `UserError` if the dataset is not below `data_dir` in a format that needs no TensorFlow.
    """

    def __init__(self, name: str, split: str, data_dir: str):
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
        self.name, self._split = name, split
        self._features = builder.info.features

    def __len__(self) -> int:
        return self._count

    def class_names(self, sequence: str, feature: str) -> list[str]:
        """The names of the classes that a feature of a sequence has by number."""
        return self._features[sequence].feature[feature].names

    def record(self, place: int) -> dict[str, Any]:
        """One record, its picture as bytes; `BadRecord` if it can't be read or has none."""
        try:
            record = self._records[place]
        except Exception as error:
            reason = f"the record can't be read ({type(error).__name__})"
            raise BadRecord(self._key(place), reason) from None
        if not isinstance(record.get("image"), bytes):
            raise BadRecord(self._key(place), "it has no picture")
        return record

    def item(self, place: int) -> RawItem:
        """One record; `BadRecord` says what is wrong with it."""
        key, record = self._key(place), self.record(place)
        try:
            texts = (_text(record.get(name)) for name in _TEXTS)
            caption = next((text for text in texts if text.strip()), "")
            if not caption:
                raise ValueError("it has no caption")
            given = {name: record[name] for name in ("licence", "license") if name in record}
            source, licence = origin(given, f"tfds:{self.name}")
        except ValueError as error:
            raise BadRecord(key, str(error)) from None
        return RawItem(key, (caption, record["image"]), source, licence)

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
