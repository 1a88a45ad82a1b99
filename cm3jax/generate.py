"""Documents in, documents out: text to picture, captioning and infilling (sections 3.1 and 4).

    generator = cm3jax.load("runs/quickstart/decoder")
    generator.generate("a red circle left of a blue square", retrieve=2).image

Prompts take the form that training rows have: `<eos>`, documents with a `<break>` after each, the
query, and for what a mask hides `<eos>` and the mask's sentinel.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

from cm3jax.checkpoint import LoadedRun, load_run
from cm3jax.config import DecodeConfig, Experiment
from cm3jax.decode import loop
from cm3jax.decode.grammar import Codes, Program, Words
from cm3jax.decode.loop import Request
from cm3jax.errors import UserError
from cm3jax.learners import clip, vqgan
from cm3jax.model.decoder import Decoder
from cm3jax.prompts import raster_run, read_prompt, text_ids
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.clip import ClipEncoder
from cm3jax.retrieval.retriever import Retrieved, Retriever
from cm3jax.shapes import Bool, Int, UInt8
from cm3jax.tokenizers.image import ImageTokenizer
from cm3jax.tokenizers.text import TextTokenizer
from cm3jax.vocab import Vocab

Shown = Retrieved | Int[np.ndarray, " _"]
"""A document in front of a prompt: from the bank, or any other's vocabulary ids."""
Documents = Sequence[Sequence[Shown]]
"""The documents of each prompt, in the order shown."""
Picture = UInt8[np.ndarray, "Y X 3"]
"""A picture of the image tokenizer's size."""
Pictures = UInt8[np.ndarray, "B Y X 3"] | Sequence[Picture | None]

