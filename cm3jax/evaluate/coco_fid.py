"""The paper's zero-shot MS-COCO protocol (section 3.2, table 1).

FID over 30,000 captions with 0, 1 and 2 retrieved documents, one sample or the best of 8 by CLIP.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import MeshConfig
from cm3jax.data.corpus import corpora_of, licence_shares
from cm3jax.errors import UserError
from cm3jax.evaluate import drawing, pictures
from cm3jax.evaluate.coco import Caption, Captions
from cm3jax.evaluate.drawing import ALL, Setting, Share
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.fid import Gaussian
from cm3jax.evaluate.pictures import Features, Reference
from cm3jax.evaluate.protocol import (
    PromptSet,
    Protocol,
    Score,
    code_version,
    foreign_stamp,
    licensed_share,
    sampling,
    stamp,
    tree_fingerprint,
)
from cm3jax.evaluate.results import Cell, Figure, worst_and_best
from cm3jax.generation import loading
from cm3jax.generation.documents import Say
from cm3jax.generation.generator import Generator
from cm3jax.io.files import digest
from cm3jax.io.typed_json import read_fields
from cm3jax.retrieval.clip_encoder import ClipEncoder

CASES = 8
"""Worst images that the page shows, and best ones."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that drew the images: columns of the paper's table 1 that no image tells."""

    name: str
    retrieval: bool | None = None
    """Whether it saw retrieved documents in training; None where nobody knows."""
    responsible: float | None = None
    """Share of its training records with a known licence."""
    records: int | None = None
    """Records that it was trained on."""
    parameters: int | None = None
    """Number of the decoder's parameters."""


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Images of one way to draw them, and their stamp."""

    name: str
    """`docs_2.samples_8`; empty for images made elsewhere."""
    files: tuple[epath.Path, ...]
    captions: tuple[Caption | None, ...]
    """What each image was drawn for, where that is known."""
    protocol: Protocol


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Scores of every way to draw, and the cases that show them."""

    model: Model
    scores: dict[str, Score]
    figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True)
