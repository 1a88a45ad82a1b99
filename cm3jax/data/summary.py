"""What a preparation did: refused and leaked records, speed, the cost of a million pairs."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping

from etils import epath

from cm3jax.data.corpus import Corpus
from cm3jax.io.files import write_json


@dataclasses.dataclass(frozen=True)
class Timing:
    """How many records this process prepared, and in what time."""

    records: int
    seconds: float


def report_path(corpus: epath.PathLike) -> epath.Path:
    """The path of the report on a corpus: beside it, since the corpus itself holds no times."""
    path = epath.Path(corpus)
    return path.parent / f"{path.name}-report.json"


def is_report(content: bytes) -> bool:
    """Whether a file is such a report."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "splits" in found


def summarise(
    corpus: epath.PathLike, timings: Mapping[str, Timing], cores: int, hourly_price: float
) -> list[str]:
    """Write the report on a corpus, and say what is in it in a few lines.

    A million pairs are estimated from the records that this life prepared, on this machine;
    `hourly_price` of 0 names no price.
    """
    splits = {}
    for split in ("train", "validation"):
        manifest = Corpus.open(epath.Path(corpus) / split).manifest
        names = ("records", "licence_shares", "refused", "leaks", "selection")
        splits[split] = {name: manifest[name] for name in names}
        splits[split]["reasons"] = dict(Counter(map(_kind, manifest["refused"].values())))
    path = report_path(corpus)
    estimate = _estimate(timings, cores, hourly_price)
    write_json(path, {"splits": splits, **({"estimate": estimate} if estimate else {})})
    shares = splits["train"]["licence_shares"]
    lines = [f"licences: {', '.join(f'{share:.1%} {name}' for name, share in shares.items())}"]
    for split, facts in splits.items():
        for reason, count in facts["reasons"].items():
            lines.append(f"{split}: {count} refused: {reason}")
    about = ""
    if estimate:
        hours, cost = estimate["hours_per_million"], estimate["price_per_million"]
        price = f", for {cost:.2f} at {hourly_price:g} an hour" if hourly_price else ""
        about = (
            f"{estimate['records']} records in {estimate['seconds']:.0f} s, "
            f"{estimate['records_per_second']:.1f} a second on {cores} cores; "
            f"a million pairs would take {hours:.1f} hours{price}. "
        )
    lines.append(f"{about}See {path}.")
    return lines


def _estimate(
    timings: Mapping[str, Timing], cores: int, hourly_price: float
) -> dict[str, int | float]:
    """What a million pairs cost; nothing where an earlier life did the work."""
    records = sum(timing.records for timing in timings.values())
    seconds = sum(timing.seconds for timing in timings.values())
    if not records:
        return {}
    hours = seconds / records * 1e6 / 3600
    return {
        "records": records,
        "seconds": seconds,
        "records_per_second": records / seconds,
        "cores": cores,
        "hours_per_million": hours,
        "price_per_million": hours * hourly_price,
    }


def _kind(reason: str) -> str:
    """A reason without what differs from record to record."""
    reason = re.sub(r"^\S+ line \d+:? ?(\S+: )?", "", reason)
    return re.sub(r"'[^']*'|\d+(\.\d+)?", "…", reason)
