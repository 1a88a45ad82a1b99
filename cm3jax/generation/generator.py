"""Documents in, documents out: images, captions, infilling, editing, stories (sections 3, 4)."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar, Unpack

import jax
import numpy as np
from etils import epath

from cm3jax import partition
from cm3jax.config import DecodeConfig
from cm3jax.decode import loop
from cm3jax.decode.params import as_read
from cm3jax.decode.plan import ProgramShape
from cm3jax.decode.prefix_cache import PrefixCache
from cm3jax.decode.sample_cache import Journal
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.generation import ranking
from cm3jax.generation.answers import AnswerReader, Answers, Generated, Undecoded
from cm3jax.generation.attribution import DocumentEffect, effects, prefixes_without
from cm3jax.generation.display import require_sized
from cm3jax.generation.documents import Document, DocumentCodec, Say, retrieve_for
from cm3jax.generation.likelihood import Likelihood
from cm3jax.generation.options import Sampling, SamplingOptions
from cm3jax.generation.prompts import (
    Prompt,
    caption_prompt,
    edit_prompt,
    infill_prompt,
    picture_prompt,
    read_prompt,
)
from cm3jax.generation.requests import PromptRequest, RequestBuilder, ShownDocument
from cm3jax.model.language_model import LanguageModel
from cm3jax.retrieval.clip_encoder import ClipEncoder
from cm3jax.retrieval.retriever import Retrieved, Retriever
from cm3jax.shapes import Bool, Float, Int, RgbImage, UInt8
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer

GivenDocuments = Sequence[Sequence[ShownDocument | Document]]
"""The documents of each prompt, in the order shown."""
_Text = TypeVar("_Text", str, str | None)
Images = UInt8[np.ndarray, "B Y X 3"] | Sequence[RgbImage | None]


class Generator:
    """A model that draws, describes and completes; `cm3jax.load(RUN)` makes one.

        model = cm3jax.load("experiments/miniature/weights/decoder")
        sample = model.generate("a large red circle at b3 on sand", temperature=0.8, seed=1)
        sample.image                                          # a notebook shows it
        sample.image.save("circle.png")
        model.generate("<mask> <image:circle.png> <infill>").text     # its caption
        model.generate("the zubetu emblem on sky", retrieve=2)        # after two documents

    One prompt in the notation, one sample: `generate`. Lists of inputs, for each one a list of its
    samples: `text_to_image`, `caption`, `infill`, `edit`, and `generate_samples` for prompts in the
    notation. Documents in front of prompts: `retrieve`, `documents_for`, `as_document`. Scores:
    `ranked`, `token_logprobs`, `document_effects`.

    Images are uint8 arrays, height x width x 3, of the size `model.image.config.image_size`;
    masks are boolean, height x width; ids are int32; log-probabilities are in nats. A document is a
    `cm3jax.Document`, one that was retrieved, or its ids.

    Whatever draws takes these keywords: `samples` of each prompt (1), `seed` (0), and every field
    of `cm3jax.config.DecodeConfig` (`temperature`, `top_p`, `top_k`, `guidance_scale`, …), by
    default the run's own, or a whole one as `decode`. A sample's noise depends on (seed, prompt's
    place in the list or its `prompt_ids`, sample, tokens emitted) only. Samples of a prompt share
    its documents.

    Raises `cm3jax.errors.UserError`, one sentence, where prompt and answer together are longer than
    the model's context, for an image that can't be read, for an option that does not exist, and
    where documents are asked for and the run has no memory bank. An encoder-decoder (`parti`) reads
    one text and draws its image; asking it for more is a `UserError` too.

    `vocab`, `text` and `image` are its vocabulary and tokenizers, `prefixes` what it keeps of
    prompts (`prefix_cache`); `encoder` and `retriever` are opened when they are first used.
    """

    def __init__(
        self,
        model: LanguageModel,
        variables: dict,
        builder: RequestBuilder,
        open_encoder: Callable[[], ClipEncoder],
        open_retriever: Callable[[ClipEncoder], Retriever],
        decode: DecodeConfig,
        prefix_cache: int = 0,
    ):
        self.model, self.decode = model, decode
        self.vocab, self.text, self.image = builder.vocab, builder.text, builder.image
        self._builder, self._decode_each = builder, loop.decode_each
        self._reader = AnswerReader(self.vocab, self.text, self.image)
        self._documents = DocumentCodec(self.vocab, self.text, self.image)
        read = as_read(variables, model.config.dtype, model.config.weights)
        self._variables = jax.device_put(read)
        self._open_encoder, self._open_retriever = open_encoder, open_retriever
        self.prefixes = PrefixCache(prefix_cache) if prefix_cache else None

    @functools.cached_property
    def encoder(self) -> ClipEncoder:
        """The retrieval encoder; `UserError` if the run names none."""
        return self._open_encoder()

    @functools.cached_property
    def retriever(self) -> Retriever:
        """Encoder, bank and index; `UserError` if one is missing or was made for another run."""
        return self._open_retriever(self.encoder)

    def with_variables(self, variables: dict) -> "Generator":
        """This generator with other parameters, say those of a model in training."""
        opened = (self._open_encoder, self._open_retriever)
        return Generator(self.model, variables, self._builder, *opened, self.decode)

    def with_picture_batch(self, pictures: int, most: int = 0) -> "Generator":
        """The same, whose image tokenizer and encoder work on this many inputs at once, by default
        64: few where requests come one by one, each of which would be padded to as many. The
        tokenizer takes up to `most` that come together."""
        other, read = copy.copy(self), (self.image.config, self.image.variables)
        other.image = ImageTokenizer(*read, max(pictures, most), pictures)
        other._builder = copy.copy(self._builder)
        other._builder.image = other.image
        other._reader = AnswerReader(self.vocab, self.text, other.image)
        other._documents = DocumentCodec(self.vocab, self.text, other.image)
        other._open_encoder = lambda: self.encoder.with_batch(pictures)
        vars(other).pop("encoder", None)
        if "retriever" in vars(self):
            other.retriever = self.retriever.with_encoder(other.encoder)
        return other

    def cached_in(self, folder: epath.PathLike, origin: str) -> "Generator":
        """The same, with every sample kept in `folder`: samples that are there are not drawn again.

        `origin` is a fingerprint of weights and code; samples of another one do not count.
        """
        kept = copy.copy(self)
        kept._decode_each = Journal(folder, origin).decode_each
        return kept

    def retrieve(
        self,
        texts: Sequence[str | None] | None = None,
        images: Images | None = None,
        k: int = 2,
        exclude: Sequence[Sequence[int]] | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> list[list[Retrieved]]:
        """The `k` documents to show each query: texts, uint8 images, or pairs of both.

        Those that score below the run's `retrieval.relevance_floor` are left out. `exclude` holds
        rows of the bank that a query must not get, `weights` factors of the scores of others.
        """
        if texts is None:
            if images is None:
                raise UserError("retrieve finds documents for texts, images, or both; give some.")
            texts = [None] * len(images)
        shown = [None] * len(texts) if images is None else images
        queries = list(zip(_listed(texts), shown, strict=True))
        return self.retriever.retrieve(queries, k, exclude, weights)

    def text_to_image(
        self,
        prompts: Sequence[str],
        documents: GivenDocuments | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[list[Generated]]:
        """Images of plain texts; guided where `decode.guidance_scale` is not 1."""
        return self.sample(list(map(picture_prompt, _listed(prompts))), documents, **sampling)

    def caption(
        self,
        images: Images,
        documents: GivenDocuments | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[list[Generated]]:
        """Texts of uint8 images: the text of the pair is masked, then recalled."""
        return self.sample(list(map(caption_prompt, self._sized(images))), documents, **sampling)

    def infill(
        self,
        captions: Sequence[str],
        images: Images,
        masks: Bool[np.ndarray, "B Y X"],
        documents: GivenDocuments | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[list[Generated]]:
        """uint8 images with what is under their masks drawn again; pixels outside stay.

        The mask is one raster run, from its first code to its last: known codes inside are forced,
        and the hole is blanked before the image is encoded, so that no code knows it. An empty
        caption leaves only the image. Raises `UserError` for a mask without pixels.
        """
        parts = zip(_listed(captions), self._sized(images), masks, strict=True)
        return self.sample([infill_prompt(*each) for each in parts], documents, **sampling)

    def edit(
        self,
        images: Images,
        instructions: Sequence[str],
        documents: GivenDocuments | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[list[Generated]]:
        """uint8 images as the instructions change them, guided in three streams."""
        parts = zip(self._sized(images), _listed(instructions), strict=True)
        return self.sample([edit_prompt(*each) for each in parts], documents, **sampling)

    def generate(
        self,
        prompt: str,
        retrieve: int = 0,
        documents: Sequence[ShownDocument | Document] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Generated:
        """One sample for a prompt, after `documents` and then up to `retrieve` of the bank.

        A text is followed by its image. The notation puts images and masks into a prompt:
        `Image of a <mask>: <image:x.png> <infill>` is followed by the text under the mask. What the
        run's floor keeps out is not retrieved, so that `sample.documents` may be fewer.
        """
        return self.generate_samples([prompt], retrieve, documents, **sampling)[0][0]

    def generate_samples(
        self,
        prompts: Sequence[str],
        retrieve: int = 0,
        documents: Sequence[ShownDocument | Document] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> list[list[Generated]]:
        """Samples for prompts in the notation of `document.parse_prompt`.

        `A photo of a cat` is followed by an image, `Image of a <mask>: <image:x.png> <infill>` by
        the text under its mask. `documents` come first, before those that are retrieved.
        """
        size = self.image.config.image_size
        read = [read_prompt(prompt, size) for prompt in _listed(prompts)]
        return self.sample(read, self.documents_for(read, retrieve, documents), **sampling)

    def documents_for(
        self,
        prompts: Sequence[Prompt],
        retrieve: int,
        documents: Sequence[ShownDocument | Document] = (),
        exclude: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        floor: float | None = None,
        say: Say | None = None,
    ) -> list[list[ShownDocument]]:
        """The documents shown to each prompt: the given ones, then up to `retrieve` of the bank.

        The rest as in `documents.retrieve_for`.
        """
        if retrieve < 0:
            raise UserError(f"retrieve={retrieve} must be 0 or more.")
        given = self._shown(documents)
        shown = [list(given) for _ in prompts]
        if not retrieve:
            return shown
        found = retrieve_for(self.retriever, prompts, retrieve, exclude, weights, floor, say)
        return [mine + more for mine, more in zip(shown, found, strict=True)]

    def sample(
        self,
        prompts: Sequence[Prompt],
        documents: GivenDocuments | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[list[Generated]]:
        """Samples for prompts that were read (`prompts.py`), after their documents."""
        drawn = Sampling.of(sampling, self.decode)
        requests = self.requests(prompts, documents, drawn.decode, drawn.prompt_ids)
        found: list[dict[int, Generated]] = [{} for _ in prompts]
        for finished in self.answer(requests, drawn):
            for index, sample in finished:
                found[index][sample.sample_id] = sample
        return [[each[number] for number in range(drawn.samples)] for each in found]

    def requests(
        self,
        prompts: Sequence[Prompt],
        documents: GivenDocuments | None = None,
        decode: DecodeConfig | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[PromptRequest]:
        """What prompts ask of the model, in their order."""
        shown = None if documents is None else [self._shown(each) for each in documents]
        return self._builder.build(prompts, decode or self.decode, shown, prompt_ids)

    def whole_slots(self, slots: int) -> int:
        """At least `slots`, as many as the devices that share them divide evenly."""
        shards = loop.shards_of(partition.mesh_of(self._variables))
        return -(-slots // shards) * shards

    def open_slots(self, shape: ProgramShape, config: DecodeConfig, meter: Meter) -> loop.Slots:
        """Slots of the decoding loop, for requests that come one by one (`cm3jax.serve`)."""
        read = (self.model, self._variables, self.vocab)
        return loop.Slots(*read, shape, config, meter, self.prefixes, narrows=True)

    def undecoded(self, request: PromptRequest, done: list[loop.Finished]) -> Undecoded[Answers]:
        """What slots emitted for a request, as texts and codes of images."""
        return self._reader.undecoded([request], done)

    def text_of(self, ids: Int[np.ndarray, " L"]) -> str:
        """The text of the pieces among these ids."""
        return self._reader.text(ids)

    def as_shown(self, document: Document) -> Int[np.ndarray, " L"]:
        """The ids of a document."""
        return self._documents.encode(document)

    def as_document(self, shown: ShownDocument) -> Document:
        """The text and the image of a document in `sample.documents`, to look at."""
        return self._documents.decode(shown)

    def _sized(self, images: Images) -> list[RgbImage]:
        """Images of the model's size; `UserError` for others, and for one that is in no list."""
        return [require_sized(image, self.image.config.image_size) for image in images]

    def _shown(self, documents: Sequence[ShownDocument | Document]) -> list[ShownDocument]:
        """Documents with those of a user as ids."""
        return [self._documents.encode(d) if isinstance(d, Document) else d for d in documents]

    def answer(
        self,
        requests: Sequence[PromptRequest],
        sampling: Sampling | None = None,
        meter: Meter | None = None,
        watch: loop.Watch | None = None,
    ) -> Iterator[Answers]:
        """Samples of every request as they are done; `meter` and `watch` as in
        `loop.decode_each`. Requests bring their `prompt_ids` along."""
        own = sampling or Sampling(decode=self.decode)
        call = (self.model, self._variables, self.vocab, requests, own.decode, own.samples)
        for finished in self._decode_each(*call, own.seed, meter, watch, self.prefixes):
            yield self._reader.read(requests, finished)

    def logprobs(
        self, requests: Sequence[PromptRequest], answers: Sequence[Int[np.ndarray, " _"]]
    ) -> Float[np.ndarray, " B"]:
        """Log-probability in nats of an answer to each request, to compare answers."""
        return np.asarray([each.sum() for each in self.token_logprobs(requests, answers)])

    def token_logprobs(
        self, requests: Sequence[PromptRequest], answers: Sequence[Int[np.ndarray, " _"]]
    ) -> list[Float[np.ndarray, " _"]]:
        """The log-probability of each id of each answer (`Likelihood`)."""
        prefixes = [request.prefix for request in requests]
        return self._likelihood(self._variables, prefixes, answers, self.decode.batch)

    def document_effects(self, sample: Generated) -> list[DocumentEffect]:
        """What each of a sample's documents did for it (`attribution.py`); one forward pass for
        each, and one with all, side by side."""
        shown = (sample.prefix, sample.documents, sample.ids)
        found = list(self.document_logprobs(*shown, batch=1 + len(sample.documents)))
        return effects(sample.ids, sample.documents, found, self.vocab)

    def document_logprobs(
        self,
        prefix: Int[np.ndarray, " L"],
        documents: Sequence[ShownDocument],
        ids: Int[np.ndarray, " T"],
        batch: int = 1,
    ) -> Iterator[Float[np.ndarray, " T"]]:
        """The log-probabilities of an answer's ids after all documents of its prefix, then without
        each in turn: what `attribution.effects` takes. `batch` of these go through the model at
        once, when they are asked for."""
        prefixes = [prefix, *prefixes_without(prefix, documents)]
        return self._likelihood.each(self._variables, prefixes, [ids] * len(prefixes), batch)

    @functools.cached_property
    def _likelihood(self) -> Likelihood:
        return Likelihood(self.model)

    def ranked(
        self, group: Sequence[Generated], by: Literal["clip", "perplexity"], text: str = ""
    ) -> list[Generated]:
        """Samples of one prompt, best first: images by CLIP against a text, those without one
        last; texts by perplexity."""
        return [group[place] for place in ranking.best_first(self.rank_scores(group, by, text))]

    def rank_scores(
        self, group: Sequence[Generated], by: Literal["clip", "perplexity"], text: str = ""
    ) -> Float[np.ndarray, " B"]:
        """What `ranked` orders by, higher is better: the cosine of image and text by CLIP, -inf
        without an image; or the perplexity times -1."""
        if by == "perplexity":
            return ranking.scores_by_perplexity(group)
        return ranking.scores_by_clip(group, self.encoder, text)

    def describe(self, ids: Int[np.ndarray, " L"]) -> str:
        """Ids with readable names, texts in quotes."""
        return self._reader.describe(ids)


def _listed(texts: Sequence[_Text]) -> Sequence[_Text]:
    """A list of texts; `UserError` for a single text, whose letters would be taken for texts."""
    if isinstance(texts, str):
        raise UserError(f"this takes a list of texts; put {texts[:40]!r} into brackets.")
    return texts
