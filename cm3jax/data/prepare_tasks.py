"""From cases of tasks to the corpora of instruction tuning: one for each data set, without a bank.

    HOME/corpus/train, HOME/corpus/validation     for each of `data.tasks` and its `data.mixture`

Work is cut into shards and saved one by one. What a data set has that gives no document is listed
with its reason in the corpus's manifest, under `refused`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath

from cm3jax.config import DataConfig, Experiment
from cm3jax.data.corpus import Corpus, CorpusDocument, CorpusWriter, Shard
from cm3jax.data.tfds_tasks import TfdsCases
from cm3jax.data.tokenize import fitting_vocab
from cm3jax.emblems.task_cases import NAMES, asked
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.folders import hold
from cm3jax.io.texts import brief
from cm3jax.sequence.vocab import Vocab
from cm3jax.tasks import READERS
from cm3jax.tasks.example import Answer, TaskDocument, to_document
from cm3jax.tasks.task import Case, Derived, Filled, Skipped, choose_template
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer, load_picture
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

SHARD = 2048
"""Cases prepared and saved at a time."""
SPLITS = ("train", "validation")

_TFDS = "tfds:"

Report = Callable[[str], None]


@runtime_checkable
class Cases(Protocol):
    """The cases of a split by number."""

    def __len__(self) -> int:
        """Number of cases."""
        ...

    def __getitem__(self, index: int) -> Case | Skipped:
        """Case `index`, from 0, or why there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class EmblemsCases:
    """Cases of a task of emblems."""

    task: str
    split: str
    count: int
    seed: int
    size: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Case:
        return asked(self.task, self.split, index, self.seed, self.size).case


