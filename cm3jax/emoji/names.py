"""What things are called in captions, and which of them are kin.

1f34e                       red-apple                       a red apple
1f1eb-1f1f7                 flag-france                     the flag of France
1f9d1-200d-1f680            astronaut                       an astronaut
"""

import re

_TONES = {f"1f3f{digit}" for digit in "bcdef"}
_GENDERS = {"2640", "2642"}
_PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}
_JOINER = "200d"
_SMALL_WORDS = {"of", "and", "the", "da", "d"}
_WITH_ARTICLE = re.compile(
    "^(united-.*|.*-(islands|republic|territory|territories)|bahamas|comoros|maldives|netherlands"
    "|philippines|seychelles)$"
)
_PLURAL = re.compile("[^aius]s$|^(wo)?men |^people ")
_VOWEL = re.compile("[aeio]|u(?!ni)")


def toned(key: str) -> bool:
    """Whether code points name a skin tone."""
    return not _TONES.isdisjoint(key.split("-"))


def private(key: str) -> bool:
    """Whether they are nobody's but a set's own: OpenMoji has brands and persons there."""
    return any(0xE000 <= int(point, 16) <= 0xF8FF for point in key.split("-"))


def kin(key: str) -> str:
    """Code points shared by things that differ only in skin tone or gender."""
    points = [point for point in key.split("-") if point not in _TONES | _GENDERS]
    points = [_PERSON.get(point, point) for point in points]
    return "-".join(points).removesuffix(f"-{_JOINER}")


def is_flag(key: str) -> bool:
    """Whether it is the flag of a country or of a part of one."""
    points = key.split("-")
    regional = all(0x1F1E6 <= int(point, 16) <= 0x1F1FF for point in points)
    return (regional and len(points) == 2) or "e007f" in points


def noun(key: str, slug: str) -> str:
    """A set's own name of a thing as a noun phrase, without a comma or a free-standing "and":
    captions use those only between things."""
    if is_flag(key):
        return f"the flag of {_country(slug.removeprefix('flag-').removesuffix('-flag'))}"
    name = slug.replace("-", " ").replace(" and ", "-and-")
    if _PLURAL.search(name):
        return name
    return f"{'an' if _VOWEL.match(name) else 'a'} {name}"


def _country(slug: str) -> str:
    words = [word if word in _SMALL_WORDS else word.capitalize() for word in slug.split("-")]
    name = " ".join(words).replace(" and ", "-and-")
    return f"the {name}" if _WITH_ARTICLE.search(slug) else name