class CocoExam:
    """What all images are measured by."""

    captions: Captions
    extractor: Extractor
    encoder: ClipEncoder | None
    reference: str
    """Folder of real images, or an `.npz` of statistics."""
    crop: int
    """Pixels of the centre squares that real images are cut to; 0 leaves them whole."""
    out: epath.Path

    def __post_init__(self):
        # What is wrong with the reference is said before hours of drawing.
        if self._has_statistics:
            Gaussian.load(self.reference)
        else:
            pictures.files_in(self.reference)

    def extract(self, sets: Sequence[PictureSet], share: Share = ALL, say: Say = print) -> bool:
        """Compute features of this process's share of the real and of the drawn images.

        Returns whether all are there, so that `judge` can judge.
        """
        if self.captions.left_out:
            say(f"{self.captions.file}: {self.captions.left_out}")
        if not self._has_statistics:
            pictures.say_left_out(self.reference, say)
        every = [self._drawn(drawn) for drawn in sets]
        if not self._has_statistics:
            every.insert(0, self._real)
        for features in every:
            features.extract(share, say)
        # Asked when this share is done with all, so that whoever ends last finds everything.
        return all(features.all_there() for features in every)

    def judge(self, model: Model, sets: Sequence[PictureSet], say: Say = print) -> Outcome:
        """Score every set of images, once all have their features."""
        path = epath.Path(self.reference)
        if self._has_statistics:
            real = Reference(f"statistics {path.name}", Gaussian.load(path), None)
        else:
            real = pictures.measure(self._real, path.name, self.out)
        scores: dict[str, Score] = {}
        figures: list[Figure] = []
        for drawn in sets:
            found, cases = self._judge(drawn, real)
            scores |= {".".join(filter(None, (drawn.name, k))): v for k, v in found.items()}
            figures += cases
            words = ", ".join(f"{name} {score.value:.4g}" for name, score in found.items())
            say(f"{drawn.name or 'images'}: {words}, {len(drawn.files)} images")
        return Outcome(model, scores, tuple(figures))

    @property
    def _has_statistics(self) -> bool:
        """Whether the reference is a file of statistics."""
        return epath.Path(self.reference).suffix == ".npz"

    @property
    def _real(self) -> Features:
        files = pictures.files_in(self.reference)
        return Features(self.extractor, files, self.crop, self.out / "features" / "reference")

    def _drawn(self, drawn: PictureSet) -> Features:
        # As they are: a sampler's images have the size that it makes.
        folder = self.out / "features" / (drawn.name or "pictures")
        return Features(self.extractor, drawn.files, 0, folder)

    def _judge(self, drawn: PictureSet, real: Reference) -> tuple[dict[str, Score], list[Figure]]:
        features = self._drawn(drawn).gather()
        protocol = dataclasses.replace(
            drawn.protocol,
            resize=f"{self.extractor.mode}; real: {real.name}",
            extractor=self.extractor.name,
            reader=f"distance to {real.name}",
        )
        scores = pictures.distances(features, real, protocol)
        known = [(f, c) for f, c in zip(drawn.files, drawn.captions, strict=True) if c]
        if self.encoder is None or not known:
            return scores, []
        files, captions = zip(*known, strict=True)
        alike = pictures.cosines(self.encoder, [c.text for c in captions], files)
        reader = f"CLIP cosine without factor or prefix, encoder {self.encoder.fingerprint}"
        stamp = dataclasses.replace(drawn.protocol, reader=reader)
        scores["clip"] = Score.mean(alike.astype(float).tolist(), stamp)
        return scores, self._cases(drawn.name, files, captions, alike)

    def _cases(
        self,
        name: str,
        files: Sequence[epath.Path],
        captions: Sequence[Caption],
        alike: np.ndarray,
    ) -> list[Figure]:
        """The images that fit their captions worst and best, next to the real ones."""
        figures = []
        for end, places in zip(("worst", "best"), worst_and_best(alike, CASES), strict=True):
            many = f"{len(places)} {end} of {len(alike):,} cases"
            title = f"The {many} by CLIP: {name.replace('.', ' ') or 'the images'}"
            for place in places:
                cells = [Cell.of(f"drawn, cosine {alike[place]:.2f}", self._shown(files[place]))]
                real = epath.Path(self.reference) / captions[place].file
                if captions[place].file and real.exists():
                    cells.append(Cell.of("COCO's own", self._shown(real)))
                figures.append(Figure(title, captions[place].text, tuple(cells)))
        return figures

    def _shown(self, path: epath.Path) -> np.ndarray:
        return pictures.read_picture(path, 64 if self.crop > 64 or not self.crop else self.crop)


def from_run(
    run_dir: epath.PathLike,
    exam: CocoExam,
    bank: str,
    documents: Sequence[int],
    samples: Sequence[int],
    seed: int,
    guidance: float | None,
    share: Share = ALL,
    mesh: MeshConfig | None = None,
    say: Say = print,
) -> tuple[Model, list[PictureSet]]:
    """Draw what is missing of this process's share, for every number of documents.

    `bank` replaces the run's; `guidance` its scale; the devices of `mesh` share the drawing.
    Raises `UserError` as `cm3jax.load`, without an encoder to choose samples by, and where a single
    caption is asked: distances are between images of many.
    """
    _require_many(exam.captions)  # before anything is drawn
    generator = loading.load(run_dir, bank, mesh)
    encoder = exam.encoder
    if encoder is None:
        raise UserError("choosing and scoring samples takes a CLIP encoder; name one with --clip.")
    # Each answer is an image, whatever the run's settings say.
    generator.decode = dataclasses.replace(generator.decode, grammar=True)
    if guidance is not None:
        generator.decode = dataclasses.replace(generator.decode, guidance_scale=guidance)
    parts = [tree_fingerprint(load_run(run_dir).variables), generator.image.fingerprint]
    if few := generator.model.config.few_bits:
        parts.append(few)
    weights = digest(*parts)
    sets = []
    for count in documents:
        setting = _setting(generator, weights, exam, count, samples, seed, encoder.fingerprint)
        drawing.draw_missing(
            generator, encoder, exam.captions.chosen, setting, exam.out, share, say
        )
        sets += [
            _picture_set(generator, exam, setting, n, encoder.fingerprint) for n in setting.samples
        ]
    return describe_training(run_dir), sets


def _require_many(captions: Captions) -> None:
    if len(captions.chosen) < 2:
        why = f" ({captions.left_out})" if captions.left_out else ""
        raise UserError(
            f"{captions.file} gives {len(captions.chosen)} caption to draw{why}; distances need "
            "images of many, so ask for more, or correct the file."
        )


