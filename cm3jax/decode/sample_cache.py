"""Samples are saved as they are done, so that long decoding continues where it was killed."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm3jax.config import DecodeConfig
from cm3jax.decode import loop
from cm3jax.decode.finished import Finished, Sample
from cm3jax.decode.prefix_cache import PrefixCache
from cm3jax.decode.request import Request
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.io.files import digest, read_json, write_json
from cm3jax.io.typed_json import require_fields
from cm3jax.model.language_model import LanguageModel
from cm3jax.sequence.vocab import Vocab

_log = logging.getLogger(__name__)

_FINISHED = {"request": int, "first": int, "samples": list[dict[str, Any]]}
_SAMPLE = {"ids": list[int], "logprob": float, "sampled": int, "temperature": float}
"""What an entry of a journal and a sample in it hold."""


@dataclasses.dataclass(frozen=True)
class Journal:
    """A folder with a file for every list of requests that was decoded.

    A file's name is a hash of everything that its samples depend on.
    """

    folder: epath.PathLike
    origin: str
    """Fingerprint of what decodes: weights and code."""

    def decode_each(
        self,
        model: LanguageModel,
        variables: dict,
        vocab: Vocab,
        requests: Sequence[Request],
        config: DecodeConfig,
        samples: int = 1,
        seed: int = 0,
        meter: Meter | None = None,
        watch: loop.Watch | None = None,
        prefixes: PrefixCache | None = None,
    ) -> Iterator[list[Finished]]:
        """As `loop.decode_each`, but requests whose samples are in the journal come first, and
        only the others are decoded."""
        path = epath.Path(self.folder) / f"{self._name(requests, config, samples, seed)}.json"
        kept = _kept(path, len(requests), samples, vocab.size)
        done = {one.request for one in kept}
        stored = [_written(one) for one in kept]
        if kept:
            yield kept
        left = [place for place in range(len(requests)) if place not in done]
        waiting = [requests[place] for place in left]
        call = (model, variables, vocab, waiting, config, samples, seed, meter)
        for finished in loop.decode_each(*call, _renumbered(watch, left), prefixes):
            placed = [dataclasses.replace(one, request=left[one.request]) for one in finished]
            stored += map(_written, placed)
            write_json(path, stored)
            yield placed

    def _name(
        self, requests: Sequence[Request], config: DecodeConfig, samples: int, seed: int
    ) -> str:
        asked = (part for request in requests for part in _content(request))
        return digest(self.origin, repr((config, samples, seed)), *asked)


def _renumbered(watch: loop.Watch | None, left: list[int]) -> loop.Watch | None:
    """A watch over the requests that are `left`, which tells `watch` their places among all."""
    if watch is None:
        return None
    return lambda request, sample, ids: watch(left[request], sample, ids)


def _kept(path: epath.Path, requests: int, samples: int, ids: int) -> list[Finished]:
    """The samples of those requests that a journal holds completely.

    A damaged journal is passed over with a warning: its samples can be drawn again.
    """
    if not path.exists():
        return []
    try:
        found = [_read(one, ids) for one in read_json(path, "the journal of samples")]
        done = Counter(one.request for one in found for _ in one.samples)
        whole = [place for place in range(requests) if done[place] == samples]
        return [one for one in found if one.request in whole]
    except (UserError, TypeError, ValueError, KeyError, AttributeError) as error:
        _log.warning("passing over %s, which is damaged: %s", path, error)
        return []


def _content(request: Request) -> Iterator[str | np.ndarray]:
    yield repr((request.program, request.prompt_id, [guide.scale for guide in request.guides]))
    yield request.prefix
    yield from (guide.prefix for guide in request.guides)


def _written(finished: Finished) -> dict[str, Any]:
    samples = [vars(sample) | {"ids": sample.ids.tolist()} for sample in finished.samples]
    return vars(finished) | {"samples": samples}


def _read(stored: Any, ids: int) -> Finished:
    """The inverse of `_written`; `ValueError` where it is damaged, or an id is out of range."""
    require_fields(stored, _FINISHED, "an entry")
    for one in stored["samples"]:
        require_fields(one, _SAMPLE, "a sample")
        if not all(0 <= number < ids for number in one["ids"]):
            raise ValueError("a sample has an id that the vocabulary has not")
    samples = [
        Sample(**one | {"ids": np.asarray(one["ids"], np.int32)}) for one in stored["samples"]
    ]
    return Finished(**stored | {"samples": samples})
