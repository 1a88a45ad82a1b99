"""Values with intervals as inline SVG: a figure as papers have it and the table behind it, or one
share in a line."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

from cm3jax.report.html import Html, join, tag

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 32, 12, 42


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured value."""

    x: int | float
    y: float
    interval: tuple[float, float]
    """95 % interval of `y`."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines of points over one axis. A logarithmic axis needs values above 0; an interval that
    reaches 0 goes down to its end."""

    name: str
    """The name of its data file."""
    title: str
    x: str
    """What the axis below shows, and in which unit."""
    y: str
    series: Mapping[str, tuple[Point, ...]]
    """By legend."""
    log_x: bool = False
    log_y: bool = False

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Plot":
        """From `dataclasses.asdict`; `KeyError` or `TypeError` for another form."""
        series = {
            legend: tuple(Point(p["x"], p["y"], tuple(p["interval"])) for p in points)
            for legend, points in plain["series"].items()
        }
        return cls(**{**plain, "series": series})

    def table(self) -> str:
        """The points as CSV."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("series", self.x, self.y, "low", "high"))
        for legend, points in self.series.items():
            rows.writerows((legend, p.x, p.y, *p.interval) for p in points)
        return text.getvalue()

    def svg(self) -> Html:
        """The plot with its legend, one class (`line-0`, `line-1`, …) per series."""
        points = [point for line in self.series.values() for point in line]
        across = _Axis.over([p.x for p in points], self.log_x, _LEFT, _WIDTH - _RIGHT)
        heights = [y for p in points for y in (p.y, *p.interval)]
        down = _Axis.over(heights, self.log_y, _HEIGHT - _BOTTOM, _TOP)
        marks = []
        for value in down.ticks():
            y = down.place(value)
            marks.append(tag("line", x1=_LEFT, y1=y, x2=_WIDTH - _RIGHT, y2=y, class_="grid"))
            marks.append(tag("text", _label(value), x=_LEFT - 6, y=y + 4, text_anchor="end"))
        for value in across.ticks():
            place = across.place(value)
            below = _HEIGHT - _BOTTOM + 16
            marks.append(tag("text", _label(value), x=place, y=below, text_anchor="middle"))
        legends = []
        for number, (legend, line) in enumerate(self.series.items()):
            look = f"line-{number}"
            places = [(across.place(p.x), down.place(p.y)) for p in line]
            path = " ".join(f"{x},{y}" for x, y in places)
            marks.append(tag("polyline", points=path, class_=f"line {look}"))
            for (x, y), point in zip(places, line, strict=True):
                low, high = map(down.place, point.interval)
                marks.append(tag("line", x1=x, x2=x, y1=low, y2=high, class_=f"line {look}"))
                marks.append(tag("circle", cx=x, cy=y, r=3, class_=f"dot {look}"))
            legends.append(tag("span", tag("i", class_=f"key {look}"), legend))
        marks.append(
            tag("text", self.x, x=(_LEFT + _WIDTH) / 2, y=_HEIGHT - 6, text_anchor="middle")
        )
        svg = tag(
            "svg",
            *marks,
            view_box=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            aria_label=f"{self.title}: {self.y} over {self.x}",
            class_="plot",
        )
        caption = tag("figcaption", *legends, tag("span", self.y, class_="unit"))
        return tag("figure", join(svg, caption), class_="curves")


def share_mark(share: float, interval: tuple[float, float], chance: float) -> Html:
    """A share with its interval and what chance scores, small enough for the cell of a table."""
    width, middle, edge = 120, 7, 4

    def place(value: float) -> float:
        return round(edge + (width - 2 * edge) * value, 1)

    def across(low: float, high: float, look: str) -> Html:
        return tag("line", x1=place(low), x2=place(high), y1=middle, y2=middle, class_=look)

    marks = (
        across(0.0, 1.0, "grid"),
        across(*interval, "line line-0"),
        tag("line", x1=place(chance), x2=place(chance), y1=2, y2=12, class_="chance"),
        tag("circle", cx=place(share), cy=middle, r=3, class_="dot line-0"),
    )
    said = f"{share:.1%}, 95 % interval {interval[0]:.1%} to {interval[1]:.1%}"
    box = f"0 0 {width} {2 * middle}"
    return tag("svg", *marks, view_box=box, role="img", aria_label=said, class_="plot share")


def _label(tick: float) -> str:
    """Short enough for the margin: 1/32 is 0.031; a million is 1M."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(tick) >= size:
            return f"{tick / size:g}{unit}"
    if abs(tick) >= 1000:
        return f"{tick:,.0f}"
    return f"{tick:.2g}" if abs(tick) < 0.1 else f"{tick:g}"


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high`, drawn from pixel `first` to pixel `last`."""

    low: int | float
    high: int | float
    log: bool
    first: int
    last: int

    @classmethod
    def over(cls, values: list[float | int], log: bool, first: int, last: int) -> "_Axis":
        """An axis that holds all values; a linear one starts at 0, a logarithmic one above it."""
        values = [value for value in values if value > 0] if log else values
        low, high = (min(values), max(values)) if log else (min(0.0, *values), max(values))
        return cls(low, high if high > low else low + 1, log, first, last)

    def place(self, value: int | float) -> float:
        """The pixel of a value."""
        places = (self.low, self.high, max(value, self.low))
        low, high, at = ((math.log(place) if self.log else place) for place in places)
        return round(self.first + (self.last - self.first) * (at - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        """Round values inside: of a logarithmic axis powers of 2, or of 10 where these are many."""
        if self.log:
            base = 2.0 if self.high / self.low <= 2**8 else 10.0
            lowest = math.ceil(math.log(self.low, base) - 1e-9)
            highest = math.floor(math.log(self.high, base) + 1e-9)
            return [base**power for power in range(lowest, highest + 1)]
        reach = self.high - self.low
        step = 10.0 ** math.floor(math.log10(reach))
        if reach / step < 4:
            step /= 2 if reach / step >= 2 else 5
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * number, 10) for number in range(first, last + 1)]
