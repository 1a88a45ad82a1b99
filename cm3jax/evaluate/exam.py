"""The harness of every score that a model's own answers earn.

    prompts → documents → answers → verdicts → Score with its stamp, and figures of a few cases

A data set's exam is a subclass: it knows the prompts and judges the answers. What is put in front
of prompts is a `Given`, from which both the answers and their stamp are made.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import CacheType, DecodeConfig, Experiment, MeshConfig, WeightType
from cm3jax.evaluate import chance
from cm3jax.evaluate.protocol import PromptSet, Score, code_version, stamp, tree_fingerprint
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.evaluate.source_check import require_source
from cm3jax.generation import loading
from cm3jax.generation.answers import Generated
from cm3jax.generation.generator import Generator
from cm3jax.generation.requests import ShownDocument, ShownDocuments
from cm3jax.io.files import digest
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import mark_of
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Image, parse
from cm3jax.shapes import RgbImage, UInt8

FIGURES = 8
"""Cases of a score that its page shows: the worst, then the best."""


@runtime_checkable
class ExamPrompt(Protocol):
    """A prompt with its text and image, one of which may be the answer."""

    @property
    def text(self) -> str:
        """The caption of `image`."""
        ...

    @property
    def image(self) -> RgbImage:
        """The image of `text`."""
        ...


Q = TypeVar("Q", bound=ExamPrompt)


@dataclasses.dataclass(frozen=True, eq=False)
class Questions(Generic[Q]):
    """Questions of one kind, in order."""

    name: str
    split: str
    """Where they come from, and what of them was seen in training."""
    items: Sequence[Q]

    @property
    def texts(self) -> list[str]:
        """Their texts."""
        return [one.text for one in self.items]

    @property
    def images(self) -> UInt8[np.ndarray, "B Y X 3"]:
        """Their images."""
        return np.stack([one.image for one in self.items])

    @property
    def prompts(self) -> PromptSet:
        """What stamps say of them."""
        return PromptSet.of(self.name, self.split, contents(self.items))


def contents(questions: Iterable[ExamPrompt]) -> list[str | np.ndarray]:
    """Everything that questions ask and show, in order."""
    return [part for one in questions for part in (one.text, one.image)]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """The documents in front of each prompt, and how they were chosen."""

    documents: ShownDocuments | None = None
    retrieved: int = 0
    """How many are in front of a prompt, at most."""
    how: str = "none"

    def retrieved_for(self, place: int) -> list[Retrieved]:
        """The documents in front of a prompt that retrieval found."""
        shown = () if self.documents is None else self.documents[place]
        return [document for document in shown if isinstance(document, Retrieved)]

    @property
    def label(self) -> str:
        """How many, for a figure."""
        return f"{self.retrieved} document{'' if self.retrieved == 1 else 's'}"


NOTHING = Given()


@dataclasses.dataclass(frozen=True, eq=False)
class Examinee:
    """A trained decoder, and the fingerprints that stamp its scores."""

    generator: Generator
    experiment: Experiment
    """What trained it."""
    weights: dict[str, str]
    """Fingerprints, by part."""

    @classmethod
    def load(
        cls,
        run_dir: epath.PathLike,
        bank: epath.PathLike = "",
        mesh: MeshConfig | None = None,
        keep: epath.PathLike = "",
        retrieves: bool = True,
        source: str = "",
        weights: WeightType = "",
        cache: CacheType = "",
    ) -> "Examinee":
        """The decoder of a run; arguments as in `loading.load`.

        Its answers keep to the grammar, whatever its own settings say: each is what was asked for.
        Samples are kept in the folder `keep`, and those that are there are not drawn again.
        `retrieves` says whether documents are searched for, so that the encoder's weights count.
        Raises `UserError` where the run or its companions are missing or don't match, or where the
        run was not trained on the data set `source`.
        """
        run = load_run(run_dir)
        if source:
            require_source(run_dir, run.experiment.data, source)
        model = loading.load(run_dir, bank, mesh, weights, cache)
        model.decode = dataclasses.replace(model.decode, grammar=True)
        marks = {
            "decoder": tree_fingerprint(run.variables),
            "text": model.text.fingerprint,
            "image": model.image.fingerprint,
        }
        if few := model.model.config.few_bits:
            marks["decoder in memory"] = few
        if retrieves:
            marks["clip"] = model.encoder.fingerprint
        if keep:
            model = model.cached_in(keep, digest(*marks.values(), code_version()))
        return cls(model, run.experiment, marks)

    def draw(
        self,
        texts: Sequence[str],
        documents: ShownDocuments | None = None,
        seed: int = 0,
        decode: DecodeConfig | None = None,
    ) -> list[Generated]:
        """One image of each text."""
        found = self.generator.text_to_image(texts, documents, seed=seed, decode=decode)
        return [group[0] for group in found]

    def codes(self, document: ShownDocument) -> list[tuple[int, ...]]:
        """The codes of every image in a document."""
        ids = document.ids if isinstance(document, Retrieved) else document
        return [s.codes for s in parse(ids, self.generator.vocab) if isinstance(s, Image)]

    def cell(self, found: Retrieved) -> Cell:
        """A retrieved document in a figure."""
        codes = self.codes(found)
        image = self.generator.image.decode(np.asarray(codes))[0] if codes else None
        label, mark = f"retrieved, {found.score:.2f}", mark_of(found.meta)
        return Cell.of(label, image, found.meta.text, document=mark)


class Exam:
    """One model's scores so far, and the figures that show them; `prefix` begins their names.

    `seed` is the sampling's. `say` gets a line per score.
    """

    def __init__(
        self,
        examinee: Examinee,
        seed: int = 0,
        say: Callable[[str], None] = print,
        bank: Bank | None = None,
        prefix: str = "",
    ):
        self.examinee, self.seed, self.say = examinee, seed, say
        self._bank, self.prefix = bank, prefix
        self.scores: dict[str, Score] = {}
        self.figures: list[Figure] = []

    @property
    def shown(self) -> tuple[Figure, ...]:
        """The figures, without what was taken out of the bank since it was opened."""
        marks = set() if self._bank is None else set(Removed.of(self._bank.path).marks)
        return tuple(
            dataclasses.replace(
                one, cells=tuple(c.blanked() if c.document in marks else c for c in one.cells)
            )
            for one in self.figures
        )

    @property
    def generator(self) -> Generator:
        """The model."""
        return self.examinee.generator

    @property
    def bank(self) -> Bank:
        """The bank that documents are found in; `ValueError` where the exam has none."""
        if self._bank is None:
            raise ValueError("this exam has no bank")
        return self._bank

    def retrieve(self, count: int, questions: Questions, by: str = "text") -> Given:
        """The best documents for the text or, with `by="image"`, for the image of each."""
        return self._given(self._search(count, questions, by), by, count) if count else NOTHING

    def _search(self, count: int, questions: Questions, by: str) -> list[list[Retrieved]]:
        if by == "text":
            return self.generator.retrieve(questions.texts, k=count)
        return self.generator.retrieve(images=questions.images, k=count)

    def _given(self, found: list[list[Retrieved]], by: str, count: int) -> Given:
        return Given(found, count, f"live retrieval by the prompt's {by}, best {count}")

    def draw(self, questions: Questions, given: Given = NOTHING) -> list[Generated]:
        """One image of each text."""
        return self.examinee.draw(questions.texts, given.documents, self.seed)

    def captions(self, questions: Questions, given: Given = NOTHING) -> list[str]:
        """One caption of each image."""
        found = self.generator.caption(questions.images, given.documents, seed=self.seed)
        return [group[0].text or "" for group in found]

    def reconstruct(self, questions: Questions) -> UInt8[np.ndarray, "B Y X 3"]:
        """What the image tokenizer leaves of the images: the ceiling of what can be drawn."""
        tokenizer = self.generator.image
        return tokenizer.decode(tokenizer.encode(list(questions.images)))

    def score(
        self,
        name: str,
        values: Sequence[float | bool],
        guessed: float,
        prompts: PromptSet,
        reader: str,
        given: Given = NOTHING,
        drawn: bool = True,
    ) -> None:
        """Keep what the answers to prompts are worth; `guessed` is what chance is worth.

        Without `drawn`, no answer was sampled.
        """
        searched = self.generator.retriever.config if given.retrieved else None
        protocol = stamp(
            prompts,
            reader,
            self.examinee.weights,
            self.generator.decode if drawn else None,
            searched,
            bank="none" if self._bank is None else self._bank,
            retrieved=given.retrieved,
            documents=given.how,
            seed=self.seed,
        )
        self.keep(name, Score.of(values, guessed, protocol))

    def keep(self, name: str, score: Score) -> None:
        """Keep a score, and say it."""
        name = self.prefix + name
        self.scores[name] = score
        guessed = "" if score.chance is None else f", chance {score.chance:.2g}"
        self.say(f"{name}: {score.value:.3f} of {score.n}{guessed}")

    def find(
        self, name: str, questions: Questions, subjects: Sequence[str], reader: str, count: int = 2
    ) -> None:
        """Whether one of the best documents has an image of each question's subject: `name.text`
        and `name.image`, by what was searched with."""
        holders = Counter(s for d in self.bank.documents() if d.has_image for s in d.subjects)
        hits = [chance.of_a_hit(holders[one], len(self.bank), count) for one in subjects]
        for by in ("text", "image"):
            found = self._search(count, questions, by)
            right = [
                any(d.meta.has_image and subject in d.meta.subjects for d in documents)
                for subject, documents in zip(subjects, found, strict=True)
            ]
            given, guessed = self._given(found, by, count), float(np.mean(hits))
            self.score(f"{name}.{by}", right, guessed, questions.prompts, reader, given, False)

    def show(
        self,
        kind: str,
        values: Sequence[float | bool],
        prompts: Sequence[str],
        cells: Callable[[int], Iterable[Cell]],
    ) -> None:
        """Figures of the cases with the worst and the best `values`; `cells` are a case's."""
        chosen = Chosen.of(values, FIGURES // 2)
        self.figures += [
            Figure(self.prefix + kind, prompts[place], tuple(cells(place)), chosen.note)
            for place in chosen.places
        ]
