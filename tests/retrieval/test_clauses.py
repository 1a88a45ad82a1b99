import pytest

from cm3jax.retrieval.clauses import clauses


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a red fox", ["a red fox"]),
        ("a sandy hand", ["a sandy hand"]),
        ("a fox and a hen", ["a fox", "a hen"]),
        ("on sky, a fox; a hen and an owl", ["on sky", "a fox", "a hen", "an owl"]),
        (" , ", [" , "]),
    ],
)
def test_a_text_is_cut_at_commas_semicolons_and_and(text, parts):
    assert clauses(text) == parts
