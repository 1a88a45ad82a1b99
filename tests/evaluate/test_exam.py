"""The harness of exams on tiny untrained parts: what is given, drawn, judged and stamped agrees."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from cm3jax import testing
from cm3jax.evaluate.exam import FIGURES, NOTHING, Exam, Examinee, Given, Questions
from cm3jax.evaluate.protocol import code_version
from cm3jax.evaluate.results import Cell, Figure
from cm3jax.io.files import digest
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import mark_of
from cm3jax.retrieval.pages import GONE
from cm3jax.retrieval.removed import Removed
from cm3jax.shapes import UInt8


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    text: str
    image: UInt8[np.ndarray, "Y X 3"]


@pytest.fixture(scope="module")
def examinee(tmp_path_factory):
    """The tiny decoder with a bank of the questions themselves, each about something else."""
    run = testing.write_chain(tmp_path_factory.mktemp("chain"))
    model = Examinee.load(run).generator
    pairs = list(zip(testing.CAPTIONS, testing.pictures(4), strict=True))
    members = [
        dataclasses.replace(document, text=text, subjects=(f"thing {place}",))
        for place, (document, (text, _)) in enumerate(
            zip(model.retriever.bank.documents(), pairs, strict=False)
        )
    ]
    prints = (model.encoder.fingerprint, model.vocab.fingerprint)
    Bank.build(run.parent / "own", members, model.encoder.encode_documents(pairs), *prints)
    return Examinee.load(run, run.parent / "own")


@pytest.fixture
def exam(examinee):
    return Exam(examinee, seed=3, say=lambda line: None, bank=examinee.generator.retriever.bank)


@pytest.fixture
def questions():
    pairs = zip(testing.CAPTIONS, testing.pictures(4), strict=True)
    return Questions("tiny", "nothing was trained", [Asked(*pair) for pair in pairs])


def test_weights_are_those_of_every_part(examinee):
    model = examinee.generator
    assert list(examinee.weights) == ["decoder", "text", "image", "clip"]
    assert examinee.weights["text"] == model.text.fingerprint
    assert examinee.weights["clip"] == model.encoder.fingerprint


def test_a_run_without_a_grammar_draws_whole_pictures_too(tmp_path):
    run = testing.write_chain(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["decode"]["grammar"] = False
    (run / "config.json").write_text(json.dumps(config))
    (drawn,) = Examinee.load(run).draw(["a cat"])
    assert drawn.image.shape == testing.pictures(1)[0].shape


def test_what_was_taken_out_since_is_in_no_figure(examinee, tmp_path):
    shutil.copytree(examinee.generator.retriever.bank.path, tmp_path / "bank")
    exam = Exam(examinee, say=lambda line: None, bank=Bank.open(tmp_path / "bank"))
    documents = [exam.bank.meta(row) for row in range(2)]
    cells = [Cell.of("retrieved", None, d.text, document=mark_of(d)) for d in documents]
    exam.figures.append(Figure("a kind", "a prompt", tuple(cells)))
    Removed((documents[0].key,), marks=(mark_of(documents[0]),)).save(exam.bank.path)
    (shown,) = exam.shown
    assert [(one.label, one.text) for one in shown.cells] == [
        (GONE, ""),
        ("retrieved", documents[1].text),
    ]


def test_a_stamp_follows_from_what_was_given(exam, examinee, questions):
    given = exam.retrieve(2, questions)
    assert [len(documents) for documents in given.documents] == [2] * 4
    exam.score("live", [True, False, True, True], 0.25, questions.prompts, "a judge", given)
    exam.score("bare", [1.0, 0.5, 0.5, 1.0], 0.25, questions.prompts, "a judge", drawn=False)
    live, bare = exam.scores["live"], exam.scores["bare"]
    assert (live.value, live.n, live.chance) == (0.75, 4, 0.25)
    assert bare.value == 0.75
    assert 0 < bare.interval[0] < 0.75 < bare.interval[1] <= 1
    stamp = live.protocol
    assert (stamp.prompts, stamp.split, stamp.reader) == ("tiny", "nothing was trained", "a judge")
    shown = [part for one in questions.items for part in (one.text, one.image)]
    assert stamp.prompts_hash == digest(*shown)
    assert stamp.weights == digest(*examinee.weights.values())
    assert stamp.code_version == code_version()
    assert (stamp.seed, stamp.retrieved) == (3, 2)
    assert stamp.documents == "live retrieval by the prompt's text, best 2"
    assert stamp.bank == f"{len(exam.bank)} documents, {exam.bank.fingerprint}"
    parts = {name.partition(".")[0] for name in stamp.settings}
    assert parts == {"decode", "retrieval"}
    other = bare.protocol
    assert (other.regime, other.settings, other.documents) == ("nothing drawn", {}, "none")


@pytest.mark.parametrize("by", ["text", "image"])
def test_a_subject_counts_where_a_found_document_shows_it(exam, questions, by):
    best = exam.retrieve(1, questions, by).documents
    things = [found.meta.subjects[0] for (found,) in best]
    exam.find("right", questions, things, "the bank's subjects", count=1)
    exam.find("wrong", questions, ["nobody"] * 4, "the bank's subjects", count=1)
    found, missed = exam.scores[f"right.{by}"], exam.scores[f"wrong.{by}"]
    assert (found.value, found.chance) == (1, 0.25)
    assert (missed.value, missed.chance) == (0, 0)
    assert found.protocol.regime == "nothing drawn, 1 retrieved"
    assert found.protocol.documents == f"live retrieval by the prompt's {by}, best 1"


def test_figures_are_of_the_worst_and_best_cases(examinee):
    exam = Exam(examinee, prefix="tuned.")
    values = [n % 20 / 19 for n in range(40)]
    names = [str(place) for place in range(40)]
    exam.show("what", values, names, lambda place: [Cell("value", str(values[place]))])
    assert [figure.kind for figure in exam.figures] == ["tuned.what"] * FIGURES
    chosen = " ".join(figure.prompt for figure in exam.figures)
    assert chosen == "0 20 1 21 19 39 18 38"
    assert "4 worst and then the 4 best of 40" in exam.figures[0].note


def test_labels_count_documents():
    labels = [NOTHING.label, Given(None, 1).label, Given(None, 2).label]
    assert labels == ["0 documents", "1 document", "2 documents"]