def open_cases(name: str, folder: str, split: str, data: DataConfig, seed: int) -> Cases:
    """The cases of a data set: `data.records` of emblems, a fiftieth of that for validation; of a
    folder all that its files have, in training the first `data.records`. A folder
    `tfds:NAME/CONFIG:VERSION` is a dataset of tensorflow-datasets in `data.raw`.

    Raises `UserError` for an unknown name and for a folder without the data set's files.
    """
    if folder == "emblems":
        if name not in NAMES:
            raise UserError(f"emblems has no task {name!r}; it has {', '.join(NAMES)}.")
        count = data.records if split == "train" else max(100, data.records // 50)
        return EmblemsCases(name, split, count, seed, data.image_size)
    if name not in READERS:
        raise UserError(f"there is no data set {name!r}; there are {', '.join(READERS)}.")
    if folder.startswith(_TFDS):
        most = data.records if split == "train" else None
        dataset = folder.removeprefix(_TFDS)
        return TfdsCases(name, dataset, split, data.raw, data.image_size, most)
    cases = list(READERS[name](epath.Path(folder), split))
    return cases[: data.records] if split == "train" else cases


def prepare_tasks(
    experiment: Experiment, text: TextTokenizer, image: ImageTokenizer, report: Report = print
) -> None:
    """Make the corpora of `data.tasks`, or what is missing of them.

    Raises `UserError` where a data set is unknown or missing, or has no usable record, and before
    any work where one of the corpora's folders is another's.
    """
    data, seed, vocab = experiment.data, experiment.seed, experiment.vocab
    vocab = fitting_vocab(vocab, data.image_size, text, image)
    maker = _Maker(data, seed, experiment.model.context, vocab, text, image)
    wanted = [
        (*task, split, CorpusWriter(f"{home}/corpus/{split}", maker.made_from(*task, split)))
        for task, (home, _) in zip(data.tasks, data.mixture, strict=True)
        for split in SPLITS
    ]
    for *_, writer in wanted:
        writer.require_ours()
    for name, folder, split, writer in wanted:
        with hold(writer.path, f"preparing {experiment.name}"):
            if writer.complete:
                report(f"{name}, {split}: {writer.path} is complete")
                continue
            cases = open_cases(name, folder, split, data, seed)
            _corpus(name, split, cases, maker, writer, report)


def _corpus(
    name: str, split: str, cases: Cases, maker: "_Maker", writer: CorpusWriter, report: Report
) -> None:
    start = time.perf_counter()
    spans = [range(i, min(i + SHARD, len(cases))) for i in range(0, len(cases), SHARD)]
    for number, span in enumerate(spans):
        if not writer.has(number):
            writer.write(number, maker.shard([cases[index] for index in span]))
    writer.finish(len(spans), maker.facts | {"split": split, "source": name})
    manifest = Corpus.open(writer.path).manifest
    report(
        f"{name}, {split}: {manifest['records']} records in {writer.path}, "
        f"{len(manifest['refused'])} refused, {time.perf_counter() - start:.0f} s"
    )


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Turns cases into documents."""

    data: DataConfig
    seed: int
    context: int
    vocab: Vocab
    text: TextTokenizer
    image: ImageTokenizer

    def made_from(self, name: str, folder: str, split: str) -> str:
        """Identifies a split's cases and what else decides its content."""
        data = self.data
        licences = (data.licences,) if data.licences else ()  # earlier versions did not read them
        cases = (name, folder, split, data.records, data.image_size, data.image_first, self.seed)
        return digest(repr((*cases, *licences)), self.vocab.fingerprint, str(self.context))

    @property
    def facts(self) -> dict:
        """What a manifest says of the vocabulary."""
        vocab = self.vocab
        return {
            "vocab": dataclasses.asdict(vocab.config),
            "vocab_fingerprint": vocab.fingerprint,
            "text_fingerprint": vocab.text_fingerprint,
            "image_fingerprint": vocab.image_fingerprint,
            "bank": "",
        }

    def shard(self, cases: Sequence[Case | Skipped]) -> Shard:
        """The documents of some cases, their pictures encoded together."""
        refused = {case.key: case.reason for case in cases if isinstance(case, Skipped)}
        loaded: list[tuple[Case, Filled, list[np.ndarray]]] = []
        for case in cases:
            if isinstance(case, Skipped):
                continue
            if self.data.licences and case.licence not in self.data.licences:
                reason = f"its licence {brief(case.licence)} is not among data.licences"
                refused[case.key] = reason
                continue
            try:
                loaded.append((case, *self._load(case)))
            except ValueError as error:
                refused[case.key] = str(error)
        pictures = [picture for _, _, own in loaded for picture in own]
        codes = iter(self.image.encode(pictures).tolist() if pictures else ())
        documents, answers = [], []
        for case, filled, own in loaded:
            found = to_document(filled, [next(codes) for _ in own], self.text, self.vocab)
            if reason := self._too_long(found):
                refused[case.key] = reason
                continue
            documents.append(CorpusDocument(case.key, case.task.name, case.licence, found.ids))
            answers.append(found.answer)
        nothing = np.zeros((len(documents), 1, 1, 0))
        return Shard(
            documents=documents,
            neighbours=nothing.astype(np.int32),
            scores=nothing.astype(np.float32),
            refused=refused,
            selection={"seen": 0},
            answers=np.asarray(answers, np.int32).reshape(-1, len(Answer._fields)),
        )

    def _load(self, case: Case) -> tuple[Filled, list[np.ndarray]]:
        """The case in a template, and its pictures; `ValueError` for one that can't be read."""
        data = self.data
        filled = choose_template(case, self.seed, data.image_first)
        pictures = []
        for part in filled.parts:
            match part:
                case Derived(path, by):
                    pictures.append(by(load_picture(path, data.image_size)))
                case epath.Path():
                    pictures.append(load_picture(part, data.image_size))
                case np.ndarray():
                    pictures.append(part)
        return filled, pictures

    def _too_long(self, found: TaskDocument) -> str:
        """Why a document does not fit a row, with its two `<eos>` and room to recall its answer."""
        room = self.context - 2 - 3 * found.answer.recalled
        if len(found.ids) <= room:
            return ""
        return f"it has {len(found.ids)} tokens, and a row holds {room}"
