import pytest

from cm3jax.emoji.names import is_flag, kin, noun, private, toned
from cm3jax.retrieval.clauses import clauses


@pytest.mark.parametrize(
    ("key", "slug", "called"),
    [
        ("1f34e", "red-apple", "a red apple"),
        ("1f419", "octopus", "an octopus"),
        ("1f984", "unicorn", "a unicorn"),
        ("1f332", "umbrella", "an umbrella"),
        ("2702", "scissors", "scissors"),
        ("1f382", "bus", "a bus"),
        ("1f46c", "men-holding-hands", "men holding hands"),
        ("1f3f9", "bow-and-arrow", "a bow-and-arrow"),
        ("1f1eb-1f1f7", "flag-france", "the flag of France"),
        ("1f1fa-1f1f8", "flag-united-states", "the flag of the United States"),
        ("1f1e7-1f1e6", "flag-bosnia-and-herzegovina", "the flag of Bosnia-and-Herzegovina"),
        ("1f3f4-e0065-e0073-e007f", "madrid-flag", "the flag of Madrid"),
    ],
)
def test_names_are_noun_phrases_of_one_clause(key, slug, called):
    assert noun(key, slug) == called
    assert clauses(called) == [called]


def test_kin_differ_only_in_skin_and_gender():
    astronauts = ["1f9d1-200d-1f680", "1f468-200d-1f680", "1f469-1f3fd-200d-1f680"]
    assert {kin(key) for key in astronauts} == {"1f9d1-200d-1f680"}
    bikers = ["1f6b4", "1f6b4-1f3ff", "1f6b4-200d-2642", "1f6b4-1f3fb-200d-2640"]
    assert {kin(key) for key in bikers} == {"1f6b4"}
    assert kin("1f34e") != kin("1f34f")  # red and green apple


def test_flags_tones_and_private_points():
    assert is_flag("1f1eb-1f1f7")
    assert not is_flag("1f3f4-200d-2620")  # pirates have no country
    assert not is_flag("1f1eb")
    assert toned("1f44b-1f3ff")
    assert not toned("1f44b")
    assert private("e0a1")
    assert not private("1f34e")