def _setting(
    generator: Generator,
    weights: str,
    exam: CocoExam,
    documents: int,
    samples: Sequence[int],
    seed: int,
    reranker: str,
) -> Setting:
    origin = {
        "captions": exam.captions.fingerprint,
        "weights": weights,
        "bank": "none",
        "code": code_version(),
    }
    if documents:
        origin["bank"] = generator.retriever.bank.fingerprint
        settings = sampling(None, generator.retriever.config)["settings"]
        origin |= {name: str(value) for name, value in settings.items()}
    if max(samples) > 1:
        origin["reranker"] = reranker
    return Setting(documents, tuple(sorted(set(samples))), seed, generator.decode, origin)


def _picture_set(
    generator: Generator, exam: CocoExam, setting: Setting, samples: int, reranker: str
) -> PictureSet:
    folder = setting.folder(exam.out, samples)
    files = tuple(folder / f"{caption.id:012d}.png" for caption in exam.captions.chosen)
    name = f"docs_{setting.documents}.samples_{samples}"
    how = f"live retrieval by the caption, best {setting.documents}"
    protocol = stamp(
        _prompts(exam.captions),
        "",
        setting.origin["weights"],
        setting.decode,
        generator.retriever.config if setting.documents else None,
        generator.retriever.bank if setting.documents else "none",
        retrieved=setting.documents,
        documents=how if setting.documents else "none",
        samples=samples,
        seed=setting.seed,
        rerank=f"best CLIP cosine, encoder {reranker}" if samples > 1 else "none",
    )
    return PictureSet(name, files, exam.captions.chosen, protocol)


def _prompts(captions: Captions) -> PromptSet:
    """The captions that were chosen."""
    name = (
        f"{len(captions.chosen)} of {captions.total} captions of {captions.file}, "
        f"drawn by seed {captions.seed}"
    )
    left_out = captions.left_out and f"; {captions.left_out}"
    return PromptSet(name + left_out, captions.file, captions.fingerprint)


def from_folder(
    folder: epath.PathLike, exam: CocoExam, say: Say = print
) -> tuple[Model, list[PictureSet]]:
    """Images made elsewhere, named by a caption's id or after COCO's file, or anyhow.

    Nothing is known of what made them, and the stamp says so.
    """
    files = pictures.files_in(folder)
    pictures.say_left_out(folder, say)
    captions = _by_name(files, exam.captions.chosen)
    name = epath.Path(folder).name
    file = exam.captions.file
    asked = f"pictures in {name}; captions of {file} by their names"
    protocol = foreign_stamp(PromptSet(asked, file, exam.captions.fingerprint), "")
    return Model(name), [PictureSet("", tuple(files), tuple(captions), protocol)]


def _by_name(files: Sequence[epath.Path], captions: Sequence[Caption]) -> list[Caption | None]:
    """The caption that each image is named for, by its id or by COCO's file.

    Ids and files may be the same numbers, so all images are taken to be named in one way: the one
    that knows more of them, by ids if both know as many, since `coco_fid` writes ids itself.
    """
    by_id = {caption.id: caption for caption in captions}
    by_file = {epath.Path(one.file).stem: one for one in reversed(captions) if one.file}
    stems = [file.stem for file in files]
    ids = [by_id.get(int(stem)) if stem.isdecimal() else None for stem in stems]
    named = [by_file.get(stem) for stem in stems]
    return named if sum(map(bool, named)) > sum(map(bool, ids)) else ids


def describe_training(run_dir: epath.PathLike) -> Model:
    """What a run's config and corpus say of its training."""
    run = load_run(run_dir)
    experiment = run.experiment
    shown = experiment.retrieval.documents and experiment.cm3.no_documents < 1
    corpora = corpora_of(experiment.data)
    manifests = [epath.Path(corpus) / "train" / "manifest.json" for corpus in corpora]
    records = experiment.data.records
    if manifests and all(path.exists() for path in manifests):
        records = sum(read_fields(p, {"records": int}, "the corpus")["records"] for p in manifests)
    licences = run.licences or licence_shares(experiment.data)
    responsible = licensed_share(licences) if licences else None
    parameters = sum(int(leaf.size) for leaf in jax.tree.leaves(run.variables))
    return Model(experiment.name, bool(shown), responsible, records, parameters)
