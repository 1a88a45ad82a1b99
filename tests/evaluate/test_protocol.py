import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cm3jax.config import DecodeConfig, RetrievalConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import (
    PromptSet,
    Protocol,
    Score,
    by_licence,
    code_version,
    foreign_stamp,
    licensed_share,
    sampling,
    scores_from_json,
    scores_to_json,
    stamp,
    wilson,
)
from cm3jax.io.files import digest

PROTOCOL = Protocol(
    prompts="emblem",
    prompts_hash="aa",
    split="test",
    retrieved=2,
    documents="live retrieval",
    bank="5000 documents",
    sampler="temperature 1",
    guidance=1.0,
    samples=1,
    seed=0,
    licensed_share=1.0,
    reader="emblems.read",
    weights="bb",
    code_version="0",
)


def score(hits: int, n: int = 200, **protocol) -> Score:
    verdicts = [True] * hits + [False] * (n - hits)
    return Score.share(verdicts, 0.001, dataclasses.replace(PROTOCOL, **protocol))


def test_a_score_with_documents_is_never_called_bare_zero_shot():
    assert PROTOCOL.regime == "zero-shot, 2 retrieved"
    assert dataclasses.replace(PROTOCOL, retrieved=0).regime == "zero-shot"


def test_an_unknown_licence_does_not_count_as_licensed():
    assert licensed_share({"CC0-1.0": 6, "unknown": 1, "": 1}) == 0.75
    assert licensed_share({"CC-BY-4.0": 0.9, "unknown": 0.1}) == pytest.approx(0.9)
    assert licensed_share({}) == 1.0
    assert by_licence({"MIT": 6, "CC0-1.0": 2}) == {"CC0-1.0": 0.25, "MIT": 0.75}


