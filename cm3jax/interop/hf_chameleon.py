"""Chameleon-class folders of transformers <-> our runs, tensor by tensor.

An imported folder is a decoder's exported run with its tokenizers inside:

    OUT/params.safetensors, config.json     the decoder, its ids in our order
    OUT/text/text.model, import.json        the text tokenizer; what exporting needs to know
    OUT/vqgan/                              the image tokenizer
    OUT/report.txt                          what became of every tensor
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import (
    DataConfig,
    DecoderConfig,
    Experiment,
    MeshConfig,
    TokenizersConfig,
    VocabConfig,
    VQGANConfig,
)
from cm3jax.errors import UserError
from cm3jax.interop import folders, processors, taming_vqgan, tokenizer_json
from cm3jax.interop.chameleon_config import Foreign, write_chameleon_config
from cm3jax.interop.layout import Key, Place, exported, imported, match
from cm3jax.interop.vocabulary import Vocabulary, make_map, read_map
from cm3jax.io import safetensors_file as tensors
from cm3jax.io.files import write_atomic, write_json
from cm3jax.io.typed_json import read_fields
from cm3jax.learners import vqgan as vqgan_learner
from cm3jax.learners.parts import image_folder, text_folder
from cm3jax.model import lora
from cm3jax.sequence.vocab import Vocab
from cm3jax.shapes import Int
from cm3jax.tokenizers import huggingface
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, TextTokenizer, read_model
from cm3jax.training.exported_run import LoadedRun, write_export

_VQ = "model.vqmodel."
NOTES_FILE = "import.json"
"""What exporting an imported model needs to know, besides its text tokenizer."""
_UNUSED = {"rotary_emb.inv_freq": "computed here", "rope.freqs": "computed here"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder that was read and fits its config; its tensors are still on disk."""

    config: dict[str, Any]
    """config.json as it is."""
    model: DecoderConfig
    vqgan: VQGANConfig
    vocabulary: Vocabulary
    names: Mapping[str, int]
    """The vocabulary_map."""
    places: list[Place]
    """Where the decoder's arrays are."""
    image_places: list[Place]
    """Where the image tokenizer's arrays are."""
    tensors: dict[str, tensors.Tensor]
    report: list[Key]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder of transformers' Chameleon; `UserError` for what is missing or doesn't fit."""
    path = folder / "config.json"
    config = folders.read_object(path, "the config")
    foreign = Foreign.read(config, str(path))
    found = folders.read_tensors(folder)
    table = found.get("model.embed_tokens.weight")
    stored = "bfloat16" if table is not None and table.type == "BF16" else "float32"
    model = foreign.decoder(str(path), stored)
    image = taming_vqgan.read_vqgan_config(foreign.vq_config or {}, f"{path}: vq_config")
    names = foreign.vocabulary_map or {}
    vocabulary = read_map(names, foreign.vocab_size, image.grid)
    if vocabulary.config.image_codes != image.codes:
        raise UserError(
            f"{path}: vocabulary_map names {vocabulary.config.image_codes} image codes and "
            f"vq_config has {image.codes}; get the config again."
        )
    _require_processor(folder, image.image_size)
    mine, images = (
        decoder_places(model, vocabulary.ids),
        taming_vqgan.vqgan_places(image, _VQ, decoder=False),
    )
    report = match([*mine, *images], found, _UNUSED, str(folder))
    return Checkpoint(config, model, image, vocabulary, names, mine, images, found, report)


def _require_processor(folder: Path, size: int) -> None:
    """Refuse a folder whose images are brought to size otherwise than ours are.

    transformers rounds what bytes are multiplied by to 0.0078; this project takes 1/127.5, as the
    weights were trained with.
    """
    if found := processors.read_processor(folder):
        path, values = found
        ones = (1.0, 1.0, 1.0)
        usual = processors.Usual("Chameleon", size, 1, (1,), (0.0078, 1 / 127.5), ones, ones)
        processors.check(values, usual, path)


def decoder_places(config: DecoderConfig, ids: Int[np.ndarray, " V"]) -> list[Place]:
    """The places of our decoder's arrays in a state dict whose vocabulary has the order `ids`."""
    n, d, a, h, k, f = (
        config.layers,
        config.width,
        config.head_width,
        config.heads,
        config.groups,
        config.ffn,
    )

    def layered(ours: str, theirs: str, shape: tuple[int, ...], kind="same", inputs=1) -> Place:
        keys = tuple(f"model.layers.{i}.{theirs}" for i in range(n))
        return Place(f"params/layers/{ours}", (n, *shape), keys, kind, inputs, stacked=True)

    table = (len(ids), d)
    found = [
        Place("params/embedding", table, ("model.embed_tokens.weight",), rows=ids),
        Place("params/final_norm/scale", (d,), ("model.norm.weight",)),
        layered("attention_norm/scale", "input_layernorm.weight", (d,)),
        layered("feed_forward_norm/scale", "post_attention_layernorm.weight", (d,)),
        layered("query/kernel", "self_attn.q_proj.weight", (d, h, a), "matrix"),
        layered("key/kernel", "self_attn.k_proj.weight", (d, k, a), "matrix"),
        layered("value/kernel", "self_attn.v_proj.weight", (d, k, a), "matrix"),
        layered("out/kernel", "self_attn.o_proj.weight", (h, a, d), "matrix", inputs=2),
        layered("feed_forward/gate/kernel", "mlp.gate_proj.weight", (d, f), "matrix"),
        layered("feed_forward/up/kernel", "mlp.up_proj.weight", (d, f), "matrix"),
        layered("feed_forward/down/kernel", "mlp.down_proj.weight", (f, d), "matrix"),
    ]
    for part, heads in (("query", h), ("key", k)):
        for ours, theirs in (("scale", "weight"), ("bias", "bias")):
            name = f"self_attn.{part[0]}_norm.{theirs}"
            found.append(layered(f"{part}_norm/{ours}", name, (heads, a), "heads"))
    if not config.tied:
        found.append(Place("params/head", table, ("lm_head.weight",), rows=ids))
    return found


