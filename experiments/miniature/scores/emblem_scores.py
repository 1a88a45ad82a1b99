"""What a model of the miniature can do, in exact shares that a program reads from its answers.

Every answer is sampled freely, once per prompt, and judged by the emblems reader: a picture is
right if it shows the prompt's emblems and scene exactly, a caption if it says exactly what the
picture shows. Documents come from the live encoder and index; names choose them in one control
alone, whose protocol says so.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import MeshConfig
from cm3jax.emblems import ProbePrompt, confirms_batch, prompts, tells
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.probe_prompts import Kind
from cm3jax.evaluate import chance
from cm3jax.evaluate.protocol import (
    Protocol,
    Score,
    by_licence,
    code_version,
    licensed_share,
    sampling,
    tree_fingerprint,
)
from cm3jax.evaluate.results import Cell, Chosen, Evaluation, Figure
from cm3jax.generation import loading
from cm3jax.generation.answers import Generated
from cm3jax.generation.requests import Documents, ShownDocument
from cm3jax.io.files import digest
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Image, parse
from cm3jax.training import metrics

FIGURES = 8
"""Prompts of a kind that the report shows: the first wrong answers, then the first right ones."""

LOOK_CHANCE = 1 / QUARTERS**4
"""Chance of guessing one emblem's look."""

_SPLITS: dict[Kind, str] = {
    "scene": "scenes that no other split shows",
    "heldout": "memory-only emblems, at places and in scenes that no document shows",
    "heldout_pair": "two memory-only emblems each, in scenes that no document shows",
    "caption": "pictures that no other split shows",
    "infill": "pictures that no other split shows",
}
_PARTS = ("", "_text", "_image")
_CURVES = tuple(f"loss{split}{part}" for split in ("", "_valid") for part in _PARTS)


def evaluate(
    run_dir: epath.PathLike,
    bank: epath.PathLike = "",
    count: int = 200,
    seed: int = 0,
    say: Callable[[str], None] = print,
    mesh: MeshConfig | None = None,
    keep: epath.PathLike = "",
) -> Evaluation:
    """All scores of a trained decoder over `count` prompts of each kind.

    `run_dir`, `bank` and `mesh` are as in `cm3jax.load`; `seed` is the sampling's. Samples are
    kept in the folder `keep`, and those that lie there not drawn again. `say` gets a line per
    score. Raises `UserError` where the run, its companions or the bank are missing or don't match.
    """
    start = time.perf_counter()
    exam = _Exam(run_dir, bank, count, seed, say, mesh, keep)
    exam.draw_emblems("heldout", "heldout_emblem_accuracy", LOOK_CHANCE)
    exam.draw_with_a_distractor("heldout", "heldout_emblem_accuracy.right_and_wrong")
    exam.draw_emblems("heldout_pair", "heldout_pair_accuracy", LOOK_CHANCE**2)
    exam.draw_scenes("scene", "scene_accuracy")
    exam.caption("caption", "caption_exact")
    exam.infill("infill", "infill_exact")
    exam.retrieve("heldout", "retrieval_hit_2")
    exam.reconstruct("heldout", "vqgan_read_exact")
    exam.compare_codes("copied_share")
    return Evaluation(
        run=str(run_dir),
        scores=exam.scores,
        figures=tuple(exam.figures),
        losses=_losses(run_dir),
        weights=exam.weights,
        pictures=digest(*exam.pictures),
        seconds=round(time.perf_counter() - start, 1),
    )


def is_current(result: Evaluation, run_dir: epath.PathLike, count: int) -> bool:
    """Whether this code would find these scores: same weights, same sources, same prompts."""
    score = next(iter(result.scores.values()))
    made_by = (result.weights["decoder"], score.protocol.code_version, score.n)
    return made_by == (tree_fingerprint(load_run(run_dir).variables), code_version(), count)


