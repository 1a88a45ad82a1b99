"""A score and the protocol that it was measured under: no figure without its stamp.

Two scores may be compared only where their protocols agree; `comparison.score_differences` names
what does not, first, and the figures after. An image made with documents in front is "zero-shot, K
retrieved", never bare "zero-shot".
"""

import dataclasses
import functools
import importlib.resources
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import cm3jax
from cm3jax.config import DecodeConfig, RetrievalConfig
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.typed_json import read_fields, require_fields
from cm3jax.retrieval.bank import Bank

NOT_KNOWN = "not known"
_Z = 1.959964  # the normal distribution's 97.5 % point: 95 % two-sided


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that must be equal before two scores may be compared."""

    prompts: str
    """Name of the prompt set."""
    prompts_hash: str
    """Fingerprint of every prompt and image in it."""
    split: str
    """Where the prompts come from, and what of them was seen in training."""
    retrieved: int
    """Documents in front of each prompt (K)."""
    documents: str
    """How they were chosen."""
    bank: str
    """Size and fingerprint of the memory bank."""
    sampler: str
    """How tokens are drawn."""
    guidance: float
    """Scale of classifier-free guidance; 1 is none."""
    samples: int
    """Samples drawn per prompt; each one counts unless `rerank` chooses."""
    seed: int
    """Seed of prompts and sampling."""
    licensed_share: float
    """Share of the bank's documents with a known licence."""
    reader: str
    """What decides whether an answer is right."""
    weights: str
    """Fingerprint of all weights involved."""
    code_version: str
    """Version and source fingerprint of this package."""
    rerank: str = "none"
    """What chooses one of a prompt's samples."""
    resize: str = "none"
    """How images reach the size that the extractor reads."""
    extractor: str = "none"
    """Network whose features are compared, with the fingerprint of its weights."""
    seeds: int = 1
    """Seeds from `seed` on, each with prompts of its own."""
    licences: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The share of each licence: of the bank's documents or, without a bank, of the records."""
    settings: Mapping[str, Any] | None = None
    """Every setting that changes an answer, by its name in the config (`decode.top_k`,
    `retrieval.pool`); empty where nothing is sampled or searched, None where nobody knows: in a
    result of another tool, and in those stored before this was a field."""

    @property
    def regime(self) -> str:
        """What the score may be called; only what is drawn can be zero-shot."""
        if self.sampler == NOT_KNOWN:
            return NOT_KNOWN
        if self.sampler == "none":
            return (
                f"nothing drawn, {self.retrieved} retrieved" if self.retrieved else "nothing drawn"
            )
        return f"zero-shot, {self.retrieved} retrieved" if self.retrieved else "zero-shot"


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure over `n` answers: a share of right ones, a mean, or a distance of distributions."""

    value: float
    n: int
    """Answers judged."""
    chance: float | None
    """What guessing scores; None where nobody can say."""
    interval: tuple[float, float]
    """95 % interval of the value."""
    protocol: Protocol

    @classmethod
    def share(cls, verdicts: Sequence[bool], chance: float | None, protocol: Protocol) -> "Score":
        """The share of true verdicts, with Wilson's interval; `ValueError` without verdicts."""
        if not len(verdicts):
            raise ValueError("a share of no verdicts is not a score")
        hits = sum(bool(verdict) for verdict in verdicts)
        interval = wilson(hits, len(verdicts))
        return cls(hits / len(verdicts), len(verdicts), chance, interval, protocol)

    @classmethod
    def of(
        cls, values: Sequence[float | bool], chance: float | None, protocol: Protocol
    ) -> "Score":
        """The mean of values from 0 to 1, whose interval stays there: a `share` if all are 0 or 1.

        Raises `ValueError` without values.
        """
        if len(values) and set(values) <= {0.0, 1.0}:
            return cls.share([bool(value) for value in values], chance, protocol)
        found = cls.mean(values, protocol)
        low, high = found.interval
        return dataclasses.replace(found, chance=chance, interval=(max(0.0, low), min(1.0, high)))

    @classmethod
    def mean(cls, values: Sequence[float], protocol: Protocol) -> "Score":
        """The mean of one value per answer, with the normal interval; `ValueError` of none."""
        if not len(values):
            raise ValueError("a mean of no values is not a score")
        value = math.fsum(values) / len(values)
        squares = math.fsum((one - value) ** 2 for one in values)
        spread = _Z * math.sqrt(squares / max(len(values) - 1, 1) / len(values))
        return cls(value, len(values), None, (value - spread, value + spread), protocol)


