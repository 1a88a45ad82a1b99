"""The decoder's illustrations: a training row as the model sees it, and images that it draws."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cm3jax.data.cm3_rows import CorpusRows
from cm3jax.data.show import Piece, describe_samples, pieces
from cm3jax.errors import UserError
from cm3jax.generation.answers import image_of
from cm3jax.generation.generator import Generator
from cm3jax.generation.loading import assemble
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.report.html import Html, cell, figure, join, png_uri, tag
from cm3jax.report.run_page import Illustration
from cm3jax.retrieval.bank_files import BankDocument, mark, mark_of
from cm3jax.sequence.document import Image, Text, parse
from cm3jax.sequence.vocab import Modality
from cm3jax.shapes import UInt8
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.exported_run import LoadedRun
from cm3jax.training.state import TrainState

_GREY = 128
"""Grey of the parts of an image whose codes are elsewhere in the row."""


def decoder_illustrator(learner: DecoderLearner) -> Callable[[TrainState], Sequence[Illustration]]:
    """Draws for a learner on prepared corpora, of a mixture for the first.

    Where the tokenizers are missing, or are not those of the corpus, it says so instead.
    """
    experiment = learner.experiment
    run = LoadedRun(experiment, {}, 0, learner.fingerprints)
    try:
        generator = assemble(run, experiment.run_dir)
    except UserError as error:
        absent = Illustration.absent(str(error))
        return lambda state: [absent]
    training = learner.corpora("train")
    validation = (learner.corpora("validation") or training)[0]
    row = _training_row(training[0], generator)
    prompts = _prompts(validation, generator.text, experiment.train.samples)

    def illustrate(state: TrainState) -> Sequence[Illustration]:
        variables = {"params": state.averaged, **state.extra}
        return [row, _drawn(prompts, generator.with_variables(variables), experiment.seed)]

    return illustrate


def _training_row(rows: CorpusRows, generator: Generator) -> Illustration:
    """The first row that has a mask, if any has, else the first."""
    plan = rows.plan(0, 0)
    row = int(plan.places.rows[np.argmax(plan.masks > 0)])
    plan = plan.slice(row, row + 1)
    samples = pieces(rows.build(plan), rows.corpus.vocab)
    why = (
        "A row of the first epoch, as the model reads it. What is underlined in green is asked "
        "for: the loss counts it. Grey parts of an image stand elsewhere in the row."
    )
    shown = [tag("div", *_pieces(sample, generator), class_="row") for sample in samples]
    who = tag("pre", "\n".join(describe_samples(rows, plan)))
    # Its documents and records, which the bank has too, run into each other, so that a takedown of
    # one blanks the row.
    marks = [mark_of(document) for document in rows.shown(plan.documents.ravel().tolist())]
    queries = [rows.corpus.document(record) for record in plan.records.tolist()]
    marks += [mark(query.key, query.ids) for query in queries]
    body = tag("div", who, *shown, data_document=" ".join(marks))
    return Illustration("A training row", join(tag("p", why), body))


def _pieces(sample: Sequence[Piece], generator: Generator) -> list[Html]:
    images = [piece for piece in sample if piece.kind == Modality.IMAGE]
    pictures = iter(_partial_pictures(images, generator))
    return [_piece(piece, pictures, generator) for piece in sample]


def _piece(piece: Piece, pictures, generator: Generator) -> Html:
    vocab, names = generator.vocab, ["piece", "asked" if piece.weight else ""]
    weight = [tag("small", f"weight {piece.weight:g}")] if piece.weight not in (0, 1) else []
    inside: list[str]
    match piece.kind:
        case Modality.IMAGE:
            image = tag("img", src=png_uri(next(pictures)), alt="an image or a part of one")
            inside = [image, tag("small", f"{len(piece.ids)} codes")]
        case Modality.TEXT:
            inside = [generator.text.decode([id_ - vocab.first_text for id_ in piece.ids])]
        case _:
            inside, names = [vocab.name(piece.ids[0])], [*names, "mark"]
    return tag("span", *inside, *weight, class_=" ".join(filter(None, names)))


def _partial_pictures(
    images: Sequence[Piece], generator: Generator
) -> UInt8[np.ndarray, "B Y X 3"]:
    """An image per run of codes: the run at its place, the rest grey."""
    vocab, side = generator.vocab, generator.image.config.image_size
    codes = np.zeros((len(images), vocab.image_tokens), np.int32)
    known = np.zeros(codes.shape, bool)
    for row, piece in enumerate(images):
        run = slice(piece.place, piece.place + len(piece.ids))
        codes[row] = piece.ids[0] - vocab.first_image  # something to decode around the run
        codes[row, run] = np.asarray(piece.ids) - vocab.first_image
        known[row, run] = True
    grid = vocab.config.grid
    scale = np.ones((1, side // grid, side // grid), bool)
    pixels = np.kron(known.reshape(-1, grid, grid), scale)
    return np.where(pixels[..., None], generator.image.decode(codes), np.uint8(_GREY))


@dataclasses.dataclass(frozen=True, eq=False)
class _Prompt:
    """A pair of the validation split with the documents that its row has."""

    record: int
    caption: str
    picture: Image
    documents: tuple[BankDocument, ...]


def _prompts(rows: CorpusRows, text: TextTokenizer, count: int) -> list[_Prompt]:
    """The first pairs of a caption and an image, in the order of the rows."""
    plan, vocab = rows.plan(0, 0), rows.corpus.vocab
    found: dict[int, _Prompt] = {}
    for record, chosen in zip(plan.records.tolist(), plan.documents.tolist(), strict=True):
        if len(found) == count:
            break
        ids = rows.corpus.ids(record)
        room = rows.config.context - len(ids) - 1  # `<eos>` comes first
        match parse(ids, vocab):
            case (Text() as words, Image() as picture) if room >= 0:
                caption = text.decode(words.pieces)
                if caption.strip():  # white space is no prompt
                    documents = _fitting(rows.shown(chosen), room)
                    found[record] = _Prompt(record, caption, picture, documents)
    return list(found.values())


def _fitting(documents: Sequence[BankDocument], room: int) -> tuple[BankDocument, ...]:
    """As many of the first documents, a break after each, as have room: stream rows cut more."""
    ends = np.cumsum([len(document.ids) + 1 for document in documents])
    return tuple(documents[: int((ends <= room).sum())])


def _drawn(prompts: Sequence[_Prompt], generator: Generator, seed: int) -> Illustration:
    """An image per prompt, always with the same noise."""
    captions = [prompt.caption for prompt in prompts]
    given = [[document.ids for document in prompt.documents] for prompt in prompts]
    samples = generator.text_to_image(captions, given, seed=seed, grammar=True)
    figures, pictures = [], {}
    for prompt, (sample,) in zip(prompts, samples, strict=True):
        shown = [_document(document, generator) for document in prompt.documents]
        true = cell("its own image", picture=_uri(prompt.picture, generator))
        image = image_of(sample)
        figures.append(figure(prompt.caption, *shown, true, cell("drawn", picture=png_uri(image))))
        pictures[f"record-{prompt.record}"] = image
    why = (
        "Drawn by the parameters of this step for captions of the validation split, after the "
        "documents that their rows show; always the same prompts and the same noise."
    )
    return Illustration("Samples", join(tag("p", why), *figures), pictures)


def _document(document: BankDocument, generator: Generator) -> Html:
    segments = parse(document.ids, generator.vocab)
    images = [segment for segment in segments if isinstance(segment, Image)]
    texts = [generator.text.decode(s.pieces) for s in segments if isinstance(s, Text)]
    more = [join(tag("br"), tag("q", text)) for text in texts]
    picture = _uri(images[0], generator) if images else None
    return cell("document", *more, picture=picture, document=mark_of(document))


def _uri(image: Image, generator: Generator) -> str:
    return png_uri(generator.image.decode(np.asarray([image.codes]))[0])
