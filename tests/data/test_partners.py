"""Groups of records whose source does not say what they are about."""

import numpy as np
import pytest

from cm3jax.data.partners import with_partners, word_vectors

CAPTIONS = [
    "the flag of France on the moon",
    "The flag  of France ON the moon",
    "the flag of France on sand",
    "the flag of Kenya on the moon",
    "the flag of Kenya on sand at night",
    "rockets",
]
PICTURES = ["a", "b", "c", "a", "d", "c"]


def _groups(partners, subjects=None):
    """Places of the records of each group, for those of more than one."""
    named = with_partners(subjects or [()] * 6, CAPTIONS, PICTURES, partners)
    groups = {}
    for place, names in enumerate(named):
        for name in names:
            groups.setdefault(name, []).append(place)
    return sorted(group for group in groups.values() if len(group) > 1)


@pytest.mark.parametrize(
    ("partners", "groups"),
    [
        ("subjects", []),
        ("captions", [[0, 1]]),
        ("pictures", [[0, 3], [2, 5]]),
    ],
)
def test_records_without_subjects_are_grouped(partners, groups):
    assert _groups(partners) == groups


def test_captions_are_nearest_that_share_the_rarest_words():
    names = ["mali", "peru", "chad", "oman", "cuba", "laos", "togo", "fiji", "niue", "iran"]
    grounds = ("the moon", "sand", "a wall", "grass")
    captions = [f"the flag of {name} on {ground}" for ground in grounds for name in names]
    found = with_partners([()] * 41, [*captions, "rockets"], [""] * 41, "nearest")
    for place, names_of in enumerate(found[:40]):
        assert names_of == (f"nearest: the flag of {names[place % 10]} on the moon",)
    assert found[40] == ("nearest: rockets",)


def test_records_that_name_subjects_keep_them():
    named = [("x",), ("y",), (), (), ("x", "y"), ()]
    assert _groups("captions", named) == [[0, 4], [1, 4]]


def test_words_that_all_captions_share_weigh_little():
    vectors = word_vectors([f"a flag of {name}" for name in ("mali", "peru", "mali", "chad")])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    same, other = vectors[0] @ vectors[2], vectors[0] @ vectors[1]
    assert same == pytest.approx(1)
    assert other < 0.7
