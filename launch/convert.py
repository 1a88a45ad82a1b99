"""Convert weights: import Chameleon's, VQGANs', CLIP's and Inception's, export or upload ours.

    python -m launch.convert chameleon FOLDER --out chameleon --vqgan vqgan.ckpt --config vqgan.yaml
    python -m launch.convert vqgan vqgan.ckpt --config vqgan.yaml --out vqgan
    python -m launch.convert clip openai/clip-vit-base-patch32 --out clip
    python -m launch.convert inception pt_inception-2015-12-05-6726825d.pth --out fid.safetensors
    python -m launch.convert export chameleon --out FOLDER
    python -m launch.convert export RUN --push OWNER/NAME --scores scores.json
    python -m launch.convert quantize RUN --out FOLDER --weights int4

What is imported becomes an exported run, which every command that takes a run reads; Inception
becomes the file that `launch.evaluate` reads without torch. A folder may be the hub's id of one.
`--push` uploads a run with its tokenizers, its encoder and a card: then `hf:OWNER/NAME` names it.
A key of a foreign config that this project neither reads nor knows to be harmless is refused by its
name. Parameters are float32 here; a Chameleon computes in its folder's type, float16 in float32.
Weights carry licences of their own: Chameleon's is for research without commerce.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cm3jax.config import CacheType
from cm3jax.errors import UserError
from cm3jax.evaluate import inception_weights
from cm3jax.evaluate.protocol import read_scores, scores_to_json
from cm3jax.interop import folders, hf_chameleon, hf_clip, hub, taming_vqgan
from cm3jax.interop.layout import Key
from cm3jax.io.files import write_atomic, write_json
from cm3jax.report.model_card import model_card
from cm3jax.training.exported_run import PARAMS_FILE
from launch.cli import parse
from launch.env import main


@dataclasses.dataclass(frozen=True)
class Chameleon:
    """Import a folder of transformers' Chameleon: decoder, text tokenizer, image tokenizer."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """The folder, or its id on the hub: config.json, safetensors, tokenizer.json."""
    out: str
    """The new run directory."""
    vqgan: str = ""
    """The image tokenizer's own checkpoint, whose decoder transformers leaves out; without it the
    model can read images but not draw them."""
    config: str = ""
    """The image tokenizer's own YAML; empty takes vq_config of the folder."""


@dataclasses.dataclass(frozen=True)
class Vqgan:
    """Import a VQGAN of the taming family with its decoder."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """Its weights: safetensors, or a torch checkpoint (for which torch must be installed)."""
    out: str
    """The new run directory."""
    config: str
    """Its config: taming's YAML or HF's JSON."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Import a folder of HF's CLIP as a retrieval encoder."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """The folder, or its id on the hub: config.json, preprocessor_config.json, safetensors or
    pytorch_model.bin (for which torch must be installed), tokenizer."""
    out: str
    """The new run directory."""


@dataclasses.dataclass(frozen=True)
class Inception:
    """Turn the weights of FID's Inception into safetensors."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """pytorch-fid's or torch-fidelity's file (for which torch must be installed)."""
    out: str
    """The new file, *.safetensors."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a decoder of Chameleon's architecture as a folder of transformers, or upload a run.

    `--push` uploads any decoder's run with its tokenizers, its encoder and a model card, for
    `cm3jax.load("hf:OWNER/NAME")`. In a folder of transformers, an imported text tokenizer goes
    back as tokenizer.json. One that was trained here is written as SentencePiece's text.model and,
    if it is of byte pairs (tokenizers.algorithm=bpe), as the tokenizer.json that gives the same
    ids; transformers has no unigram with these bytes and spaces.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory of the decoder, or exported or imported weights."""
    out: str = ""
    """The new folder of transformers."""
    push: str = ""
    """The repository on the hub to upload the run to, OWNER/NAME; it is made if need be, and
    refused if it holds what no earlier --push uploaded."""
    private: bool = False
    """Make a new repository for its owner's eyes only."""
    scores: tuple[str, ...] = ()
    """Files that launch.evaluate wrote, for the model card."""


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Write a decoder whose matrices are of 8 or 4 bits, with its tokenizers and its encoder.

    What comes out is an exported run that draws as `--weights` of `launch.generate` does, from a
    file of a quarter or an eighth of the size.
    """

    run: tyro.conf.Positional[str]
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME."""
    out: str
    """The new run directory."""
    weights: Literal["int8", "int4", "fp8"] = "int8"
    """Type of the layers' matrices."""
    cache: CacheType = ""
    """Type of the keys and values that the new run keeps while it draws."""


