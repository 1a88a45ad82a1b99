"""What a model of the miniature can do, in exact shares that a program reads from its answers.

Every answer is sampled freely, once per prompt, and judged by the emblems reader: an image is
right if it shows the prompt's emblems and scene exactly, a caption if it says exactly what the
image shows. Documents come from the live encoder and index; names choose them only in one
control, whose protocol says so.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import CacheType, MeshConfig, WeightType
from cm3jax.emblems import ProbePrompt, Scene, confirms_batch, prompts, tells
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.probe_prompts import ProbeKind
from cm3jax.errors import UserError
from cm3jax.evaluate import chance
from cm3jax.evaluate.exam import NOTHING, Exam, Examinee, Given, Questions
from cm3jax.evaluate.protocol import code_version, tree_fingerprint
from cm3jax.evaluate.results import Cell, Evaluation
from cm3jax.generation.answers import Generated, image_of
from cm3jax.io.files import digest
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.training import metrics

LOOK_CHANCE = 1 / QUARTERS**4
"""Chance of guessing one emblem's look."""

_SPLITS: dict[ProbeKind, str] = {
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
    weights: WeightType = "",
    cache: CacheType = "",
) -> Evaluation:
    """All scores of a trained decoder over `count` prompts of each kind.

    `run_dir`, `bank`, `mesh`, `weights` and `cache` are as in `loading.load`; `seed` is the
    sampling's. Samples are kept in the folder `keep`, and those that are there are not drawn again.
    `say` gets a line per score. Raises `UserError` where the run, its companions or the bank are
    missing or don't match, and for a bank that has lost the documents of an emblem in the prompts.
    """
    start = time.perf_counter()
    examinee = Examinee.load(
        run_dir, bank, mesh, keep, source="emblems", weights=weights, cache=cache
    )
    exam = _EmblemExam(examinee, count, seed, say)
    exam.require_documents("heldout")
    exam.draw_emblems("heldout", "heldout_emblem_accuracy", LOOK_CHANCE)
    exam.draw_with_a_distractor("heldout", "heldout_emblem_accuracy.right_and_wrong")
    exam.draw_emblems("heldout_pair", "heldout_pair_accuracy", LOOK_CHANCE**2)
    exam.draw_scenes("scene", "scene_accuracy")
    exam.caption("caption", "caption_exact")
    exam.infill("infill", "infill_exact")
    exam.find_emblems("heldout", "retrieval_hit_2")
    exam.read_reconstructions("heldout", "vqgan_read_exact")
    exam.compare_codes("copied_share")
    return Evaluation(
        run=str(run_dir),
        scores=exam.scores,
        figures=exam.shown,
        losses=_losses(run_dir),
        weights=exam.examinee.weights,
        pictures=digest(*exam.pictures),
        seconds=round(time.perf_counter() - start, 1),
        bank=str(exam.bank.path),
    )


def is_current(result: Evaluation, run_dir: epath.PathLike, count: int) -> bool:
    """Whether this code would find these scores: same weights, same sources, same prompts."""
    score = next(iter(result.scores.values()))
    made_by = (result.weights["decoder"], score.protocol.code_version, score.n)
    return made_by == (tree_fingerprint(load_run(run_dir).variables), code_version(), count)


