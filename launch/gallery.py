"""The folder that `launch.generate` writes: PNGs with recipes, `samples.jsonl`, a contact sheet.

Every write is atomic and happens as soon as there is something to write, so that finished samples
survive whatever stops the process. The images of a sample are written before its line in
`samples.jsonl`, so that every file named there exists.
"""

import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from etils import epath

from cm3jax.errors import UserError
from cm3jax.generation.answers import Answers, BrokenImage, Generated
from cm3jax.generation.attribution import heat_map, is_whole_picture
from cm3jax.generation.generator import Generator
from cm3jax.generation.ranking import best_first
from cm3jax.generation.requests import PromptRequest
from cm3jax.io.files import digest, read_log, sweep_scratch, write_atomic
from cm3jax.io.paths import require_folder
from cm3jax.io.texts import read_regular
from cm3jax.report.html import png
from cm3jax.retrieval.pages import SHEET, any_saw_removed, blank_written, noted
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import ImagePath, parse_prompt
from cm3jax.sequence.vocab import Modality
from launch import contact

_PREVIEW = ".partial.png"
_UNFINISHED = {"unfinished": True}
"""What an image carries in place of its recipe until all of it is decoded."""
_FILES = rf"samples\.jsonl|{re.escape(SHEET)}|[a-z0-9-]+(\.partial)?\.png"
"""The names of a gallery's files."""


