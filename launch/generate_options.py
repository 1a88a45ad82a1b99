"""The options of `launch.generate`, which of them go together, and the settings they give."""

import dataclasses
import difflib
import math
import os.path
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from etils import epath

from cm3jax.config import ONE_DEVICE, CacheType, DecodeConfig, MeshConfig, WeightType
from cm3jax.errors import UserError
from cm3jax.generation.options import Sampling, SamplingOptions
from cm3jax.training.companions import run_folder
from cm3jax.training.hub_runs import is_hub_id
from launch.shipped import SHIPPED
from launch.tasks import find, task_prompt

_TRAINED, _TUNED = str(SHIPPED / "decoder"), str(SHIPPED / "sft")
"""The default runs: the second one is for edits and tasks."""
MODES = ("text", "caption", "infill", "edit", "interleave")
_MODES = ", ".join(MODES)
MOST_SAMPLES = 100_000
"""Samples of one prompt in one call."""
_MOST_BYTES = 1 << 26
_MOST_WEIGHT = 1e6


@dataclasses.dataclass(frozen=True)
class Options:
    """What to generate, from what, and where to write it."""

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT ...]")
    ] = ()
    """`text`, `caption`, `infill`, `edit`, `interleave` or nothing, then prompts, each in quotes: a
    text or the prompt notation (<image:PATH>, <break>, <mask>, <infill>); for `caption` the path of
    an image; for `infill` an <image:PATH> and a caption, which may have <mask>s; for `edit` an
    <image:PATH> and an instruction."""
    prompts: str = ""
    """A file with one prompt per line; - is standard input."""
    run: str = ""
    """The decoder: a run directory, one of its checkpoints, exported weights, or hf:OWNER/NAME; by
    default the weights of this checkout, for `edit` and for a `--task` the tuned ones."""
    bank: str = ""
    """The memory bank to search instead of the run's own."""
    retrieve: int = 0
    """Documents to retrieve for each prompt; fewer are shown if the rest score below the floor."""
    floor: float | None = None
    """Leave out documents that score below this; by default the run's `retrieval.relevance_floor`.
    -1 leaves none out."""
    exclude: tuple[str, ...] = ()
    """Keys of the bank's documents that must not be retrieved."""
    weigh: tuple[str, ...] = ()
    """KEY=FACTOR multiplies that document's score, e.g. `bank-17=1.2`; 0.5 ranks it lower."""
    docs: tuple[str, ...] = ()
    """Documents given by hand: paths of images, each with a caption from the .txt file of the
    same name (fox.txt for fox.png), if there is one."""
    samples: int = 1
    """Samples of each prompt."""
    seed: int = 0
    """Seed of the sampling."""
    guidance: str | None = None
    """Guidance: `cfg:3`, classifier-free; `cfg:7.5,1.5` for `edit`, by instruction and by
    image (`cfg:1,1` is none); `cdk:8,0.5`, CD-K with its k and alpha; `half:8,0.5`, CD-K for
    every second sample."""
    temperature: float | None = None
    """Divides the logits; 0 takes the likeliest."""
    temperature_range: tuple[float, float] | None = None
    """Draw each sample's temperature from this range."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability."""
    speculate: int | Literal["auto"] | None = None
    """Ids of a sample that a pass reads: the newest, and guesses of what follows, by earlier passes
    and by the documents. The samples stay the same, and need fewer passes. 0 guesses nothing;
    `auto` times 1, 2, 4, 8 and 16 and takes what pays. By default the run's own setting."""
    max_document_tokens: int | None = None
    """`interleave`: most tokens of the document; by default what the context holds."""
    grammar: bool = True
    """Allow only ids that continue a valid document; without it an image may end early or late,
    which is then reported."""
    rerank: Literal["", "clip", "perplexity"] = ""
    """Order each prompt's samples: images by CLIP, or all by the model's own perplexity."""
    box: str = ""
    """`infill`: the part to redraw, as x,y,width,height in pixels. `--task grounded`: objects and
    their places, as LABEL:x1,y1,x2,y2 with corners from 0 to 255, separated by `;`."""
    mask: str = ""
    """`infill`: an image whose light pixels mark the part to redraw; if some of it is transparent,
    its opaque pixels do: whatever a brush painted, in any colour."""
    outpaint: str = ""
    """`infill`: shrink the image to `side` pixels, put it at x,y and draw the rest (x,y,side)."""
    partial: bool = False
    """After each chunk, write the finished part of each image to NAME.partial.png."""
    out: str = ""
    """Where to write; by default `samples` in the run directory, also where `--run` names one of
    its checkpoints, or `runs/samples` for weights of the hub and those that this checkout ships."""
    task: str = ""
    """A task of instruction tuning, phrased as in training; its text replaces the prompt."""
    image: str = ""
    """`--task`: its image or map."""
    options: str = ""
    """`--task science`: the options, separated by commas."""
    context: str = ""
    """`--task science`: what is known besides the image."""
    attribute: bool = False
    """Tell what each document did for a sample, by leaving it out: nats by which it made each id
    likelier, and the share of codes copied from it; of an image also as NAME-document-N.png, red
    where it helped."""
    show_sequence: bool = False
    """Print all ids that the model saw and emitted, with their names."""
    weights: WeightType = ""
    """What the layers' matrices are kept in, instead of the run's `model.weights`."""
    cache: CacheType = ""
    """What keys and values are kept in, instead of the run's `model.cache`."""
    prefix_cache: int = 0
    """MiB for what was read of prompts: those that begin alike, say with the same `--docs`, are
    read only where they differ."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the work; `--mesh.data -1` takes all."""

    @property
    def mode(self) -> str:
        """One of `MODES`, or `prompt`: the notation decides."""
        return self.words[0] if self.words and self.words[0] in MODES else "prompt"

    def asked(self) -> list[str]:
        """The prompts, without the mode: from the command line, then from the file."""
        words = list(self.words[self.mode != "prompt" :])
        return words + _lines(self.prompts) if self.prompts else words

    def __post_init__(self):
        if self.task:
            return  # `with_defaults` makes other options of them, which are checked
        if self.image or self.options or self.context:
            raise UserError("--image, --options and --context are inputs of a --task; name it.")
        if not self.words[self.mode != "prompt" :] and not self.prompts:
            mode = f"one of {_MODES} or nothing" if self.mode == "prompt" else self.mode
            raise UserError(f"give a prompt, in quotes, after {mode}, or give --prompts FILE.")
        self._require_prompts()
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise UserError(f"--samples must be at least 1 and at most {MOST_SAMPLES:,}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} must be from 0 to {2**32 - 1}.")
        if self.prefix_cache < 0:
            raise UserError("--prefix-cache must be at least 0.")
        if self.retrieve < 0:
            raise UserError("--retrieve must be at least 0.")
        if self.floor is not None and not math.isfinite(self.floor):
            raise UserError(f"--floor {self.floor} is no score; give a number, or -1 for none.")
        if (self.exclude or self.weigh) and not self.retrieve:
            raise UserError("--exclude and --weigh choose among documents that --retrieve finds.")
        weights(self.weigh)
        holes = [self.box, self.mask, self.outpaint]
        if self.mode == "infill" and sum(map(bool, holes)) != 1:
            raise UserError("infill needs one of --box, --mask and --outpaint.")
        if self.mode != "infill" and any(holes):
            raise UserError(
                "--box, --mask and --outpaint are for infill; write infill before the prompt."
            )
        if self.guidance and self.mode in ("caption", "infill"):
            raise UserError(f"--guidance is for new images, not for {self.mode}.")
        if self.rerank == "clip" and self.mode == "caption":
            raise UserError("--rerank clip orders images; for captions give --rerank perplexity.")

    def _require_prompts(self) -> None:
        """Refuse a mistyped mode, and the path of a file where a text would be drawn."""
        first = self.words[0] if len(self.words) > 1 else ""
        if self.mode == "prompt" and (near := difflib.get_close_matches(first, MODES, cutoff=0.75)):
            raise UserError(
                f"there is no {first!r} (did you mean {near[0]}?); give one of {_MODES}."
            )
        prompts = self.words[self.mode != "prompt" :]
        for prompt in prompts if self.mode in ("prompt", "text", "interleave") else ():
            if os.path.isfile(prompt):
                raise UserError(
                    f"{prompt} is a file, not a text; write caption {shlex.quote(prompt)}, or "
                    f"<image:{prompt}> in a prompt."
                )


