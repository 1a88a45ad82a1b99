"""Against `reference/captions.json` and `words.json.gz`, which pycocoevalcap and Stanford's
tokenizer made."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.caption_scores import score_captions
from cm3jax.evaluate.ptb import tokens

STORED = json.loads((Path(__file__).parent / "reference/captions.json").read_text())


@pytest.mark.parametrize("line", STORED["lines"], ids=lambda line: line["caption"][:20])
def test_words_are_those_of_the_stanford_tokenizer(line):
    assert tokens(line["caption"]) == line["words"]


def test_words_of_7411_odd_captions_are_those_of_the_stanford_tokenizer():
    """Emoji, ampersands, times, clipped words, abbreviations, fractions, entities, markup,
    currencies, addresses, hyphens, file names."""
    content = (Path(__file__).parent / "reference/words.json.gz").read_bytes()
    stored = json.loads(gzip.decompress(content))
    apart = {text: words for text, words in stored if " ".join(tokens(text)) != words}
    assert len(stored) == 7411
    assert apart == {}


@pytest.mark.parametrize("stored", STORED["sets"], ids=lambda stored: str(len(stored["captions"])))
def test_scores_are_those_of_pycocoevalcap(stored):
    found = score_captions(stored["captions"], stored["references"])
    for name in ("bleu", "rouge_l", "cider"):
        np.testing.assert_allclose(getattr(found, name), stored[name], atol=1e-6, rtol=0)


def test_a_caption_equal_to_all_references_is_perfect():
    texts = ["a cat sits on the old mat", "two dogs run over green grass", "one red bus stops"]
    found = score_captions(texts, [[text] for text in texts])
    np.testing.assert_allclose(found.bleu, 1)
    np.testing.assert_allclose(found.rouge_l, 1)
    np.testing.assert_allclose(found.cider, 10)


def test_what_cannot_be_scored_raises_user_error():
    with pytest.raises(UserError, match="image 1 has no reference"):
        score_captions(["a cat", "a dog"], [["a cat"], []])
    with pytest.raises(UserError, match="no captions"):
        score_captions([], [])