_BLANK = 128
"""Grey that hides a hole from the image tokenizer."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """One sample: a picture or a text, and how it came about."""

    image: Picture | None
    """The picture."""
    text: str | None
    """The text."""
    documents: tuple[Shown, ...]
    """The documents that the model saw."""
    prefix: Int[np.ndarray, " L"]
    """All ids that the model saw, documents among them."""
    ids: Int[np.ndarray, " T"]
    """The ids that it emitted."""
    logprob: float
    """Their log-probability (`decode.loop.Sample`)."""
    temperature: float
    """The temperature of this sample."""
    prompt_id: int
    sample_id: int


class Generator:
    """A decoder with its tokenizers, and a retriever that is opened when it is needed.

    `samples` of a prompt share its documents; results come prompt by prompt. A sample's noise
    depends on (seed, prompt id, sample id, tokens emitted) alone; prompt ids are places in the
    list unless `prompt_ids` names them. `decode` replaces the run's own settings. Raises
    `UserError` where prompt and answer together are longer than the model's context.
    """

    def __init__(
        self,
        model: Decoder,
        variables: dict,
        vocab: Vocab,
        text: TextTokenizer,
        image: ImageTokenizer,
        open_retriever: Callable[[], Retriever],
        decode: DecodeConfig,
    ):
        self.model = model
        self.vocab = vocab
        self.text = text
        self.image = image
        self.decode = decode
        self._variables = jax.device_put(variables)
        self._open_retriever = open_retriever

    @functools.cached_property
    def retriever(self) -> Retriever:
        """Encoder, bank and index; `UserError` if one is missing or was made for another run."""
        return self._open_retriever()

    def with_variables(self, variables: dict) -> "Generator":
        """The same with other parameters, say those of a model in training."""
        parts = (self.vocab, self.text, self.image, self._open_retriever, self.decode)
        return Generator(self.model, variables, *parts)

    def retrieve(
        self,
        texts: Sequence[str | None] | None = None,
        images: Pictures | None = None,
        k: int = 2,
        exclude: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Retrieved]]:
        """The `k` documents to show each query: texts, uint8 pictures, or pairs of both.

        `exclude` holds rows of the bank that a query must not get.
        """
        nothing = [None] * len(images if texts is None else texts)
        queries = zip(
            nothing if texts is None else texts, nothing if images is None else images, strict=True
        )
        return self.retriever.retrieve(list(queries), k, exclude)

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
        tails = [[*self._words(prompt), self.vocab.break_] for prompt in prompts]
        program = (Codes((None,) * self.vocab.image_tokens),)
        jobs = self._jobs(tails, [program] * len(tails), documents, prompt_ids, guided=True)
        return self._pictures(self._decode(jobs, samples, seed, decode))

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
        mask = self.vocab.sentinel(0)
        tails = [
            [mask, self.vocab.break_, *codes, self.vocab.eos, mask] for codes in self._codes(images)
        ]
        program = (Words((decode or self.decode).max_text_tokens),)
        jobs = self._jobs(tails, [program] * len(tails), documents, prompt_ids)
        return self._texts(self._decode(jobs, samples, seed, decode))

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
        images, masks = np.asarray(images), np.asarray(masks)
        known = self._codes(np.where(masks[..., None], np.uint8(_BLANK), images))
        mark, grid = self.vocab.sentinel(0), self.vocab.config.grid
        tails, programs, frames = [], [], []
        for caption, codes, mask in zip(captions, known, masks, strict=True):
            run = raster_run(mask, grid)
            before, after = codes[: run.start], codes[run.stop :]
            front = [*self._words(caption), self.vocab.break_] if caption else []
            tails.append([*front, *before, mark, *after, self.vocab.eos, mark])
            inside = zip(codes[run.start : run.stop], run.masked, strict=True)
            programs.append((Codes(tuple(None if hidden else code for code, hidden in inside)),))
            frames.append((before, after))
        jobs = self._jobs(tails, programs, documents, prompt_ids)
        drawn = self._pictures(self._decode(jobs, samples, seed, decode), frames)
        return [
            [dataclasses.replace(s, image=np.where(mask[..., None], s.image, image)) for s in group]
            for image, mask, group in zip(images, masks, drawn, strict=True)
        ]

    def generate(
        self,
        prompt: str,
        retrieve: int = 0,
        documents: Sequence[Shown] = (),
        seed: int = 0,
        decode: DecodeConfig | None = None,
    ) -> Generated:
        """One sample for a prompt in the notation, after `retrieve` documents of the bank."""
        return self.generate_samples([prompt], retrieve, documents, 1, seed, decode)[0][0]

    def generate_samples(
        self,
        prompts: Sequence[str],
        retrieve: int = 0,
        documents: Sequence[Shown] = (),
        samples: int = 1,
        seed: int = 0,
        decode: DecodeConfig | None = None,
    ) -> list[list[Generated]]:
        """Samples for prompts in the notation of `document.parse_prompt`.

        `A photo of a cat` is followed by a picture, `Image of a <mask>: <image:x.png> <infill>` by
        the text under its mask. `documents` come first, before those that are retrieved.
        """
        read = [read_prompt(prompt, self.text, self.image, self.vocab) for prompt in prompts]
        shown = [list(documents) for _ in prompts]
        if retrieve:
            found = self.retrieve([p.words for p in read], [p.picture for p in read], retrieve)
            shown = [mine + more for mine, more in zip(shown, found, strict=True)]
        config = decode or self.decode
        out: list[list[Generated]] = [[] for _ in prompts]
        pictures = (Codes((None,) * self.vocab.image_tokens),)
        for recall, program in ((False, pictures), (True, (Words(config.max_text_tokens),))):
            here = [index for index, prompt in enumerate(read) if prompt.recall == recall]
            jobs = self._jobs(
                [read[index].ids for index in here],
                [program] * len(here),
                [shown[index] for index in here],
                here,
                guided=not recall,
            )
            found = self._decode(jobs, samples, seed, config)
            finish = self._texts if recall else self._pictures
            for index, group in zip(here, finish(found), strict=True):
                out[index] = group
        return out

    def describe(self, ids: Int[np.ndarray, " L"]) -> str:
        """Ids with readable names, texts in quotes."""
        names = []
        for is_text, part in itertools.groupby(ids.tolist(), lambda i: i >= self.vocab.first_text):
            part = list(part)
            names += [repr(self._to_text(part))] if is_text else map(self.vocab.name, part)
        return " ".join(names)

    def _words(self, text: str) -> list[int]:
        return text_ids(text, self.text, self.vocab)

    def _codes(self, images: Pictures) -> list[list[int]]:
        """Vocabulary ids of the codes of each picture."""
        if not len(images):
            return []
        return (self.image.encode(images) + self.vocab.first_image).tolist()

    def _to_text(self, ids: Sequence[int]) -> str:
        pieces = [id_ - self.vocab.first_text for id_ in ids if id_ >= self.vocab.first_text]
        return self.text.decode(pieces)

    def _jobs(
        self,
        tails: Sequence[list[int]],
        programs: Sequence[Program],
        documents: Documents | None,
        prompt_ids: Sequence[int] | None,
        guided: bool = False,
    ) -> list["_Job"]:
        """What to decode: `<eos>`, documents with a break after each, and the prompt's tail."""
        vocab, count = self.vocab, len(tails)
        shown = [()] * count if documents is None else documents
        names = range(count) if prompt_ids is None else prompt_ids
        jobs = []
        for tail, program, mine, name in zip(tails, programs, shown, names, strict=True):
            front = [vocab.eos]
            for document in mine:
                front += [*_ids(document).tolist(), vocab.break_]
            # The unconditional stream is what training knows: the query's text under a mask.
            blind = [*front, vocab.sentinel(0), vocab.break_] if guided else None
            request = Request(
                np.asarray(front + tail, np.int32),
                None if blind is None else np.asarray(blind, np.int32),
                program,
                int(name),
            )
            jobs.append(_Job(request, tuple(mine)))
        return jobs

    def _decode(
        self, jobs: Sequence["_Job"], samples: int, seed: int, decode: DecodeConfig | None
    ) -> list[list[Generated]]:
        """Samples of every job, as ids alone."""
        requests = [job.request for job in jobs]
        config = decode or self.decode
        found = loop.decode(
            self.model, self._variables, self.vocab, requests, config, samples, seed
        )
        return [
            [
                Generated(
                    image=None,
                    text=None,
                    documents=job.documents,
                    prefix=job.request.prefix,
                    prompt_id=job.request.prompt_id,
                    sample_id=number,
                    **vars(sample),
                )
                for number, sample in enumerate(group)
            ]
            for job, group in zip(jobs, found, strict=True)
        ]

    def _texts(self, found: list[list[Generated]]) -> list[list[Generated]]:
        return [
            [dataclasses.replace(s, text=self._to_text(s.ids.tolist())) for s in group]
            for group in found
        ]

    def _pictures(
        self, found: list[list[Generated]], frames: Sequence[tuple[list, list]] | None = None
    ) -> list[list[Generated]]:
        """Add the pictures; `frames` are the codes before and after what a prompt emitted."""
        around = [([], [])] * len(found) if frames is None else frames
        codes = [
            [*before, *s.ids.tolist(), *after]
            for (before, after), group in zip(around, found, strict=True)
            for s in group
        ]
        if not codes:
            return found
        images = iter(self.image.decode(np.asarray(codes) - self.vocab.first_image))
        return [[dataclasses.replace(s, image=next(images)) for s in group] for group in found]


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request and the documents in it."""

    request: Request
    documents: tuple[Shown, ...]


def _ids(document: Shown) -> Int[np.ndarray, " L"]:
    return document.ids if isinstance(document, Retrieved) else np.asarray(document)


def load(run_dir: epath.PathLike, bank: epath.PathLike = "") -> Generator:
    """The generator of a trained decoder: a run directory, or weights exported from one.

    The tokenizers are those of the run's config, found beside the run or where the config says;
    so is the encoder, which is loaded with the bank when documents are first asked for. `bank`
    replaces the config's. Raises `UserError` for what is missing or doesn't belong together.
    """
    run = load_run(run_dir)
    if run.experiment.learner != "decoder":
        raise UserError(f"{run_dir} is a run of a {run.experiment.learner}; give a decoder's.")
    return assemble(run, run_dir, bank)


def assemble(run: LoadedRun, run_dir: epath.PathLike, bank: epath.PathLike = "") -> Generator:
    """The generator of a decoder that is in memory, with what `load` would find for `run_dir`."""
    experiment = run.experiment
    text = TextTokenizer.load(_companion(run_dir, experiment.tokenizers.text))
    image = vqgan.load(_companion(run_dir, experiment.tokenizers.image))
    vocab = Vocab(experiment.vocab, text.fingerprint, image.fingerprint)
    vocab.require(run.fingerprints["vocab"], f"the decoder {run_dir}")

    def open_retriever() -> Retriever:
        where = bank or experiment.data.bank
        if not where or not experiment.retrieval.encoder:
            raise UserError(
                f"{run_dir} names no memory bank or no encoder (data.bank, retrieval.encoder); "
                "give a bank, or ask for no documents."
            )
        encoder = load_encoder(run_dir, experiment)
        opened = Bank.open(where, encoder.fingerprint, vocab.fingerprint)
        return Retriever(encoder, opened, experiment.retrieval)

    model = Decoder(experiment.model, vocab.size)
    return Generator(model, run.variables, vocab, text, image, open_retriever, experiment.decode)


def load_encoder(run_dir: epath.PathLike, experiment: Experiment) -> ClipEncoder:
    """The retrieval encoder that a decoder's run names; `UserError` where it names none."""
    if not experiment.retrieval.encoder:
        raise UserError(f"{run_dir} names no encoder (retrieval.encoder); give one.")
    return clip.load(_companion(run_dir, experiment.retrieval.encoder))


def _companion(run_dir: epath.PathLike, path: str) -> epath.Path:
    """Another run that this one names: its namesake beside this run, else where the config says.

    Weights that were trained together are shipped side by side, wherever that is.
    """
    beside = epath.Path(run_dir).resolve().parent / epath.Path(path).name
    return beside if path and beside.exists() else epath.Path(path)