def convert(source: Path, out: Path, decoder: Path | None, decoder_config: Path) -> list[Key]:
    """Import a folder; returns the report, which is also in `out`.

    transformers keeps no decoder of images: `decoder` is the VQGAN's own checkpoint, whose
    encoder must be the folder's. Without one, images can be read but not drawn.
    """
    folder = read_checkpoint(source)
    images, found = folder.image_places, folder.tensors
    if decoder is not None:
        images, found = _with_decoder(folder, decoder, decoder_config)
    with folders.new_folder(out) as scratch:
        text = _write_text(source, folder, scratch / "text")
        taming_vqgan.write_tokenizer(scratch / "vqgan", folder.vqgan, images, found)
        vocab = Vocab(
            folder.vocabulary.config,
            text.fingerprint,
            vqgan_learner.load(scratch / "vqgan").fingerprint,
        )
        outputs = {place.path: imported(place, folder.tensors) for place in folder.places}
        run = LoadedRun(_experiment(folder), {}, 0, vocab.fingerprints)
        write_export(scratch, run, outputs)
        folders.write_tensor_report(scratch, folder.report)
    return folder.report


def _experiment(folder: Checkpoint) -> Experiment:
    return Experiment(
        name="chameleon",
        vocab=folder.vocabulary.config,
        tokenizers=TokenizersConfig(text="text", image="vqgan"),
        vqgan=folder.vqgan,
        model=folder.model,
        data=DataConfig(image_size=folder.vqgan.image_size),
        mesh=MeshConfig(data=1, fsdp=-1),
    )


def _write_text(source: Path, folder: Checkpoint, out: Path) -> TextTokenizer:
    """The folder's text tokenizer, ours or transformers', and what exporting needs to know."""
    if (source / MODEL_FILE).exists():
        text = TextTokenizer.load(source)
    else:
        model = huggingface.read_tokenizer(source, folder.vocabulary.text_ids)
        _require_same_ids(source, huggingface.token_table(model), folder)
        text = TextTokenizer(model)
    if text.pieces != folder.vocabulary.config.text_pieces:
        raise UserError(
            f"{source}: the text tokenizer has {text.pieces} pieces and the vocabulary_map "
            f"{folder.vocabulary.config.text_pieces}; give the tokenizer of these weights."
        )
    text.save(out)
    keys = {key.key: [key.type, key.shape] for key in folder.report}
    notes = {"config": folder.config, "ids": folder.vocabulary.ids.tolist(), "keys": keys}
    write_json(out / NOTES_FILE, notes)
    return text


def _require_same_ids(source: Path, table: Mapping[str, int], folder: Checkpoint) -> None:
    """The tokenizer must give every text of the vocabulary_map the id that the map gives it, and
    give no id of a text to another; control tokens never come out of it."""
    names = {id_: name for name, id_ in folder.names.items()}
    theirs = {id_: name for name, id_ in table.items()}
    for id_ in folder.vocabulary.text_ids:
        if theirs.get(id_) != names[id_]:
            said = f"{theirs[id_]!r}" if id_ in theirs else "nothing"
            raise UserError(
                f"{source}: id {id_} is {names[id_]!r} in the vocabulary_map and {said} in the "
                "text tokenizer; give the tokenizer of these weights."
            )