class _Exam:
    """One model, its prompts, and what has come of them so far."""

    def __init__(
        self,
        run_dir: epath.PathLike,
        bank: epath.PathLike,
        count: int,
        seed: int,
        say: Callable[[str], None],
        mesh: MeshConfig | None,
        keep: epath.PathLike,
    ):
        run = load_run(run_dir)
        self._generator = loading.load(run_dir, bank, mesh)
        self._bank: Bank = self._generator.retriever.bank
        self._data_seed, self._size = run.experiment.seed, run.experiment.vqgan.image_size
        self._count, self._seed, self._say = count, seed, say
        self._asked: dict[Kind, list[ProbePrompt]] = {}
        self._with_documents: list[Generated] = []
        self.weights = {
            "decoder": tree_fingerprint(run.variables),
            "text": self._generator.text.fingerprint,
            "image": self._generator.image.fingerprint,
            "clip": self._generator.retriever.encoder.fingerprint,
        }
        if keep:
            origin = digest(*self.weights.values(), code_version())
            self._generator = self._generator.cached_in(keep, origin)
        self.scores: dict[str, Score] = {}
        self.figures: list[Figure] = []
        self.pictures: list[np.ndarray] = []

    def draw_emblems(self, kind: Kind, name: str, guessed: float) -> None:
        """Pictures with 0, 1 and 2 live documents in front."""
        asked = self._prompts(kind)
        texts = [prompt.text for prompt in asked]
        shown = {k: self._generator.retrieve(texts=texts, k=k) for k in (1, 2)}
        drawn, right = {}, {}
        for k, found in shown.items():
            fewer = sum(len(own) < k for own in found)
            if fewer:
                floor = self._generator.retriever.config.relevance_floor
                why = f"a floor of {floor:g} and diversity" if floor > -1 else "diversity"
                self._say(f"{fewer} prompts got fewer than {k} documents, by the rules: {why}")
        for k in (0, 1, 2):
            drawn[k], right[k] = self._draw(asked, shown.get(k))
            how = f"live retrieval by the prompt's text, best {k}" if k else "none"
            self._score(f"{name}.docs_{k}", right[k], guessed, kind, k, how)
        chosen = Chosen.of(right[2], FIGURES // 2)
        for place in chosen.places:
            cells = [self._document_cell(found) for found in shown[2][place]]
            cells += [
                Cell.of(_documents(k), drawn[k][place].image, correct=right[k][place])
                for k in (0, 1, 2)
            ]
            cells.append(Cell.of("as it should be", asked[place].image))
            self.figures.append(Figure(name, texts[place], tuple(cells), chosen.note))

    def draw_with_a_distractor(self, kind: Kind, name: str) -> None:
        """The control: a document that shows the emblem beside one that doesn't, either first."""
        asked = self._prompts(kind)
        pairs = self._pairs_by_emblem()
        shown = []
        for place, prompt in enumerate(asked):
            following = asked[(place + 1) % len(asked)]
            right, wrong = (pairs[p.scene.emblems[0].name][0].ids for p in (prompt, following))
            shown.append([right, wrong] if place % 2 else [wrong, right])
        _, verdicts = self._draw(asked, shown)
        how = "chosen by name: one with the emblem and one with another, either first"
        self._score(name, verdicts, LOOK_CHANCE, kind, 2, how)

    def draw_scenes(self, kind: Kind, name: str) -> None:
        """Pictures without emblems and without documents."""
        asked = self._prompts(kind)
        drawn, right = self._draw(asked, None)
        self._score(name, right, chance.of_another_answer([p.scene.seen() for p in asked]), kind)
        chosen = Chosen.of(right, FIGURES // 2)
        for place in chosen.places:
            cells = (
                Cell.of(_documents(0), drawn[place].image, correct=right[place]),
                Cell.of("as it should be", asked[place].image),
            )
            self.figures.append(Figure(name, asked[place].text, cells, chosen.note))

    def caption(self, kind: Kind, name: str) -> None:
        """Captions by infilling."""
        asked = self._prompts(kind)
        images = np.stack([prompt.image for prompt in asked])
        texts = [group[0].text for group in self._generator.caption(images, seed=self._seed)]
        right = [tells(text, prompt.scene) for text, prompt in zip(texts, asked, strict=True)]
        guessed = chance.of_another_answer([prompt.scene.told() for prompt in asked])
        self._score(name, right, guessed, kind, reader="emblems.tells: asserts the exact scene")
        chosen = Chosen.of(right, FIGURES // 2)
        for place in chosen.places:
            says = Cell("says", text=texts[place], correct=right[place])
            cells = (Cell.of("picture", asked[place].image), says)
            self.figures.append(Figure(name, "What does the picture show?", cells, chosen.note))

    def infill(self, kind: Kind, name: str) -> None:
        """The lower half anew, from the caption and the upper half."""
        asked = self._prompts(kind)
        images = np.stack([prompt.image for prompt in asked])
        masks = np.zeros(images.shape[:3], bool)
        masks[:, self._size // 2 :] = True
        texts = [prompt.text for prompt in asked]
        found = self._generator.infill(texts, images, masks, seed=self._seed)
        filled = [group[0] for group in found]
        right = self._judge(filled, asked)
        guessed = chance.of_another_answer([image[self._size // 2 :].tobytes() for image in images])
        self._score(name, right, guessed, kind)
        hidden = np.where(masks[..., None], np.uint8(128), images)
        chosen = Chosen.of(right, FIGURES // 2)
        for place in chosen.places:
            cells = (
                Cell.of("given", hidden[place]),
                Cell.of("filled in", filled[place].image, correct=right[place]),
                Cell.of("as it should be", images[place]),
            )
            self.figures.append(Figure(name, texts[place], cells, chosen.note))

    def retrieve(self, kind: Kind, name: str) -> None:
        """Whether the two best documents hold a picture of the prompt's emblem."""
        asked = self._prompts(kind)
        holders = Counter(s for d in self._bank.documents() if d.has_image for s in d.subjects)
        emblems = [prompt.scene.emblems[0].name for prompt in asked]
        guessed = float(np.mean([chance.of_a_hit(holders[e], len(self._bank), 2) for e in emblems]))
        queries = {
            "text": {"texts": [prompt.text for prompt in asked]},
            "image": {"images": [prompt.image for prompt in asked]},
        }
        for modality, query in queries.items():
            found = self._generator.retrieve(**query, k=2)
            right = [
                any(d.meta.has_image and emblem in d.meta.subjects for d in documents)
                for emblem, documents in zip(emblems, found, strict=True)
            ]
            how = f"live retrieval by the prompt's {modality}, best 2"
            reader = "the emblems that the bank knows its pictures to show"
            self._score(
                f"{name}.{modality}", right, guessed, kind, 2, how, reader=reader, drawn=False
            )

    def reconstruct(self, kind: Kind, name: str) -> None:
        """What the image tokenizer loses."""
        asked = self._prompts(kind)
        codes = self._generator.image.encode([prompt.image for prompt in asked])
        images = self._generator.image.decode(codes)
        right = confirms_batch(images, [prompt.scene for prompt in asked])
        guessed = chance.of_another_answer([prompt.scene.seen() for prompt in asked])
        self._score(name, right, guessed, kind, drawn=False)

    def compare_codes(self, name: str) -> None:
        """The share of pictures drawn so far that repeat a document in front, code by code."""
        copied = [
            any(codes in self._pictures(shown) for shown in picture.documents)
            for picture in self._with_documents
            for codes in self._pictures(picture.ids)
        ]
        how = "all pictures drawn with documents, live and chosen"
        self._score(name, copied, 0.0, "heldout", 2, how, reader="equal codes")

    def _prompts(self, kind: Kind) -> list[ProbePrompt]:
        if kind not in self._asked:
            self._asked[kind] = prompts(kind, self._count, self._data_seed, self._size)
        return self._asked[kind]

    def _draw(
        self, asked: Sequence[ProbePrompt], shown: Documents | None
    ) -> tuple[list[Generated], list[bool]]:
        texts = [prompt.text for prompt in asked]
        found = self._generator.text_to_image(texts, shown, seed=self._seed)
        drawn = [group[0] for group in found]
        if shown is not None:
            self._with_documents += drawn
        return drawn, self._judge(drawn, asked)

    def _judge(self, drawn: Sequence[Generated], asked: Sequence[ProbePrompt]) -> list[bool]:
        images = np.stack([picture.image for picture in drawn])
        self.pictures.append(images)
        return confirms_batch(images, [prompt.scene for prompt in asked])

    def _pairs_by_emblem(self) -> dict[str, list[BankDocument]]:
        """The bank's documents with text and picture, by each emblem in them."""
        pairs: dict[str, list[BankDocument]] = {}
        for document in self._bank.documents():
            if document.has_text and document.has_image:
                for subject in document.subjects:
                    pairs.setdefault(subject, []).append(document)
        return pairs

    def _pictures(self, document: ShownDocument) -> list[tuple[int, ...]]:
        """The codes of every picture in a document."""
        ids = document.ids if isinstance(document, Retrieved) else document
        return [s.codes for s in parse(ids, self._generator.vocab) if isinstance(s, Image)]

    def _document_cell(self, found: Retrieved) -> Cell:
        codes = self._pictures(found)
        image = self._generator.image.decode(np.asarray(codes))[0] if codes else None
        return Cell.of(f"retrieved, {found.score:.2f}", image, found.meta.text)

    def _score(
        self,
        name: str,
        verdicts: Sequence[bool],
        guessed: float,
        kind: Kind,
        retrieved: int = 0,
        documents: str = "none",
        reader: str = "emblems.confirms: shows the exact scene",
        drawn: bool = True,
    ) -> None:
        asked = self._prompts(kind)
        searched = self._generator.retriever.config if retrieved else None
        protocol = Protocol(
            prompts=f"emblems {kind}, dataset seed {self._data_seed}, {self._size} pixels",
            prompts_hash=digest(*(part for p in asked for part in (p.text, p.image))),
            split=_SPLITS[kind],
            retrieved=retrieved,
            documents=documents,
            bank=f"{len(self._bank)} documents, {self._bank.fingerprint}",
            **sampling(self._generator.decode if drawn else None, searched),
            samples=1,
            seed=self._seed,
            licensed_share=licensed_share(self._bank.manifest["licences"]),
            licences=by_licence(self._bank.manifest["licences"]),
            reader=reader,
            weights=digest(*self.weights.values()),
            code_version=code_version(),
        )
        score = self.scores[name] = Score.share(verdicts, guessed, protocol)
        self._say(f"{name}: {score.value:.3f} of {score.n}, chance {score.chance:.2g}")


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count} documents"


def _losses(run_dir: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """The curves in a run's `metrics.jsonl`; exported weights may come without one."""
    lines = metrics.read_metrics(run_dir)
    curves = {name: metrics.curve(lines, name) for name in _CURVES}
    return {name: points for name, points in curves.items() if points}