class Gallery:
    """A folder that receives the samples of one call; `recipe` holds the settings they share."""

    def __init__(
        self,
        out: epath.Path,
        generator: Generator,
        recipe: dict[str, Any],
        prompts: Sequence[str],
        requests: Sequence[PromptRequest],
        attribute: bool = False,
    ):
        self._attribute = attribute
        self._out, self._generator, self._requests = out, generator, requests
        self._recipe, self._prompts = recipe, prompts
        self._old: dict[bytes, str | None] | None = None
        self._lines: list[dict[str, Any]] = []
        self._written = 0
        self._samples: list[tuple[int, Generated]] = []
        self._previews: set[epath.Path] = set()

    def begin(self) -> None:
        """Remove what a killed call left, before anything is drawn.

        Raises `UserError` if the contact sheet would replace an image of somebody else's, or if
        the log cannot be read.
        """
        require_folder(self._out, "the samples")
        sheet, log = self._out / SHEET, self._out / "samples.jsonl"
        read_log(log)
        if sheet.exists() and not log.exists():
            raise UserError(
                f"{sheet} is not of this program and would be written over; give another --out."
            )
        sweep_scratch(self._out, _FILES)
        for path in self._out.iterdir() if self._out.is_dir() else ():
            if path.name.endswith(_PREVIEW) and _recipe_of(path) == _UNFINISHED:
                path.unlink()

    @property
    def count(self) -> int:
        """How many samples are on disk, together with their lines."""
        return self._written

    def add(self, finished: Answers, show_sequence: bool) -> Iterator[str]:
        """Write these samples; yields the lines to print about them."""
        try:
            for index, sample in finished:
                line = self._line(index, sample)
                if self._attribute:
                    self._write_effects(line, sample)
                self._write_pictures(line, sample)
                self._lines.append(line)
                self._samples.append((index, sample))
        finally:
            if len(self._lines) > self._written:
                self._write_log()
        for (index, sample), line in zip(
            self._samples[-len(finished) :], self._lines[-len(finished) :], strict=True
        ):
            if show_sequence:
                yield self._generator.describe(np.concatenate([sample.prefix, sample.ids]))
            for part in line["segments"]:
                yield self._told(index, part)
            if self._attribute:
                yield from map(_effect, line["documents"])

    def watch(self, request: int, sample: int, ids: np.ndarray) -> None:
        """Write an image as far as its rows of codes are decoded; the rest is grey."""
        vocab = self._generator.vocab
        holes = self._requests[request].holes or ()
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
        path = self._out / f"{_slug(self._prompts[request])}-{request}-{sample}{_PREVIEW}"
        self._previews.add(path)
        self._put(path, _with_recipe(image, _UNFINISHED))

    def close(self, rerank: Literal["", "clip", "perplexity"]) -> Iterator[str]:
        """Rank, write the contact sheet, remove partial images; yields the lines to print."""
        for path in self._previews:
            path.unlink(missing_ok=True)
        if rerank:
            self._rank(rerank)
            self._write_log()
            for line in sorted(self._lines, key=lambda line: (line["prompt_id"], line["rank"])):
                score = contact.scored(line, rerank)
                yield f"rank {line['rank']} of {line['prompt']!r}: {line['name']} ({score})"
        rows = contact.rows(self._prompts, self._samples, self._lines, self._generator)
        if sum(len(row.documents) + len(row.pictures) for row in rows) > 1 and any(
            row.pictures for row in rows
        ):
            self._put(self._out / SHEET, png(contact.sheet(rows)))
            yield str(self._out / SHEET)
            # Older samples may have seen what is gone now; the new sheet doesn't show them.
            banks = self._banks()
            if any_saw_removed(self._lines, banks):
                yield from blank_written(self._out / "samples.jsonl", banks)

    def _banks(self) -> list[epath.Path]:
        """The bank that documents were retrieved from, if any were."""
        retrieved = any("key" in d for line in self._lines for d in line["documents"])
        return [self._generator.retriever.bank.path] if retrieved else []

    def _rank(self, by: Literal["clip", "perplexity"]) -> None:
        for index, prompt in enumerate(self._prompts):
            mine = [
                (sample, line)
                for (place, sample), line in zip(self._samples, self._lines, strict=True)
                if place == index
            ]
            scores = self._generator.rank_scores([sample for sample, _ in mine], by, _words(prompt))
            for rank, place in enumerate(best_first(scores), 1):
                line, score = mine[place][1], float(scores[place])
                line["rank"] = rank
                # Perplexities are lower for better samples.
                score = score if by == "clip" else -score
                line["rank_score"] = score if math.isfinite(score) else None

    def _line(self, index: int, sample: Generated) -> dict[str, Any]:
        """The line of a sample in `samples.jsonl`: how it was made, and what it is."""
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
                    "score": document.score,
                    **noted(document.meta),
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
            elif isinstance(segment, BrokenImage):
                segments.append({"broken_picture_of_codes": segment.length})
            else:
                file = f"{name}-{number}.png" if len(sample.segments) > 1 else f"{name}.png"
                segments.append({"file": file})
        first = segments[0] if len(segments) == 1 else {}
        return {"name": name, **first, "segments": segments, **line}

    def _write_pictures(self, line: dict[str, Any], sample: Generated) -> None:
        for part, segment in zip(line["segments"], sample.segments, strict=True):
            if isinstance(segment, np.ndarray):
                self._put(self._out / part["file"], _with_recipe(segment, line))

    def _write_effects(self, line: dict[str, Any], sample: Generated) -> None:
        """What each document did: figures in the line, and a map of each over the image."""
        vocab = self._generator.vocab
        found = self._generator.document_effects(sample)
        for place, (effect, known) in enumerate(zip(found, line["documents"], strict=True)):
            gains = [round(gain, 4) for gain in effect.gains.tolist()]
            known |= {"gain": effect.gain, "copied": effect.copied, "gains": gains}
            if sample.image is not None and is_whole_picture(sample.ids, vocab):
                file = self._out / f"{line['name']}-document-{place}.png"
                heat = heat_map(np.asarray(sample.image), effect.gains, vocab.config.grid)
                self._put(file, png(heat))

    def _write_log(self) -> None:
        """Write `samples.jsonl`: these lines replace older ones with the same names.

        All other lines stay as they are, even lines that cannot be read.
        """
        log = self._out / "samples.jsonl"
        if self._old is None:
            self._old = {line: _name(line) for line in read_log(log).split(b"\n") if line.strip()}
        names = {line["name"] for line in self._lines}
        kept = [line for line, name in self._old.items() if name not in names]
        mine = [_one_line(line).encode() for line in self._lines]
        self._put(log, b"".join(line + b"\n" for line in kept + mine))
        self._written = len(self._lines)

    def _put(self, path: epath.Path, content: bytes) -> None:
        try:
            write_atomic(path, content)
        except OSError as error:
            kept = f", where {self.count} samples are kept" if self.count else ""
            raise UserError(
                f"can't write to {self._out} ({error.strerror}){kept}; choose another --out."
            ) from None

    def _told(self, index: int, part: dict[str, Any]) -> str:
        """A segment in words; a text is put after the name of the image that it describes."""
        if "broken_picture_of_codes" in part:
            return f"an image that ended after {part['broken_picture_of_codes']} codes"
        if "file" in part:
            return str(self._out / part["file"])
        prompt = self._prompts[index]
        if self._recipe["mode"] == "caption":
            return f"{prompt}: {part['text']}"
        paths = [part.path for part in parse_prompt(prompt) if isinstance(part, ImagePath)]
        return f"{', '.join(paths)}: {part['text']}" if paths else part["text"]


def _effect(document: dict[str, Any]) -> str:
    """What a document did, in words."""
    copied = document["copied"]
    share = "" if copied is None else f", {copied:.0%} of the codes are copied from it"
    return (
        f"  document {document.get('key') or document['path']}: {document['gain']:+.1f} nats{share}"
    )


def _one_line(value: dict[str, Any]) -> str:
    """JSON without any character that some reader takes for the end of a line."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _name(line: bytes) -> str | None:
    """The name of the sample in an older line; None if the line names none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _words(prompt: str) -> str:
    """The texts of a prompt, without the marks of the notation."""
    return " ".join(part for part in parse_prompt(prompt) if isinstance(part, str))


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]


def _recipe_of(path: epath.Path) -> Any:
    """The recipe that an image file carries; None for what is none of ours."""
    try:
        with PIL.Image.open(io.BytesIO(read_regular(path))) as image:
            return json.loads(getattr(image, "text", {})["cm3jax"])
    except (OSError, ValueError, KeyError, SyntaxError, RecursionError):
        return None


def _with_recipe(image: np.ndarray, line: dict[str, Any]) -> bytes:
    """A PNG file with its recipe as the text chunk `cm3jax`."""
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("cm3jax", json.dumps(line, ensure_ascii=False))
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", pnginfo=info)
    return file.getvalue()