Options = (
    Annotated[Chameleon, tyro.conf.subcommand("chameleon")]
    | Annotated[Vqgan, tyro.conf.subcommand("vqgan")]
    | Annotated[Clip, tyro.conf.subcommand("clip")]
    | Annotated[Inception, tyro.conf.subcommand("inception")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Quantize, tyro.conf.subcommand("quantize")]
)


def run(argv: list[str]) -> None:
    """Convert, and say what became of the weights."""
    options = parse(
        Options, argv, "Import the weights of other projects, export or upload your own."
    )
    if isinstance(options, Export):
        print(export(options))
        return
    if isinstance(options, Quantize):
        print(quantize(options))
        return
    out = Path(options.out)
    match options:
        case Chameleon():
            source = folders.find(options.source)
            decoder = Path(options.vqgan) if options.vqgan else None
            settings = Path(options.config) if options.config else source / "config.json"
            report = hf_chameleon.convert(source, out, decoder, settings)
            if decoder is None:
                print("without --vqgan the model can read images but not draw them")
        case Vqgan():
            report = taming_vqgan.convert(Path(options.source), out, Path(options.config))
        case Clip():
            report = hf_clip.convert(folders.find(options.source), out)
        case Inception():
            report = inception_weights.convert_inception(Path(options.source), out)
    print(summary(report, out))


def export(options: Export) -> str:
    """Write the folder or upload the run; returns what came of it."""
    if bool(options.out) == bool(options.push):
        raise UserError(
            "give either --out FOLDER, for a folder of transformers, or --push OWNER/NAME, to "
            "upload the run to the hub."
        )
    if options.push:
        return f'uploaded to {push(options)}; cm3jax.load("hf:{options.push}") reads it'
    if options.scores or options.private:
        raise UserError("--scores and --private belong to --push; leave them out.")
    return f"{hf_chameleon.export(options.run, Path(options.out))} tensors in {options.out}"


def quantize(options: Quantize) -> str:
    """Write the run; returns what came of it."""
    out = Path(options.out)
    with folders.new_folder(out) as folder:
        hub.write_whole_run(options.run, folder, options.weights, options.cache)
    size = (out / PARAMS_FILE).stat().st_size / 1e6
    return f"a decoder of {options.weights}, {size:,.1f} MB, in {out}"


def push(options: Export) -> str:
    """Upload a run with its card and its scores; returns the address."""
    hub.require_repository(options.push)
    onto = hub.require_pushed(options.push, options.private)
    scores = {name: one for path in options.scores for name, one in read_scores(path).items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = hub.write_whole_run(options.run, folder)
        write_atomic(folder / "README.md", hub.sign_card(model_card(run, options.push, scores)))
        if scores:
            write_json(folder / "scores.json", scores_to_json(scores))
        return hub.upload(folder, options.push, options.private, onto)


def summary(report: Sequence[Key], out: Path) -> str:
    """How many tensors were used, which were not and why, and where each one is."""
    unused = [key for key in report if key.ours.startswith("(")]
    lines = [f"{key.key} left out {key.ours}" for key in unused]
    used = len(report) - len(unused)
    names = "; report.txt there names each" if out.is_dir() else ", under the names they had"
    return "\n".join([*lines, f"{used} tensors in {out}{names}"])


if __name__ == "__main__":
    main(run)
