"""What an image shows, and its caption.

    the flag of France on the moon
    a small red apple at the top left in the sky
    a red apple at the left and a rocket in Noto's style at the right on sand

A thing is at one of nine places; one whose place is not told is in the centre, one that is
not small fills three quarters of the side, and a style that is not told may be any. Things of a
pair are small.
"""

import dataclasses
import json
import re

from cm3jax.emblems.scene import PLACES
from cm3jax.emoji.grounds import GROUNDS
from cm3jax.emoji.looks import GRID, SIDES, EmojiCatalogue, Thing

CENTRE = PLACES.index("centre")


@dataclasses.dataclass(frozen=True)
class Placed:
    """A thing in an image."""

    noun: str
    style: str
    place: int = CENTRE
    """A number in `PLACES`."""
    size: str = ""
    """A key of `SIDES`."""
    tells_style: bool = True
    """Whether the caption says whose image it is."""

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of its upper left unit."""
        step = (GRID - SIDES[self.size]) // 2
        return self.place // 3 * step, self.place % 3 * step

    def overlaps(self, other: "Placed") -> bool:
        """Whether two things would cover the same unit."""
        gaps = [abs(a - b) for a, b in zip(self.corner, other.corner, strict=True)]
        return max(gaps) < max(SIDES[self.size], SIDES[other.size])


@dataclasses.dataclass(frozen=True)
class EmojiScene:
    """Everything in one image; equal scenes are equal images."""

    ground: str
    """A key of `GROUNDS`."""
    things: tuple[Placed, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """What it is about."""
        return tuple(placed.noun for placed in self.things)

    def known(self, catalogue: EmojiCatalogue) -> tuple[Thing, ...]:
        """The things of the catalogue."""
        return tuple(catalogue.by_noun[placed.noun] for placed in self.things)

    def to_json(self) -> str:
        """One line of JSON, from which `from_json` makes an equal scene."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EmojiScene":
        """The scene that `to_json` wrote."""
        value = json.loads(text)
        return cls(value["ground"], tuple(Placed(**placed) for placed in value["things"]))


def emoji_caption(scene: EmojiScene) -> str:
    """The scene in words; "and" is only between its things."""
    return f"{' and '.join(map(_clause, scene.things))} {GROUNDS[scene.ground]}"


def caption_names(caption: str, noun: str) -> bool:
    """Whether a caption of one thing calls it so: not by a part of another name ("a cat" is no
    name of "a cat face")."""
    bare = re.sub("^(a|an|the) ", "", noun)
    return re.match(rf"((a|an|the) )?(small )?{re.escape(bare)} (in|at|on) ", caption) is not None


def _clause(placed: Placed) -> str:
    words = placed.noun
    if placed.size:
        article, _, rest = words.partition(" ")
        known = article in ("a", "an", "the")
        words = (
            f"{'the' if article == 'the' else 'a'} {placed.size} {rest}"
            if known
            else (f"{placed.size} {words}")
        )
    if placed.tells_style:
        words += f" in {placed.style}'s style"
    return words if placed.place == CENTRE else f"{words} at the {PLACES[placed.place]}"
