"""The four sets of images, as npm packages of SVG.

    iconify-json-noto-1.2.9.tgz         package/icons.json      name -> SVG body, sides
                                        package/chars.json      code points -> name
                                        package/info.json       artist and licence

Sets name the same thing differently ("pouting-face", "enraged-face"); code points do not.
"""

import dataclasses
import functools
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from cm3jax.errors import UserError
from cm3jax.io.checksums import file_entry
from cm3jax.io.files import digest

PACKAGES = {
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "noto": "@iconify-json/noto@1.2.9",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "openmoji": "@iconify-json/openmoji@1.2.29",
}
"""The sets, those first whose names are taken where names differ."""

STYLES = dict(zip(PACKAGES, ("Twemoji", "Noto", "Fluent", "OpenMoji"), strict=True))
"""What captions call the sets."""


def instructions(folder: epath.PathLike) -> str:
    """The command that puts the archives into a folder."""
    return f"npm pack --pack-destination {folder} {' '.join(PACKAGES.values())}"


@dataclasses.dataclass(frozen=True)
class IconSet:
    """One artist's images."""

    style: str
    """A value of `STYLES`."""
    artist: str
    licence: str
    """SPDX identifier."""
    names: Mapping[str, str]
    """The set's own name of each image, by its code points ("1f1eb-1f1f7") without variation
    selectors, in the set's order."""
    _icons: Mapping[str, Mapping]
    _sides: tuple[float, float]

    def svg(self, name: str) -> str:
        """The image of one of `names`, padded to a square."""
        icon = self._icons[name]
        width, height = icon.get("width", self._sides[0]), icon.get("height", self._sides[1])
        side = max(width, height)
        box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{icon["body"]}</svg>'
        )


@dataclasses.dataclass(frozen=True)
class Archives:
    """The four archives in a folder."""

    paths: Mapping[str, epath.Path]
    """By the names of `PACKAGES`."""

    @classmethod
    def find(cls, folder: epath.PathLike) -> "Archives":
        """One archive of each set; `UserError` says how to get what is missing."""
        folder, paths = epath.Path(folder), {}
        for name in PACKAGES:
            found = sorted(folder.glob(f"iconify-json-{name}-[0-9]*.tgz"))
            if len(found) != 1:
                problem = "is missing" if not found else "stands there more than once"
                raise UserError(
                    f"data.source=emoji reads one archive of each of four sets of images from "
                    f"{folder}, and {name} {problem}; make the folder and run: "
                    f"{instructions(folder)}"
                )
            paths[name] = found[0]
        return cls(paths)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the archives' bytes."""
        return digest(repr([file_entry(path) for path in self.paths.values()]))

    def sets(self) -> list[IconSet]:
        """All sets; `UserError` names an archive that can't be read."""
        return [_read(path, STYLES[name]) for name, path in self.paths.items()]


def _read(path: epath.Path, style: str) -> IconSet:
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file) as archive:
            icons, chars, info = (_member(archive, part) for part in ("icons", "chars", "info"))
        return IconSet(
            style=style,
            artist=f"{info['name']} by {info['author']['name']}",
            licence=info["license"]["spdx"],
            names={_key(points): name for points, name in chars.items()},
            _icons=icons["icons"],
            _sides=(float(icons.get("width", 16)), float(icons.get("height", 16))),
        )
    except (KeyError, ValueError, OSError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"{path} can't be read as an archive of icons ({type(error).__name__}: {error}); "
            "remove it and get it again."
        ) from None


def _member(archive: tarfile.TarFile, part: str) -> Any:
    """The content of a JSON file of an archive."""
    file = archive.extractfile(f"package/{part}.json")
    if file is None:
        raise ValueError(f"package/{part}.json is a folder")
    return json.load(file)


def _key(points: str) -> str:
    return "-".join(point for point in points.split("-") if point != "fe0f")
