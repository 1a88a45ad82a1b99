"""Pictures from texts, texts from pictures, pictures with a part drawn anew, whole documents.

    python -m launch.generate "A photo of a cat shown on a dslr" --run RUN --retrieve 2
    python -m launch.generate text "a red fox" "a blue fox" --samples 8 --rerank clip --run RUN
    python -m launch.generate "Image of a <mask>: <image:x.png> <infill>" --run RUN
    python -m launch.generate caption x.png --run RUN
    python -m launch.generate infill "a red fox <image:x.png>" --box 0,16,32,16 --run RUN
    python -m launch.generate edit "make the fox blue <image:x.png>" --run RUN
    python -m launch.generate interleave "a fox goes out" --run RUN
    python -m launch.generate text --prompts prompts.txt --run RUN
    python -m launch.generate --task vqa --image x.png "What colour is the circle?" --run RUN
    python -m launch.generate --task grounded "a circle on sand" --box circle:8,72,56,120 --run RUN

Writes PNGs, each with its recipe in its metadata, and one line per sample in `samples.jsonl`, both
as soon as a sample is done; several pictures also stand side by side in `contact.png`.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import rich.console
import rich.progress
import tyro
from etils import epath

import cm3jax
from cm3jax import generate
from cm3jax.asks import Ask, Document
from cm3jax.config import ONE_DEVICE, DecodeConfig, MeshConfig
from cm3jax.decode.meter import Meter
from cm3jax.document import Image, Mark, Text, parse_prompt, render
from cm3jax.errors import UserError
from cm3jax.generate import Generator
from cm3jax.hardware import copy_rate
from cm3jax.prompts import Prompt, Shown, outpaint, read_infill, read_prompt
from cm3jax.shapes import Bool
from cm3jax.tokenizers.image import load_picture
from launch.cli import parse
from launch.env import main
from launch.gallery import Gallery
from launch.tasks import find, task_prompt

_TRAINED = "runs/quickstart/decoder"
_TUNED = str(Path(__file__).resolve().parents[1] / "experiments/miniature/weights/sft")
"""What is asked without a `--run`, the second if there is a `--task`."""
MODES = ("text", "caption", "infill", "edit", "interleave")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to generate, with what, and where to."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """`text`, `caption`, `infill`, `edit`, `interleave` or nothing, then prompts, each in quotes: a
    text or the prompt notation (<image:PATH>, <break>, <mask>, <infill>); for `caption` the path of
    a picture; for `infill` an <image:PATH> and a caption, which may have <mask>s; for `edit` an
    <image:PATH> and an instruction."""
    prompts: str = ""
    """A file with one prompt per line; - is standard input."""
    run: str = ""
    """The decoder: a run directory, or exported weights; by default `runs/quickstart/decoder`, for
    a `--task` the tuned weights of this checkout."""
    bank: str = ""
    """The memory bank to search instead of the run's own."""
    retrieve: int = 0
    """Documents to retrieve for each prompt."""
    exclude: tuple[str, ...] = ()
    """Keys of the bank's documents that must not be retrieved."""
    weigh: tuple[str, ...] = ()
    """KEY=FACTOR: multiplies that document's score, e.g. `bank-17=1.2`; 0.5 puts it behind."""
    docs: tuple[str, ...] = ()
    """Documents by hand: pictures, each with a caption if PATH.txt stands beside PATH.png."""
    samples: int = 1
    """Samples of each prompt."""
    seed: int = 0
    """Seed of the sampling."""
    guidance: str | None = None
    """Of pictures: `cfg:3`, classifier-free; `cfg:7.5,1.5` for `edit`, by instruction and by
    picture; `cdk:8,0.5`, CD-K with its k and alpha; `half:8,0.5`, CD-K for every second sample."""
    temperature: float | None = None
    """Divides the logits; 0 takes the likeliest."""
    temperature_range: tuple[float, float] | None = None
    """Draw each sample's temperature from this range."""
    top_k: int | None = None
    """Sample from so many likeliest tokens."""
    top_p: float | None = None
    """Sample from the likeliest tokens with this probability."""
    max_document_tokens: int | None = None
    """`interleave`: the longest document; as far as the context reaches if not given."""
    grammar: bool = True
    """Without it a picture may end early or late, which is then reported."""
    rerank: Literal["", "clip", "perplexity"] = ""
    """Order each prompt's samples: pictures by CLIP, or all by the model's own perplexity."""
    box: str = ""
    """`infill`: what to draw anew, as x,y,width,height in pixels. `--task grounded`: what is where,
    as LABEL:x1,y1,x2,y2 with corners from 0 to 255; several with `;` between."""
    mask: str = ""
    """`infill`: a picture whose light pixels are to be drawn anew."""
    outpaint: str = ""
    """`infill`: put the picture at x,y with so many pixels a side (x,y,side); draw the rest."""
    partial: bool = False
    """Write what is there of each picture after each chunk, to NAME.partial.png."""
    out: str = ""
    """Where to write; by default `samples` in the run directory, with the weights of this checkout
    `runs/samples`."""
    task: str = ""
    """A task of instruction tuning, asked as in training; its text takes the prompt's place."""
    image: str = ""
    """`--task`: its picture or map."""
    options: str = ""
    """`--task science`: the options, with commas between."""
    context: str = ""
    """`--task science`: what is known beside the picture."""
    show_sequence: bool = False
    """Print all ids that the model saw and emitted, with their names."""
    mesh: MeshConfig = ONE_DEVICE
    """The devices that share the work; `--mesh.data -1` takes all."""

    @property
    def mode(self) -> str:
        """One of `MODES`, or `prompt`: the notation decides."""
        given = self.words and self.words[0] in MODES and (len(self.words) > 1 or self.prompts)
        return self.words[0] if given else "prompt"

    def asked(self) -> list[str]:
        """The prompts, without the mode: from the command line, then from the file."""
        words = list(self.words[self.mode != "prompt" :])
        return words + _lines(self.prompts) if self.prompts else words

    def __post_init__(self):
        if self.task:
            return  # `settled` makes other options of them, which are checked
        if self.image or self.options or self.context:
            raise UserError("--image, --options and --context are inputs of a --task; name it.")
        if not self.words and not self.prompts:
            raise UserError(
                f"give a prompt, in quotes, after one of {', '.join(MODES)} or nothing, or give "
                "--prompts FILE."
            )
        if self.samples < 1 or self.retrieve < 0:
            raise UserError("--samples must be at least 1 and --retrieve at least 0.")
        if (self.exclude or self.weigh) and not self.retrieve:
            raise UserError("--exclude and --weigh choose among documents that --retrieve finds.")
        weights(self.weigh)
        holes = [self.box, self.mask, self.outpaint]
        if (self.mode == "infill") != any(holes) or sum(map(bool, holes)) > 1:
            raise UserError(
                "infill takes one of --box, --mask and --outpaint, and nothing else takes one."
            )
        if self.guidance and self.mode in ("caption", "infill"):
            raise UserError(f"--guidance is for new pictures, not for {self.mode}.")


