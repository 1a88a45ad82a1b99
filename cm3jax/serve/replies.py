"""Answers in the shapes of OpenAI's API, each with what it came from."""

import base64
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cm3jax.decode.grammar import cut_short
from cm3jax.generation.answers import BrokenImage, Generated
from cm3jax.generation.attribution import DocumentEffect, gains_by_place
from cm3jax.report.html import png
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.sequence.vocab import Modality, Vocab
from cm3jax.serve.drawing import ServedRequest
from cm3jax.shapes import Float, RgbImage

Json = dict[str, Any]


def base64_png(image: RgbImage) -> str:
    """An image as a PNG in base64."""
    return base64.b64encode(png(np.asarray(image), optimize=False)).decode()


Effects = Mapping[int, Sequence[DocumentEffect]]
"""What the documents of samples did, by the samples' numbers; empty where nobody asked."""


def provenance(question: ServedRequest, sample: Generated, effects: Effects, vocab: Vocab) -> Json:
    """What made a sample: its documents with score, source and licence, its seed, its likelihood;
    where it was asked for, with what each document did.

    A document's score is null where it was given by its key; one that was given whole has only its
    place among those given.
    """
    documents = [_document(one, place) for place, one in enumerate(sample.documents)]
    hole = next(iter(question.request.holes or ()), None)
    before = 0 if hole is None else len(hole.before)
    for known, effect in zip(documents, effects.get(sample.sample_id, ()), strict=False):
        known |= _effect(effect, gains_by_place(sample.ids, effect.gains, before, vocab))
    return {
        "seed": question.seed,
        "sample": sample.sample_id,
        "temperature": sample.temperature,
        "logprob": sample.logprob,
        "perplexity": sample.perplexity,
        "documents": documents,
    }


def _document(shown: Retrieved | np.ndarray, place: int) -> Json:
    if not isinstance(shown, Retrieved):
        return {"given": place}
    return {
        "key": shown.key,
        "score": None if math.isnan(shown.score) else shown.score,
        "source": shown.meta.source,
        "licence": shown.meta.licence,
    }


def images_reply(
    question: ServedRequest, samples: list[Generated], effects: Effects, vocab: Vocab
) -> Json:
    """The answer of `/v1/images/…`."""
    return {
        "created": int(time.time()),
        "data": [image_object(question, sample, effects, vocab) for sample in samples],
        "output_format": "png",
        "background": "opaque",
        "usage": image_usage(question, samples, vocab),
    }


def image_object(
    question: ServedRequest, sample: Generated, effects: Effects, vocab: Vocab
) -> Json:
    """One image with its provenance; without one where the model, free of the grammar, drew
    none."""
    image = sample.image
    return {
        "b64_json": None if image is None else base64_png(image),
        "codes": sample.ids.tolist(),
        **provenance(question, sample, effects, vocab),
    }


def _effect(effect: DocumentEffect, heat: Float[np.ndarray, "grid grid"] | None) -> Json:
    """What a document did; null where an answer is no image, or only a part of one, of which no
    share is told."""
    return {
        "log_probability": effect.gain,
        "copied_share": effect.copied,
        "heat": None if heat is None else heat.round(4).tolist(),
    }


def image_usage(question: ServedRequest, samples: list[Generated], vocab: Vocab) -> Json:
    """Tokens read and emitted, as the images API counts them."""
    prefix = question.request.prefix
    pictured = int((vocab.modality(prefix) == Modality.IMAGE).sum())
    emitted = sum(len(sample.ids) for sample in samples)
    return {
        "input_tokens": len(prefix),
        "output_tokens": emitted,
        "total_tokens": len(prefix) + emitted,
        "input_tokens_details": {"image_tokens": pictured, "text_tokens": len(prefix) - pictured},
    }


def chat_usage(question: ServedRequest, samples: list[Generated]) -> Json:
    """Tokens read and emitted, as the chat API counts them."""
    read, emitted = len(question.request.prefix), sum(len(sample.ids) for sample in samples)
    return {
        "prompt_tokens": read,
        "completion_tokens": emitted,
        "total_tokens": read + emitted,
    }


def finish_reason(question: ServedRequest, sample: Generated, vocab: Vocab) -> str:
    """Why a sample ended: `length` where it had to, else `stop`."""
    return "length" if cut_short(question.request.program, sample.ids, vocab) else "stop"


def chat_reply(
    name: str,
    model: str,
    question: ServedRequest,
    samples: list[Generated],
    effects: Effects,
    vocab: Vocab,
) -> Json:
    """The answer of `/v1/chat/completions`."""
    choices = [
        {
            "index": sample.sample_id,
            "message": {"role": "assistant", **message(sample)},
            "finish_reason": finish_reason(question, sample, vocab),
            "logprobs": None,
            **provenance(question, sample, effects, vocab),
        }
        for sample in samples
    ]
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": chat_usage(question, samples),
    }


def message(sample: Generated) -> Json:
    """What a sample says: its texts together, its images, and both in order."""
    parts = [_part(segment) for segment in sample.segments]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    images = [part for part in parts if part["type"] == "image_url"]
    return {"content": "\n".join(texts), "images": images, "parts": parts}


def _part(segment: Any) -> Json:
    if isinstance(segment, str):
        return {"type": "text", "text": segment}
    if isinstance(segment, BrokenImage):
        return {"type": "broken_image", "codes": segment.length}
    url = f"data:image/png;base64,{base64_png(segment)}"
    return {"type": "image_url", "image_url": {"url": url}}


def chat_chunk(name: str, model: str, index: int, delta: Json, **more: Any) -> Json:
    """A piece of a streamed chat answer."""
    choice = {"index": index, "delta": delta, "finish_reason": None, **more}
    return {
        "id": name,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
    }
