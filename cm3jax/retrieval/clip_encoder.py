"""CLIP in Flax Linen, with the parameter tree of HF `CLIPModel`, and the retrieval encoder on it.

Sub-modules and parameters carry HF's names (`pre_layrnorm` is HF's spelling), so that `hf_name`
maps our tree one to one to HF's state dict. CM3Leon retrieves with CLIP ViT-B/32 (section 2.1).
"""

import copy
from collections.abc import Callable, Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from PIL.Image import Resampling

from cm3jax import partition
from cm3jax.config import ClipConfig, identity
from cm3jax.io.files import digest
from cm3jax.shapes import Array, Float, Int, UInt8
from cm3jax.tokenizers.image_tokenizer import preprocess
from cm3jax.tokenizers.text_tokenizer import TextTokenizer

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def hf_name(path: Sequence[str]) -> str:
    """The key in HF's state dict of the parameter at `path` in ours.

    Linear and convolution kernels are transposed there: (out, in) and (out, in, y, x).
    """
    *modules, leaf = path
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def normalise_pixels(images: UInt8[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B Y X 3"]:
    """Bytes to CLIP's input: each channel in [0, 1], less CLIP's mean, over its deviation."""
    mean, deviation = np.asarray(PIXEL_MEAN, np.float32), np.asarray(PIXEL_STD, np.float32)
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / deviation


def text_rows(
    texts: Sequence[Sequence[int]], config: ClipConfig, length: int
) -> Int[np.ndarray, "B L"]:
    """Rows of `length`: begin, the text's pieces (cut to fit), end, and ends as padding.

    Begin and end are the last two ids of the text vocabulary. End is the highest id, as in HF's
    table; the text vector is read at its first place.
    """
    rows = np.full((len(texts), length), config.text_vocab - 1, np.int32)
    rows[:, 0] = config.text_vocab - 2
    for row, pieces in zip(rows, texts, strict=True):
        pieces = pieces[: length - 2]
        row[1 : 1 + len(pieces)] = pieces
    return rows


def text_length(pieces: int, config: ClipConfig) -> int:
    """Length of the rows for texts of `pieces` pieces: one of a few, so that few are compiled."""
    length = 16
    while length < pieces + 2:
        length *= 2
    return min(length, config.text_context)


def text_and_image(
    segments: Sequence[str | np.ndarray],
) -> tuple[str | None, UInt8[np.ndarray, "Y X 3"] | None]:
    """What the encoder sees of a record: all its texts joined, and its first image."""
    texts = [segment for segment in segments if isinstance(segment, str)]
    images = [segment for segment in segments if not isinstance(segment, str)]
    return " ".join(texts) if texts else None, images[0] if images else None


def fit_picture(
    image: UInt8[np.ndarray, "Y X 3"], config: ClipConfig
) -> UInt8[np.ndarray, "S S 3"]:
    """An image at the encoder's size: unchanged, or its centre square rescaled."""
    if image.shape[:2] == (config.image_size, config.image_size):
        return image
    filter_ = Resampling[config.resize.upper()]
    return preprocess(PIL.Image.fromarray(image), config.image_size, filter_)


def _dense(
    features: int, std: float, axes: tuple[str, str | None], name: str | None, bias: bool = True
):
    init = nn.with_logical_partitioning(nn.initializers.normal(std), axes)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
    return nn.Dense(features, use_bias=bias, kernel_init=init, bias_init=bias_init, name=name)


def _norm(name: str):
    return nn.LayerNorm(
        epsilon=1e-5,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


def _table(rows: int, width: int, axes: tuple[str, str], name: str):
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    return nn.Embed(rows, width, embedding_init=init, name=name)


class _Attention(nn.Module):
    heads: int
    causal: bool
    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        batch, length, width = x.shape

        def project(name: str):
            y = _dense(width, self.std, ("embed", "heads"), name)(x)
            return y.reshape(batch, length, self.heads, width // self.heads)

        out = jax.nn.dot_product_attention(
            project("q_proj"), project("k_proj"), project("v_proj"), is_causal=self.causal
        )
        out = out.reshape(batch, length, width)
        return _dense(width, width**-0.5, ("heads", "embed"), "out_proj")(out)


class _FeedForward(nn.Module):
    hidden: int
    activation: Callable
    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        width = x.shape[-1]
        x = _dense(self.hidden or 4 * width, (2 * width) ** -0.5, ("embed", "mlp"), "fc1")(x)
        return _dense(width, self.std, ("mlp", "embed"), "fc2")(self.activation(x))


class _Layer(nn.Module):
    heads: int
    hidden: int
    causal: bool
    activation: Callable
    std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        x = x + _Attention(self.heads, self.causal, self.std, name="self_attn")(
            _norm("layer_norm1")(x)
        )
        feed_forward = _FeedForward(self.hidden, self.activation, self.std, name="mlp")
        return x + feed_forward(_norm("layer_norm2")(x))


class _Layers(nn.Module):
    count: int
    heads: int
    hidden: int
    causal: bool
    activation: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        std = (x.shape[-1] * 2 * self.count) ** -0.5
        for i in range(self.count):
            layer = _Layer(self.heads, self.hidden, self.causal, self.activation, std, name=str(i))
            x = layer(x)
        return x


class _Encoder(nn.Module):
    count: int
    heads: int
    hidden: int
    causal: bool
    activation: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        shape = (self.count, self.heads, self.hidden, self.causal, self.activation)
        return _Layers(*shape, name="layers")(x)


class _TextEmbeddings(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        c = self.config
        tokens = _table(c.text_vocab, c.text_width, ("vocab", "embed"), "token_embedding")(ids)
        table = _table(c.text_context, c.text_width, ("positions", "embed"), "position_embedding")
        return tokens + table(jnp.arange(ids.shape[1]))


class _TextModel(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B D"]:
        c = self.config
        x = _TextEmbeddings(c, name="embeddings")(ids)
        shape = (c.text_layers, c.text_heads, c.text_ffn)
        x = _Encoder(*shape, True, _activation(c), name="encoder")(x)
        x = _norm("final_layer_norm")(x)
        # Padding follows the end token, and attention is causal: no mask is needed.
        return jnp.take_along_axis(x, ids.argmax(-1)[:, None, None], axis=1)[:, 0]


class _VisionEmbeddings(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B L D"]:
        c, width = self.config, self.config.vision_width
        init = nn.with_logical_partitioning(
            nn.initializers.normal(0.02), (None, None, None, "embed")
        )
        size = (c.patch, c.patch)
        patches = nn.Conv(
            width, size, size, "VALID", use_bias=False, kernel_init=init, name="patch_embedding"
        )(pixels).reshape(len(pixels), -1, width)
        first = self.param(
            "class_embedding",
            partition.boxed_init(nn.initializers.normal(width**-0.5), "embed"),
            (width,),
        )
        first = jnp.broadcast_to(first, (len(pixels), 1, width))
        x = jnp.concatenate([first, patches], axis=1)
        table = _table(x.shape[1], width, ("positions", "embed"), "position_embedding")
        return x + table(jnp.arange(x.shape[1]))


class _VisionModel(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B D"]:
        c = self.config
        x = _norm("pre_layrnorm")(_VisionEmbeddings(c, name="embeddings")(pixels))
        shape = (c.vision_layers, c.vision_heads, c.vision_ffn)
        x = _Encoder(*shape, False, _activation(c), name="encoder")(x)
        return _norm("post_layernorm")(x[:, 0])


def _activation(config: ClipConfig) -> Callable:
    if config.activation == "gelu":
        return lambda x: nn.gelu(x, approximate=False)
    return lambda x: x * nn.sigmoid(1.702 * x)


def _unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)


class CLIP(nn.Module):
    """The two towers and their temperature (arXiv 2103.00020, as in HF `CLIPModel`)."""

    config: ClipConfig

    def setup(self):
        """Create the towers under HF's names."""
        c = self.config
        self.text_model = _TextModel(c)
        self.vision_model = _VisionModel(c)
        self.text_projection = _dense(
            c.width, c.text_width**-0.5, ("embed", None), None, bias=False
        )
        self.visual_projection = _dense(
            c.width, c.vision_width**-0.5, ("embed", None), None, bias=False
        )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def text(self, ids: Int[Array, "B L"]) -> Float[Array, "B E"]:
        """Unit vectors of texts given as `text_rows`."""
        return _unit(self.text_projection(self.text_model(ids)))

    def image(self, pixels: Float[Array, "B Y X 3"]) -> Float[Array, "B E"]:
        """Unit vectors of images, given as `normalise_pixels` returns them."""
        return _unit(self.visual_projection(self.vision_model(pixels)))

    def scale(self) -> Float[Array, ""]:
        """The factor of a cosine in the loss, at most 100."""
        return jnp.minimum(jnp.exp(self.logit_scale), 100.0)

    def __call__(
        self, ids: Int[Array, "B L"], pixels: Float[Array, "B Y X 3"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        """Text and image vectors; creates every parameter."""
        return self.text(ids), self.image(pixels)


def document_vectors(text: Float[Array, "B E"], image: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """The renormalised mean of unit text and image vectors; a missing part is a zero row."""
    return _unit(text + image)


class ClipEncoder:
    """Texts, images and documents to unit vectors; what a bank and its queries share.

    Every call runs one of a few compiled programs of a fixed batch. The length that a text is
    padded to depends only on that text, so that a vector does not depend on what else is encoded.
    """

    batch = 64

    def __init__(self, config: ClipConfig, variables: dict, text_tokenizer: TextTokenizer):
        self.config = config
        self.tokenizer = text_tokenizer
        self._variables = {"params": nn.unbox(variables["params"])}
        model = CLIP(config)
        self._text = jax.jit(lambda v, ids: model.apply(v, ids, method=CLIP.text))
        self._image = jax.jit(
            lambda v, images: model.apply(v, normalise_pixels(images), method=CLIP.image)
        )
        leaves = flax.traverse_util.flatten_dict(jax.device_get(self._variables["params"]))
        parts = [part for path in sorted(leaves) for part in (hf_name(path), leaves[path])]
        self.fingerprint: str = digest(identity(config), text_tokenizer.fingerprint, *parts)

    @property
    def variables(self) -> dict:
        """The variables of the `CLIP`, unboxed."""
        return self._variables

    def with_batch(self, rows: int) -> "ClipEncoder":
        """The same, whose programs have this many rows."""
        other = copy.copy(self)
        other.batch = rows
        return other

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "B E"]:
        """Unit vectors of texts; what is longer than the context is cut."""
        return self.encode_pieces([self.tokenizer.encode(text) for text in texts])

    def encode_pieces(self, texts: Sequence[Sequence[int]]) -> Float[np.ndarray, "B E"]:
        """Unit vectors of texts given as the text tokenizer's pieces."""
        lengths = np.asarray([text_length(len(pieces), self.config) for pieces in texts], np.int64)
        out = np.zeros((len(texts), self.config.width), np.float32)
        for length in np.unique(lengths).tolist():
            members = np.flatnonzero(lengths == length).tolist()
            rows = text_rows([texts[member] for member in members], self.config, length)
            out[members] = self._run(self._text, rows)
        return out

    def encode_images(
        self, images: UInt8[np.ndarray, "B Y X 3"] | Sequence[UInt8[np.ndarray, "Y X 3"]]
    ) -> Float[np.ndarray, "B E"]:
        """Unit vectors of uint8 images of the encoder's size; `ValueError` for another size."""
        if not len(images):
            return np.zeros((0, self.config.width), np.float32)
        images = np.asarray(images)
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}{images.shape}, not uint8 {size}x{size}x3")
        return self._run(self._image, images)

    def encode_documents(
        self, documents: Sequence[tuple[str | None, UInt8[np.ndarray, "Y X 3"] | None]]
    ) -> Float[np.ndarray, "B E"]:
        """Unit vectors of documents with a text, an image or both."""
        parts = np.zeros((2, len(documents), self.config.width), np.float32)
        texts = {i: text for i, (text, _) in enumerate(documents) if text is not None}
        images = {i: image for i, (_, image) in enumerate(documents) if image is not None}
        parts[0, list(texts)] = self.encode_texts(list(texts.values()))
        parts[1, list(images)] = self.encode_images(list(images.values()))
        return np.asarray(document_vectors(*jnp.asarray(parts)))

    def _run(self, program: Callable, inputs: np.ndarray) -> Float[np.ndarray, "B E"]:
        chunks = []
        for start in range(0, len(inputs), self.batch):
            chunk = inputs[start : start + self.batch]
            padding = [(0, self.batch - len(chunk))] + [(0, 0)] * (inputs.ndim - 1)
            vectors = program(self._variables, np.pad(chunk, padding, mode="edge"))
            chunks.append(np.asarray(vectors)[: len(chunk)])
        return np.concatenate(chunks) if chunks else np.zeros((0, self.config.width), np.float32)
