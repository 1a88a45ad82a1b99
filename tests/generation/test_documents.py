import numpy as np
import PIL.Image
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.generation.documents import read_document
from cm3jax.generation.prompts import read_prompt
from cm3jax.sequence.document import render
from tests.generation.ids import codes, words

SIZE = testing.experiment().vqgan.image_size
PROMPT = read_prompt("a cat", SIZE)


def test_documents_come_from_the_live_index(generator):
    sample = generator.generate("the emblem of zorby on a white flag", retrieve=2)
    assert len({document.key for document in sample.documents}) == 2
    scores = [document.score for document in sample.documents]
    assert scores == sorted(scores, reverse=True)
    shown = np.concatenate([document.ids for document in sample.documents])
    assert np.isin(shown, sample.prefix).all()
    text = generator.retrieve(["the emblem of zorby on a white flag"], k=2)[0]
    assert [document.id for document in text] == [document.id for document in sample.documents]
    picture = testing.pictures(1, seed=2)
    best, second = generator.retrieve(images=picture, k=2)[0]
    ((other,),) = generator.retrieve(images=picture, k=1, exclude=[[best.id]])
    assert other.id == second.id != best.id
    with pytest.raises(UserError, match="texts, images, or both"):
        generator.retrieve()
    everything = generator.retrieve(["a cat"], picture, k=99)[0]
    assert len(everything) == 12


def test_why_there_are_fewer_documents_is_said(generator):
    read, lines = [PROMPT], []
    assert len(generator.documents_for(read, 99, say=lines.append)[0]) == 12
    assert lines.pop() == "12 of 99 documents for 'a cat'; the bank has 12"
    (shown,) = generator.documents_for(read, 2, floor=2.0, say=lines.append)
    assert shown == []
    assert lines.pop().startswith("0 of 2 documents for 'a cat'; scores below the floor of 2 were")
    assert len(generator.documents_for(read, 2, say=lines.append)[0]) == 2
    assert lines == []


def test_hand_picked_documents_come_before_retrieved_ones(generator, vocab):
    mine = render(testing.documents(1, seed=8)[0], vocab)
    sample = generator.generate("a red fox", retrieve=1, documents=[mine])
    assert sample.prefix[1 : 1 + len(mine)].tolist() == mine.tolist()
    assert sample.documents[1].key.startswith("tiny-")


def test_a_picture_file_is_a_document_with_the_caption_next_to_it(generator, vocab, picture_path):

    def shown():
        ((ids,),) = generator.documents_for([PROMPT], 0, [read_document(picture_path, SIZE)])
        return ids.tolist()

    seen = codes(generator, np.asarray(PIL.Image.open(picture_path)))
    assert shown() == seen
    picture_path.with_suffix(".txt").write_text("a red fox\n")
    whole = [*words(generator, "a red fox"), vocab.break_, *seen]
    assert shown() == whole
    picture_path.with_suffix(".txt").unlink()
    picture_path.with_suffix(".txt").mkdir()
    with pytest.raises(UserError, match=r"the caption .* can't be read"):
        read_document(picture_path, SIZE)


def test_a_document_is_given_as_a_text_and_a_picture(generator, vocab):
    (document,) = testing.documents(1, seed=8)
    picture, text = testing.pictures(1, seed=8)[0], testing.CAPTIONS[0]
    large = picture.repeat(3, 0).repeat(3, 1)
    mine = cm3jax.Document(text, picture)
    assert (mine.text, mine.image.tolist()) == (text, picture.tolist())
    sample = generator.generate("a red fox", retrieve=1, documents=[mine])
    assert sample.documents[0].tolist() == render(document, vocab).tolist()
    again = generator.text_to_image(["a red fox"], [[mine]])[0][0]
    assert again.documents[0].tolist() == render(document, vocab).tolist()
    ids = generator.generate("a red fox", documents=[cm3jax.Document(large)]).documents[0]
    assert len(ids) == vocab.image_tokens  # brought to the model's size
    read = generator.as_document(sample.documents[0])
    assert read.text == text
    shown = generator.image.decode(generator.image.encode(picture[None]))[0]
    np.testing.assert_array_equal(read.image, shown)
    assert read.key == ""


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ((), "a document is empty"),
        (("  ",), "not '  '"),
        ((np.zeros((4, 4), np.uint8),), r"not \(4, 4\)"),
    ],
)
def test_values_that_are_not_documents_are_refused(segments, said):
    with pytest.raises(UserError, match=said):
        cm3jax.Document(*segments)


def test_fewer_than_no_documents_are_refused(generator):
    with pytest.raises(UserError, match="retrieve=-1 must be 0 or more"):
        generator.generate("a red fox", retrieve=-1)
