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
            records = tfds.data_source(
                name,
                split=split,
                data_dir=str(epath.Path(data_dir)),
                decoders={"image": tfds.decode.SkipDecoding()},
                download=False,
            )
            self._records, self._count = records, len(records)
        except Exception as error:  # anything from a missing folder to a missing TensorFlow
            first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"the dataset {name}, split {split}, can't be read from {data_dir} ({first}); "
                "prepare it there with file_format='array_record' and name its version, e.g. "
                "tfds:coco_captions/2014:1.1.0."
            ) from None
        self._name, self._split = name, split

    def __len__(self) -> int:
        return self._count

    def item(self, place: int) -> RawItem:
        """One record; `BadRecord` says what is wrong with it."""
        key = f"{self._name}/{self._split}#{place}"
        try:
            record = self._records[place]
        except Exception as error:
            raise BadRecord(key, f"the record can't be read ({type(error).__name__})") from None
        caption = next((t for t in map(_text, (record.get(n) for n in _TEXTS)) if t), "")
        if not caption.strip():
            raise BadRecord(key, "it has no caption")
        if not isinstance(record.get("image"), bytes):
            raise BadRecord(key, "it has no picture")
        licence = _text(record.get("licence", record.get("license"))) or "unknown"
        return RawItem(key, (caption, record["image"]), f"tfds:{self._name}", licence)


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
