"""The exam of emoji on an untrained model: what is asked, counted and stamped."""

import dataclasses
from typing import get_args

import pytest

from cm3jax import testing
from cm3jax.config import DataConfig
from cm3jax.data.sources import RawRecord
from cm3jax.data.tokenize import Tools, tokenise
from cm3jax.emoji import looks
from cm3jax.emoji.builder import MANUAL, open_examples
from cm3jax.emoji.prompts import EmojiKind
from cm3jax.evaluate.protocol import scores_from_json, scores_to_json
from cm3jax.learners import clip as clip_learner
from cm3jax.model.decoder import Decoder
from cm3jax.retrieval.bank import Bank, BankDocument
from cm3jax.training.exported_run import LoadedRun, write_run
from experiments.emoji.emoji_scores import EmojiExam
from tests.emoji import small

pytestmark = pytest.mark.slow  # the engine is compiled for every kind of prompt
COUNT = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained chain over a bank of all documents of the test's icons, two of them held out."""
    patch = pytest.MonkeyPatch()
    patch.setattr(looks, "_ALWAYS_HELD_OUT", {"1f1eb-1f1f7", "1f34e"})  # pairs need two
    root = tmp_path_factory.mktemp("emoji")
    small.pack(root / "raw" / MANUAL)
    testing.write_chain(root)
    base = testing.experiment()
    config = dataclasses.replace(
        base,
        name="tiny/decoder",
        model=dataclasses.replace(base.model, context=512),
        data=DataConfig(
            source="emoji", image_size=16, raw=str(root / "raw"), bank=str(root / "bank")
        ),
    )
    text, image = testing.text_tokenizer(), testing.image_tokenizer()
    tools = Tools(text, image, clip_learner.load(root / "clip"))
    vocab = tools.vocab(config.vocab, config.data.image_size)
    decoder = testing.decoder_variables(Decoder(config.model, vocab.size))
    prints = {"text": text.fingerprint, "vocab": vocab.fingerprint, "image": image.fingerprint}
    write_run(LoadedRun(config, decoder, 0, prints), root / "emoji")

    examples = open_examples(root / "raw", 0, 16)
    documents = [examples.example("bank", index) for index in range(examples.bank_size)]
    parts = [(document.caption, document.picture) for document in documents]
    raws = [
        RawRecord(d.key, part, d.kind, d.scene.nouns, d.source, d.licence)
        for d, part in zip(documents, parts, strict=True)
    ]
    members = [
        BankDocument(
            item.raw.key,
            item.ids,
            words,
            True,
            True,
            item.raw.source,
            item.raw.licence,
            item.raw.subjects,
        )
        for item, (words, _) in zip(tokenise(raws, tools, vocab), parts, strict=True)
    ]
    vectors = tools.encoder.encode_documents(parts)
    Bank.build(root / "bank", members, vectors, tools.encoder.fingerprint, vocab.fingerprint)
    yield root / "emoji"
    patch.undo()


def test_every_score_has_its_count_chance_and_documents(run):
    lines = []
    exam = EmojiExam(run, count=COUNT, say=lines.append)
    exam.take(documents=(0, 2))
    assert len(lines) == len(exam.scores)
    named = {name.removesuffix(".name") for name in exam.scores if not name.endswith(".look")}
    assert scores_from_json(scores_to_json(exam.scores)) == exam.scores
    assert named == {
        "heldout.reconstruction",
        "heldout.hit_2.text",
        "heldout.hit_2.image",
        "heldout.hit_2_look.text",
        *(f"{kind}.docs_{k}" for kind in get_args(EmojiKind) for k in (0, 2)),
        "heldout.same_style",
        "heldout.across_styles",
        "heldout.right_and_wrong",
        "heldout.infill",
        "heldout.caption.docs_0",
        "heldout.caption.docs_2",
    }
    for name, score in exam.scores.items():
        assert score.n == COUNT
        assert 0 < score.chance < 1
        protocol = score.protocol
        assert (protocol.retrieved > 0) == (protocol.documents != "none")
        assert "41 pictures" in protocol.reader or "caption" in name or "hit" in name
    assert exam.scores["pair.docs_0.name"].chance == pytest.approx(9.0**-2)
    assert exam.scores["heldout.right_and_wrong.name"].protocol.retrieved == 2
    figures = [figure.kind for figure in exam.figures]
    assert set(figures) == set(get_args(EmojiKind))
