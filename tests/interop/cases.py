"""What the parity tests and the script that makes their references share: configs and inputs.

Weights are a function of their names, so that references hold outputs alone.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = Path(__file__).with_name("reference")
CODES = 16
VOCAB = 72
LETTERS = "abcdefghijklmnopqrstuvwxyz ,.<>:_/0123"


def weights(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Noise that no other name has; gains lie around 1, and nothing is 0."""
    draw = np.random.default_rng([seed, zlib.crc32(key.encode())])
    noise = draw.normal(size=shape)
    if len(shape) > 1 and "embedding" not in key and "q_norm" not in key and "k_norm" not in key:
        # Keeps activations near 1, whatever the width.
        noise *= 1.2 / np.sqrt(np.prod(shape[1:]))
    else:
        noise *= 0.5
    gain = "norm" in key and key.endswith("weight")
    return np.asarray(noise + gain, np.float32)


def vocabulary_map() -> dict[str, int]:
    """Names of all ids but the last three, specials and codes in no order of ours."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    shuffled = np.random.default_rng(0).permutation(CODES)
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names += [f"IMGIMG{str(code).translate(letters)}Z" for code in shuffled]
    names += ["<eoss>", "<racm3:break>", *(f"<sentinel:{i}>" for i in range(5))]
    names += ["<reserved08706>", "<image>", *LETTERS]
    return {name: id_ for id_, name in enumerate(names)}


VQ = {
    "resolution": 16,
    "base_channels": 32,
    "channel_multiplier": [2, 2],  # with one channel per group, norms would hide biases
    "num_res_blocks": 1,
    "embed_dim": 6,
    "latent_channels": 10,
    "num_embeddings": CODES,
    "attn_resolutions": [8],
}
"""8 x 8 codes; attention where Janus's decoder has it: in the lowest level."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A Chameleon of transformers."""

    seed: int
    differs: dict[str, Any]
    broadcast: bool = False
    """Whether one row of q- and k-norm serves all heads, as in some fine-tunes."""

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {
            "model_type": "chameleon",
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 160,
            "vq_config": VQ,
            "vocabulary_map": vocabulary_map(),
        } | self.differs


CASES = {
    "plain": Case(0, {"intermediate_size": 48}),
    "swin": Case(1, {"num_key_value_heads": 2, "swin_norm": True}),
    "broadcast": Case(2, {"num_key_value_heads": 1, "num_attention_heads": 2}, broadcast=True),
}


def rows(seed: int) -> dict[str, np.ndarray]:
    """Their ids: a text, a text around an image's place, and two documents of one row."""
    draw = np.random.default_rng(seed)
    names = vocabulary_map()
    text = draw.integers(names["a"], VOCAB, 24)
    place = [names["<racm3:break>"], *[names["<image>"]] * 64, names["<eoss>"]]
    image = np.concatenate([text[:5], place, text[5:9]])
    return {"text": text, "image": image, "first": text[:10], "second": text[10:]}


def noise(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Images of noise, -1..1, [B, Y, X, 3]."""
    draw = np.random.default_rng(seed)
    return draw.uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def scenes(count: int, size: int = 16, seed: int = 1) -> np.ndarray:
    """Images like photographs: a gradient behind a disc and a bar."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    out = []
    for _ in range(count):
        a, b, c, d = draw.uniform(-1, 1, (4, 3))
        at, radius, bar = draw.uniform(0.2, 0.8, 2), draw.uniform(0.1, 0.4), draw.uniform(0, 0.8)
        picture = a + (b - a) * x[..., None] * y[..., None]
        disc = (x - at[0]) ** 2 + (y - at[1]) ** 2 < radius**2
        picture = np.where(disc[..., None], c, picture)
        out.append(np.where(((y > bar) & (y < bar + 0.15))[..., None], d, picture))
    return np.asarray(out, np.float32)


CLIPS = {
    "patch-8": {
        "text_config": {
            "vocab_size": 520,
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "eos_token_id": 519,
            "bos_token_id": 518,
        },
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 8,
        },
        "projection_dim": 12,
    },
    "patch-12": {
        "text_config": {
            "vocab_size": 520,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "max_position_embeddings": 16,
            "hidden_act": "gelu",
            "eos_token_id": 519,
            "bos_token_id": 518,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 50,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 12,
            "hidden_act": "gelu",
        },
        "projection_dim": 8,
    },
}
TEXTS = ["a red fox", "The  fox's 12 flags!", "", "naïve café, fox fox fox fox fox fox fox fox fox"]


def photographs() -> list[np.ndarray]:
    """Images of other sizes than a model's, uint8."""
    draw = np.random.default_rng(5)
    shapes = [(24, 24), (61, 40), (33, 57)]
    return [draw.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
