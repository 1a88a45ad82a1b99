"""A contact sheet: one row per prompt, with the documents shown to it and the samples drawn.

a large red circle    [ document ] [ document ]    [ sample ] [ sample ]
at b3 on sand          bank-17       bank-40        sample 0    sample 1
                       0.71          0.66
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from cm3jax.generation.answers import Generated
from cm3jax.generation.generator import Generator
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Image, parse
from cm3jax.shapes import RgbImage

Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

_LEAST = 112  # pixels: the least side of an image on the sheet, so that a label fits below it
_GAP = 8
_TEXT = 190  # width of the prompt's column
_LINE = 14
_IN_A_ROW = 8
_DOCUMENTS = (238, 242, 247)  # the ground behind documents, to tell them from samples


@dataclasses.dataclass(frozen=True)
class Cell:
    """An image with the lines below it, or a text in place of the image."""

    label: str
    picture: RgbImage | None
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """The documents and the samples of one prompt."""

    prompt: str
    documents: list[Cell]
    pictures: list[Cell]


def rows(
    prompts: Sequence[str],
    samples: Sequence[tuple[int, Generated]],
    lines: Sequence[dict[str, Any]],
    generator: Generator,
) -> list[Row]:
    """A row for each prompt that has samples, in the order of their ranks or else of their numbers.

    Each of `samples` comes with the index of its prompt; `lines` are their lines in
    `samples.jsonl`.
    """
    out = []
    for place, prompt in enumerate(prompts):
        own = [(s, line) for (i, s), line in zip(samples, lines, strict=True) if i == place]
        own.sort(key=lambda pair: pair[1].get("rank", pair[0].sample_id))
        if own:
            shown = list(_documents(*own[0], generator))
            out.append(Row(prompt, shown, [cell for pair in own for cell in _drawn(*pair)]))
    return out


def _documents(sample: Generated, line: dict[str, Any], generator: Generator) -> Iterator[Cell]:
    for document, known in zip(sample.documents, line["documents"], strict=True):
        if isinstance(document, Retrieved):
            name, text, ids = (
                f"{document.key} {document.score:.2f}",
                document.meta.text,
                document.ids,
            )
        else:
            name, text, ids = _base(known["path"]), "", document
        codes = [part.codes for part in parse(ids, generator.vocab) if isinstance(part, Image)]
        yield Cell(name, generator.image.decode(np.asarray(codes[:1]))[0] if codes else None, text)


def _base(path: str) -> str:
    return PurePosixPath(path).name


def _drawn(sample: Generated, line: dict[str, Any]) -> Iterator[Cell]:
    label = f"sample {sample.sample_id}"
    if "rank" in line:
        score = "" if line["rank_score"] is None else f" ({line['rank_score']:.2f})"
        label = f"rank {line['rank']}{score}"
    for segment in sample.segments:
        if isinstance(segment, np.ndarray):
            yield Cell(label, segment)


def scored(line: dict[str, Any], by: str) -> str:
    """The score that a sample was ranked by, in words."""
    if line["rank_score"] is None:
        return "no image"
    return f"{'CLIP cosine' if by == 'clip' else 'perplexity'} {line['rank_score']:.3f}"


def sheet(rows: Sequence[Row]) -> RgbImage:
    """The sheet, on white, tall enough for all rows."""
    pictures = (cell.picture for row in rows for cell in row.pictures)
    sides = [picture.shape[0] for picture in pictures if picture is not None]
    scale = max(1, -(-_LEAST // max(sides, default=_LEAST)))
    side = scale * max(sides, default=_LEAST)
    font = PIL.ImageFont.load_default(11)
    lines = [_wrapped(row.prompt, font, _TEXT) for row in rows]
    cell = side + 2 * _LINE + _GAP
    heights = [
        max(cell * max(1, -(-len(_cells(row)) // _IN_A_ROW)), _LINE * len(words) + _GAP)
        for row, words in zip(rows, lines, strict=True)
    ]
    columns = min(_IN_A_ROW, max(len(_cells(row)) for row in rows))
    width = _TEXT + 2 * _GAP + columns * (side + _GAP)
    page = PIL.Image.new("RGB", (width, sum(heights) + _GAP), "white")
    draw = PIL.ImageDraw.Draw(page)
    top = _GAP
    for row, words, height in zip(rows, lines, heights, strict=True):
        for number, line in enumerate(words):
            draw.text((_GAP, top + number * _LINE), line, "black", font)
        for place, one in enumerate(_cells(row)):
            x = _TEXT + 2 * _GAP + place % _IN_A_ROW * (side + _GAP)
            y = top + place // _IN_A_ROW * cell
            if place < len(row.documents):
                reach = (x - _GAP // 2, y - _GAP // 2, x + side + _GAP // 2, y + cell - _GAP)
                draw.rectangle(reach, _DOCUMENTS)
            _paint(page, draw, font, one, (x, y), side)
        top += height
    return np.asarray(page)


def _cells(row: Row) -> list[Cell]:
    return row.documents + row.pictures


def _paint(page, draw, font, cell: Cell, corner: tuple[int, int], side: int) -> None:
    x, y = corner
    if cell.picture is None:
        for number, line in enumerate(_wrapped(cell.text, font, side)[: side // _LINE]):
            draw.text((x, y + number * _LINE), line, "black", font)
    else:
        image = PIL.Image.fromarray(cell.picture)
        page.paste(image.resize((side, side), PIL.Image.Resampling.NEAREST), corner)
    for number, line in enumerate(_wrapped(cell.label, font, side)[:2]):
        draw.text((x, y + side + 1 + number * (_LINE - 2)), line, "black", font)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines of at most `width` pixels; a longer word is cut."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]
