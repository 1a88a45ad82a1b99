"""The shapes of requests: OpenAI's, with further fields of this model.

Fields of OpenAI's that this model has no use for are taken where they ask for nothing
(`frequency_penalty: 0`), and refused where they would ask for something.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from cm3jax.errors import nearest

BoundedText = Annotated[str, Field(max_length=1 << 20)]
DocumentKey = Annotated[str, Field(min_length=1, max_length=1000)]
DocumentKeys = Annotated[list[DocumentKey], Field(max_length=1000)]
Factor = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A factor on float32 scores, which stay finite."""
Factors = Annotated[dict[DocumentKey, Factor], Field(max_length=1000)]


class Body(BaseModel):
    """An object of JSON without unknown fields."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class DocumentField(Body):
    """A document in front of a prompt: one of the bank by its key, or a text, an image or both."""

    key: DocumentKey | None = None
    text: BoundedText | None = None
    image: str | None = None
    """`data:image/png;base64,…`, or the base64 text only."""


class Options(Body):
    """What every request may say."""

    model: str | None = None
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, lt=1 << 32)
    """Seed of the sampling; one is drawn, and told in the answer, where none is given."""
    stream: bool | None = None
    user: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    guidance: float | tuple[float, float] | Json[tuple[float, float]] | None = None
    """Classifier-free guidance; of an edit two scales, by instruction and by image."""
    retrieve: int = Field(0, ge=0)
    """Documents to retrieve from the bank."""
    floor: float | None = None
    """Leave out documents that score below this; by default the run's own floor."""
    documents: list[DocumentField] | Json[list[DocumentField]] = []
    """Documents shown before those that are retrieved."""
    exclude: DocumentKeys | Json[DocumentKeys] = []
    """Keys that must not be retrieved."""
    weigh: Factors | Json[Factors] = {}
    """Factors of documents' scores, by key."""
    attribute: bool = False
    """Whether the answer says what each document did."""


class ImageBody(Options):
    """`/v1/images/generations`; with uploads, the fields of `/v1/images/edits`."""

    prompt: BoundedText
    size: str | None = None
    """`auto`, or the one size that the model draws."""
    partial_images: int | None = Field(None, ge=0, le=64)
    """Most unfinished images that a stream sends of each sample; by default all there are."""
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None


class TextPart(Body):
    """A text of a message."""

    type: Literal["text"]
    text: BoundedText


class ImageUrl(Body):
    """Where an image is: in the request itself."""

    url: str
    """`data:image/png;base64,…`; nothing else is fetched or read."""
    detail: str | None = None


class ImagePart(Body):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        BoundedText | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None
    ) = None
    name: str | None = None


class StreamOptions(Body):
    """What a stream sends besides its chunks."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatBody(Options):
    """`/v1/chat/completions`: captions, questions and documents of texts and images."""

    messages: list[Message] = Field(min_length=1, max_length=256)
    task: str | None = None
    """`caption`, `document`, or a task of instruction tuning; by default what the messages look
    like."""
    fields: dict[str, BoundedText] = {}
    """Further inputs of the task, such as `options` of `science`."""
    max_tokens: int | None = Field(None, ge=2)
    max_completion_tokens: int | None = Field(None, ge=2)
    stream_options: StreamOptions | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None


def refusal(error: ValidationError, body: type[BaseModel]) -> str:
    """What is wrong with a body, in one sentence."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        close = nearest(where, body.model_fields) if len(first["loc"]) == 1 else ""
        return f"there is no field {where[:100]!r}{close}; leave it out."
    said = first["msg"][:1].lower() + first["msg"][1:300]
    return f"{where[:100]}: {said}." if where else f"the body does not fit: {said}."
