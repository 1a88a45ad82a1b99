"""Where `launch.generate` puts samples: PNGs with their recipes, `samples.jsonl`, a contact sheet.

Each write is atomic and comes as soon as there is something to write: whatever stops the process,
the finished samples stay.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from etils import epath

from cm3jax.asks import Ask, Broken
from cm3jax.errors import UserError
from cm3jax.files import digest, write_atomic
from cm3jax.generate import Finished, Generated, Generator
from cm3jax.html import png
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.vocab import Modality


class Gallery:
    """A folder that fills with the samples of one call; `recipe` is what they share."""

    def __init__(
        self,
        out: epath.Path,
        generator: Generator,
        recipe: dict[str, Any],
        prompts: Sequence[str],
        asks: Sequence[Ask],
    ):
        self._out, self._generator, self._asks = out, generator, asks
        self._recipe, self._prompts = recipe, prompts
        self._old: list[dict[str, Any]] | None = None
        self._lines: list[dict[str, Any]] = []
        self._samples: list[tuple[int, Generated]] = []
        self._previews: set[epath.Path] = set()

    @property
    def count(self) -> int:
        """Samples that are written."""
        return len(self._lines)

    @property
    def pictures(self) -> int:
        """Pictures among them."""
        return sum(sample.image is not None for _, sample in self._samples)

    def add(self, finished: Finished, show_sequence: bool) -> Iterator[str]:
        """Write these samples; what to print about them."""
        for index, sample in finished:
            line = self._line(index, sample)
            self._write_pictures(line, sample)
            self._lines.append(line)
            self._samples.append((index, sample))
        self._write_log()
        for (_, sample), line in list(zip(self._samples, self._lines, strict=True))[
            -len(finished) :
        ]:
            if show_sequence:
                yield self._generator.describe(np.concatenate([sample.prefix, sample.ids]))
            for part in line["segments"]:
                yield _told(part, self._out)

    def watch(self, request: int, sample: int, ids: np.ndarray) -> None:
        """Write the rows of codes that a picture has so far; the rest of it is grey."""
        vocab = self._generator.vocab
        holes = self._asks[request].holes or ()
        before = next((hole.before for hole in holes if hole is not None), [])
        codes = np.asarray([*before, *ids[vocab.modality(ids) == Modality.IMAGE]], np.int32)
        codes -= vocab.first_image
        grid, size = vocab.config.grid, self._generator.image.config.image_size
        rows = min(len(codes) // grid, grid)
        if not rows or len(codes) > grid * grid:
            return
        whole = np.zeros(grid * grid, np.int32)
        whole[: rows * grid] = codes[: rows * grid]
        image = self._generator.image.decode(whole[None])[0]
        image[rows * size // grid :] = 128
        path = self._out / f"{_slug(self._prompts[request])}-{request}-{sample}.partial.png"
        self._previews.add(path)
        self._put(path, png(image))

    def close(self, rerank: Literal["", "clip", "perplexity"]) -> Iterator[str]:
        """Rank, write the contact sheet, take partial pictures away; what to print about it."""
        for path in self._previews:
            path.unlink(missing_ok=True)
        if rerank:
            self._rank(rerank)
            self._write_log()
            for line in sorted(self._lines, key=lambda line: (line["prompt_id"], line["rank"])):
                yield f"rank {line['rank']} of {line['prompt']!r}: {line['name']}"
        images = [sample.image for _, sample in self._samples if sample.image is not None]
        if len(images) > 1:
            self._put(self._out / "contact.png", png(sheet(images)))
            yield str(self._out / "contact.png")

    def _rank(self, by: Literal["clip", "perplexity"]) -> None:
        for index, prompt in enumerate(self._prompts):
            mine = [
                (sample, line)
                for (place, sample), line in zip(self._samples, self._lines, strict=True)
                if place == index
            ]
            order = self._generator.ranked([sample for sample, _ in mine], by, prompt)
            places = {sample.sample_id: rank for rank, sample in enumerate(order, 1)}
            for sample, line in mine:
                line["rank"] = places[sample.sample_id]

    def _line(self, index: int, sample: Generated) -> dict[str, Any]:
        """Everything that made a sample, and what it is."""
        prompt = self._prompts[index]
        line = {
            **self._recipe,
            "prompt": prompt,
            "prompt_id": sample.prompt_id,
            "sample": sample.sample_id,
            "temperature": sample.temperature,
            "logprob": sample.logprob,
            "perplexity": sample.perplexity,
            "documents": [{"path": path} for path in self._recipe["docs"]]
            + [
                {
                    "id": document.id,
                    "key": document.key,
                    "score": document.score,
                    "licence": document.meta.licence,
                    "source": document.meta.source,
                }
                for document in sample.documents
                if isinstance(document, Retrieved)
            ],
            "ids": sample.ids.tolist(),
        }
        name = f"{_slug(prompt)}-{digest(json.dumps(line, sort_keys=True))[:8]}"
        segments: list[dict[str, Any]] = []
        for number, segment in enumerate(sample.segments):
            if isinstance(segment, str):
                segments.append({"text": segment})
            elif isinstance(segment, Broken):
                segments.append({"broken_picture_of_codes": segment.length})
            else:
                file = f"{name}-{number}.png" if len(sample.segments) > 1 else f"{name}.png"
                segments.append({"file": file})
        first = segments[0] if len(segments) == 1 else {}
        return {"name": name, **first, "segments": segments, **line}

    def _write_pictures(self, line: dict[str, Any], sample: Generated) -> None:
        for part, segment in zip(line["segments"], sample.segments, strict=True):
            if "file" in part:
                self._put(self._out / part["file"], _with_recipe(segment, line))

    def _write_log(self) -> None:
        """`samples.jsonl`, with these lines in place of older ones of their name."""
        log = self._out / "samples.jsonl"
        if self._old is None:
            text = log.read_text() if log.exists() else ""
            self._old = [json.loads(line) for line in text.splitlines()]
        names = {line["name"] for line in self._lines}
        kept = [line for line in self._old if line["name"] not in names] + self._lines
        self._put(log, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def _put(self, path: epath.Path, content: bytes | str) -> None:
        try:
            write_atomic(path, content)
        except OSError as error:
            raise UserError(
                f"can't write to {self._out} ({error.strerror}), where {self.count} samples are "
                "kept; choose another --out."
            ) from None


def _told(part: dict[str, Any], out: epath.Path) -> str:
    if "broken_picture_of_codes" in part:
        return f"a picture that ended after {part['broken_picture_of_codes']} codes"
    return part["text"] if "text" in part else str(out / part["file"])


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]


def _with_recipe(image: np.ndarray, line: dict[str, Any]) -> bytes:
    """A PNG file with its recipe as the text chunk `cm3jax`."""
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("cm3jax", json.dumps(line, ensure_ascii=False))
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def sheet(images: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures of one size side by side in rows, on white."""
    columns = int(np.ceil(np.sqrt(len(images))))
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    out = np.full(shape, 255, np.uint8)
    for place, image in enumerate(images):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        out[y : y + height, x : x + width] = image
    return out