def test_wilson_agrees_with_published_values():
    # Newcombe (1998), table I, method 3: 81/263 and 0/20.
    np.testing.assert_allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(wilson(0, 20), (0.0, 0.1611), atol=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_wilson_covers_the_true_share_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = rng.binomial(200, 0.93, size=4000)
    covered = np.mean([low <= 0.93 <= high for low, high in (wilson(int(h), 200) for h in hits)])
    assert 0.93 < covered < 0.975


def test_no_verdicts_are_no_score():
    with pytest.raises(ValueError, match="no verdicts"):
        Score.share([], 0.0, PROTOCOL)
    with pytest.raises(ValueError, match="no values"):
        Score.mean([], PROTOCOL)


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.exponential(2.0, size=(500, 100))
    intervals = [Score.mean(row.tolist(), PROTOCOL).interval for row in draws]
    assert 0.91 < np.mean([low <= 2.0 <= high for low, high in intervals]) < 0.97
    assert Score.mean([3.0], PROTOCOL).interval == (3.0, 3.0)


def test_values_of_0_and_1_are_a_share_and_others_a_mean_within_them():
    assert Score.of([True, False], 0.5, PROTOCOL) == Score.share([True, False], 0.5, PROTOCOL)
    assert Score.of([1.0, 0.0], 0.5, PROTOCOL) == Score.share([True, False], 0.5, PROTOCOL)
    score = Score.of([0.9, 1.0, 1.0], 0.2, PROTOCOL)
    assert (score.value, score.n, score.chance) == (pytest.approx(2.9 / 3), 3, 0.2)
    assert 0.85 < score.interval[0] < score.value < score.interval[1] == 1
    with pytest.raises(ValueError, match="no values"):
        Score.of([], 0.2, PROTOCOL)


def test_a_stamp_says_what_follows_from_its_parts():
    prompts = PromptSet.of("p", "s", ["a text", np.zeros(3)])
    made = stamp(prompts, "r", {"decoder": "a", "text": "b"}, licences={"CC0-1.0": 3, "": 1})
    assert made.prompts_hash == digest("a text", np.zeros(3))
    assert made.weights == digest("a", "b")
    assert (made.licensed_share, made.licences["CC0-1.0"]) == (0.75, 0.75)
    assert (made.regime, made.retrieved, made.bank) == ("nothing drawn", 0, "none")
    drawn = stamp(prompts, "r", "w", DecodeConfig(guidance_scale=2.0), retrieved=2, seed=5)
    assert (drawn.weights, drawn.guidance, drawn.seed) == ("w", 2.0, 5)
    assert drawn.regime == "zero-shot, 2 retrieved"
    foreign = foreign_stamp(prompts, "r")
    assert {foreign.weights, foreign.bank, foreign.documents, foreign.regime} == {"not known"}
    assert foreign.licensed_share == 0


def test_every_protocol_is_made_in_one_place():
    """Whoever needs a stamp calls `stamp`, so that none forgets what follows from its parts."""
    root = Path(__file__).parents[2]
    makers = [
        path.name
        for part in ("cm3jax", "experiments", "launch")
        for path in (root / part).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Protocol")
    ]
    assert set(makers) == {"protocol.py"}


def test_a_result_of_before_a_field_was_one_has_its_default():
    plain = scores_to_json({"a": score(1)})
    del plain["details"]["a"]["protocol"]["rerank"]
    assert scores_from_json(plain) == {"a": score(1)}


def test_the_leaf_of_a_dotted_path_is_the_number_itself():
    scores = {"heldout.docs_2": score(186), "heldout.docs_0": score(0), "caption_exact": score(190)}
    plain = scores_to_json(scores)
    assert plain["heldout"]["docs_2"] == 0.93
    assert plain["caption_exact"] == 0.95
    detail = plain["details"]["heldout"]["docs_2"]
    assert (detail["n"], detail["chance"]) == (200, 0.001)
    assert detail["protocol"]["regime"] == "zero-shot, 2 retrieved"
    assert scores_from_json(plain) == scores
    both = scores_from_json({"shipped": plain, "trained_here": plain, "seconds": {"data": 3}})
    assert both == {
        f"{model}.{k}": v for model in ("shipped", "trained_here") for k, v in scores.items()
    }


def test_the_code_version_names_the_release_and_the_sources():
    version, _, sources = code_version().partition("+")
    assert version.count(".") == 2
    assert len(sources) == 16


def test_only_what_is_drawn_can_be_zero_shot():
    assert dataclasses.replace(PROTOCOL, **sampling(None)).regime == "nothing drawn, 2 retrieved"
    plain = dataclasses.replace(PROTOCOL, retrieved=0, **sampling(None))
    assert (plain.regime, plain.settings) == ("nothing drawn", {})
    assert dataclasses.replace(PROTOCOL, sampler="not known").regime == "not known"
    searched = sampling(None, RetrievalConfig(pool=9))["settings"]
    assert searched["retrieval.pool"] == 9


@pytest.mark.parametrize(
    "wrong", [{"settings": []}, {"licences": {"x": "y"}}, {"prompts": 3}, {"retrieved": "2"}]
)
def test_a_stamp_of_wrong_types_raises_user_error(wrong):
    stored = scores_to_json({"emblem.all": score(3)})
    stored["details"]["emblem"]["all"]["protocol"] |= wrong
    with pytest.raises(
        UserError, match=f"the score emblem.all is damaged .*its '{next(iter(wrong))}'"
    ):
        scores_from_json(stored)


def test_scores_nested_without_end_raise_user_error():
    deep: dict = {}
    for _ in range(2000):
        deep = {"a": deep}
    with pytest.raises(UserError, match="nested too deep"):
        scores_from_json(deep)


def test_settings_that_are_out_of_force_are_in_no_stamp():
    plain = sampling(DecodeConfig())
    assert sampling(DecodeConfig(batch=3, speculate=8)) == plain
    for change in ({"contrast_k": 3}, {"contrast_alpha": 0.1}, {"contrast_temperature": 2.0}):
        assert sampling(DecodeConfig(**change)) == plain
        assert sampling(DecodeConfig(contrast="half", **change)) != sampling(
            DecodeConfig(contrast="half")
        )
    ranged = {"temperature_range": (0.7, 1.2)}
    assert sampling(DecodeConfig(temperature=0.5, **ranged)) == sampling(DecodeConfig(**ranged))
    assert sampling(DecodeConfig(temperature=0.5)) != plain != sampling(DecodeConfig(**ranged))
