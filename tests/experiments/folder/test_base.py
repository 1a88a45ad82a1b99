import pytest

from cm3jax.errors import UserError
from cm3jax.sequence.vocab import Vocab
from experiments.chain import Choices
from experiments.folder.base import chain


@pytest.mark.parametrize(
    ("side", "codes", "field"), [(32, 64, 4), (64, 256, 4), (128, 256, 8), (256, 1024, 8)]
)
def test_a_side_decides_the_codes_and_every_member_agrees(side, codes, field):
    members = chain(Choices(side=side), "photos", "runs/mine", "data/mine")
    for part, member in members.items():
        assert (member.data.source, member.run_dir) == ("photos", f"runs/mine/{part}")
        assert member.vqgan.grid**2 == member.vocab.grid**2 == codes
        assert member.vqgan.downsample == field
        assert member.data.image_size == member.vqgan.image_size == member.clip.image_size == side
        assert member.clip.text_vocab == member.vocab.text_pieces + 2
        assert member.tokenizers.text == members["text"].run_dir
        assert member.tokenizers.image == members["vqgan"].run_dir
        assert member.retrieval.encoder == members["clip"].run_dir
        assert (member.data.corpus, member.data.bank) == ("data/mine/corpus", "data/mine/bank")
    # Two documents and the query, each with a text of 60 tokens, stand in one row.
    row = 2 + 3 * (codes + 60 + 2) + 3
    assert members["decoder"].model.context >= row


def test_choices_reach_the_members():
    decoder = chain(Choices(128, codes=1024, codebook=512, pieces=600, width=512, context=4096))[
        "decoder"
    ]
    assert (decoder.vocab.grid, decoder.vqgan.codes) == (32, 512)
    model = decoder.model
    assert (model.layers, model.width, model.heads, model.head_width) == (10, 512, 16, 32)
    assert (model.ffn, model.context) == (2048, 4096)
    assert Vocab(decoder.vocab).size == 32 + 512 + 600


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"side": 100}, "none of 32, 64, 128 and 256"),
        ({"side": 64, "codes": 100}, "give 64, 256, 1024, or 0"),
        ({"side": 256, "codes": 16}, "squares of 2, 4 or 8"),
        ({"width": 100}, "multiple of 32"),
        ({"context": 100}, "no room for a text and 256 codes"),
        ({"pieces": 1}, "at least 2"),
    ],
)
def test_choices_that_fit_nothing_are_refused(choices, said):
    with pytest.raises(UserError, match=said):
        Choices(**choices)
