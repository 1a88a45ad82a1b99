"""Things and their looks: what the four sets draw, at two sizes, and what training never shows.

An image that two names share (in Twemoji, France's flag is Clipperton Island's too) makes them
one thing, and so do skin tone and gender: a thing is called by one of its names, and a reader that
finds another has read right.
"""

import dataclasses
import functools
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from cm3jax.emoji.archives import Archives, IconSet
from cm3jax.emoji.names import kin, noun, private, toned
from cm3jax.errors import UserError
from cm3jax.io.files import read_arrays, write_atomic
from cm3jax.shapes import Float, Int, UInt8

GRID = 8
"""An image's side in units; places and sizes of things are whole units."""
SIDES = {"": 6, "small": 4}
"""Units along a thing's side, by what captions say of its size."""

_TWINS = 2.0
"""Images closer than this (root mean square of values of 0 to 255) count as one."""
_HELD_OUT = 10  # one name in ten
_ALWAYS_HELD_OUT = {"1f1eb-1f1f7"}  # the French flag: the paper's own example

_Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Thing:
    """Something that images show."""

    key: str
    """Its code points."""
    noun: str
    """What captions call it: "the flag of France"."""
    looks: tuple[tuple[str, int], ...]
    """The styles that draw it, each with the number of its image."""
    held_out: tuple[str, ...]
    """Styles whose image training never shows: all of them for one name in ten, one of them for
    half of the others, none for the rest."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Styles whose image training shows."""
        return tuple(style for style, _ in self.looks if style not in self.held_out)

    def look(self, style: str) -> int:
        """The number of its image in a style; `KeyError` if that has none."""
        return dict(self.looks)[style]


@dataclasses.dataclass(frozen=True, eq=False)
class EmojiCatalogue:
    """All images, and the things that captions name."""

    sprites: dict[str, UInt8[np.ndarray, "M Y X 4"]]
    """The images by size (a key of `SIDES`), RGBA, not premultiplied."""
    classes: Int[np.ndarray, " M"]
    """Images with equal numbers show the same thing."""
    styles: tuple[str, ...]
    """The style of each image."""
    artists: dict[str, tuple[str, str]]
    """Artist and licence of each style."""
    things: tuple[Thing, ...]
    """Things that training shows in some style, then things that it never shows."""

    @functools.cached_property
    def trained(self) -> tuple[Thing, ...]:
        """Things that training shows in one style at least."""
        return tuple(thing for thing in self.things if thing.shown)

    @functools.cached_property
    def unseen(self) -> tuple[Thing, ...]:
        """Things that training never shows."""
        return tuple(thing for thing in self.things if not thing.shown)

    @functools.cached_property
    def by_noun(self) -> dict[str, Thing]:
        """Things by what captions call them."""
        return {thing.noun: thing for thing in self.things}


def draw_catalogue(
    archives: Archives, size: int, cache: epath.PathLike, progress: _Progress | None = None
) -> EmojiCatalogue:
    """The catalogue for images of `size` pixels; drawn sprites are kept in the folder `cache`.

    Raises `UserError` if an archive can't be read, or `size` is not a multiple of `GRID`.
    """
    if size % GRID:
        raise UserError(f"data.image_size={size} must be a multiple of {GRID} for emoji.")
    sets = archives.sets()
    icons = [
        (icon_set, key, name)
        for icon_set in sets
        for key, name in icon_set.names.items()
        if not private(key)
    ]
    path = epath.Path(cache) / f"sprites-{size}px-{archives.digest[:8]}.npz"
    if not path.exists():
        _draw_all(icons, size, path, progress)
    try:
        arrays = read_arrays(path, "classes", *(f"side_{units}" for units in SIDES.values()))
    except ValueError as error:
        raise UserError(f"the drawn icons {path} are damaged ({error}); remove them.") from None
    sprites = {word: arrays[f"side_{units}"] for word, units in SIDES.items()}
    classes = arrays["classes"]
    return EmojiCatalogue(
        sprites=sprites,
        classes=classes,
        styles=tuple(icon_set.style for icon_set, _, _ in icons),
        artists={icon_set.style: (icon_set.artist, icon_set.licence) for icon_set in sets},
        things=_things(icons, classes),
    )


