"""What claims are measured with: the shipped weights, prompts by seed, documents, intervals."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import DecodeConfig, Experiment, RetrievalConfig
from cm3jax.data.prepare import prepare_bank
from cm3jax.data.shard_jobs import SplitJob
from cm3jax.data.tokenize import Tools
from cm3jax.emblems import ProbePrompt, prompts
from cm3jax.emblems.probe_prompts import ProbeKind
from cm3jax.evaluate.exam import Examinee, contents
from cm3jax.evaluate.protocol import PromptSet, Protocol, Score, stamp, wilson
from cm3jax.evaluate.results import Cell
from cm3jax.generation.answers import image_of
from cm3jax.generation.generator import Generator
from cm3jax.generation.requests import ShownDocuments
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.document import Image, Text, render
from cm3jax.shapes import Bool, Float, Int, RgbImage, UInt8
from cm3jax.training.exported_run import LoadedRun

SEEDS, PROMPTS = 3, 200
EMBLEMS = 16_000
"""As in the shipped weights' training."""
_RESAMPLES = 2000


class Bench:
    """The shipped model in its surroundings.

    `shipped` is the folder of the weights, `data` that of banks, which are made when first needed;
    samples are kept in the folder `keep`, and those that are there not drawn again. There are
    `seeds` seeds of sampling, each with `prompts` prompts of its own. The banks' datasets have
    `emblems` emblems for training, three documents of each. Models that a row trains are in the
    folder `runs`. `say` gets a line per score.
    """

    def __init__(
        self,
        shipped: epath.PathLike,
        data: epath.PathLike,
        keep: epath.PathLike,
        say: Callable[[str], None] = print,
        seeds: int = SEEDS,
        prompts: int = PROMPTS,
        emblems: int = EMBLEMS,
        runs: epath.PathLike = "runs",
    ):
        self.shipped = epath.Path(shipped)
        self.run = self.shipped / "decoder"
        self.data = epath.Path(data)
        self.keep = epath.Path(keep)
        self.say = say
        self.seeds, self.prompts, self.emblems = seeds, prompts, emblems
        self.runs = epath.Path(runs)
        self._own_bank: epath.PathLike = self._bank_path(0)

    def trained(self, name: str) -> "Bench":
        """The same with the model that the experiment `name` trained, and the bank of its data."""
        sizes = self.seeds, self.prompts, self.emblems
        bench = Bench(self.shipped, self.data, self.keep / name, self.say, *sizes, self.runs)
        bench.run, bench._own_bank = self.runs / name, ""
        return bench

    @functools.cached_property
    def _run(self) -> LoadedRun:
        return load_run(self.run)

    @functools.cached_property
    def _examinee(self) -> Examinee:
        return Examinee.load(self.run, self._own_bank, keep=self.keep)

    @property
    def weights(self) -> dict[str, str]:
        """Fingerprints of the weights, by part."""
        return self._examinee.weights

    @property
    def generator(self) -> Generator:
        """The model; it keeps what it draws, and retrieves from `bank()` once that is made."""
        return self._examinee.generator

    @property
    def experiment(self) -> Experiment:
        """What trained the model."""
        return self._run.experiment

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._run.variables["params"]))

    @property
    def size(self) -> int:
        """Pixels along one side of an image."""
        return self.experiment.vqgan.image_size

    def _bank_path(self, dataset: int) -> epath.Path:
        return self.data / "claims" / f"bank-{dataset}"

    def bank(self, dataset: int = 0) -> Bank:
        """The memory bank of the dataset of that seed, made now unless it stands: the miniature's
        takes some three minutes."""
        experiment = self.experiment
        data = dataclasses.replace(
            experiment.data,
            raw=str(self.data / "raw"),
            emblems=self.emblems,
            records=400,  # the bank does not depend on how many training pairs there are
            bank=str(self._bank_path(dataset)),
        )
        tools = Tools(self.generator.text, self.generator.image, self.generator.encoder)
        moved = dataclasses.replace(experiment, seed=dataset, data=data)
        return prepare_bank(SplitJob(moved, "bank"), tools, self.say)

    def asked(self, kind: ProbeKind, dataset: int = 0) -> list[list[ProbePrompt]]:
        """The prompts of every seed, none twice."""
        every = prompts(kind, self.seeds * self.prompts, dataset, self.size)
        return [every[i : i + self.prompts] for i in range(0, len(every), self.prompts)]

    def documents(self, pairs: Sequence[tuple[str, RgbImage]]) -> list[Int[np.ndarray, " L"]]:
        """Ids of documents of a text and an image each."""
        codes = self.generator.image.encode([picture for _, picture in pairs]).tolist()
        encode = self.generator.text.encode
        return [
            render((Text(tuple(encode(text))), Image(tuple(own))), self.generator.vocab)
            for (text, _), own in zip(pairs, codes, strict=True)
        ]

    def draw(
        self,
        texts: Sequence[str],
        documents: ShownDocuments | None,
        seed: int,
        decode: DecodeConfig | None = None,
    ) -> UInt8[np.ndarray, "B Y X 3"]:
        """An image of each text."""
        drawn = self._examinee.draw(texts, documents, seed, decode)
        return np.stack([image_of(one) for one in drawn])

    def cell(self, found: Retrieved) -> Cell:
        """A retrieved document in a figure."""
        return self._examinee.cell(found)

    def best_cell(self, found: Sequence[Retrieved]) -> Cell:
        """The best of a prompt's documents in a figure, or a word that it was shown none."""
        if found:
            return self.cell(found[0])
        return Cell.of("retrieved", None, "no document scores above the floor")

    def share(
        self, name: str, verdicts: Bool[np.ndarray, "S B"], chance: float, protocol: Protocol
    ) -> Score:
        """The share of right answers of all seeds."""
        low, high = bootstrap(verdicts.astype(np.float64))
        # A bootstrap of equal verdicts is a point, which is too sure.
        least, most = wilson(int(verdicts.sum()), verdicts.size)
        interval = (min(low, least), max(high, most))
        score = Score(float(verdicts.mean()), verdicts.size, chance, interval, protocol)
        self.say(f"{name}: {score.value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})")
        return score

    def mean(self, name: str, values: Float[np.ndarray, "S B"], protocol: Protocol) -> Score:
        """The mean of a figure of all seeds."""
        score = Score(float(values.mean()), values.size, None, bootstrap(values), protocol)
        self.say(f"{name}: {score.value:.4g} ({score.interval[0]:.4g}–{score.interval[1]:.4g})")
        return score

    def protocol(
        self,
        prompts: str,
        content: Iterable[str | np.ndarray],
        split: str,
        reader: str,
        decode: DecodeConfig | None = None,
        bank: Bank | None = None,
        retrieval: RetrievalConfig | None = None,
        **fields: Any,
    ) -> Protocol:
        """The stamp of a score over prompts of this `content`; `fields` replace what is said of
        documents, samples and rerank, `decode` and `retrieval` the model's own settings."""
        if bank and fields.get("retrieved"):
            retrieval = retrieval or self.generator.retriever.config
        return stamp(
            PromptSet.of(f"{prompts}, {self.size} pixels", split, content),
            reader,
            self.weights,
            decode or self.generator.decode,
            retrieval,
            "none" if bank is None else bank,
            **{"seeds": self.seeds} | fields,
        )


def content(every: Sequence[Sequence[ProbePrompt]]) -> list[str | np.ndarray]:
    """All that the prompts of all seeds ask and show."""
    return contents(prompt for asked in every for prompt in asked)


def bootstrap(values: Float[np.ndarray, "S B"]) -> tuple[float, float]:
    """95 % interval of the mean of all values: seeds are drawn, then prompts of each."""
    rng = np.random.default_rng(0)
    seeds, each = values.shape
    rows = rng.integers(0, seeds, (_RESAMPLES, seeds, 1))
    places = rng.integers(0, each, (_RESAMPLES, seeds, each))
    low, high = np.quantile(values[rows, places].mean((1, 2)), (0.025, 0.975))
    return float(low), float(high)
