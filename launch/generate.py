"""Images from texts, texts from images, images with a part drawn again, whole documents.

    python -m launch.generate text "a large red circle at b3 on sand" --samples 8 --rerank clip
    python -m launch.generate text "the zubetu emblem at the bottom right on sky" --retrieve 2
    python -m launch.generate text "a photo of a cat" "a photo of a dog" --run RUN
    python -m launch.generate text --prompts prompts.txt --run RUN
    python -m launch.generate caption experiments/scene.png
    python -m launch.generate infill "a red circle <image:experiments/scene.png>" --box 0,16,32,16
    python -m launch.generate edit "turn the circle into a diamond <image:experiments/scene.png>"
    python -m launch.generate interleave "a large red circle at b3 on sand"
    python -m launch.generate "<mask> <image:experiments/scene.png> <infill>"
    python -m launch.generate --task vqa --image experiments/scene.png "What colour is the circle?"
    python -m launch.generate --task grounded "a red circle on sand" --box circle:72,136,120,184

Writes each sample as soon as it is done: its images as PNGs, with the recipe in their metadata,
and one line in `samples.jsonl`. Several images are also shown side by side in `contact.png`.
"""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence

import numpy as np
import rich.console
import rich.progress
from etils import epath

import cm3jax
from cm3jax.config import DecodeConfig
from cm3jax.decode.throughput import Meter
from cm3jax.errors import UserError
from cm3jax.generation import loading
from cm3jax.generation.documents import read_document
from cm3jax.generation.generator import Generator
from cm3jax.generation.options import Sampling
from cm3jax.generation.prompts import (
    Prompt,
    Wanted,
    caption_prompt,
    load_mask,
    outpaint,
    picture_prompt,
    read_edit,
    read_infill,
    read_prompt,
)
from cm3jax.generation.requests import PromptRequest
from cm3jax.io.folders import hold
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.shapes import Bool
from cm3jax.tokenizers.image_tokenizer import load_picture
from cm3jax.training.hardware import copy_rate
from launch.cli import parse
from launch.env import main
from launch.gallery import Gallery
from launch.generate_options import Options, as_sampling, weights, with_defaults
from launch.parts import naming_commands_of


def hole(options: Options, size: int) -> Bool[np.ndarray, "Y X"]:
    """The pixels to draw again."""
    if options.mask:
        return load_mask(options.mask, size)
    x, y, width, height = _numbers(options.box, 4)
    if not (width and height) or x + width > size or y + height > size:
        raise UserError(
            f"--box {options.box!r} is no part of the image; write x,y,width,height in pixels "
            f"within {size}x{size}."
        )
    out = np.zeros((size, size), bool)
    out[y : y + height, x : x + width] = True
    return out


def _numbers(text: str, count: int) -> list[int]:
    """`count` numbers separated by commas; zeros for any other text."""
    found = re.fullmatch(",".join([r"(\d+)"] * count), text.replace(" ", ""))
    return [int(number) for number in found.groups()] if found else [0] * count


def as_prompt(options: Options, prompt: str, size: int) -> Prompt:
    """The prompt as the mode reads it."""
    if options.mode == "text":
        return picture_prompt(prompt)
    if options.mode == "caption":
        path = re.sub("^<image:(.+)>$", r"\1", prompt.strip())  # as other modes write it
        if not path.strip():
            raise UserError("a prompt is empty; give the path of the image to describe.")
        return caption_prompt(load_picture(path, size))
    if options.mode == "edit":
        return read_edit(prompt, size)
    if options.mode == "interleave":
        return dataclasses.replace(read_prompt(prompt, size), wanted=Wanted.DOCUMENT)
    if options.mode == "prompt":
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


def requests(
    options: Options, generator: Generator, prompts: Sequence[str], config: DecodeConfig
) -> list[PromptRequest]:
    """The requests of the prompts, with their documents."""
    _require_room_for_documents(options, generator)
    size = generator.image.config.image_size
    read = [as_prompt(options, prompt, size) for prompt in prompts]
    given = [read_document(path, size) for path in options.docs]
    choice = (options.retrieve, given, options.exclude, weights(options.weigh), options.floor)
    shown = generator.documents_for(read, *choice, say=print)
    return generator.requests(read, shown, config)


def _require_room_for_documents(options: Options, generator: Generator) -> None:
    """Refuse, before anything is searched, more documents than any context could hold."""
    most = max(generator.model.room(1), 0) // 2  # of one token each, with its break
    if options.retrieve > most:
        raise UserError(
            f"--retrieve {options.retrieve} is more than the model's context could hold; it has "
            f"room for {most} at most, if each were of one token."
        )


