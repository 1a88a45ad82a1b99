import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax.config import VocabConfig
from cm3jax.errors import UserError
from cm3jax.sequence.vocab import Modality, Vocab

SMALL = VocabConfig(specials=12, image_codes=20, text_pieces=30, sentinels=8, grid=2)


def test_the_papers_table_has_65536_ids():
    vocab = Vocab(VocabConfig())
    assert vocab.size == 65536
    assert (vocab.first_image, vocab.first_text, vocab.image_tokens) == (1024, 9216, 1024)


@pytest.mark.parametrize("xp", [np, jnp])
def test_every_id_has_one_modality(xp):
    vocab = Vocab(SMALL)
    kinds = np.asarray(vocab.modality(xp.arange(vocab.size), xp))
    counts = {kind: int((kinds == kind).sum()) for kind in Modality}
    assert counts == {Modality.SPECIAL: 12, Modality.IMAGE: 20, Modality.TEXT: 30}
    assert (np.diff(kinds) >= 0).all()


def test_every_id_has_its_own_name():
    vocab = Vocab(SMALL)
    names = [vocab.name(i) for i in range(vocab.size)]
    assert len(set(names)) == vocab.size
    assert names[:5] == ["<pad>", "<eos>", "<break>", "<eoss>", "<mask:0>"]


def test_the_fingerprint_changes_with_sizes_and_tokenizers():
    vocab = Vocab(SMALL, "text", "image")
    others = [
        Vocab(dataclasses.replace(SMALL, text_pieces=31), "text", "image"),
        Vocab(SMALL, "other", "image"),
        Vocab(SMALL, "text", "other"),
    ]
    assert len({vocab.fingerprint, *(other.fingerprint for other in others)}) == 4
    vocab.require(vocab.fingerprint, "this")
    with pytest.raises(UserError, match="the checkpoint was made with vocabulary"):
        vocab.require(others[0].fingerprint, "the checkpoint")


def test_sentinels_must_fit():
    with pytest.raises(UserError, match="leaves no room"):
        Vocab(VocabConfig(specials=11, sentinels=8))
    with pytest.raises(ValueError, match="outside"):
        Vocab(SMALL).sentinel(8)
