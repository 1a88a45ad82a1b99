"""Documents in, documents out: pictures, captions, infilling, editing, stories (sections 3, 4).

generator = cm3jax.load("runs/quickstart/decoder")
generator.generate("a red circle left of a blue square", retrieve=2).image
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal

import jax
import numpy as np
from etils import epath

from cm3jax import partition
from cm3jax.checkpoint import load_run, require_same
from cm3jax.config import DecodeConfig, Experiment, MeshConfig
from cm3jax.decode import loop, rerank
from cm3jax.decode.params import as_read
from cm3jax.decode.sample_cache import Journal
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.generation.likelihood import Likelihood
from cm3jax.generation.prompts import Prompt, Segments, Shown, read_prompt
from cm3jax.generation.requests import (
    BrokenImage,
    CaptionAsker,
    Document,
    Documents,
    Part,
    Picture,
    PromptRequest,
    RequestBuilder,
    read_answer,
    to_text,
)
from cm3jax.learners import clip, vqgan
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.learners.parti import PartiLearner
from cm3jax.model.encoder_decoder import EncoderDecoder
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.retrieval.retriever import Found, Retrieved, Retriever
from cm3jax.sequence.document import Mark
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Bool, Float, Int, UInt8
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.companions import companion, encoder_fingerprint
from cm3jax.training.exported_run import LoadedRun
from cm3jax.training.state import TrainState, plan_layout

Pictures = UInt8[np.ndarray, "B Y X 3"] | Sequence[Picture | None]
Segment = str | BrokenImage | Picture


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """One sample and how it came about."""

    segments: tuple[Segment, ...]
    """What was asked for: a picture or a text, a story's texts and pictures, or what filled each
    mask, in order."""
    documents: tuple[Document, ...]
    """The documents that the model saw."""
    prefix: Int[np.ndarray, " L"]
    """All ids that the model saw, documents among them."""
    ids: Int[np.ndarray, " T"]
    """The ids that it emitted."""
    logprob: float
    """Their log-probability (`decode.loop.Sample`)."""
    sampled: int
    """How many of them were sampled, not forced."""
    temperature: float
    """The temperature of this sample."""
    prompt_id: int
    sample_id: int

    @property
    def image(self) -> Picture | None:
        """The first picture."""
        return next((s for s in self.segments if isinstance(s, np.ndarray)), None)

    @property
    def text(self) -> str | None:
        """The first text."""
        return next((s for s in self.segments if isinstance(s, str)), None)

    @property
    def perplexity(self) -> float:
        """Perplexity of the sampled ids."""
        return float(rerank.perplexities([self.logprob], [self.sampled])[0])


Say = Callable[[str], None]
"""Gets lines for the user."""

Finished = list[tuple[int, Generated]]
"""Samples that were done together, each with the place of its ask."""


class Generator:
    """A model with its tokenizers, and an encoder and a retriever that are opened when needed.

    An encoder-decoder reads one text and draws its picture; asking it for more is a `UserError`.

    `samples` of a prompt share its documents; results come prompt by prompt. A sample's noise
    depends on (seed, prompt id, sample id, tokens emitted) alone; prompt ids are places in the
    list unless `prompt_ids` names them. `decode` replaces the run's own settings. Raises
    `UserError` where prompt and answer together are longer than the model's context.
    """

    def __init__(
        self,
        model: loop.Model,
        variables: dict,
        vocab: Vocab,
        text: TextTokenizer,
        image: ImageTokenizer,
        open_encoder: Callable[[], ClipEncoder],
        open_retriever: Callable[[ClipEncoder], Retriever],
        decode: DecodeConfig,
    ):
        self.model = model
        self.vocab = vocab
        self.text = text
        self.image = image
        self.decode = decode
        asker = CaptionAsker if isinstance(model, EncoderDecoder) else RequestBuilder
        self.ask = asker(vocab, text, image, model.room)
        self._variables = jax.device_put(as_read(variables, model.config.dtype))
        self._open_encoder, self._open_retriever = open_encoder, open_retriever
        self._decode_each = loop.decode_each

    @functools.cached_property
    def encoder(self) -> ClipEncoder:
        """The retrieval encoder; `UserError` if the run names none."""
        return self._open_encoder()

    @functools.cached_property
    def retriever(self) -> Retriever:
        """Encoder, bank and index; `UserError` if one is missing or was made for another run."""
        return self._open_retriever(self.encoder)

    def with_variables(self, variables: dict) -> "Generator":
        """The same with other parameters, say those of a model in training."""
        parts = (self.vocab, self.text, self.image, self._open_encoder, self._open_retriever)
        return Generator(self.model, variables, *parts, self.decode)

    def cached_in(self, folder: epath.PathLike, origin: str) -> "Generator":
        """The same, with every sample kept in `folder`: those that lie there are not drawn again.

        `origin` is a fingerprint of weights and code; samples of another one do not count.
        """
        kept = copy.copy(self)
        kept._decode_each = Journal(folder, origin).decode_each
        return kept

    def retrieve(
        self,
        texts: Sequence[str | None] | None = None,
        images: Pictures | None = None,
        k: int = 2,
        exclude: Sequence[Sequence[int]] | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> list[list[Retrieved]]:
        """The `k` documents to show each query: texts, uint8 pictures, or pairs of both.

        Those that score below the run's `retrieval.relevance_floor` are left out. `exclude` holds
        rows of the bank that a query must not get, `weights` factors of the scores of others.
        """
        nothing = [None] * len(images if texts is None else texts)
        queries = zip(
            nothing if texts is None else texts, nothing if images is None else images, strict=True
        )
        return self.retriever.retrieve(list(queries), k, exclude, weights)

    def text_to_image(
        self,
        prompts: Sequence[str],
        documents: Documents | None = None,
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[list[Generated]]:
        """Pictures of plain texts; guided where `decode.guidance_scale` is not 1."""
        rows = [((prompt,),) for prompt in prompts]
        asks = self.ask.pictures(rows, documents, prompt_ids, decode or self.decode)
        return self._all(asks, samples, seed, decode)

    def caption(
        self,
        images: Pictures,
        documents: Documents | None = None,
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[list[Generated]]:
        """Texts of uint8 pictures: the text of the pair is masked, then recalled."""
        rows: list[Segments] = [((Mark.MASK,), Shown(image)) for image in images]
        asks = self.ask.fillings(rows, documents, prompt_ids, decode or self.decode)
        return self._all(asks, samples, seed, decode)

    def infill(
        self,
        captions: Sequence[str],
        images: Pictures,
        masks: Bool[np.ndarray, "B Y X"],
        documents: Documents | None = None,
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[list[Generated]]:
        """uint8 pictures with what is under their masks drawn anew; pixels outside stay.

        The mask is one raster run, from its first code to its last: known codes inside are forced,
        and the hole is blanked before the picture is encoded, so that no code knows it. An empty
        caption leaves the picture to stand alone. Raises `UserError` for a mask without pixels.
        """
        rows: list[Segments] = [
            (*([(caption,)] if caption else []), Shown(image, mask))
            for caption, image, mask in zip(captions, images, masks, strict=True)
        ]
        asks = self.ask.fillings(rows, documents, prompt_ids, decode or self.decode)
        return self._all(asks, samples, seed, decode)

    def edit(
        self,
        images: Pictures,
        instructions: Sequence[str],
        documents: Documents | None = None,
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[list[Generated]]:
        """uint8 pictures as the instructions change them, guided in three streams."""
        config = decode or self.decode
        asks = self.ask.edits(images, instructions, documents, prompt_ids, config)
        return self._all(asks, samples, seed, decode)

    def generate(
        self,
        prompt: str,
        retrieve: int = 0,
        documents: Sequence[Document] = (),
        seed: int = 0,
        decode: DecodeConfig | None = None,
    ) -> Generated:
        """One sample for a prompt in the notation, after `retrieve` documents of the bank."""
        return self.generate_samples([prompt], retrieve, documents, 1, seed, decode)[0][0]

    def generate_samples(
        self,
        prompts: Sequence[str],
        retrieve: int = 0,
        documents: Sequence[Document] = (),
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
    ) -> list[list[Generated]]:
        """Samples for prompts in the notation of `document.parse_prompt`.

        `A photo of a cat` is followed by a picture, `Image of a <mask>: <image:x.png> <infill>` by
        the text under its mask. `documents` come first, before those that are retrieved.
        """
        size = self.image.config.image_size
        read = [read_prompt(prompt, size) for prompt in prompts]
        shown = self.documents_for(read, retrieve, documents)
        return self._all(self.asks(read, shown, decode or self.decode), samples, seed, decode)

    def documents_for(
        self,
        prompts: Sequence[Prompt],
        retrieve: int,
        documents: Sequence[Document] = (),
        exclude: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        floor: float | None = None,
        say: Say | None = None,
    ) -> list[list[Document]]:
        """The documents shown to each prompt: the given ones, then up to `retrieve` of the bank.

        Documents of the bank are excluded and weighed by their keys; `UserError` for one that it
        does not have. Those that score below `floor`, by default the run's own, are left out; `say`
        gets a line for each prompt that is shown fewer than were asked for.
        """
        shown = [list(documents) for _ in prompts]
        if not retrieve:
            return shown
        row = self.retriever.row
        found = self.retriever.search(
            [(prompt.words, prompt.picture) for prompt in prompts],
            retrieve,
            [[row(key) for key in exclude]] * len(prompts),
            {row(key): factor for key, factor in (weights or {}).items()},
            floor,
        )
        for prompt, one in zip(prompts, found, strict=True):
            if say is not None and len(one.documents) < retrieve:
                say(self._why_fewer(prompt, one, retrieve, floor))
        return [mine + one.documents for mine, one in zip(shown, found, strict=True)]

    def _why_fewer(self, prompt: Prompt, found: Found, wanted: int, floor: float | None) -> str:
        """Why a prompt is shown fewer documents than were asked for."""
        floor = self.retriever.config.relevance_floor if floor is None else floor
        size = len(self.retriever.bank)
        line = f"{len(found.documents)} of {wanted} documents for {prompt.words or 'the picture'!r}"
        if found.left_out:
            scores = ", ".join(f"{score:.2f}" for score in found.left_out)
            line += f"; scores below the floor of {floor:g} were left out: {scores}"
        elif wanted > size:
            line += f"; the bank has {size}"
        else:
            line += "; the bank has no others that pass the rules of retrieval"
        return line

    def asks(
        self, prompts: Sequence[Prompt], documents: Documents, config: DecodeConfig
    ) -> list[PromptRequest]:
        """What prompts ask for, in their order: what is masked, or else a picture."""
        out: list[PromptRequest | None] = [None] * len(prompts)
        for recall, build in ((False, self.ask.pictures), (True, self.ask.fillings)):
            here = [index for index, prompt in enumerate(prompts) if prompt.recall == recall]
            rows = [prompts[index].segments for index in here]
            for index, ask in zip(
                here, build(rows, [documents[i] for i in here], here, config), strict=True
            ):
                out[index] = ask
        return out

    def answer(
        self,
        asks: Sequence[PromptRequest],
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        meter: Meter | None = None,
        watch: loop.Watch | None = None,
    ) -> Iterator[Finished]:
        """Samples of every ask as they are done; `meter` and `watch` as in `loop.decode_each`."""
        requests, config = [ask.request for ask in asks], decode or self.decode
        call = (self.model, self._variables, self.vocab, requests, config, samples, seed)
        for finished in self._decode_each(*call, meter, watch):
            yield self._finish(asks, finished)

    def logprobs(
        self, asks: Sequence[PromptRequest], answers: Sequence[Int[np.ndarray, " _"]]
    ) -> Float[np.ndarray, " B"]:
        """Log-probability in nats of an answer to each ask, to compare answers.

        As `token_logprobs`.
        """
        return np.asarray([each.sum() for each in self.token_logprobs(asks, answers)])

    def token_logprobs(
        self, asks: Sequence[PromptRequest], answers: Sequence[Int[np.ndarray, " _"]]
    ) -> list[Float[np.ndarray, " _"]]:
        """The log-probability of each id of each answer (`Likelihood`)."""
        prefixes = [ask.request.prefix for ask in asks]
        return self._likelihood(self._variables, prefixes, answers, self.decode.batch)

    @functools.cached_property
    def _likelihood(self) -> Likelihood:
        return Likelihood(self.model)

    def _all(
        self, asks: Sequence[PromptRequest], samples: int, seed: int, decode: DecodeConfig | None
    ) -> list[list[Generated]]:
        out: list[list[Generated | None]] = [[None] * samples for _ in asks]
        for finished in self.answer(asks, samples, seed, decode):
            for index, sample in finished:
                out[index][sample.sample_id] = sample
        return out

    def _finish(self, asks: Sequence[PromptRequest], finished: list[loop.Finished]) -> Finished:
        """Read the ids; all pictures are decoded together."""
        found = [
            (done.request, done.first + offset, sample, asks[done.request])
            for done in finished
            for offset, sample in enumerate(done.samples)
        ]
        parts = [read_answer(ask, sample.ids, self.ask) for _, _, sample, ask in found]
        codes = [part for each in parts for part in each if isinstance(part, np.ndarray)]
        images = iter(self.image.decode(np.asarray(codes)) if codes else ())
        return [
            (
                index,
                Generated(
                    segments=_close(ask, each, images),
                    documents=ask.documents,
                    prefix=ask.request.prefix,
                    prompt_id=ask.request.prompt_id,
                    sample_id=number,
                    **vars(sample),
                ),
            )
            for (index, number, sample, ask), each in zip(found, parts, strict=True)
        ]

    def ranked(
        self, group: Sequence[Generated], by: Literal["clip", "perplexity"], text: str = ""
    ) -> list[Generated]:
        """Samples of one prompt, best first: pictures by CLIP beside a text, texts by perplexity.

        Samples without a picture are last by CLIP.
        """
        return [group[place] for place in rerank.best_first(self.rank_scores(group, by, text))]

    def rank_scores(
        self, group: Sequence[Generated], by: Literal["clip", "perplexity"], text: str = ""
    ) -> Float[np.ndarray, " B"]:
        """What `ranked` orders by, higher is better: the cosine of picture and text by CLIP, -inf
        without a picture; or the perplexity times -1."""
        if by == "perplexity":
            return -np.asarray([sample.perplexity for sample in group])
        scores = np.full(len(group), -np.inf)
        there = [place for place, sample in enumerate(group) if sample.image is not None]
        if there:
            images = np.stack([group[place].image for place in there])
            scores[there] = rerank.clip_scores(self.encoder, text, images)
        return scores

    def describe(self, ids: Int[np.ndarray, " L"]) -> str:
        """Ids with readable names, texts in quotes."""
        names = []
        for is_text, part in groupby(ids.tolist(), lambda i: i >= self.vocab.first_text):
            part = list(part)
            words = [repr(to_text(np.asarray(part), self.ask))] if is_text else []
            names += words or map(self.vocab.name, part)
        return " ".join(names)


def _close(
    ask: PromptRequest, parts: Sequence[Part], images: Iterator[Picture]
) -> tuple[Segment, ...]:
    """Parts with pictures in place of codes; pixels outside of holes are those of before."""
    holes = [None] * len(parts) if ask.holes is None else ask.holes
    out = []
    for part, hole in zip(parts, holes, strict=True):
        if isinstance(part, np.ndarray):
            part = next(images)
            if hole is not None:
                part = np.where(hole.shown.hole[..., None], part, hole.shown.image)
        out.append(part)
    return tuple(out)


def load(
    run_dir: epath.PathLike, bank: epath.PathLike = "", mesh: MeshConfig | None = None
) -> Generator:
    """The generator of a trained decoder, `parti` too: a run directory, or exported weights.

    The tokenizers are those of the run's config, found beside the run or where the config says;
    so is the encoder, which is loaded with the bank when documents are first asked for. `bank`
    replaces the config's. The devices of `mesh` share the decoder and its rows; without one it is
    the first device. Raises `UserError` for what is missing or doesn't belong together.
    """
    devices = None if mesh is None else partition.make_mesh(mesh)

    def onto(experiment: Experiment) -> TrainState:
        return plan_layout(_learner(run_dir, experiment).init, experiment, devices).abstract

    run = load_run(run_dir, onto if devices else None)
    return assemble(run, run_dir, bank)


def _learner(run_dir: epath.PathLike, experiment: Experiment) -> DecoderLearner | PartiLearner:
    """What made the run, without data; `UserError` if it draws nothing."""
    learners = {"decoder": DecoderLearner, "parti": PartiLearner}
    if experiment.learner not in learners:
        raise UserError(f"{run_dir} is a run of a {experiment.learner}; give a decoder's.")
    return learners[experiment.learner](experiment, Vocab(experiment.vocab), {})


def assemble(run: LoadedRun, run_dir: epath.PathLike, bank: epath.PathLike = "") -> Generator:
    """The generator of a decoder that is in memory, with what `load` would find for `run_dir`."""
    experiment = run.experiment
    model = _learner(run_dir, experiment).model
    where, prints = experiment.tokenizers, run.fingerprints
    text_dir = companion(run_dir, run, where.text, prints.get("text", ""), _text_fingerprint)
    image_dir = companion(run_dir, run, where.image, prints.get("image", ""), _image_fingerprint)
    text, image = TextTokenizer.load(text_dir), vqgan.load(image_dir)
    vocab = Vocab(experiment.vocab, text.fingerprint, image.fingerprint)
    vocab.require(run.fingerprints["vocab"], f"the decoder {run_dir}")

    def open_retriever(encoder: ClipEncoder) -> Retriever:
        where = bank or companion(run_dir, run, experiment.data.bank)
        if not (bank or experiment.data.bank):
            raise UserError(
                f"{run_dir} names no memory bank (data.bank); give one, or ask for no documents."
            )
        opened = Bank.open(where, encoder.fingerprint, vocab.fingerprint)
        return Retriever(encoder, opened, experiment.retrieval)

    return Generator(
        model,
        run.variables,
        vocab,
        text,
        image,
        functools.partial(load_encoder, run_dir, run),
        open_retriever,
        experiment.decode,
    )


def _text_fingerprint(path: epath.Path) -> str:
    return TextTokenizer.load(path).fingerprint


def _image_fingerprint(path: epath.Path) -> str:
    return vqgan.load(path).fingerprint


def _encoder_fingerprint(path: epath.Path) -> str:
    return clip.load(path).fingerprint


def load_encoder(run_dir: epath.PathLike, run: LoadedRun) -> ClipEncoder:
    """The retrieval encoder that a decoder's run names; `UserError` where it names none, or is not
    the one whose documents the run was trained with."""
    path, wanted = run.experiment.retrieval.encoder, encoder_fingerprint(run)
    if not path:
        raise UserError(
            f"{run_dir} names no encoder (retrieval.encoder); ask for no documents and no ranking "
            "by CLIP."
        )
    encoder = clip.load(companion(run_dir, run, path, wanted, _encoder_fingerprint))
    if wanted:
        require_same({"encoder": wanted}, {"encoder": encoder.fingerprint}, str(run_dir))
    return encoder