def weights(weigh: Sequence[str]) -> dict[str, float]:
    """The factor of each document's score, by its key."""
    out = {}
    for word in weigh:
        key, _, factor = word.rpartition("=")
        try:
            out[key] = float(factor)
        except ValueError:
            key = ""
        if not key or not math.isfinite(out[key]):
            raise UserError(f"--weigh {word!r} is no KEY=FACTOR, e.g. bank-17=0.5.")
    return out


def _lines(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == "-" else epath.Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--prompts {path} can't be read as text; check the path.") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--prompts {path} has no prompt in it; write one per line.")
    return lines


def settled(options: Options) -> Options:
    """The options with a run, and of a task with the prompt that its template makes."""
    if not options.task:
        return dataclasses.replace(options, run=options.run or _TRAINED)
    if not options.run:
        options = dataclasses.replace(options, run=_TUNED, out=options.out or "runs/samples")
    if len(options.words) > 1:
        raise UserError(f"--task takes one text, in quotes; these are {len(options.words)} words.")
    inputs = (options.image, options.box, options.options, options.context)
    prompt = task_prompt(find(options.task), "".join(options.words), *inputs)
    own = {"task": "", "image": "", "box": "", "options": "", "context": ""}
    words = ("interleave", prompt) if options.task == "story" else (prompt,)
    return dataclasses.replace(options, words=words, **own)


def decode_config(options: Options, default: DecodeConfig) -> DecodeConfig:
    """The run's own settings, with what the options replace."""
    names = ("temperature", "temperature_range", "top_k", "top_p", "max_document_tokens")
    given = {name: getattr(options, name) for name in names}
    if not options.grammar:
        given["grammar"] = False
    if options.guidance is not None:
        given |= _guidance(options.guidance, options.mode)
    if options.temperature is not None and options.temperature_range is None:
        default = dataclasses.replace(default, temperature_range=None)
    return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})


