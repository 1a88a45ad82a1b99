import dataclasses

from cm3jax.config import DecodeConfig, RetrievalConfig
from cm3jax.evaluate.comparison import compare, score_differences
from cm3jax.evaluate.protocol import Score, sampling, scores_from_json, scores_to_json
from tests.evaluate.test_protocol import score


def test_differences_name_the_protocol_before_the_figures():
    left = {"a": score(100), "b": score(100)}
    right = {"a": score(90), "b": score(100, n=250, seed=1), "c": score(1)}
    found = [(d.score, d.what, d.of_protocol) for d in score_differences(left, right)]
    assert found == [
        ("b", "seed", True),
        ("b", "n", True),
        ("c", "present", True),
        ("a", "value", False),
        ("b", "value", False),
    ]
    assert score_differences(left, left) == []


def test_a_difference_of_every_score_takes_one_line():
    left = {"a": score(100), "b": score(100)}
    right = {"a": score(100, weights="cc"), "b": score(90, weights="cc")}
    lines = compare(left, right).splitlines()
    assert lines[0] == "protocols differ in:"
    assert lines[1] == "  weights: bb | cc   (every score)"
    assert lines[2] == "figures differ:"
    assert lines[3] == (
        "  b: 0.5 (0.4314–0.5686, n = 200) | 0.45 (0.3826–0.5192, n = 200)   (intervals overlap)"
    )
    assert len(lines) == 4
    assert compare(left, left).startswith("no difference")
    assert "(intervals apart)" in compare({"a": score(10)}, {"a": score(190)})


def drawn(decode: DecodeConfig, retrieval: RetrievalConfig | None = None) -> dict[str, Score]:
    return {"a": score(100, **sampling(decode, retrieval))}


CHANGES = {
    "temperature": 0.5,
    "temperature_range": (0.5, 1.0),
    "top_p": 0.9,
    "top_k": 1,
    "guidance_scale": 3.0,
    "edit_scales": (2.0, 1.0),
    "contrast": "all",
    "contrast_k": 4,
    "contrast_alpha": 0.3,
    "contrast_temperature": 0.9,
    "grammar": False,
    "max_text_tokens": 32,
    "max_document_tokens": 48,
}
"""Another value for every setting of sampling but those that change no sample."""
SAME = {"batch": 3, "speculate": 8}


def test_every_setting_that_changes_samples_is_in_the_stamp():
    fields = {field.name for field in dataclasses.fields(DecodeConfig)}
    assert fields == CHANGES.keys() | SAME.keys()
    for name, value in CHANGES.items():
        # What contrasts has no force without any.
        usual = DecodeConfig(contrast="half" if name.startswith("contrast_") else "none")
        other = dataclasses.replace(usual, **{name: value})
        found = {d.what for d in score_differences(drawn(usual), drawn(other))}
        assert found - {"sampler", "guidance"} == {f"decode.{name}"}
    assert score_differences(drawn(DecodeConfig()), drawn(DecodeConfig(**SAME))) == []


def test_top_k_and_contrastive_decoding_are_told_apart():
    greedy, contrastive = drawn(DecodeConfig(top_k=1)), drawn(DecodeConfig(contrast="all"))
    found = {d.what: (d.left, d.right) for d in score_differences(greedy, contrastive)}
    assert found == {"decode.contrast": ("none", "all"), "decode.top_k": (1, 0)}


def test_how_documents_are_searched_is_in_the_stamp():
    decode, one = DecodeConfig(), RetrievalConfig()
    for name, value in (("relevance_floor", 0.4), ("pool", 9), ("clauses", True)):
        other = dataclasses.replace(one, **{name: value})
        found = [d.what for d in score_differences(drawn(decode, one), drawn(decode, other))]
        assert found == [f"retrieval.{name}"]
    moved = dataclasses.replace(one, encoder="elsewhere/clip")
    assert score_differences(drawn(decode, one), drawn(decode, moved)) == []
    # Without any documents there is nothing to compare; `retrieved` says so.
    assert score_differences(drawn(decode), drawn(decode, one)) == []


def test_a_result_of_before_settings_were_stored_does_not_claim_them():
    plain = scores_to_json(drawn(DecodeConfig()))
    assert scores_from_json(plain) == drawn(DecodeConfig())
    del plain["details"]["a"]["protocol"]["settings"]
    old = scores_from_json(plain)
    assert old["a"].protocol.settings is None
    found = score_differences(old, drawn(DecodeConfig()))
    assert [(d.what, d.left, d.right) for d in found] == [("settings", "not known", "known")]