_NEUTRAL = {
    # How many rows are decoded at once, and ids of each: samples are the same.
    "decode.batch",
    "decode.speculate",
    # Where things are: the stamp has fingerprints of the encoder and of the bank.
    "retrieval.encoder",
    "retrieval.milvus",
    # What only training and the preparation of a bank read.
    "retrieval.documents",
    "retrieval.candidates",
    "retrieval.relevance_cut",
    "retrieval.duplicate_cut",
    "retrieval.queries",
    "retrieval.views",
    "retrieval.query_dropout",
}


def sampling(
    decode: DecodeConfig | None, retrieval: RetrievalConfig | None = None
) -> dict[str, Any]:
    """The fields of a `Protocol` that say how answers are drawn, all taken from the configs.

    `decode` is None where nothing is drawn, `retrieval` where no documents are searched for. A new
    field of a config is in every stamp's settings by itself, unless `_NEUTRAL` names it.
    """
    parts = {"decode": decode and _without_idle(decode), "retrieval": retrieval}
    settings = {
        f"{part}.{name}": list(value) if isinstance(value, tuple) else value
        for part, config in parts.items()
        if config is not None
        for name, value in dataclasses.asdict(config).items()
        if f"{part}.{name}" not in _NEUTRAL
    }
    if decode is None:
        return NO_SAMPLING | {"settings": settings}
    heat = decode.temperature_range or decode.temperature
    return {
        "sampler": f"temperature {heat}, top-p {decode.top_p}",
        "guidance": decode.guidance_scale,
        "settings": settings,
    }


def _without_idle(decode: DecodeConfig) -> DecodeConfig:
    """The config with the usual numbers where others set them out of force, so that scores are told
    apart only by what can change a sample."""
    contrast = ("contrast_k", "contrast_alpha", "contrast_temperature")
    idle = contrast if decode.contrast == "none" else ()
    idle = (*idle, "temperature") if decode.temperature_range else idle
    return dataclasses.replace(decode, **{name: getattr(_USUAL, name) for name in idle})


_USUAL = DecodeConfig()
NO_SAMPLING: dict[str, Any] = {"sampler": "none", "guidance": 1.0, "settings": {}}
"""The fields of `sampling` where nothing is drawn."""
UNKNOWN_SAMPLING = {"sampler": NOT_KNOWN, "guidance": 1.0, "settings": None}
"""The fields of `sampling` for answers that came from elsewhere."""


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A set of prompts as stamps name it."""

    name: str
    split: str
    """Where the prompts come from, and what of them was seen in training."""
    fingerprint: str
    """Fingerprint of every prompt and image in it."""

    @classmethod
    def of(cls, name: str, split: str, content: Iterable[str | bytes | np.ndarray]) -> "PromptSet":
        """The set of prompts that ask and show `content`, in order."""
        return cls(name, split, digest(*content))


def stamp(
    prompts: PromptSet,
    reader: str,
    weights: str | Mapping[str, str],
    decode: DecodeConfig | None = None,
    retrieval: RetrievalConfig | None = None,
    bank: Bank | str = "none",
    licences: Mapping[str, int | float] | None = None,
    **fields: Any,
) -> Protocol:
    """The protocol of answers that were made here: whatever follows from the arguments is derived
    from them.

    `weights` is a fingerprint, or one for each part. `decode` and `retrieval` are as in `sampling`.
    `bank` is the bank or the words for it, `licences` counts or shares by licence where they are
    not the bank's. `fields` are the protocol's other fields: by default no documents are shown, and
    one sample is drawn with seed 0.
    """
    if not isinstance(bank, str):
        licences = licences or bank.manifest["licences"]
        bank = f"{len(bank)} documents, {bank.fingerprint}"
    usual: dict[str, Any] = {"retrieved": 0, "documents": "none", "samples": 1, "seed": 0}
    derived = {
        "licensed_share": licensed_share(licences or {}),
        "licences": by_licence(licences or {}),
    }
    return Protocol(
        prompts=prompts.name,
        prompts_hash=prompts.fingerprint,
        split=prompts.split,
        bank=bank,
        reader=reader,
        weights=weights if isinstance(weights, str) else digest(*weights.values()),
        code_version=code_version(),
        **usual | derived | sampling(decode, retrieval) | fields,
    )


def foreign_stamp(prompts: PromptSet, reader: str, weights: str = NOT_KNOWN) -> Protocol:
    """The protocol of answers made elsewhere: nobody knows how, and the stamp says so."""
    unknown: dict[str, Any] = dict.fromkeys(("documents", "rerank"), NOT_KNOWN)
    return stamp(
        prompts,
        reader,
        weights,
        bank=NOT_KNOWN,
        licensed_share=0.0,
        **unknown | UNKNOWN_SAMPLING,
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `n`: honest near 0 and 1, unlike the normal one."""
    share = hits / n
    centre = share + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def by_licence(counts: Mapping[str, int | float]) -> dict[str, float]:
    """Counts of documents by licence as shares."""
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items())}


