"""From cases of tasks to the corpora of instruction tuning: one for each data set, without a bank.

    HOME/corpus/train, HOME/corpus/validation     for each of `data.tasks` and its `data.mixture`

Work is cut into shards and saved one by one. What a data set has that gives no document is listed
with its reason in the corpus's manifest, under `refused`.
"""

import dataclasses
import os
import time
from collections.abc import Sequence

import numpy as np
from etils import epath

from cm3jax.config import DataConfig, Experiment
from cm3jax.data.changes import SourceState, say_why_again
from cm3jax.data.corpus import Corpus, CorpusDocument, CorpusWriter, Shard, mixture_part
from cm3jax.data.quality import RULES, idle_rules, require_quality
from cm3jax.data.runners import Report
from cm3jax.data.shard_jobs import marks
from cm3jax.data.task_cases import Cases, DatedCases, FileCases, open_cases
from cm3jax.data.tfds_tasks import TfdsCases
from cm3jax.data.tokenize import fitting_vocab
from cm3jax.errors import UserError
from cm3jax.io.files import digest
from cm3jax.io.folders import hold
from cm3jax.io.paths import real
from cm3jax.io.texts import printable, require_unicode, shorten
from cm3jax.sequence.vocab import Vocab
from cm3jax.tasks.example import Answer, TaskDocument, to_document
from cm3jax.tasks.task import Case, Derived, Filled, Overlay, Skipped, choose_template
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer, load_with_size
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

SPLITS = ("train", "validation")


def prepare_tasks(
    experiment: Experiment, text: TextTokenizer, image: ImageTokenizer, report: Report = print
) -> None:
    """Make the corpora of `data.tasks`, or what is missing of them, or was made from records that
    have changed since.

    Raises `UserError` where a data set is unknown or missing, or has no usable record, and before
    any work where one of the corpora's folders is another's or another task's.
    """
    data, seed = experiment.data, experiment.seed
    vocab = fitting_vocab(experiment.vocab, data.image_size, text, image)
    maker = _Maker(data, seed, experiment.model.context, vocab, text, image)
    wanted = [
        (*task, split, f"{home}/corpus/{split}")
        for task, home in zip(data.tasks, _homes(data), strict=True)
        for split in SPLITS
    ]
    for *task, path in wanted:
        CorpusWriter(path, maker.made_from(*task)).require_ours()
    if idle := idle_rules(data):
        report(idle)
    for name, folder, split, path in wanted:
        cases = open_cases(name, folder, split, data, seed)
        with hold(path, f"preparing {experiment.name}"):
            _corpus((name, folder, split), path, cases, maker, report)


def _homes(data: DataConfig) -> list[str]:
    """The directory of each task; `UserError` where different ones would replace each other."""
    homes = [mixture_part(part)[0] for part, _ in data.mixture]
    made: dict[str, tuple[str, str]] = {}
    for task, home in zip(data.tasks, homes, strict=True):
        other = made.setdefault(os.fspath(real(home)), task)
        if other != task:
            raise UserError(
                f"data.mixture names {home} for both {' '.join(other)} and {' '.join(task)} of "
                "data.tasks; give each its own directory."
            )
    return homes


def _corpus(
    task: tuple[str, str, str], path: str, cases: Cases, maker: "_Maker", report: Report
) -> None:
    start, size = time.perf_counter(), maker.data.shard
    name, folder, split = task
    state = _state(cases, range(len(cases)))
    states = () if state is None else marks(state, size)
    writer = CorpusWriter(path, maker.made_from(*task), states)
    if writer.complete:
        report(f"{name}, {split}: {writer.path} is complete")
        return
    say_why_again(
        *(writer.path, writer.outdated(), lambda: state, size, folder),
        lambda line: report(f"{name}, {split}: {line}"),
    )
    if isinstance(cases, FileCases | TfdsCases) and cases.note:
        report(f"{name}, {split}: {cases.note}")
    starts = range(0, max(1, len(cases)), size)  # one shard may be empty
    spans = [range(i, min(i + size, len(cases))) for i in starts]
    for number, span in enumerate(spans):
        if not writer.has(number):
            shard, made = maker.shard([cases[index] for index in span]), _state(cases, span)
            if made and made.mark != states[number]:
                raise UserError(
                    f"{folder} has changed while it was prepared; give the command again: "
                    "what is made from unchanged records is kept."
                )
            writer.write(number, shard, made)
    facts = maker.facts | {"split": split, "source": name}
    writer.finish(len(spans), facts, may_be_empty=split == "validation")
    manifest = Corpus.open(writer.path).manifest
    if not manifest["records"]:
        report(f"{name}, {split}: no usable record, so training measures no loss of it")
    report(
        f"{name}, {split}: {manifest['records']} records in {writer.path}, "
        f"{len(manifest['refused'])} refused, {time.perf_counter() - start:.0f} s"
    )


def _state(cases: Cases, span: range) -> SourceState | None:
    """What some cases are read from now; None where they are generated."""
    return SourceState.of(cases.made(span)) if isinstance(cases, DatedCases) else None


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
        cases = (name, folder, split, data.records, data.image_size, data.image_first, self.seed)
        licences = (data.licences,) if data.licences else ()
        # Earlier versions read neither these nor licences.
        defaults = {field.name: field.default for field in dataclasses.fields(data)}
        given = {rule: getattr(data, rule) for rule in (*RULES, "shard")}
        others = (f"{rule}={v!r}" for rule, v in given.items() if v != defaults[rule])
        decides = repr((*cases, *licences, *others))
        return digest(decides, self.vocab.fingerprint, str(self.context))

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
        """The documents of some cases, their images encoded together."""
        refused = {case.key: case.reason for case in cases if isinstance(case, Skipped)}
        loaded: list[tuple[Case, Filled, list[np.ndarray]]] = []
        for case in cases:
            if isinstance(case, Skipped):
                continue
            try:
                loaded.append((case, *self._load(case)))
            except ValueError as error:
                refused[printable(case.key)] = printable(shorten(str(error)))
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
        """The case in a template, and its images.

        Raises `ValueError` for one that can't be read or that a quality rule leaves out.
        """
        data = self.data
        for name in (case.key, case.source, case.licence):
            require_unicode(name)
        filled = choose_template(case, self.seed, data.image_first)
        pictures, sizes = [], list(case.sizes)
        for part in filled.parts:
            match part:
                case Derived(path, by):
                    picture = load_with_size(path, data.image_size)
                    pictures.append(by(picture.pixels))
                    sizes.append((picture.width, picture.height))
                case Overlay(path, over):
                    picture = load_with_size(path, data.image_size, over)
                    pictures.append(picture.pixels)
                    sizes.append((picture.width, picture.height))
                case epath.Path():
                    picture = load_with_size(part, data.image_size)
                    pictures.append(picture.pixels)
                    sizes.append((picture.width, picture.height))
                case np.ndarray():
                    pictures.append(part)
                    if not case.sizes:
                        sizes.append((part.shape[1], part.shape[0]))
        require_quality(data, case.licence, _texts(case), sizes)
        return filled, pictures

    def _too_long(self, found: TaskDocument) -> str:
        """Why a document does not fit a row, with its two `<eos>` and room to recall its answer."""
        room = self.context - 2 - 3 * found.answer.recalled
        if len(found.ids) <= room:
            return ""
        return f"it has {len(found.ids)} tokens, and a row holds {room}"


def _texts(case: Case) -> list[str]:
    """The texts of a case's fields, in any order."""
    values = (v if isinstance(v, tuple) else (v,) for v in case.values.values())
    return [part for value in values for part in value if isinstance(part, str)]
