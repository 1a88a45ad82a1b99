"""What a decoder does with held-out records of any source, with 0, 1, 2 … documents in front.

For images that no program can read, what can be measured is how likely the true image is, how
near the drawn one comes to it, and whether it is nearer to it than to all other candidates.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from cm3jax.config import MeshConfig
from cm3jax.errors import UserError
from cm3jax.evaluate import chance
from cm3jax.evaluate.exam import Exam, Examinee, Given
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.heldout_records import HeldOut, Judged, drawn_rows, held_out
from cm3jax.evaluate.nearest import cells, nearest_pictures
from cm3jax.evaluate.protocol import PromptSet, Protocol, Score, stamp
from cm3jax.evaluate.reconstruction import figure_protocol, frechet_score, picture_figures
from cm3jax.evaluate.results import Cell, Chosen, Figure
from cm3jax.generation.answers import image_of
from cm3jax.generation.prompts import picture_prompt
from cm3jax.retrieval.bank_files import mark_of
from cm3jax.retrieval.clip_encoder import fit_picture
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence import prng
from cm3jax.sequence.document import Image, parse
from cm3jax.shapes import Int, UInt8
from cm3jax.tokenizers.lpips import load_lpips

HITS = (1, 2, 10)
"""Numbers of best documents among which a right one is looked for."""
FIGURES = 8
"""Records that the page shows of the worst, and of the best."""
_MEANINGS = {
    "hit_1": "records whose first document is of their subject; asked by their text or image",
    "hit_2": "the same of the first two documents",
    "hit_10": "the same of the first ten",
    "nats": "nats per code of the true image, less is better, after no document, retrieved ones, "
    "right ones (of its subject) or wrong ones",
    "psnr": "PSNR in dB to the true image, more is nearer",
    "ssim": "SSIM to the true image, 1 where they are equal",
    "lpips": "LPIPS to the true image, less is nearer",
    "clip": "cosine of caption and image by the run's encoder",
    "identified": "images that are nearer to their true one than to any other candidate",
    "fid": "distance of all images to all true ones by Inception's features, less is better",
    "copied": "images that repeat a document's, code by code",
}
"""By the first part of a score's name, what it is."""
_OF = {
    "reconstruction": "of what the image tokenizer makes of the true image, which is as good as a "
    "drawing can be",
    "docs": "of images drawn with so many documents in front of the caption",
}
"""By the second part, whose it is."""
_CANDIDATES = 10_000
"""Images of the bank, at most, among which a drawn one is identified."""

_Shown = list[list[Retrieved]]


@dataclasses.dataclass(frozen=True)
class HeldOutQuery:
    """What is asked of a run, and on what."""

    run: str
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME."""
    source: str = ""
    """Another source than the run's, as `data.source`: all of its records that name no split count
    as held out."""
    bank: str = ""
    """Memory bank to retrieve from, instead of the one in the run's config."""
    documents: tuple[int, ...] = (0, 1, 2)
    """Numbers of retrieved documents to draw with."""
    count: int = 200
    """Held-out records, at most."""
    seed: int = 0
    """Seed of the choice of records and of the sampling."""
    lpips: str = ""
    """LPIPS weights, as vqgan_loss.lpips; without them there is no LPIPS."""

    def __post_init__(self):
        if not self.documents or min(self.documents) < 0:
            raise UserError("--documents takes numbers from 0.")
        if self.count < 1:
            raise UserError(f"--count {self.count} must be at least 1.")


