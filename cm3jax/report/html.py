"""The few pieces of HTML that reports need, all inline: elements, images, curves.

Text is escaped unless it is `Html` already, so that a caption with `<script>` in it stays a
caption. Nothing refers to anything outside the page.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cm3jax.shapes import UInt8

_VOID = {"img", "meta", "link", "br"}

Points = Sequence[tuple[int, float]]
"""(step, value) of a curve."""


class Html(str):
    """Markup that needs no escaping."""


def tag(name: str, /, *children: str, **attributes: str | int | float | None) -> Html:
    """An element. `class_` is written `class`, `view_box` `viewBox`; None writes nothing."""
    written = "".join(
        f' {_attribute(key)}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Children one after the other, plain text escaped."""
    return Html(
        "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    )


def _attribute(name: str) -> str:
    return {"class_": "class", "view_box": "viewBox"}.get(name, name.replace("_", "-"))


def png_uri(image: UInt8[np.ndarray, "Y X 3"]) -> str:
    """The image as a `data:` URI, losslessly."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def png(image: UInt8[np.ndarray, "Y X 3"], optimize: bool = True) -> bytes:
    """The image as a PNG file; without `optimize` it is made several times as fast, and larger by
    a few percent."""
    import PIL.Image  # a bare machine that only trains or measures may lack it

    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def cell(
    label: str, *more: str, picture: str | None = None, alt: str = "", document: str = ""
) -> Html:
    """A label and what more there is to say, under an image (a `data:` URI) if there is one.

    `document` is the mark of the bank's document that it shows, by which a takedown finds it.
    """
    image = [] if picture is None else [tag("img", src=picture, alt=alt or label)]
    class_ = "cell" if image else "cell wide"
    inside = (*image, tag("span", label), *more)
    return tag("div", *inside, class_=class_, data_document=document or None)


def figure(title: str, *cells: str) -> Html:
    """Cells side by side under a line of text."""
    return tag("div", tag("p", title), tag("div", *cells, class_="cells"), class_="figure")


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """A table of names and values."""
    rows = [tag("tr", tag("th", key), tag("td", value)) for key, value in pairs]
    return tag("table", tag("tbody", *rows), class_="facts")


def table(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Rows under the names of the first one's fields."""
    head = tag("tr", *(tag("th", name) for name in rows[0]))
    body = [tag("tr", *(tag("td", str(row.get(name, ""))) for name in rows[0])) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_="facts")
    return tag("div", whole, class_="scroll")


def curves(
    series: Mapping[str, Points],
    unit: str,
    validation: Mapping[str, Points] | None = None,
    over: str = "steps",
    borders: Sequence[int] = (),
) -> Html:
    """Lines over training steps as inline SVG, one class (`line-0`, `line-1`, …) per series.

    `series` maps a legend to its points; a line of `validation` is dashed and otherwise looks like
    the line of the same legend. `unit` and `over` name the axes. A line is drawn with at most as
    many points as the plot has pixels across. `borders` are the steps after which the second stage
    and the later ones begin.
    """
    width, height, left, right, bottom, top = 640, 260, 44, 32, 30, 12
    names = list(dict.fromkeys([*series, *(validation or {})]))
    lines = [(name, "", points) for name, points in series.items()]
    lines += [(name, ", validation", points) for name, points in (validation or {}).items()]
    points = [point for _, _, line in lines for point in line if math.isfinite(point[1])]
    last = max((x for x, _ in points), default=1) or 1
    most = max((y for _, y in points), default=1)
    most = most if most > 0 else 1

    def place(x: int | float, y: int | float) -> tuple[float, float]:
        across = left + (width - left - right) * x / last
        down = height - bottom - (height - bottom - top) * y / most
        return round(across, 1), round(down, 1)

    marks = []
    for value in _ticks(most):
        x, y = place(0, value)
        marks.append(tag("line", x1=x, y1=y, x2=width - right, y2=y, class_="grid"))
        marks.append(tag("text", f"{value:g}", x=x - 6, y=y + 4, text_anchor="end"))
    for value in (tick for tick in _ticks(last) if tick == round(tick)):
        x, _ = place(value, 0)
        marks.append(tag("text", f"{value:,.0f}", x=x, y=height - 10, text_anchor="middle"))
    for number, border in enumerate(borders, 2):
        if border < last:
            x, _ = place(border, 0)
            marks.append(tag("line", x1=x, y1=top, x2=x, y2=height - bottom, class_="border"))
            marks.append(tag("text", f"stage {number}", x=x + 4, y=top + 8))
    legend = []
    for name, suffix, line in lines:
        look = f"line-{names.index(name)}{' dashed' if suffix else ''}"
        drawn = _thinned([(x, y) for x, y in line if math.isfinite(y)], width)
        path = " ".join("{},{}".format(*place(x, y)) for x, y in drawn)
        marks.append(tag("polyline", points=path, class_=f"line {look}"))
        if len(drawn) == 1:  # no line goes through one point
            x, y = place(*drawn[0])
            marks.append(tag("circle", cx=x, cy=y, r=3, class_=f"dot line-{names.index(name)}"))
        legend.append(tag("span", tag("i", class_=f"key {look}"), name + suffix))
    label = f"{unit} over {over}: {', '.join(name + suffix for name, suffix, _ in lines)}"
    svg = tag(
        "svg", *marks, view_box=f"0 0 {width} {height}", role="img", aria_label=label, class_="plot"
    )
    caption = tag("figcaption", *legend, tag("span", f"{unit}, over {over}", class_="unit"))
    return tag("figure", svg, caption, class_="curves")


def _thinned(points: Points, most: int) -> Points:
    """Every n-th point, at most about `most` of them, the last among them."""
    return points[::-1][:: -(-len(points) // most) or 1][::-1]


def _ticks(largest: int | float) -> list[float]:
    """Four to nine round numbers from 0 to `largest`."""
    step = 10.0 ** math.floor(math.log10(largest))
    if largest / step < 4:
        step /= 2 if largest / step >= 2 else 5
    return [step * i for i in range(int(largest / step + 1e-9) + 1)]


def page(title: str, *body: str) -> Html:
    """A whole document; the empty icon spares the browser a request for one.

    Halves of characters, which a log or a caption may hold and no file can, become `?`.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(_CSS)),
    )
    whole = tag("html", head, tag("body", *body), lang="en")
    return Html(f"<!doctype html>\n{whole}\n".encode(errors="replace").decode())


def is_titled(content: bytes, title: str) -> bool:
    """Whether a file is a page of ours with this title."""
    return tag("title", title).encode() in content


_CSS = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #22211f; --soft: #6d6a64;
  --rule: #e2ded5; --card: #fff; --good: #19734a; --bad: #b3402e; --a: #2563a8; --b: #c2701c;
  --c: #7a4fa3; --d: #19734a; --e: #9c2f5f; --f: #6d6a64; }
@media (prefers-color-scheme: dark) { :root { --paper: #171716; --ink: #e9e6df; --soft: #a19d94;
  --rule: #35332f; --card: #1f1f1d; --good: #63c795; --bad: #ef8a76; --a: #79b0ea; --b: #e8a35c;
  --c: #bc98e2; --d: #63c795; --e: #e58ab0; --f: #a19d94; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 17px/1.55 Charter, "Bitstream Charter", Cambria, Georgia, serif; }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .4rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p { max-width: 44rem; margin: .4rem 0 1rem; }
.soft, figcaption, th, .cell, summary, text { color: var(--soft); }
table, figcaption, .cell, summary, .facts, text {
  font-family: ui-sans-serif, system-ui, "Segoe UI", Roboto, sans-serif; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; vertical-align: bottom; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; white-space: nowrap; }
td small { color: var(--soft); display: block; font-size: .74rem; }
.figure { margin: 0 0 1rem; padding: .9rem 1rem 1rem; background: var(--card);
  border: 1px solid var(--rule); border-radius: 10px; }
.figure > p { margin: 0 0 .7rem; max-width: none; }
.cells { display: flex; flex-wrap: wrap; gap: .9rem; align-items: flex-start; }
.cell { width: 7rem; font-size: .74rem; line-height: 1.35; overflow-wrap: anywhere; }
.cell.wide { width: auto; flex: 1 1 12rem; font-size: .86rem; }
.cell img { display: block; width: 7rem; height: 7rem; image-rendering: pixelated;
  border-radius: 4px; margin-bottom: .3rem; outline: 1px solid var(--rule); }
.cell q { color: var(--ink); font-style: normal; }
.scroll td:last-child { min-width: 11rem; }
a { color: var(--a); }
.right, .wrong { font-weight: 600; white-space: nowrap; }
.right { color: var(--good); }
.wrong { color: var(--bad); }
.curves { margin: 1rem 0; } .plot { width: 100%; height: auto; display: block; }
.plot .grid { stroke: var(--rule); }
.plot text { fill: var(--soft); font-size: 11px; }
.plot .border { stroke: var(--soft); stroke-dasharray: 2 3; }
.plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.line-0 { stroke: var(--a); background: var(--a); }
.line-1 { stroke: var(--b); background: var(--b); }
.line-2 { stroke: var(--c); background: var(--c); }
.line-3 { stroke: var(--d); background: var(--d); }
.line-4 { stroke: var(--e); background: var(--e); }
.line-5 { stroke: var(--f); background: var(--f); }
.plot.share { width: 7.5rem; } .plot .chance { stroke: var(--soft); stroke-width: 1.5; }
.plot .dot { fill: var(--card); stroke-width: 1.8; }
.dashed { stroke-dasharray: 6 4; opacity: .65; }
figcaption { font-size: .78rem; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.key { display: inline-block; width: 1rem; height: 3px; margin-right: .35rem;
  vertical-align: middle; }
.unit { margin-left: auto; }
.facts { font-size: .8rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .35rem; align-items: flex-end; font-size: .86rem; }
.piece { padding: .1rem .3rem; border-bottom: 3px solid var(--rule); overflow-wrap: anywhere; }
.piece.asked { border-bottom-color: var(--good); }
.piece.mark { color: var(--soft); } .piece small { color: var(--soft); display: block; }
.piece img { display: block; width: 5rem; height: 5rem; image-rendering: pixelated; }
pre { font-size: .78rem; overflow-x: auto; }
summary { cursor: pointer; font-size: .86rem; }
@media (max-width: 34rem) { body { font-size: 16px; padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.65rem; }
  .scroll td:first-child { max-width: 8.5rem; overflow-wrap: anywhere; }
  .cell, .cell img { width: 5.4rem; } .cell img { height: 5.4rem; } }
"""