def _draw_all(
    icons: list[tuple[IconSet, str, str]], size: int, path: epath.Path, progress: _Progress | None
) -> None:
    sprites: dict[str, list] = {word: [] for word in SIDES}
    for row, (icon_set, _, name) in enumerate(icons):
        if progress and not row % 1000:
            progress(row, len(icons))
        svg = icon_set.svg(name)
        for word, units in SIDES.items():
            sprites[word].append(render_svg(svg, units * size // GRID))
    drawn = {word: np.stack(pictures) for word, pictures in sprites.items()}
    styles = [icon_set.style for icon_set, _, _ in icons]
    classes = _classes(styles, [kin(key) for _, key, _ in icons], drawn["small"])
    named: dict[str, Any] = {f"side_{SIDES[word]}": pictures for word, pictures in drawn.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, classes=classes, **named)
    write_atomic(path, buffer.getvalue())


def render_svg(svg: str, side: int) -> UInt8[np.ndarray, "Y X 4"]:
    """An SVG as RGBA pixels; `UserError` without `resvg-py`."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "data.source=emoji draws SVG with resvg-py, which is not installed; run "
            "pip install resvg-py (the extra `emoji`)."
        ) from None
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


# ----------------------------------------------------------------------------------------- things


def _on_grey(sprites: UInt8[np.ndarray, "M Y X 4"]) -> Float[np.ndarray, "M D"]:
    """Sprites on middle grey, float32, one row of values each."""
    opacity = sprites[..., 3:].astype(np.float32) / 255
    pixels = sprites[..., :3] * opacity + np.float32(128) * (1 - opacity)
    return pixels.reshape(len(sprites), -1)


def _classes(styles: list[str], kins: list[str], small: np.ndarray) -> Int[np.ndarray, " M"]:
    """The number of each image's thing: kin and twins have the same, transitively."""
    parents: dict[str, str] = {name: name for name in kins}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    for left, right in _twins(styles, small):
        parents[root(kins[left])] = root(kins[right])
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(name), len(numbers)) for name in kins])


def _twins(styles: list[str], small: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of images of one style that look the same."""
    for style in dict.fromkeys(styles):
        mine = np.flatnonzero([other == style for other in styles])
        pixels = _on_grey(small[mine])
        lengths = np.square(pixels).sum(1)
        squared = lengths[:, None] - 2 * pixels @ pixels.T + lengths
        close = np.triu(squared < _TWINS**2 * pixels.shape[1], 1)
        yield from mine[np.argwhere(close)].tolist()


def _things(
    icons: list[tuple[IconSet, str, str]], classes: Int[np.ndarray, " M"]
) -> tuple[Thing, ...]:
    """One thing per class that has a name of its own."""
    looks: dict[str, dict[str, int]] = defaultdict(dict)
    slugs: dict[str, str] = {}
    members: dict[int, set[str]] = defaultdict(set)
    for row, (icon_set, key, name) in enumerate(icons):
        if not toned(key):
            looks[key].setdefault(icon_set.style, row)
            slugs.setdefault(key, name)
            members[int(classes[row])].add(key)
    things: dict[str, Thing] = {}
    for keys in members.values():
        key = min(keys, key=lambda key: (-len(looks[key]), len(key), len(slugs[key])))
        name = noun(key, slugs[key])
        mine = tuple(looks[key].items())
        things.setdefault(name, Thing(key, name, mine, _held_out(key, [s for s, _ in mine])))
    return tuple(sorted(things.values(), key=lambda thing: (not thing.shown, number(thing.key))))


def number(*words: str) -> int:
    """A number that words decide, uniform even where words differ little (a checksum is not)."""
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:8], "big")


def _held_out(key: str, styles: list[str]) -> tuple[str, ...]:
    """Which styles of a name training never shows: a hash of its code points decides."""
    if key in _ALWAYS_HELD_OUT or number("name", key) % _HELD_OUT == 0:
        return tuple(styles)
    if len(styles) > 1 and number("style", key) % 2 == 0:
        return (styles[number("which", key) % len(styles)],)
    return ()


def apart(first: Thing, second: Thing) -> bool:
    """Whether training never shows two things together: so it is for one pair in ten."""
    return number("pair", *sorted((first.key, second.key))) % _HELD_OUT == 0
