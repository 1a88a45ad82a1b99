"""The options of `launch.evaluate`: one class for each of its subcommands."""

import dataclasses
import re
from typing import Annotated, Literal

import tyro

from cm3jax.config import ONE_DEVICE, CacheType, MeshConfig, WeightType
from cm3jax.errors import UserError
from cm3jax.evaluate.drawing import Share
from cm3jax.evaluate.features import Resize
from cm3jax.evaluate.heldout import HeldOutQuery
from experiments.miniature.scores.task_scores import NAMES


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """What every score of a decoder's own answers takes."""

    run: str
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME."""
    seed: int = 0
    """Seed of the sampling."""
    weights: WeightType = ""
    """What the layers' matrices are kept in, instead of the run's `model.weights`."""
    cache: CacheType = ""
    """What keys and values are kept in, instead of the run's `model.cache`."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the drawing; `--mesh.data -1` takes all."""
    out: str = ""
    """JSON file for the scores and their protocols. Next to it, under its name, are written a page
    (.html) and a folder of all that was drawn (.samples): if killed, the same command continues."""


@dataclasses.dataclass(frozen=True)
class Emblems(_Drawing):
    """What a decoder of the miniature can do, in exact shares."""

    bank: str = ""
    """Memory bank to retrieve from, instead of the one in the run's config."""
    prompts: int = 200
    """Prompts of each kind."""


@dataclasses.dataclass(frozen=True)
class Emoji(Emblems):
    """What a decoder of emoji can do with names and looks that training never showed."""

    documents: tuple[int, ...] = (0, 1, 2)
    """Numbers of retrieved documents to draw with."""


@dataclasses.dataclass(frozen=True)
class HeldOut(HeldOutQuery):
    """What a decoder does with held-out records of any source, with 0, 1, 2 documents in front."""

    inception: str = ""
    """Weights of FID's Inception, as pytorch-fid publishes them; without them there is no FID."""
    resize: Resize = "clean"
    """How images reach Inception's size."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the drawing; `--mesh.data -1` takes all."""
    out: str = ""
    """JSON file for the scores and their protocols. Next to it, under its name, are written a page
    (.html) and a folder of all that was drawn (.samples): if killed, the same command continues."""


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How often a retrieval encoder of the miniature finds an emblem that it never saw."""

    run: str
    """Run directory of a CLIP encoder, or weights exported from one."""
    prompts: int = 200
    """Prompts that name one emblem."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class CocoFid:
    """The paper's zero-shot MS-COCO protocol: FID, KID and CLIP score of images for captions.

    A run that was killed goes on where it was. Writes `scores.json`, `report.html`, the images
    and `reference.npz`."""

    captions: str
    """Captions in COCO's format, captions_val2014.json."""
    real: str
    """Folder of the real images, or an .npz with their `mu` and `sigma`."""
    inception: str
    """Weights of FID's Inception, as pytorch-fid publishes them: .pth, or .safetensors."""
    out: str
    """Folder for everything that is written."""
    run: str = ""
    """The decoder that draws: a run directory, one of its checkpoints, exported weights, or
    hf:OWNER/NAME."""
    made: str = ""
    """A folder of images made elsewhere, instead of --run; named by caption id or COCO's file."""
    bank: str = ""
    """Memory bank to retrieve from, instead of the one in the run's config."""
    clip: str = ""
    """Run directory of the CLIP encoder that scores and chooses; empty is the run's own."""
    documents: tuple[int, ...] = (0, 1, 2)
    """Numbers of retrieved documents to try."""
    samples: tuple[int, ...] = (1, 8)
    """Numbers of samples of which the best by CLIP counts."""
    count: int = 30_000
    """Captions to ask, drawn by the seed."""
    seed: int = 0
    """Seed of the choice of captions and of the sampling."""
    guidance: float | None = None
    """Scale of classifier-free guidance, instead of the run's."""
    resize: Resize = "clean"
    """How images reach Inception's size: clean-fid's way, pytorch-fid's or TensorFlow's."""
    crop: int = 256
    """Crop real images to centre squares of this many pixels; 0 leaves them as they are."""
    part: str = "1/1"
    """This process's share of the work, as 3/8: several processes may fill one --out."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the drawing; `--mesh.data -1` takes all."""

    def __post_init__(self):
        if bool(self.run) == bool(self.made):
            raise UserError("coco_fid takes either --run or --made, a folder of images.")
        if not self.documents or min(self.documents) < 0:
            raise UserError("--documents takes numbers from 0.")
        if not self.samples or min(self.samples) < 1:
            raise UserError("--samples takes numbers from 1.")
        self.share  # noqa: B018  # raises

    @property
    def share(self) -> Share:
        """As numbers."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise UserError(f"--part {self.part} is not a share; write the third of eight as 3/8.")
        return index - 1, count


@dataclasses.dataclass(frozen=True)
class Captions:
    """BLEU, ROUGE-L and CIDEr of captions, as COCO's code gives them."""

    made: str
    """JSON list of objects with image_id and caption."""
    captions: str
    """Captions in COCO's format."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class VQA:
    """Accuracy of answers, as the official VQA script gives it."""

    made: str
    """JSON list of objects with question_id and answer."""
    annotations: str
    """VQA's annotations."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Perplexity on validation rows: of all targets, of text and of image codes."""

    run: str
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME."""
    corpus: str = ""
    """Prepared corpus, instead of the one in the run's config."""
    bank: str = ""
    """Its memory bank, instead of the one in the run's config."""
    batches: int = 50
    """Batches to read."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Tasks(_Drawing):
    """What a decoder of the miniature does after instruction tuning, on held-out cases."""

    before: str = ""
    """The decoder before tuning, to score as well."""
    tasks: tuple[str, ...] = NAMES
    """Which tasks."""
    cases: int = 200
    """Cases of each task."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What an image tokenizer loses: PSNR, SSIM, LPIPS, rFID and use of its codes, by kind."""

    run: str
    """Run directory of an image tokenizer, or exported or imported weights."""
    source: str = ""
    """Images to measure, as data.source; empty takes the run's own."""
    split: Literal["train", "validation"] = "validation"
    """Split of the source."""
    count: int = 0
    """How many images, from the first on; 0 takes all."""
    lpips: str = ""
    """LPIPS weights, as vqgan_loss.lpips; without them there is no LPIPS."""
    inception: str = ""
    """Weights of FID's Inception, as pytorch-fid publishes them; without them there is no rFID."""
    resize: Resize = "clean"
    """How images reach Inception's size."""
    out: str = ""
    """JSON file for the scores and their protocols."""


@dataclasses.dataclass(frozen=True)
class Diff:
    """Why two results differ: protocols first, then figures."""

    left: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JSON")]
    """A result."""
    right: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JSON")]
    """Another one."""


Options = (
    Annotated[Emblems, tyro.conf.subcommand("emblems")]
    | Annotated[Emoji, tyro.conf.subcommand("emoji")]
    | Annotated[HeldOut, tyro.conf.subcommand("heldout")]
    | Annotated[Retrieval, tyro.conf.subcommand("retrieval")]
    | Annotated[CocoFid, tyro.conf.subcommand("coco_fid")]
    | Annotated[Captions, tyro.conf.subcommand("captions")]
    | Annotated[VQA, tyro.conf.subcommand("vqa")]
    | Annotated[Perplexity, tyro.conf.subcommand("perplexity")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Reconstruction, tyro.conf.subcommand("reconstruction")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
)
