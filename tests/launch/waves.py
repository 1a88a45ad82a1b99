"""A folder of images from elsewhere: waves of light, drawn by a formula, and told of in words."""

import json
from pathlib import Path

import numpy as np
import PIL.Image

COLOURS = {
    "amber": (255, 176, 32),
    "teal": (0, 140, 140),
    "plum": (150, 60, 140),
    "ivory": (244, 240, 220),
    "navy": (24, 40, 110),
}
SHAPES = ("rings", "stripes", "checks", "rays")
MANY = 60
"""Images with five captions each."""
NEW = 50
"""Images in the folder `new`, which is only for the bank."""
BROKEN = 6


def wave(rng: np.random.Generator, colour: str, ground: str, shape: str, side: int) -> np.ndarray:
    """A uint8 image: one colour on another, as rings, stripes, checks or rays."""
    y, x = np.mgrid[:side, :side] / side - rng.uniform(0.3, 0.7, 2)[:, None, None]
    field = {
        "rings": np.hypot(x, y) * 6,
        "stripes": (x + y * rng.uniform(-1, 1)) * 5,
        "checks": np.floor(x * 5) + np.floor(y * 5) + 0.25,
        "rays": np.arctan2(y, x) * 4 / np.pi,
    }[shape]
    share = (0.5 + 0.5 * np.sin(2 * np.pi * (field + rng.uniform())))[..., None]
    mixed = share * np.asarray(COLOURS[colour]) + (1 - share) * np.asarray(COLOURS[ground])
    return np.clip(mixed + rng.normal(0, 3, mixed.shape), 0, 255).astype(np.uint8)


def captions(colour: str, ground: str, shape: str) -> list[str]:
    """Five ways to say what is there."""
    return [
        f"{colour} {shape} on {ground}",
        f"a {ground} field with {shape} in {colour}",
        f"{shape}: {colour} over {ground}",
        f"there are {colour} {shape}, the ground is {ground}",
        f"{ground} behind {colour} {shape}",
    ]


def write(folder: Path, count: int = 500, seed: int = 5) -> None:
    """`count` images of all sorts of sizes with a `captions.jsonl`; some of the files are
    broken, some images have five captions, and some lie in a folder of their own."""
    rng, lines = np.random.default_rng(seed), []
    for number in range(count):
        colour, ground = rng.choice(list(COLOURS), 2, replace=False).tolist()
        shape = SHAPES[number % len(SHAPES)]
        name = f"{'new/' if number >= count - NEW else ''}{number:03d}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        side = int(rng.integers(40, 72))
        PIL.Image.fromarray(wave(rng, colour, ground, shape, side)).save(path)
        if number % (count // BROKEN) == 7:
            path.write_bytes(path.read_bytes()[:60])
        said = captions(colour, ground, shape)
        subjects = [f"{colour} {shape}"]
        for text in said if number < MANY else said[:1]:
            lines.append({"file": name, "caption": text, "subjects": subjects})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
