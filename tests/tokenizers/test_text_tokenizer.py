"""SentencePiece through the real library: nothing lost, nothing unknown, nothing controlled."""

import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cm3jax.errors import UserError
from cm3jax.tokenizers import text_tokenizer as text
from cm3jax.tokenizers.text_tokenizer import MODEL_FILE, TextTokenizer

CAPTIONS = [
    f"a {size} {colour} {shape} at {row}{column}, left of the flag of {name}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for row in "abcd"
    for column in (1, 2, 3, 4)
    for name in ("Kalmo", "Tarvin", "Molkata")
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return TextTokenizer.train(CAPTIONS, 380, request.param)


@settings(max_examples=300, deadline=None)
@given(text=st.text())
@example("")
@example("  two  spaces  ")
@example("line\nline\r\n\tend\n")
@example("\u2581 is not a space, nor is \ue000 or \ue0000 or \ue0001\u2581")
@example("<break> <mask> <infill> <unk> <s> </s> <pad> <0x41> <reserved:0>")
@example("e\u0301 \u00e9 \ufb01 ① \u3000 \u200b \ufeff \U0001f98a")
def test_round_trip(tokenizer, text):
    pieces = tokenizer.encode(text)
    assert tokenizer.decode(pieces) == text
    assert all(0 < piece < tokenizer.pieces for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_pieces_decode(tokenizer, data):
    ids = st.integers(0, tokenizer.pieces - 1)
    assert isinstance(tokenizer.decode(data.draw(st.lists(ids))), str)


def test_words_are_pieces_and_short():
    tokenizer = TextTokenizer.train(CAPTIONS, 380, "bpe")
    caption = "a large green square at c3, left of the flag of Kalmo"
    assert len(tokenizer.encode(caption)) <= 24
    # A word is the same piece at the start and in the middle.
    assert tokenizer.encode("large")[0] == tokenizer.encode("a large")[1]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_exact_number_of_pieces(algorithm):
    few = TextTokenizer.train(["ab ab cd"], 300, algorithm)
    assert few.pieces == 300
    reserved = "<reserved:0> ab"
    assert few.decode(few.encode(reserved)) == reserved
    assert few.decode(range(1, 4)) == ""


def test_training_reads_a_stream_and_is_deterministic(tokenizer):
    again = TextTokenizer.train(iter(CAPTIONS), 330)
    assert again.fingerprint == TextTokenizer.train(CAPTIONS, 330).fingerprint
    assert again.fingerprint != TextTokenizer.train(CAPTIONS[:-1], 330).fingerprint


def test_a_long_stream_is_sampled_from_all_its_parts(monkeypatch):
    monkeypatch.setattr(text, "LARGEST_SAMPLE", 1000)
    kept = []

    def train(texts, pieces, algorithm, reserved):
        kept.append(texts)
        return learn(texts, pieces, algorithm, reserved)

    learn = text._train
    monkeypatch.setattr(text, "_train", train)
    stream = [f"{CAPTIONS[number % len(CAPTIONS)]} {number}" for number in range(10_000)]
    tokenizers = [TextTokenizer.train(iter(stream), 340) for _ in range(2)]
    assert tokenizers[0].fingerprint == tokenizers[1].fingerprint
    numbers = [int(caption.split()[-1]) for caption in kept[0]]
    assert len(set(numbers)) == 1000
    # A thousand draws below 10,000: their mean is within 4.4 of its standard deviations.
    assert abs(sum(numbers) / 1000 - 5000) < 400


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_training_takes_any_text(algorithm):
    odd = ["nul\0 tab\t line\nline", "\u2581", "", " ", "\ufffd\u2585\U0001f98a"]
    tokenizer = TextTokenizer.train(odd * 3, 300, algorithm)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in odd)


def test_bad_training_input():
    with pytest.raises(UserError, match=r"no record .* has a caption; docs/data\.md"):
        TextTokenizer.train([], 300)
    texts = ["".join(map(chr, range(200, 600)))]
    with pytest.raises(UserError, match="300 text pieces can't be learnt") as few:
        TextTokenizer.train(texts, 300)
    (least,) = re.findall(r"give at least (\d+) as vocab.text_pieces", str(few.value))
    with pytest.raises(UserError, match="can't be learnt"):
        TextTokenizer.train(texts, int(least) - 1)
    assert TextTokenizer.train(texts, int(least)).pieces <= int(least)


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "run")
    loaded = TextTokenizer.load(tmp_path / "run")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(CAPTIONS[0]) == tokenizer.encode(CAPTIONS[0])


def test_missing_and_damaged_files(tokenizer, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        TextTokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    whole = (tmp_path / MODEL_FILE).read_bytes()
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        (tmp_path / MODEL_FILE).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            TextTokenizer.load(tmp_path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_its_place_raises_user_error(tmp_path, make):
    make(tmp_path / MODEL_FILE)
    with pytest.raises(UserError, match=r"text\.model would be a text tokenizer, but it is a"):
        TextTokenizer.load(tmp_path)


NEW = "zyxophon quarbit wumbledor plinketty"


@pytest.mark.parametrize("texts", [[f"{NEW} " * 200] * 20, [f"{NEW} \u2585", f"\0{NEW}"] * 200])
def test_long_texts_and_reserved_characters_are_learnt_from(texts):
    tokenizer = TextTokenizer.train([*CAPTIONS, *texts], 420)
    assert len(tokenizer.encode(NEW)) == 4, "each word is a piece"
    assert tokenizer.decode(tokenizer.encode(f"a\u2585b {NEW}")) == f"a\u2585b {NEW}"


@pytest.mark.parametrize("letters", [4192, 4193, 9000])
def test_an_endless_word_is_cut_between_characters(letters):
    tokenizer = TextTokenizer.train(["é" * letters], 280)
    assert len(tokenizer.encode("é" * 64)) < 64


def test_halves_of_surrogate_pairs_raise_user_error(tokenizer):
    for wrong in ("\ud800", "caf\udce9"):
        with pytest.raises(UserError, match=r"is not UTF-8: character . is half a surrogate"):
            tokenizer.encode(wrong)
