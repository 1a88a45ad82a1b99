"""Pictures from texts, texts from pictures, and pictures with a part drawn anew.

    python -m launch.generate "A photo of a cat shown on a dslr" --run RUN --retrieve 2
    python -m launch.generate "Image of a <mask>: <image:x.png> <infill>" --run RUN
    python -m launch.generate caption x.png --run RUN
    python -m launch.generate infill "a red fox <image:x.png>" --box 0,16,32,16 --run RUN
    python -m launch.generate --task vqa --image x.png "What colour is the circle?" --run RUN
    python -m launch.generate --task grounded "a circle on sand" --box circle:8,72,56,120 --run RUN

Writes PNGs, each with its recipe in its metadata, and one line per sample in `samples.jsonl`.
"""

import dataclasses
import io
import json
import re
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import tyro
from etils import epath

import cm3jax
from cm3jax.config import DecodeConfig
from cm3jax.document import Image, ImagePath, Text, parse_prompt, render
from cm3jax.errors import UserError
from cm3jax.files import digest, write_atomic
from cm3jax.generate import Generated, Generator, Retrieved
from cm3jax.tokenizers.image import load_picture
from launch.cli import parse
from launch.env import main
from launch.tasks import find, task_prompt

MODES = ("text", "caption", "infill")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to generate, with what, and where to."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """`text`, `caption`, `infill` or nothing, then the prompt: a text or the prompt notation
    (<image:PATH>, <break>, <mask>, <infill>); for `caption` the path of a picture; for `infill`
    a caption and an <image:PATH>."""
    run: str = "runs/quickstart/decoder"
    """The decoder: a run directory, or exported weights."""
    bank: str = ""
    """The memory bank to search instead of the run's own."""
    retrieve: int = 0
    """Documents to retrieve for the prompt."""
    docs: tuple[str, ...] = ()
    """Documents by hand: pictures, each with a caption if PATH.txt stands beside PATH.png."""
    samples: int = 1
    """Samples of the prompt."""
    seed: int = 0
    """Seed of the sampling."""
    guidance: str | None = None
    """Classifier-free guidance of pictures, as `cfg:3`."""
    temperature: float | None = None
    """Divides the logits; 0 takes the likeliest."""
    temperature_range: tuple[float, float] | None = None
    """Draw each sample's temperature from this range."""
    top_p: float | None = None
    """Sample from the likeliest tokens with this probability."""
    box: str = ""
    """`infill`: what to draw anew, as x,y,width,height in pixels. `--task grounded`: what is where,
    as LABEL:x1,y1,x2,y2 with corners from 0 to 255; several with `;` between."""
    mask: str = ""
    """`infill`: a picture whose light pixels are to be drawn anew."""
    out: str = ""
    """Where to write; empty is `samples` in the run directory."""
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

    @property
    def mode(self) -> str:
        """One of `MODES`, or `prompt`: the notation decides."""
        return self.words[0] if len(self.words) > 1 else "prompt"

    @property
    def prompt(self) -> str:
        """The prompt without the mode."""
        return self.words[-1]

    def __post_init__(self):
        if self.task:
            return  # `untasked` makes other options of them, which are checked
        if self.image or self.options or self.context:
            raise UserError("--image, --options and --context are inputs of a --task; name it.")
        if len(self.words) not in (1, 2) or (len(self.words) == 2 and self.words[0] not in MODES):
            raise UserError(
                f"give one prompt, in quotes, after one of {', '.join(MODES)} or nothing; "
                f"these are {len(self.words)} words."
            )
        if self.samples < 1 or self.retrieve < 0:
            raise UserError("--samples must be at least 1 and --retrieve at least 0.")
        if (self.mode == "infill") != bool(self.box or self.mask) or (self.box and self.mask):
            raise UserError("infill takes either --box or --mask, and nothing else takes one.")
        if self.guidance and self.mode in ("caption", "infill"):
            raise UserError(f"--guidance is for pictures from texts, not for {self.mode}.")


def untasked(options: Options) -> Options:
    """The options without a task: the prompt that its template makes, in the notation."""
    if not options.task:
        return options
    if len(options.words) > 1:
        raise UserError(f"--task takes one text, in quotes; these are {len(options.words)} words.")
    inputs = (options.image, options.box, options.options, options.context)
    prompt = task_prompt(find(options.task), "".join(options.words), *inputs)
    own = {"task": "", "image": "", "box": "", "options": "", "context": ""}
    words = ("interleave", prompt) if options.task == "story" else (prompt,)
    return dataclasses.replace(options, words=words, **own)


def decode_config(options: Options, default: DecodeConfig) -> DecodeConfig:
    """The run's own settings, with what the options replace."""
    given = {
        "temperature": options.temperature,
        "temperature_range": options.temperature_range,
        "top_p": options.top_p,
    }
    if options.guidance is not None:
        found = re.fullmatch(r"cfg:(\d+(?:\.\d*)?|\.\d+)", options.guidance)
        if not found:
            raise UserError(f"--guidance {options.guidance!r} is unknown; write it as cfg:3.")
        given["guidance_scale"] = float(found[1])
    if options.temperature is not None and options.temperature_range is None:
        default = dataclasses.replace(default, temperature_range=None)
    return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})


