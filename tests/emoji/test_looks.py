import numpy as np
import pytest

from cm3jax.emoji import looks
from cm3jax.emoji.looks import SIDES, draw_catalogue
from cm3jax.errors import UserError


def test_every_picture_is_drawn_at_both_sizes(archives, pictures):
    count = sum(len(icon_set.names) for icon_set in archives.sets())
    assert len(pictures.classes) == len(pictures.styles) == count == 41
    for size, units in SIDES.items():
        assert pictures.sprites[size].shape == (count, 8 * units, 8 * units, 4)
        assert (pictures.sprites[size][..., 3].max((1, 2)) > 200).all()


def test_twins_and_kin_are_one_thing(pictures):
    """Two flags are the same image in Twemoji; a man and a person of another skin are kin."""
    nouns = set(pictures.by_noun)
    assert "the flag of France" in nouns
    assert "the flag of Clipperton Island" not in nouns
    assert "a person biking" in nouns
    assert not any("man" in noun or "skin" in noun for noun in nouns)
    assert len(nouns) == len(set(pictures.classes.tolist())) == 9
    # Other people's flags of other looks are other things.
    assert (
        pictures.by_noun["the flag of Peru"].looks != pictures.by_noun["the flag of France"].looks
    )


def test_what_is_held_out_depends_only_on_names(pictures):
    france = pictures.by_noun["the flag of France"]
    assert france.held_out == ("Twemoji", "OpenMoji")
    assert not france.shown
    for thing in pictures.things:
        drawn = [style for style, _ in thing.looks]
        assert set(thing.held_out) <= set(drawn)
        assert len(thing.held_out) in (0, 1, len(drawn))
    assert pictures.trained + pictures.unseen == pictures.things


def test_shares_of_what_is_held_out():
    styles = ["Twemoji", "Noto", "Fluent", "OpenMoji"]
    held = [looks._held_out(f"{key:x}", styles) for key in range(4000)]
    assert np.mean([len(one) == 4 for one in held]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([len(one) == 1 for one in held]) == pytest.approx(0.45, abs=0.03)
    which = [styles.index(one[0]) for one in held if len(one) == 1]
    assert np.bincount(which).min() > 350


def test_sprites_are_kept(archives, pictures, tmp_path, monkeypatch):
    first = draw_catalogue(archives, 16, tmp_path)
    monkeypatch.setattr(looks, "render_svg", None)
    again = draw_catalogue(archives, 16, tmp_path)
    assert again.things == first.things
    for size in SIDES:
        np.testing.assert_array_equal(again.sprites[size], first.sprites[size])


def test_sides_that_do_not_fit_are_refused(archives, tmp_path):
    with pytest.raises(UserError, match="multiple of 8"):
        draw_catalogue(archives, 60, tmp_path)