def _guidance(text: str, mode: str) -> dict:
    """The fields of `DecodeConfig` that `cfg:3` and its like stand for."""
    kind, _, numbers = text.partition(":")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if kind == "cfg" and len(values) == (2 if mode == "edit" else 1):
        if mode == "edit":
            return {"edit_scales": tuple(values)}
        return {"guidance_scale": values[0], "contrast": "none"}
    if kind in ("cdk", "half") and len(values) in (1, 2) and mode != "edit":
        alpha = {"contrast_alpha": values[1]} if len(values) == 2 else {}
        share = "all" if kind == "cdk" else "half"
        return {"contrast": share, "contrast_k": int(values[0])} | alpha
    raise UserError(
        f"--guidance {text!r} is unknown; write cfg:3, cdk:8,0.5 or half:8,0.5, and for edit "
        "cfg:7.5,1.5."
    )


def hand_picked(generator: Generator, path: str) -> np.ndarray:
    """The ids of a document that a user gives: a picture, and the caption beside it if any."""
    picture = load_picture(path, generator.image.config.image_size)
    codes = Image(tuple(generator.image.encode(picture[None])[0].tolist()))
    caption = epath.Path(path).with_suffix(".txt")
    pieces = generator.text.encode(caption.read_text().strip()) if caption.exists() else []
    segments = (Text(tuple(pieces)), codes) if pieces else (codes,)
    return render(segments, generator.vocab)


def hole(options: Options, size: int) -> Bool[np.ndarray, "Y X"]:
    """The pixels to draw anew."""
    if options.mask:
        return load_picture(options.mask, size).mean(-1) >= 128
    x, y, width, height = _numbers(options.box, 4)
    if not (width and height) or x + width > size or y + height > size:
        raise UserError(
            f"--box {options.box!r} is no part of the picture; write x,y,width,height in pixels "
            f"within {size}x{size}."
        )
    out = np.zeros((size, size), bool)
    out[y : y + height, x : x + width] = True
    return out


def _numbers(text: str, count: int) -> list[int]:
    """So many numbers with commas between; zeros for anything else."""
    found = re.fullmatch(",".join([r"(\d+)"] * count), text.replace(" ", ""))
    return [int(number) for number in found.groups()] if found else [0] * count


def read(options: Options, prompt: str, size: int) -> Prompt:
    """A prompt as its mode has it."""
    if options.mode == "text":
        return Prompt(((prompt,),), False)
    if options.mode == "caption":
        return Prompt(((Mark.MASK,), Shown(load_picture(prompt, size))), True)
    if options.mode != "infill":
        return read_prompt(prompt, size)
    if not options.outpaint:
        return read_infill(prompt, size, hole(options, size))
    x, y, side = _numbers(options.outpaint, 3)
    if not side or max(x, y) + side > size or side == size:
        raise UserError(
            f"--outpaint {options.outpaint!r} leaves nothing to draw or does not fit; write "
            f"x,y,side in pixels, within {size}x{size}."
        )
    return outpaint(read_infill(prompt, size, np.ones((size, size), bool)), x, y, side)