def hand_picked(generator: Generator, path: str) -> np.ndarray:
    """The ids of a document that a user gives: a picture, and the caption beside it if any."""
    picture = load_picture(path, generator.image.config.image_size)
    codes = Image(tuple(generator.image.encode(picture[None])[0].tolist()))
    caption = epath.Path(path).with_suffix(".txt")
    pieces = generator.text.encode(caption.read_text().strip()) if caption.exists() else []
    segments = (Text(tuple(pieces)), codes) if pieces else (codes,)
    return render(segments, generator.vocab)


def hole(options: Options, size: int) -> np.ndarray:
    """The pixels to draw anew, bool [size, size]."""
    if options.mask:
        return load_picture(options.mask, size).mean(-1) >= 128
    found = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", options.box.replace(" ", ""))
    x, y, width, height = map(int, found.groups()) if found else (0, 0, 0, 0)
    if not (width and height) or x + width > size or y + height > size:
        raise UserError(
            f"--box {options.box!r} is no part of the picture; write x,y,width,height in pixels "
            f"within {size}x{size}."
        )
    out = np.zeros((size, size), bool)
    out[y : y + height, x : x + width] = True
    return out


def run(options: Options, generator: Generator) -> list[Generated]:
    """The samples of the prompt."""
    config = decode_config(options, generator.decode)
    given = [hand_picked(generator, path) for path in options.docs]
    if options.mode == "prompt":
        return generator.generate_samples(
            [options.prompt], options.retrieve, given, options.samples, options.seed, config
        )[0]

    def shown(text=None, image=None) -> list[list]:
        if not options.retrieve:
            return [given]
        return [given + generator.retrieve([text], [image], options.retrieve)[0]]

    size, again = generator.image.config.image_size, (options.samples, options.seed, config)
    if options.mode == "text":
        return generator.text_to_image([options.prompt], shown(options.prompt), *again)[0]
    if options.mode == "caption":
        picture = load_picture(options.prompt, size)
        return generator.caption(picture[None], shown(image=picture), *again)[0]
    parts = parse_prompt(options.prompt)
    paths = [part.path for part in parts if isinstance(part, ImagePath)]
    caption = " ".join(part for part in parts if isinstance(part, str))
    if len(paths) != 1 or len(parts) != len(paths) + bool(caption):
        raise UserError("infill takes a caption and one <image:PATH>, in quotes.")
    picture = load_picture(paths[0], size)
    documents = shown(caption or None, picture)
    masks = hole(options, size)[None]
    return generator.infill([caption], picture[None], masks, documents, *again)[0]


def recipe(options: Options, config: DecodeConfig, sample: Generated) -> dict[str, Any]:
    """Everything that made a sample."""
    return {
        "mode": options.mode,
        "prompt": options.prompt,
        "box": options.box,
        "mask": options.mask,
        "run": options.run,
        "seed": options.seed,
        "sample": sample.sample_id,
        "decode": dataclasses.asdict(config),
        "temperature": sample.temperature,
        "logprob": sample.logprob,
        "documents": [{"path": path} for path in options.docs]
        + [
            {"id": document.id, "key": document.key, "score": document.score}
            for document in sample.documents
            if isinstance(document, Retrieved)
        ],
        "ids": sample.ids.tolist(),
        "version": cm3jax.__version__,
    }


def save(out: epath.Path, lines: list[dict[str, Any]], samples: list[Generated]) -> None:
    """Write pictures, and `samples.jsonl` with these lines in place of older ones of their name."""
    log = out / "samples.jsonl"
    try:
        old = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for line, sample in zip(lines, samples, strict=True):
            if sample.image is not None:
                write_atomic(out / line["file"], png(sample.image, line))
        names = {line["name"] for line in lines}
        kept = [line for line in old if line["name"] not in names] + lines
        write_atomic(log, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    except OSError as error:
        raise UserError(f"can't write to {out} ({error.strerror}); choose another --out.") from None


def png(image: np.ndarray, line: dict[str, Any]) -> bytes:
    """A PNG file with its recipe as the text chunk `cm3jax`."""
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("cm3jax", json.dumps(line, ensure_ascii=False))
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def command(argv: list[str]) -> None:
    """Parse the arguments, generate, write and tell where."""
    options = untasked(parse(Options, argv, "Generate pictures and texts from a prompt."))
    generator = cm3jax.load(options.run, options.bank)
    samples = run(options, generator)
    config = decode_config(options, generator.decode)
    slug = re.sub(r"[^a-z0-9]+", "-", options.prompt.lower()).strip("-")[:40]
    lines = []
    for sample in samples:
        line = recipe(options, config, sample)
        name = f"{slug}-{digest(json.dumps(line, sort_keys=True))[:8]}"
        answer = {"text": sample.text} if sample.image is None else {"file": f"{name}.png"}
        lines.append({"name": name, **answer, **line})
    out = epath.Path(options.out) if options.out else epath.Path(options.run) / "samples"
    save(out, lines, samples)
    for line, sample in zip(lines, samples, strict=True):
        if options.show_sequence:
            print(generator.describe(np.concatenate([sample.prefix, sample.ids])))
        print(line["text"] if sample.image is None else out / line["file"])
    print(f"wrote {len(lines)} to {out / 'samples.jsonl'}")


if __name__ == "__main__":
    main(command)