def weights(weigh: Sequence[str]) -> dict[str, float]:
    """The factor of each document's score, by its key."""
    out = {}
    for word in weigh:
        key, _, factor = word.rpartition("=")
        try:
            out[key] = float(factor)
        except ValueError:
            key = ""
        if not key or not abs(out[key]) <= _MOST_WEIGHT:
            raise UserError(f"--weigh {word!r} is no KEY=FACTOR; write one like bank-17=0.5.")
    return out


def _lines(path: str) -> list[str]:
    try:
        content = _bytes(path)
    except OSError as error:
        raise UserError(
            f"--prompts {path} can't be read ({error.strerror}); check the path."
        ) from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"--prompts {path} holds more than {_MOST_BYTES >> 20} MiB; split it.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--prompts {path} is not UTF-8 text; save it as such.") from None
    # Lines end at line feeds; `splitlines` would also cut a prompt at U+2028 and its like.
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"--prompts {path} has no prompt in it; write one per line.")
    return lines


def _bytes(path: str) -> bytes:
    """The content, at most one byte more than the limit, since a device has no end."""
    if path == "-":
        file = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read().encode() if file is None else file.read(_MOST_BYTES + 1)
    with epath.Path(path).open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def with_defaults(options: Options) -> Options:
    """The options with `run` and `out` filled in; for a task, with the prompt that its template
    makes."""
    tuned = bool(options.task) or options.mode == "edit"
    run = options.run or (_TUNED if tuned else _TRAINED)
    options = dataclasses.replace(options, run=run, out=options.out or _samples_of(run))
    if not options.task:
        return options
    if len(options.words) > 1:
        raise UserError(f"--task takes one text, in quotes; these are {len(options.words)} words.")
    inputs = (options.image, options.box, options.options, options.context)
    prompt = task_prompt(find(options.task), "".join(options.words), *inputs)
    own: dict[str, Any] = dict.fromkeys(("task", "image", "box", "options", "context"), "")
    words = ("interleave", prompt) if options.task == "story" else (prompt,)
    return dataclasses.replace(options, words=words, **own)