def _with_decoder(
    folder: Checkpoint, path: Path, config: Path
) -> tuple[list[Place], dict[str, tensors.Tensor]]:
    """Places and tensors of the VQGAN's own checkpoint, if its encoder is the folder's."""
    ours, found = taming_vqgan.read_vqgan(path, config)
    if ours != folder.vqgan:
        raise UserError(f"{config} describes another VQGAN than vq_config; give its own.")
    where = taming_vqgan.vqgan_places(ours)
    match(where, found, taming_vqgan.UNUSED, str(path))
    for place in folder.image_places:
        (key,) = place.keys
        here, there = folder.tensors[key].read(...), found[key.removeprefix(_VQ)].read(...)
        if not np.array_equal(here.astype(np.float32), there.astype(here.dtype).astype(np.float32)):
            raise UserError(f"{path}: {key.removeprefix(_VQ)} differs from the folder's; give its.")
    return where, found


def export(run_dir: epath.PathLike, out: Path) -> int:
    """Write a decoder and its image tokenizer as a folder of transformers' Chameleon.

    Keys that were imported get their type back, others are float32; low-rank corrections are added
    to what they correct. Returns how many were written; `UserError` for a model of
    another architecture.
    """
    run = load_run(run_dir)
    _require_chameleon(run, str(run_dir))
    experiment = run.experiment
    variables = {"params": lora.merged(run.variables["params"], experiment.model.lora[1])}
    text_dir, image_dir = text_folder(run_dir, run), image_folder(run_dir, run)
    images = load_run(image_dir)
    vq_config = taming_vqgan.write_vqgan_config(images.experiment.vqgan)
    notes = _notes(text_dir, run)
    types = {key: type_ for key, (type_, _) in notes["keys"].items()}
    mine = decoder_places(experiment.model, np.asarray(notes["ids"]))
    theirs = taming_vqgan.vqgan_places(images.experiment.vqgan, _VQ, decoder=False)
    outputs: dict[str, tensors.Output] = {}
    for where, arrays in ((mine, variables), (theirs, images.variables)):
        for place in where:
            outputs |= exported(place, _leaf(arrays, place.path), types)
    with folders.new_folder(out) as folder:
        folders.write_tensors(folder, outputs)
        vocab = Vocab(experiment.vocab)
        config = write_chameleon_config(experiment.model, vocab, notes["config"], vq_config)
        write_json(folder / "config.json", config)
        write_json(
            folder / processors.FILE, processors.chameleon(images.experiment.vqgan.image_size)
        )
        _write_tokenizer(folder, read_model(text_dir), notes, experiment.vocab)
    return len(outputs)


def _write_tokenizer(
    folder: Path, model: bytes, notes: Mapping[str, Any], vocab: VocabConfig
) -> None:
    """An imported text tokenizer as it was; one of ours as it is, and for transformers."""
    if model.startswith(b"{"):
        write_atomic(folder / tokenizer_json.FILE, huggingface.unpack(model))
        return
    write_atomic(folder / MODEL_FILE, model)
    ids = notes["ids"][Vocab(vocab).first_text :]
    own = tokenizer_json.of_sentencepiece(model, ids, notes["config"]["vocabulary_map"])
    if own is not None:
        write_atomic(folder / tokenizer_json.FILE, own)
        write_json(folder / "tokenizer_config.json", tokenizer_json.CONFIG)


def _notes(text_dir: epath.Path, run: LoadedRun) -> dict[str, Any]:
    """What importing wrote down, or the same of a vocabulary in our own order."""
    if (text_dir / NOTES_FILE).exists():
        fields = {"config": dict[str, Any], "ids": list[int], "keys": dict[str, list[Any]]}
        remedy = "import the folder again"
        return read_fields(text_dir / NOTES_FILE, fields, "the notes of the import", remedy)
    if read_model(text_dir).startswith(b"{"):
        raise UserError(
            f"{text_dir} holds an imported text tokenizer and no {NOTES_FILE}, which says where "
            "its ids lie in the other format; give the folder as it was imported."
        )
    vocab = Vocab(run.experiment.vocab)
    ids = list(range(vocab.size))
    return {"config": {"vocabulary_map": make_map(vocab)}, "ids": ids, "keys": {}}


def _require_chameleon(run: LoadedRun, what: str) -> None:
    model, learner = run.experiment.model, run.experiment.learner
    if learner != "decoder":
        raise UserError(f"{what} is a run of a {learner}; give a decoder's.")
    wanted = {
        "positions": "rope",
        "qk_norm": True,
        "norm": "rms",
        "activation": "swiglu",
        "token_shift": False,
    }
    for name, value in wanted.items():
        if getattr(model, name) != value:
            raise UserError(
                f"{what} is no Chameleon: it has model.{name}={getattr(model, name)}, not {value}; "
                "give a decoder of that architecture."
            )
    if model.heads * model.head_width != model.width:
        raise UserError(
            f"{what}: model.heads times model.head_width is not model.width, as the other format "
            "requires; give another model."
        )


def _leaf(variables: Mapping[str, Any], path: str) -> Any:
    node: Any = variables
    for part in path.split("/"):
        node = node[part]
    return node
