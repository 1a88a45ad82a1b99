import tarfile

import numpy as np
import pytest

from cm3jax.emoji.archives import Archives
from cm3jax.emoji.looks import render_svg
from cm3jax.errors import UserError
from tests.emoji import small


def test_each_set_says_whose_it_is(archives):
    assert [(s.style, s.artist, s.licence) for s in archives.sets()] == [
        ("Twemoji", "Twitter Emoji by Twitter", "CC-BY-4.0"),
        ("Noto", "Noto Emoji by Google Inc", "Apache-2.0"),
        ("Fluent", "Fluent Emoji Flat by Microsoft Corporation", "MIT"),
        ("OpenMoji", "OpenMoji by OpenMoji", "CC-BY-SA-4.0"),
    ]


def test_an_icon_that_is_not_square_is_padded(archives):
    twemoji = archives.sets()[0]
    drawn = render_svg(twemoji.svg("watermelon"), 36)  # 36 x 25.22
    rows = np.flatnonzero(drawn[..., 3].any(1))
    assert drawn.shape == (36, 36, 4)
    assert abs((rows[0] + rows[-1]) / 2 - 17.5) < 1  # in the middle


def test_a_missing_or_doubled_archive_raises_user_error_with_the_command(tmp_path):
    folder = small.pack(tmp_path)
    file = folder / "iconify-json-noto-1.2.0.tgz"
    (folder / "iconify-json-noto-1.1.0.tgz").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="noto stands there more than once"):
        Archives.find(folder)
    for copy in folder.glob("*noto*"):
        copy.unlink()
    with pytest.raises(UserError, match=r"noto is missing; .*npm pack .*@iconify-json/noto@"):
        Archives.find(folder)


def test_a_torn_archive_is_named(tmp_path):
    folder = small.pack(tmp_path)
    file = folder / "iconify-json-openmoji-1.2.0.tgz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"openmoji-1.2.0.tgz can't be read"):
        Archives.find(folder).sets()


def test_an_archive_with_a_folder_in_a_files_place_is_named(tmp_path):
    folder = small.pack(tmp_path)
    with tarfile.open(folder / "iconify-json-noto-1.2.0.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("package/icons.json")
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    with pytest.raises(UserError, match=r"noto-1.2.0.tgz can't be read .*icons.json is a folder"):
        Archives.find(folder).sets()