def command(argv: list[str]) -> None:
    """Parse the arguments, generate, write each sample as it is done, and print where."""
    options = with_defaults(parse(Options, argv, "Generate images and texts from prompts."))
    prompts = options.asked()
    generator = loading.load(
        options.run,
        options.bank,
        options.mesh,
        options.weights,
        options.cache,
        options.prefix_cache << 20,
    )
    sampling = as_sampling(options, generator.decode)
    if options.rerank == "clip":
        _ = generator.encoder  # what is missing is said before anything is drawn
    with naming_commands_of(options.run, options.bank):
        asked = requests(options, generator, prompts, sampling.decode)
    for line in documents(prompts, asked):
        print(line, flush=True)
    out = epath.Path(options.out)
    with hold(out, f"generating with {options.run}"):
        gallery = Gallery(
            out,
            generator,
            recipe(options, sampling.decode, generator),
            prompts,
            asked,
            options.attribute,
        )
        gallery.begin()
        _fill(gallery, generator, asked, options, sampling)
    print(f"wrote {gallery.count} to {out / 'samples.jsonl'}")


def _fill(
    gallery: Gallery,
    generator: Generator,
    asked: Sequence[PromptRequest],
    options: Options,
    sampling: Sampling,
) -> None:
    """Write each sample as it is done, and print a line about it."""
    console = rich.console.Console(stderr=True)
    meter, begin = Meter(), time.perf_counter()
    with rich.progress.Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=len(asked) * sampling.samples)
        watch = gallery.watch if options.partial else None
        answers = generator.answer(asked, sampling, meter, watch)
        try:
            for finished in answers:
                for line in gallery.add(finished, options.show_sequence):
                    print(line, flush=True)
                bar.advance(task, len(finished))
        except KeyboardInterrupt:
            print(f"stopped; kept {gallery.count} in {epath.Path(options.out) / 'samples.jsonl'}")
            raise
    seconds = time.perf_counter() - begin
    for line in gallery.close(options.rerank):
        print(line)
    print(speed(meter, gallery.count, seconds))


def documents(prompts: Sequence[str], asked: Sequence[PromptRequest]) -> Iterator[str]:
    """A line per prompt with the documents retrieved for it and their scores."""
    for prompt, request in zip(prompts, asked, strict=True):
        found = [d for d in request.documents if isinstance(d, Retrieved)]
        if found:
            words = ", ".join(f"{d.key} ({d.score:.2f})" for d in found)
            yield f"documents for {prompt!r}: {words}"


def recipe(options: Options, config: DecodeConfig, generator: Generator) -> dict:
    """The settings that all samples of this call share."""
    kept = generator.model.config
    return {
        "mode": options.mode,
        "box": options.box,
        "mask": options.mask,
        "outpaint": options.outpaint,
        "run": options.run,
        "seed": options.seed,
        "decode": dataclasses.asdict(config),
        "docs": list(options.docs),
        "floor": options.floor,
        "exclude": list(options.exclude),
        "weigh": list(options.weigh),
        "weights": kept.weights,
        "cache": kept.cache,
        "version": cm3jax.__version__,
    }


def speed(meter: Meter, samples: int, seconds: float) -> str:
    """One line of figures: total seconds, and the rate of each program that ran at least twice.

    The first run of a program compiles it, so its time says nothing about the rate.
    """
    each = f" ({seconds / samples:.2g} s each)" if samples else ""
    words = [f"{samples} sample{'s' * (samples != 1)} in {seconds:.1f} s{each}"]
    if meter.compile_seconds:
        words.append(f"{meter.compile_seconds:.1f} s of them compiling")
    figures = meter.report(samples, copy_rate() if meter.decode_seconds else None)
    for name, unit in (
        ("prefill_tokens_per_second", "prompt tokens/s"),
        ("decode_tokens_per_second", "new tokens/s"),
        ("decode_gigabytes_per_second", "GB/s"),
    ):
        if figures[name] is not None:
            words.append(f"{figures[name]:,.3g} {unit}")
    share = figures["share_of_copy_rate"]
    if share is not None:
        # Repeated reads from a processor's cache are faster than any copy in memory.
        cached = "more than memory gives: they come from the cache"
        words[-1] += f" ({f'{share:.0%} of the copy rate' if share <= 1 else cached})"
    if samples and meter.emitted > meter.passes:
        words.append(f"{figures['tokens_per_pass']:.3g} new tokens in a pass")
        words.append(f"{figures['passes_per_picture']:.3g} passes for a sample")
    if samples > 1 and figures["busy_rows"] is not None:
        words.append(f"{figures['busy_rows']:.0%} of the rows busy")
    if figures["prefix_hit_rate"] is not None:
        words.append(f"{figures['prefix_hit_rate']:.0%} of the prompts' tokens known before")
    return ", ".join(words)


if __name__ == "__main__":
    main(command)