def asks(
    options: Options, generator: Generator, prompts: Sequence[str], config: DecodeConfig
) -> list[Ask]:
    """What the prompts ask for, with their documents."""
    size = generator.image.config.image_size
    given: list[Document] = [hand_picked(generator, path) for path in options.docs]
    choice = (options.retrieve, given, options.exclude, weights(options.weigh))
    if options.mode == "edit":
        pairs = [_edit(prompt, size) for prompt in prompts]
        rows = [Prompt(((words,), Shown(picture)), False) for words, picture in pairs]
        shown = generator.company(rows, *choice)
        words, pictures = zip(*pairs, strict=True)
        return generator.ask.edits(np.stack(pictures), words, shown, None, config)
    rows = [read(options, prompt, size) for prompt in prompts]
    shown = generator.company(rows, *choice)
    if options.mode == "interleave":
        segments = [row.segments for row in rows]
        return generator.ask.stories(segments, shown, None, config)
    return generator.asks(rows, shown, config)


def _edit(prompt: str, size: int) -> tuple[str, np.ndarray]:
    """The instruction and the picture."""
    parts = parse_prompt(prompt)
    words = " ".join(part for part in parts if isinstance(part, str))
    paths = [part.path for part in parts if not isinstance(part, str | Mark)]
    if len(paths) != 1 or not words or any(isinstance(part, Mark) for part in parts):
        raise UserError("edit takes an instruction and one <image:PATH>, in quotes.")
    return words, load_picture(paths[0], size)


def command(argv: list[str]) -> None:
    """Parse the arguments, generate, write each sample as it is done, and tell where."""
    options = settled(parse(Options, argv, "Generate pictures and texts from prompts."))
    prompts = options.asked()
    generator = generate.load(options.run, options.bank, options.mesh)
    config = decode_config(options, generator.decode)
    asked = asks(options, generator, prompts, config)
    out = epath.Path(options.out) if options.out else epath.Path(options.run) / "samples"
    gallery = Gallery(out, generator, recipe(options, config), prompts, asked)
    console = rich.console.Console(stderr=True)
    meter = Meter()
    with rich.progress.Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=len(asked) * options.samples)
        watch = gallery.watch if options.partial else None
        answers = generator.answer(asked, options.samples, options.seed, config, meter, watch)
        try:
            for finished in answers:
                for line in gallery.add(finished, options.show_sequence):
                    print(line, flush=True)
                bar.advance(task, len(finished))
        except KeyboardInterrupt:
            print(f"stopped; kept {gallery.count} in {out / 'samples.jsonl'}")
            raise
    for line in gallery.close(options.rerank):
        print(line)
    print(speed(meter, gallery.pictures))
    print(f"wrote {gallery.count} to {out / 'samples.jsonl'}")


def recipe(options: Options, config: DecodeConfig) -> dict:
    """What all samples of this call share."""
    return {
        "mode": options.mode,
        "box": options.box,
        "mask": options.mask,
        "outpaint": options.outpaint,
        "run": options.run,
        "seed": options.seed,
        "decode": dataclasses.asdict(config),
        "docs": list(options.docs),
        "exclude": list(options.exclude),
        "weigh": list(options.weigh),
        "version": cm3jax.__version__,
    }


def speed(meter: Meter, pictures: int) -> str:
    """The call's figures in a line."""
    figures = meter.report(pictures, copy_rate())
    words = [f"compiled in {meter.compile_seconds:.1f} s"]
    for name, unit in (
        ("prefill_tokens_per_second", "prompt tokens/s"),
        ("decode_tokens_per_second", "new tokens/s"),
        ("decode_gigabytes_per_second", "GB/s"),
        ("share_of_copy_rate", "of the copy rate measured"),
        ("seconds_per_picture", "s per picture"),
    ):
        value = figures[name]
        if value is not None:
            words.append(f"{value:.0%} {unit}" if "share" in name else f"{value:,.3g} {unit}")
    return ", ".join(words)


if __name__ == "__main__":
    main(command)
