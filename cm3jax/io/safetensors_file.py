"""safetensors files, read and written tensor by tensor, so that no model is ever whole in memory.

A file is eight bytes of length, a JSON header (name -> type, shape, offsets) and the bytes of all
tensors. Reading maps it into memory and copies what is asked for; nothing in it is ever executed.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.files import replacing
from cm3jax.io.texts import require_regular
from cm3jax.io.typed_json import fits

TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""safetensors' names of types; files with others are refused."""

_LONGEST_HEADER = 100_000_000

_NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not in memory yet."""

    type: str
    """safetensors' name of its type."""
    shape: tuple[int, ...]
    read: Callable[[Any], np.ndarray]
    """`read(...)` reads all of it; an index reads only that part."""


@dataclasses.dataclass(frozen=True)
class Output:
    """A tensor to be written."""

    type: str
    """safetensors' name of its type."""
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[np.ndarray]]
    """Arrays that follow one another in its memory, of any type that casts to its own."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * TYPES[self.type].itemsize


def whole(array: Any, type_: str | None = None) -> Output:
    """An `Output` that is an array in memory, as `type_` or unchanged."""
    return Output(type_ or _NAMES[np.dtype(array.dtype)], tuple(array.shape), lambda: (array,))


def read_file(path: epath.PathLike) -> dict[str, Tensor]:
    """The tensors of one file by name. `UserError` if it is missing, cut off or something else."""
    path = epath.Path(path)
    if not path.exists() or path.is_dir():
        raise UserError(f"{path} does not exist or is a folder; check the path.")
    header, start = _header(path)
    return {name: _tensor(path, name, entry, start) for name, entry in header.items()}


def read_metadata(path: epath.PathLike) -> dict[str, str]:
    """The texts that a file's header carries besides its tensors."""
    texts = _raw_header(epath.Path(path))[0].get("__metadata__", {})
    if not fits(texts, dict[str, str]):
        raise UserError(f"{path} is damaged: its header's notes make no sense; get it again.")
    return texts


def _raw_header(path: epath.Path) -> tuple[dict[str, Any], int]:
    """The header and where the tensors begin."""
    try:
        require_regular(path)
    except ValueError as error:
        raise UserError(f"{path} would be a safetensors file, but {error}.") from None
    size = path.stat().length
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # A pickle or an image begins with other eight bytes: a number that no file is long.
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise UserError(f"{path} is damaged or no safetensors file; get it again.")
        content = file.read(length)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged or no safetensors file; get it again.")
    return header, 8 + length


def _header(path: epath.Path) -> tuple[dict[str, Any], int]:
    """The checked entries of all tensors, and where their bytes begin."""
    header, start = _raw_header(path)
    header.pop("__metadata__", None)
    room = path.stat().length - start
    for name, entry in header.items():
        try:
            type_, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            known = type_ in TYPES
            sound = type(begin) is type(end) is int
            sound = sound and 0 <= begin <= end and all(type(n) is int and n >= 0 for n in shape)
            sound = sound and (not known or end - begin == math.prod(shape) * TYPES[type_].itemsize)
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise UserError(f"{path} is damaged: its entry {name} makes no sense; get it again.")
        if not known:
            raise UserError(
                f"{path}: {name} has the type {type_}, which is not read; save the weights as one "
                f"of {', '.join(TYPES)}."
            )
        if end > room:
            raise UserError(
                f"{path} is damaged: {name} ends at byte {start + end} of {start + room}; get it "
                "again."
            )
    return header, start


def _tensor(path: epath.Path, name: str, entry: dict[str, Any], start: int) -> Tensor:
    type_, shape = entry["dtype"], tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    return Tensor(type_, shape, functools.partial(_read, path, offset, TYPES[type_], shape))


def _read(
    path: epath.Path, offset: int, dtype: np.dtype, shape: tuple[int, ...], index: Any
) -> np.ndarray:
    """The part `index` of a tensor whose bytes begin at `offset`."""
    count = math.prod(shape)
    if count and os.path.exists(os.fspath(path)):
        # Mapped again each time: pages that were read do not stay with the process.
        flat: np.ndarray = np.memmap(os.fspath(path), dtype, "r", offset, (count,))
    else:  # in a bucket
        with path.open("rb") as file:
            file.seek(offset)
            flat = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return np.array(flat.reshape(shape)[index])


def checksum(tensors: Mapping[str, Output]) -> str:
    """SHA-256 of the bytes that `write_file` writes behind the header, made once more for it."""
    state = hashlib.sha256()
    for tensor in tensors.values():
        for part in tensor.parts():
            state.update(_bytes(tensor, part).data)
    return state.hexdigest()


def stored_checksum(path: epath.PathLike) -> str:
    """SHA-256 of the bytes behind a file's header."""
    path = epath.Path(path)
    start = _raw_header(path)[1]
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tensor: Output, part: Any) -> np.ndarray:
    return np.ascontiguousarray(part, TYPES[tensor.type]).reshape(-1).view(np.uint8)


def write_file(
    path: epath.PathLike, tensors: Mapping[str, Output], metadata: Mapping[str, str]
) -> None:
    """Write a file tensor by tensor, atomically; holds one part of one tensor at a time."""
    path = epath.Path(path)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        offsets = [offset, offset := offset + tensor.size]
        header[name] = {"dtype": tensor.type, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            written = 0
            for part in tensor.parts():
                written += file.write(_bytes(tensor, part).data)
            if written != tensor.size:
                raise ValueError(f"{name} has {written} bytes, not {tensor.size}")
