"""Why two results differ: their protocols first, then their figures."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from cm3jax.evaluate.protocol import NOT_KNOWN, Protocol, Score


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that two results do not share."""

    score: str
    """Dotted name of the score."""
    what: str
    """A field of the protocol, one of its settings (`decode.top_k`), `n`, `value`, or `present`."""
    left: Any
    right: Any

    @property
    def of_protocol(self) -> bool:
        """Whether it forbids the comparison, rather than being its outcome."""
        return self.what != "value"


def score_differences(left: dict[str, Score], right: dict[str, Score]) -> list[Difference]:
    """What differs between two results: protocols first, then figures.

    A setting that only one of two stamps has is not known of the other (`NOT_KNOWN`).
    A figure that differs within both 95 % intervals is listed too; the reader decides.
    """
    found = []
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            found.append(Difference(name, "present", name in left, name in right))
            continue
        a, b = left[name], right[name]
        found += [Difference(name, *one) for one in _of_protocols(a.protocol, b.protocol)]
        if a.n != b.n:
            found.append(Difference(name, "n", a.n, b.n))
        if a.value != b.value:
            found.append(Difference(name, "value", a.value, b.value))
    return sorted(found, key=lambda difference: not difference.of_protocol)


def _of_protocols(left: Protocol, right: Protocol) -> Iterator[tuple[str, Any, Any]]:
    """(field or setting, left, right) of what differs."""
    for field in dataclasses.fields(Protocol):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        if mine == theirs:
            continue
        if field.name != "settings":
            yield field.name, mine, theirs
        elif mine is None or theirs is None:
            here, there = (NOT_KNOWN if one is None else "known" for one in (mine, theirs))
            yield field.name, here, there
        else:
            for name in sorted(mine.keys() | theirs.keys()):
                pair = mine.get(name, NOT_KNOWN), theirs.get(name, NOT_KNOWN)
                # Settings of retrieval against none at all: `retrieved` says it in a line.
                if pair[0] != pair[1] and all(_has_part(one, name) for one in (mine, theirs)):
                    yield name, *pair


def _has_part(settings: Mapping[str, Any], name: str) -> bool:
    """Whether there is any setting of the config that `name` belongs to."""
    part = name.partition(".")[0]
    return any(other.startswith(f"{part}.") for other in settings)


def compare(left: dict[str, Score], right: dict[str, Score]) -> str:
    """What differs, in words: first the protocols, equal differences of several scores on one
    line, then each figure with its interval."""
    found = score_differences(left, right)
    if not found:
        return "no difference: same protocols, same figures."
    lines = []
    groups: dict[tuple[str, str, str], list[str]] = {}
    for difference in found:
        if difference.of_protocol:
            what, left_, right_ = difference.what, str(difference.left), str(difference.right)
            groups.setdefault((what, left_, right_), []).append(difference.score)
    if groups:
        lines.append("protocols differ in:")
    for (what, a, b), names in groups.items():
        every = len(names) == len(left.keys() | right.keys())
        whose = "every score" if every else ", ".join(names)
        lines.append(f"  {what}: {a} | {b}   ({whose})")
    figures = [one.score for one in found if not one.of_protocol]
    if figures:
        lines.append("figures differ:")
    for name in figures:
        one, other = left[name], right[name]
        apart = max(one.interval[0], other.interval[0]) > min(one.interval[1], other.interval[1])
        verdict = "intervals apart" if apart else "intervals overlap"
        lines.append(f"  {name}: {_figure(one)} | {_figure(other)}   ({verdict})")
    return "\n".join(lines)


def _figure(score: Score) -> str:
    low, high = score.interval
    return f"{score.value:.4g} ({low:.4g}–{high:.4g}, n = {score.n})"