class _EmblemExam(Exam):
    """The exam of one model over `count` prompts of each kind, and every image it made."""

    def __init__(self, examinee: Examinee, count: int, seed: int, say: Callable[[str], None]):
        super().__init__(examinee, seed, say, examinee.generator.retriever.bank)
        self._data_seed = examinee.experiment.seed
        self._size = examinee.experiment.vqgan.image_size
        self._count = count
        self._asked: dict[ProbeKind, Questions[ProbePrompt]] = {}
        self._with_documents: list[Generated] = []
        self.pictures: list[np.ndarray] = []

    def require_documents(self, kind: ProbeKind) -> None:
        """Raise `UserError` unless the bank has a pair of text and image of every emblem."""
        asked = {prompt.scene.names[0] for prompt in self._questions(kind).items}
        if missing := sorted(asked - self._pairs_by_emblem().keys()):
            raise UserError(
                f"the bank {self.bank.path} has no document of {', '.join(missing[:3])}, which the "
                "prompts name; give a whole one with --bank."
            )

    def draw_emblems(self, kind: ProbeKind, name: str, guessed: float) -> None:
        """Images with 0, 1 and 2 live documents in front."""
        asked = self._questions(kind)
        every = [self.retrieve(count, asked) for count in (0, 1, 2)]
        for given in every[1:]:
            fewer = sum(len(own) < given.retrieved for own in given.documents or ())
            if fewer:
                floor = self.generator.retriever.config.relevance_floor
                why = f"a floor of {floor:g} and diversity" if floor > -1 else "diversity"
                most = given.retrieved
                self.say(f"{fewer} prompts got fewer than {most} documents, by the rules: {why}")
        drawn, right = [], []
        for given in every:
            pictures, verdicts = self._draw(asked, given)
            drawn.append(pictures)
            right.append(verdicts)
            self._score(f"{name}.docs_{given.retrieved}", verdicts, guessed, asked, given)

        def cells(place: int) -> Iterator[Cell]:
            yield from map(self.examinee.cell, every[-1].retrieved_for(place))
            for given, pictures, verdicts in zip(every, drawn, right, strict=True):
                yield Cell.of(given.label, pictures[place].image, correct=verdicts[place])
            yield Cell.of("as it should be", asked.items[place].image)

        self.show(name, right[-1], asked.texts, cells)

    def draw_with_a_distractor(self, kind: ProbeKind, name: str) -> None:
        """The control: a document that shows the emblem beside one that doesn't, either first."""
        asked = self._questions(kind)
        pairs = self._pairs_by_emblem()
        shown = []
        for place, prompt in enumerate(asked.items):
            following = asked.items[(place + 1) % len(asked.items)]
            right, wrong = (pairs[p.scene.names[0]][0].ids for p in (prompt, following))
            shown.append([right, wrong] if place % 2 else [wrong, right])
        how = "chosen by name: one with the emblem and one with another, either first"
        given = Given(shown, 2, how)
        _, verdicts = self._draw(asked, given)
        self._score(name, verdicts, LOOK_CHANCE, asked, given)

    def draw_scenes(self, kind: ProbeKind, name: str) -> None:
        """Images without emblems and without documents."""
        asked = self._questions(kind)
        drawn, right = self._draw(asked, NOTHING)
        self._score(name, right, chance.of_another_answer(_seen(asked)), asked)
        self.show(
            name,
            right,
            asked.texts,
            lambda place: (
                Cell.of(NOTHING.label, drawn[place].image, correct=right[place]),
                Cell.of("as it should be", asked.items[place].image),
            ),
        )

    def caption(self, kind: ProbeKind, name: str) -> None:
        """Captions by infilling."""
        asked = self._questions(kind)
        texts = self.captions(asked)
        right = [tells(text, prompt.scene) for text, prompt in zip(texts, asked.items, strict=True)]
        guessed = chance.of_another_answer([prompt.scene.told() for prompt in asked.items])
        self._score(name, right, guessed, asked, reader="emblems.tells: asserts the exact scene")
        self.show(
            name,
            right,
            ["What does the picture show?"] * len(texts),
            lambda place: (
                Cell.of("picture", asked.items[place].image),
                Cell("says", text=texts[place], correct=right[place]),
            ),
        )

    def infill(self, kind: ProbeKind, name: str) -> None:
        """The lower half drawn again, from the caption and the upper half."""
        asked = self._questions(kind)
        images = asked.images
        masks = np.zeros(images.shape[:3], bool)
        masks[:, self._size // 2 :] = True
        found = self.generator.infill(asked.texts, images, masks, seed=self.seed)
        filled = [group[0] for group in found]
        right = self._judge(filled, asked)
        guessed = chance.of_another_answer([image[self._size // 2 :].tobytes() for image in images])
        self._score(name, right, guessed, asked)
        hidden = np.where(masks[..., None], np.uint8(128), images)
        self.show(
            name,
            right,
            asked.texts,
            lambda place: (
                Cell.of("given", hidden[place]),
                Cell.of("filled in", filled[place].image, correct=right[place]),
                Cell.of("as it should be", images[place]),
            ),
        )

    def find_emblems(self, kind: ProbeKind, name: str) -> None:
        """Whether the two best documents hold an image of the prompt's emblem."""
        asked = self._questions(kind)
        emblems = [prompt.scene.names[0] for prompt in asked.items]
        self.find(name, asked, emblems, "the emblems that the bank knows its pictures to show")

    def read_reconstructions(self, kind: ProbeKind, name: str) -> None:
        """What the image tokenizer loses."""
        asked = self._questions(kind)
        right = confirms_batch(self.reconstruct(asked), [prompt.scene for prompt in asked.items])
        self._score(name, right, chance.of_another_answer(_seen(asked)), asked, drawn=False)

    def compare_codes(self, name: str) -> None:
        """The share of images drawn so far that repeat a document in front, code by code."""
        codes = self.examinee.codes
        copied = [
            any(own in codes(shown) for shown in picture.documents)
            for picture in self._with_documents
            for own in codes(picture.ids)
        ]
        given = Given(retrieved=2, how="all pictures drawn with documents, live and chosen")
        self._score(name, copied, 0.0, self._questions("heldout"), given, "equal codes")

    def _questions(self, kind: ProbeKind) -> Questions[ProbePrompt]:
        if kind not in self._asked:
            name = f"emblems {kind}, dataset seed {self._data_seed}, {self._size} pixels"
            asked = prompts(kind, self._count, self._data_seed, self._size)
            self._asked[kind] = Questions(name, _SPLITS[kind], asked)
        return self._asked[kind]

    def _draw(
        self, asked: Questions[ProbePrompt], given: Given
    ) -> tuple[list[Generated], list[bool]]:
        drawn = self.draw(asked, given)
        if given.retrieved:
            self._with_documents += drawn
        return drawn, self._judge(drawn, asked)

    def _judge(self, drawn: Sequence[Generated], asked: Questions[ProbePrompt]) -> list[bool]:
        images = np.stack([image_of(picture) for picture in drawn])
        self.pictures.append(images)
        return confirms_batch(images, [prompt.scene for prompt in asked.items])

    def _pairs_by_emblem(self) -> dict[str, list[BankDocument]]:
        """The bank's documents with text and image, by each emblem in them."""
        pairs: dict[str, list[BankDocument]] = {}
        for document in self.bank.documents():
            if document.has_text and document.has_image:
                for subject in document.subjects:
                    pairs.setdefault(subject, []).append(document)
        return pairs

    def _score(
        self,
        name: str,
        verdicts: Sequence[bool],
        guessed: float,
        asked: Questions[ProbePrompt],
        given: Given = NOTHING,
        reader: str = "emblems.confirms: shows the exact scene",
        drawn: bool = True,
    ) -> None:
        self.score(name, verdicts, guessed, asked.prompts, reader, given, drawn)


def _seen(asked: Questions[ProbePrompt]) -> list[Scene]:
    """What images of the scenes show."""
    return [prompt.scene.seen() for prompt in asked.items]


def _losses(run_dir: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """The curves in a run's `metrics.jsonl`; exported weights may come without one."""
    lines = metrics.read_metrics(run_dir)
    curves = {name: metrics.curve(lines, name) for name in _CURVES}
    return {name: points for name, points in curves.items() if points}