def _samples_of(run: str) -> str:
    """The default place for samples of a run: never a checkpoint, which training may delete."""
    if is_hub_id(run) or SHIPPED in Path(run).resolve().parents:
        return "runs/samples"
    home, step = run_folder(run)
    return str((epath.Path(run) if step is None else home) / "samples")


def as_sampling(options: Options, usual: DecodeConfig) -> Sampling:
    """How samples are drawn: by the run's own settings, with what the options replace."""
    fields = SamplingOptions.__annotations__
    given = {name: value for name, value in vars(options).items() if name in fields}
    if options.grammar:
        del given["grammar"]  # the run's own settings may do without
    if options.guidance is not None:
        given |= _guidance(options.guidance, options.mode)
    return Sampling.of({name: v for name, v in given.items() if v is not None}, usual)


def _guidance(text: str, mode: str) -> dict:
    """The fields of `DecodeConfig` that a text such as `cfg:3` sets."""
    kind, _, numbers = text.partition(":")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    whole = bool(values) and values[0].is_integer()
    if kind == "cfg" and len(values) == (2 if mode == "edit" else 1):
        if mode == "edit":
            return {"edit_scales": tuple(values)}
        return {"guidance_scale": values[0], "contrast": "none"}
    if kind in ("cdk", "half") and len(values) in (1, 2) and mode != "edit" and whole:
        alpha = {"contrast_alpha": values[1]} if len(values) == 2 else {}
        share = "all" if kind == "cdk" else "half"
        return {"contrast": share, "contrast_k": int(values[0])} | alpha
    raise UserError(
        f"--guidance {text!r} is unknown; write cfg:3, cdk:8,0.5 or half:8,0.5, and for edit "
        "cfg:7.5,1.5."
    )