class HeldOutExam(Exam):
    """The exam of one decoder on held-out records of any source.

    Samples are kept in the folder `keep`, and those that are there are not drawn again. Raises
    `UserError` where the run, its companions, the bank or the records are missing or don't match.
    """

    def __init__(
        self,
        asked: HeldOutQuery,
        say: Callable[[str], None] = print,
        mesh: MeshConfig | None = None,
        keep: epath.PathLike = "",
        extractor: Extractor | None = None,
    ):
        if asked.lpips:
            load_lpips(asked.lpips)  # what is wrong with it is said before hours of drawing
        examinee = Examinee.load(asked.run, asked.bank, mesh, keep)
        experiment = examinee.experiment
        if experiment.learner != "decoder":
            raise UserError(
                f"{asked.run} is a run of a {experiment.learner}; a decoder's reads documents."
            )
        super().__init__(examinee, asked.seed, say, examinee.generator.retriever.bank)
        self._asked, self._extractor = asked, extractor
        # Each answer is an image, whatever the run's settings say.
        self._decode = dataclasses.replace(self.generator.decode, grammar=True)
        data = dataclasses.replace(experiment.data, image_size=experiment.vqgan.image_size)
        if asked.source and not _same_place(asked.source, data.source):
            data = dataclasses.replace(data, source=asked.source, splits=((".", "validation"),))
        self._source = data.source
        self._records = self._fitting(held_out(data, experiment.seed, asked.count, say, asked.seed))
        partners = self.generator.encoder.config.partners
        self._judged = Judged.of(self._records, self.bank, partners)
        if leaked := sum(map(bool, self._judged.own)):
            say(f"warning: the bank has the images of {leaked} of {len(self._records)} records")
        self._codes = self.generator.image.encode(self._pictures)
        self._cells, self._owner = self._candidates()

    def take(self) -> None:
        """Every figure."""
        self.find_documents()
        self.likelihood()
        self.draw_pictures()

    def find_documents(self) -> None:
        """How often a right document is among the best, by text and by image."""
        rows = [row for row, right in enumerate(self._judged.right) if len(right)]
        own = self._own(rows)
        if not rows:
            self.say(
                "no record has a document of its subject in the bank, so that none is right or "
                "wrong; give the records `subjects`."
            )
            return
        queries = {
            "text": ([self._records[row].text for row in rows], None),
            "image": (None, [self._records[row].picture for row in rows]),
        }
        size = len(self.bank)
        for modality, (texts, images) in queries.items():
            for k in (k for k in HITS if k <= size):
                found = self.generator.retrieve(texts, images, k, own)
                right = [
                    bool({document.id for document in documents} & {*self._judged.right[row]})
                    for row, documents in zip(rows, found, strict=True)
                ]
                guessed = [
                    chance.of_a_hit(len(self._judged.right[row]), size - len(mine), k)
                    for row, mine in zip(rows, own, strict=True)
                ]
                how = f"live retrieval by the record's {modality}, best {k}"
                protocol = self._protocol(k, how, self._judge_of_hits, drawn=False, rows=rows)
                name = f"hit_{k}.{modality}"
                self.keep(name, Score.share(right, float(np.mean(guessed)), protocol))

    def likelihood(self) -> None:
        """Nats per code of the true image with no documents, and with retrieved, right and wrong
        ones: the last two of the records that have both right and wrong ones."""
        most = max(self._asked.documents) or 2
        every = range(len(self._records))
        have = [r for r in every if len(self._judged.right[r]) and len(self._judged.wrong[r])]
        chosen: dict[str, tuple[Sequence[int], _Shown, str]] = {
            "none": (every, [[] for _ in every], "none"),
            "retrieved": (every, self._retrieved(most), "live retrieval by the record's text"),
            "right": (have, self._drawn(have, self._judged.right, most), "of the record's subject"),
            "wrong": (have, self._drawn(have, self._judged.wrong, most), "of another subject"),
        }
        for name, (rows, shown, how) in chosen.items():
            if not rows:
                continue
            prompts = [picture_prompt(self._records[row].text) for row in rows]
            fitting = [self._room(self._records[r], s) for r, s in zip(rows, shown, strict=True)]
            requests = self.generator.requests(prompts, fitting, self._decode)
            answers = [self._codes[row] + self.generator.vocab.first_image for row in rows]
            found = self.generator.token_logprobs(requests, answers)
            k = most if name != "none" else 0
            protocol = self._protocol(k, how, "none", drawn=False, rows=rows)
            self.keep(f"nats.{name}", Score.mean([-float(one.mean()) for one in found], protocol))

    def draw_pictures(self) -> None:
        """Images drawn for the captions, next to the true ones and to what the image
        tokenizer makes of those, which no drawing can surpass."""
        ceiling = self.generator.image.decode(self._codes)
        self._judge("reconstruction", ceiling, self._codes, 0, "none", drawn=False)
        texts = [record.text for record in self._records]
        cells_: list[list[Cell]] = [[] for _ in texts]
        near: np.ndarray = np.zeros(len(texts))
        for k in self._asked.documents:
            pairs = zip(self._records, self._retrieved(k), strict=True)
            shown = [self._room(*pair) for pair in pairs]
            found = self.generator.text_to_image(texts, shown, seed=self.seed, decode=self._decode)
            images = np.stack([image_of(group[0]) for group in found])
            codes = np.stack([group[0].ids for group in found]) - self.generator.vocab.first_image
            how = f"live retrieval by the record's text, best {k}" if k else "none"
            near = self._judge(f"docs_{k}", images, codes, k, how)
            if k:
                self._copied(codes, shown, k, how)
            for row, image in enumerate(images):
                if k == max(self._asked.documents):
                    cells_[row] = [*map(self._document, shown[row]), *cells_[row]]
                cells_[row].append(Cell.of(Given(retrieved=k).label, image))
        chosen = Chosen.of(near, FIGURES)
        for row in chosen.places:
            truth = Cell.of("the true image", self._records[row].picture)
            kind = "Beside the truth, by PSNR"
            self.figures.append(Figure(kind, texts[row], (*cells_[row], truth), chosen.note))

    # ------------------------------------------------------------------------------------ parts

    @property
    def _pictures(self) -> UInt8[np.ndarray, "B Y X 3"]:
        return np.stack([record.picture for record in self._records])

    def _fitting(self, records: Sequence[HeldOut]) -> list[HeldOut]:
        """The records whose caption leaves room for an image."""
        kept = [record for record in records if self._left(record, ()) >= 0]
        if len(kept) < len(records):
            self.say(f"left out {len(records) - len(kept)} records that do not fit the context")
        if not kept:
            raise UserError("no held-out record fits the model's context.")
        return kept

    def _left(self, record: HeldOut, documents: Sequence[Retrieved]) -> int:
        """Tokens that are left behind documents, caption and image."""
        front = 2 + len(self.generator.text.encode(record.text))
        front += sum(len(document.ids) + 1 for document in documents)
        return self.generator.model.room(front) - self.generator.vocab.image_tokens

    def _room(self, record: HeldOut, documents: Sequence[Retrieved]) -> list[Retrieved]:
        """The first documents, as many as fit."""
        fits = [n for n in range(len(documents) + 1) if self._left(record, documents[:n]) >= 0]
        return list(documents[: max(fits)])

    def _own(self, rows: Sequence[int]) -> list[list[int]]:
        return [self._judged.own[row] for row in rows]

    def _retrieved(self, k: int) -> _Shown:
        """The best `k` documents by each record's text, never with its own image."""
        if not k:
            return [[] for _ in self._records]
        texts = [record.text for record in self._records]
        return self.generator.retrieve(texts=texts, k=k, exclude=self._judged.own)

    def _drawn(self, rows: Sequence[int], among: Sequence[np.ndarray], most: int) -> _Shown:
        """Documents of the bank that are drawn from those of each record."""
        chosen = [drawn_rows(among[row], most, self.seed, row) for row in rows]
        return [[Retrieved(one, 1.0, self.bank.meta(one)) for one in each] for each in chosen]

    def _candidates(self) -> tuple[np.ndarray, Int[np.ndarray, " B"]]:
        """The cells of all different images, as the tokenizer gives them back, and which one is
        each record's own."""
        places: dict[bytes, int] = {}
        owner = [places.setdefault(c.tobytes(), len(places)) for c in self._codes.astype("<i4")]
        order = prng.permutation(self.seed, 0, len(self.bank))
        for row in order[:_CANDIDATES].tolist():
            if self.bank.has_image[row]:
                places.setdefault(self._picture_codes(self.bank.ids(row)).tobytes(), len(places))
        codes = np.stack([np.frombuffer(key, "<i4") for key in places])
        parts = [
            cells(self.generator.image.decode(codes[start : start + 256]))
            for start in range(0, len(codes), 256)
        ]
        return np.concatenate(parts), np.asarray(owner)

    def _picture_codes(self, ids: np.ndarray) -> np.ndarray:
        image = next(p for p in parse(ids, self.generator.vocab) if isinstance(p, Image))
        return np.asarray(image.codes, "<i4")

    def _judge(
        self,
        name: str,
        images: np.ndarray,
        codes: np.ndarray,
        k: int,
        how: str,
        drawn: bool = True,
    ) -> np.ndarray:
        """Score images against the true ones; the PSNR of each."""
        true, encoder = self._pictures, self.generator.encoder
        values = picture_figures(true, images, self._asked.lpips)
        texts = encoder.encode_texts([record.text for record in self._records])
        seen = [fit_picture(image, encoder.config) for image in images]
        values["clip"] = (texts * encoder.encode_images(seen)).sum(1)
        for figure, each in values.items():
            protocol = figure_protocol(
                figure, self._protocol(k, how, "none", drawn), self._asked.lpips
            )
            self.keep(f"{figure}.{name}", Score.mean(each.tolist(), protocol))
        reader = f"nearest of {len(self._cells)} pictures, by the mean colours of cells"
        right = nearest_pictures(images, self._cells) == self._owner
        protocol = self._protocol(k, how, reader, drawn)
        self.keep(f"identified.{name}", Score.share(right.tolist(), 1 / len(self._cells), protocol))
        if self._extractor is not None and len(images) > 1:
            real, made = map(self._extractor.all_features, (true, images))
            protocol = dataclasses.replace(
                self._protocol(k, how, "none", drawn),
                resize=self._extractor.mode,
                extractor=self._extractor.name,
            )
            self.keep(f"fid.{name}", frechet_score(real, made, self.seed, protocol))
        return values["psnr"]

    def _copied(self, codes: np.ndarray, shown: _Shown, k: int, how: str) -> None:
        """How many images repeat a document's, code by code."""
        same = [
            any(
                document.meta.has_image and np.array_equal(self._picture_codes(document.ids), mine)
                for document in documents
            )
            for mine, documents in zip(codes, shown, strict=True)
        ]
        protocol = self._protocol(k, how, "equal codes")
        self.keep(f"copied.docs_{k}", Score.share(same, 0.0, protocol))

    def _document(self, document: Retrieved) -> Cell:
        label, mark = f"{document.key}, {document.score:.2f}", mark_of(document.meta)
        image = None
        if document.meta.has_image:
            image = self.generator.image.decode(self._picture_codes(document.ids)[None])[0]
        return Cell.of(label, image, document.meta.text, document=mark)

    @property
    def _judge_of_hits(self) -> str:
        partners = self.generator.encoder.config.partners
        named = "the bank's subjects"
        return named if partners == "subjects" else f"{named}, or clip.partners={partners}"

    def _protocol(
        self,
        k: int,
        documents: str,
        reader: str,
        drawn: bool = True,
        rows: Sequence[int] | None = None,
    ) -> Protocol:
        """The stamp of a score over the records of some rows, or of all."""
        asked = self._records if rows is None else [self._records[row] for row in rows]
        return stamp(
            PromptSet.of(
                f"captions of {self._source}, seed {self.seed}",
                "pictures that training never saw, one caption of each",
                [part for one in asked for part in (one.text, one.picture)],
            ),
            reader,
            self.examinee.weights,
            self._decode if drawn else None,
            self.generator.retriever.config if k else None,
            self.bank,
            retrieved=k,
            documents=documents,
            seed=self.seed,
        )


def meanings(names: Iterable[str]) -> list[tuple[str, str]]:
    """What the names of these scores mean, part by part: `hit_2` and the like, then `.docs_0`."""
    parts = [name.split(".") for name in names]
    first, second = {one[0] for one in parts}, {one[-1].split("_")[0] for one in parts}
    said = [(name, words) for name, words in _MEANINGS.items() if name in first]
    return said + [(f".{name}", words) for name, words in _OF.items() if name in second]


def _same_place(left: str, right: str) -> bool:
    """Whether two sources are one, however they are written: of the run's own, most records are
    no held-out ones."""
    return left == right or os.path.realpath(left) == os.path.realpath(right)
