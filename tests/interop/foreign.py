"""Foreign folders of tiny models, written with the official safetensors library."""

import json
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy

from cm3jax.config import (
    DataConfig,
    DecoderConfig,
    Experiment,
    MeshConfig,
    TokenizersConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.interop.layout import Place, imported
from cm3jax.io.safetensors_file import Tensor
from cm3jax.model.decoder import Decoder
from cm3jax.sequence.vocab import Vocab
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.training.exported_run import LoadedRun, write_run
from tests.interop import cases

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def stored(name: str) -> dict[str, np.ndarray]:
    """A reference."""
    with np.load(cases.REFERENCE / f"{name}.npz") as file:
        return dict(file)


def state(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The weights that a reference was made from."""
    shapes = json.loads(str(stored(name)["shapes"]))
    return {key: cases.weights(key, tuple(shape), seed) for key, shape in shapes.items()}


def in_memory(weights: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors as a file would give them."""
    return {key: Tensor("F32", value.shape, value.__getitem__) for key, value in weights.items()}


def read(place: Place, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """One array of ours from foreign weights."""
    parts = list(imported(place, in_memory(weights)).parts())
    return np.concatenate([part.reshape(-1) for part in parts]).reshape(place.shape)


def tree(arrays: Mapping[str, np.ndarray]) -> dict:
    """Arrays by path as a tree."""
    out: dict = {}
    for path, array in arrays.items():
        *parents, leaf = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return out


def write_chameleon(folder: Path, name: str, dtype: str = "float32", shards: int = 3) -> Path:
    """A folder as transformers saves it: shards, an index, a config and a tokenizer."""
    folder.mkdir()
    case = cases.CASES[name]
    weights = state(f"chameleon-{name}", case.seed)
    weights = {key: value.astype(TYPES[dtype]) for key, value in weights.items()}
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = dict(list(weights.items())[number::shards])
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        safetensors.numpy.save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = case.config | {"torch_dtype": dtype, "transformers_version": "5.23.0"}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_tokenizer(path: Path) -> None:
    """Letters as tokens of the map's ids; specials are recognised in texts, as Chameleon's are."""
    import tokenizers

    names = cases.vocabulary_map()
    bpe = tokenizers.models.BPE(vocab=names, merges=[], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.decoder = tokenizers.decoders.Fuse()
    specials = [name for name in names if len(name) > 1 and name.startswith("<")]
    tokenizer.add_special_tokens(specials)
    # Some folders add image codes, not all of them as special.
    tokenizer.add_tokens(["IMGIMGDZ"])
    tokenizer.save(str(path))


def noise(model: nn.Module, *inputs: jax.ShapeDtypeStruct) -> dict:
    """Variables of a model, each the noise of its path."""
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: cases.weights(jax.tree_util.keystr(path), leaf.shape) / 2, shapes
    )


def write_own(folder: Path) -> None:
    """A decoder of Chameleon's architecture as it is trained here, with its tokenizers inside."""
    vq = VQGANConfig(
        image_size=16,
        channels=32,
        multipliers=(1, 2),
        blocks=1,
        attention=False,
        codes=cases.CODES,
        code_width=6,
    )
    vocab = VocabConfig(12, cases.CODES, 300, 5, vq.grid)
    model = DecoderConfig(
        layers=2,
        width=32,
        heads=4,
        head_width=8,
        ffn=40,
        kv_heads=2,
        activation="swiglu",
        norm="rms",
        tied=False,
        context=160,
        dtype="float32",
        positions="rope",
        qk_norm=True,
    )
    text = TextTokenizer.train(["a red fox", "two foxes, redder", "fox <mask>", "▁é"], 300)
    text.save(folder / "text")
    images = noise(VQGAN(vq), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
    image = Experiment(name="vqgan", learner="vqgan", vqgan=vq, vocab=vocab)
    write_run(LoadedRun(image, images, 0, {}), folder / "vqgan")
    row = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = noise(Decoder(model, Vocab(vocab).size), row, row, row)
    experiment = Experiment(
        name="own",
        vocab=vocab,
        tokenizers=TokenizersConfig(text="text", image="vqgan"),
        vqgan=vq,
        model=model,
        data=DataConfig(image_size=16),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
    write_run(LoadedRun(experiment, variables, 0, {}), folder)


def write_clip(folder: Path, name: str, **processor) -> Path:
    """A folder as transformers saves it, in one file."""
    folder.mkdir()
    weights = state(f"clip-{name}")
    positions = {"text_model.embeddings.position_ids": np.arange(16)[None]}  # of older versions
    safetensors.numpy.save_file(weights | positions, folder / "model.safetensors")
    config = cases.CLIPS[name] | {"model_type": "clip"}
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    values = sizes | {"resample": 3} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    tokenizer = (cases.REFERENCE / "clip-tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


def write_vqgan(folder: Path) -> tuple[Path, Path]:
    """A VQGAN's checkpoint with its discriminator, and taming's YAML."""
    folder.mkdir()
    weights = state("vq") | {"loss.discriminator.main.0.weight": np.ones((4, 3), np.float32)}
    safetensors.numpy.save_file(weights, folder / "vqgan.safetensors")
    (folder / "vqgan.yaml").write_text(
        "model:\n  base_learning_rate: 4.5e-06\n  params:\n"
        f"    embed_dim: {cases.VQ['embed_dim']}\n    n_embed: {cases.CODES}\n    ddconfig:\n"
        f"      double_z: false\n      z_channels: {cases.VQ['latent_channels']}\n"
        "      resolution: 16\n      in_channels: 3\n      out_ch: 3\n      ch: 32\n"
        "      ch_mult: [2, 2]\n      num_res_blocks: 1\n      attn_resolutions: [8]\n"
    )
    return folder / "vqgan.safetensors", folder / "vqgan.yaml"