def licensed_share(licences: Mapping[str, int | float]) -> float:
    """Share of documents with a known licence, from counts or shares by licence; 1 without
    documents.
    """
    total = sum(licences.values())
    unknown = licences.get("", 0) + licences.get("unknown", 0)  # readers write the second
    return 1.0 - unknown / total if total else 1.0


@functools.cache
def code_version() -> str:
    """The package's version and a fingerprint of its sources, e.g. `0.1.0+5f3a…`.

    Presets do not count: a run has its own config.
    """
    root = importlib.resources.files(cm3jax)
    with importlib.resources.as_file(root) as folder:
        presets = folder / "experiments"
        sources = sorted(p for p in folder.rglob("*.py") if not p.is_relative_to(presets))
        state = digest(*(part for p in sources for part in (p.name, p.read_bytes())))
    return f"{cm3jax.__version__}+{state}"


def tree_fingerprint(variables: Any) -> str:
    """Fingerprint of every array in a tree and its place there."""
    leaves = jax.tree.leaves_with_path(variables)
    return digest(
        *(part for path, leaf in leaves for part in (jax.tree_util.keystr(path), np.asarray(leaf)))
    )


def scores_to_json(scores: dict[str, Score]) -> dict[str, Any]:
    """Dotted names to nested objects whose leaves are numbers, and everything else under `details`.

    `{"a.b": Score}` becomes `{"a": {"b": 0.93}, "details": {"a": {"b": {"n": 200, …}}}}`.
    """
    out: dict[str, Any] = {"details": {}}
    for name, score in scores.items():
        *path, leaf = name.split(".")
        for root, value in ((out, score.value), (out["details"], _to_json(score))):
            for part in path:
                root = root.setdefault(part, {})
            root[leaf] = value
    return out


def _to_json(score: Score) -> dict[str, Any]:
    plain = dataclasses.asdict(score)
    plain["interval"] = list(score.interval)
    plain["protocol"]["regime"] = score.protocol.regime
    return plain


def scores_from_json(value: dict[str, Any]) -> dict[str, Score]:
    """All scores in a results file or in a `metrics.json`, by dotted name; `UserError` for one that
    is damaged."""
    try:
        return dict(_walk(value, (), detailed=False))
    except RecursionError:
        raise UserError("the result is nested too deep; evaluate again.") from None


def _from_json(value: dict[str, Any], what: str) -> Score:
    kinds = {"value": float, "n": int, "chance": float | None, "interval": list[float]}
    remedy = "evaluate again, or give another file"
    require_fields(value, kinds, what, remedy)
    given, known = value["protocol"], typing.get_type_hints(Protocol)
    # What older files do not say is what a field was before it was one: its default.
    stamp = {name: given[name] for name in known if name in given}
    require_fields(stamp, {name: known[name] for name in stamp}, what, remedy)
    try:
        low, high = value["interval"]
        protocol = Protocol(**stamp)
        return Score(value["value"], value["n"], value.get("chance"), (low, high), protocol)
    except (TypeError, ValueError):
        raise UserError(f"{what} is damaged or of another version; {remedy}.") from None


def read_scores(path: epath.PathLike) -> dict[str, Score]:
    """The scores in a file that `launch.evaluate` wrote; `UserError` where there are none."""
    scores = scores_from_json(read_fields(path, {}, "the result"))
    if not scores:
        raise UserError(f"{path} holds no scores; give a file that launch.evaluate wrote.")
    return scores


def _walk(value: Any, path: tuple[str, ...], detailed: bool) -> Iterator[tuple[str, Score]]:
    if not isinstance(value, dict):
        return
    if detailed and isinstance(value.get("protocol"), dict):
        yield ".".join(path), _from_json(value, f"the score {'.'.join(path)}")
        return
    for name, child in value.items():
        inside = detailed or name == "details"
        yield from _walk(child, path if name == "details" else (*path, name), inside)
