"""Image-caption datasets of tensorflow-datasets, as array_record files and without TensorFlow."""

from typing import Any

from etils import epath

from cm3jax.data.readers.items import BadRecord, RawItem
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
        caption = next((t for t in map(_text, (record.get(n) for n in _TEXTS)) if t), "")
        if not caption.strip():
            raise BadRecord(key, "it has no caption")
        licence = _text(record.get("licence", record.get("license"))) or "unknown"
        return RawItem(key, (caption, record["image"]), f"tfds:{self.name}", licence)

    def _key(self, place: int) -> str:
        return f"{self.name}/{self._split}#{place}"


def _text(value: Any) -> str:
    """The first text in a feature: bytes, a list of them, or a dictionary with a `text`."""
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value
    if value is not None and hasattr(value, "__getitem__") and len(value):
        return _text(value[0])
    return ""
