"""The exam on held-out records, of a tiny untrained chain: what is asked, counted and stamped."""

import json

import PIL.Image
import pytest

from cm3jax import testing
from cm3jax.evaluate.heldout import HeldOutExam, HeldOutQuery
from cm3jax.evaluate.protocol import scores_from_json, scores_to_json
from cm3jax.retrieval.bank_files import mark_of

pytestmark = pytest.mark.slow  # the engine is compiled


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    root = tmp_path_factory.mktemp("heldout")
    run = testing.write_chain(root / "chain")
    (root / "mine").mkdir()
    lines = []
    for place, picture in enumerate(testing.pictures(4)):
        PIL.Image.fromarray(picture).save(root / "mine" / f"{place}.png")
        lines.append(json.dumps({"file": f"{place}.png", "caption": testing.CAPTIONS[place][:9]}))
    (root / "mine" / "captions.jsonl").write_text("\n".join(lines))
    said = []
    query = HeldOutQuery(str(run), source=str(root / "mine"), documents=(0, 1), count=3, seed=7)
    found = HeldOutExam(query, said.append)
    found.take()
    assert sum(line.split(":")[0] in found.scores for line in said) == len(found.scores)
    return found


def test_every_score_is_stamped_with_what_was_shown(exam):
    assert scores_from_json(scores_to_json(exam.scores)) == exam.scores
    shown = {name: score.protocol.retrieved for name, score in exam.scores.items()}
    assert {name: shown[name] for name in ("nats.none", "psnr.docs_0", "psnr.docs_1")} == {
        "nats.none": 0,
        "psnr.docs_0": 0,
        "psnr.docs_1": 1,
    }
    for score in exam.scores.values():
        protocol = score.protocol
        assert (score.n, protocol.seed, protocol.samples) == (3, 7, 1)
        assert (protocol.retrieved > 0) == (protocol.documents != "none")
        assert protocol.bank.startswith("12 documents, ")
    assert exam.scores["psnr.reconstruction"].protocol.regime == "nothing drawn"
    assert exam.scores["psnr.docs_1"].protocol.regime == "zero-shot, 1 retrieved"
    prompts = {score.protocol.prompts_hash for score in exam.scores.values()}
    assert len(prompts) == 1
    (every,) = prompts
    some = exam._protocol(1, "chosen", "none", rows=[0, 2])
    assert exam._protocol(1, "chosen", "none", rows=[0, 1, 2]).prompts_hash == every
    assert some.prompts_hash != every  # a score over two of them says so


def test_figures_show_documents_before_what_was_drawn_with_them(exam):
    labels = [cell.label for cell in exam.figures[0].cells]
    assert labels[-3:] == ["0 documents", "1 document", "the true image"]
    assert labels[0].startswith("tiny-")
    marks = {mark_of(document) for document in exam.bank.documents()}
    for cell in exam.figures[0].cells:  # by which a takedown finds them
        assert (cell.document in marks) == cell.label.startswith("tiny-")
